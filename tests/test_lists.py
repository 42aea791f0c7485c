"""Lists of jobs from elsewhere become the same traces as accounting does."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc import trace as traces
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.state import Resources
from trace_tools.convert import Wanted, convert, look
from trace_tools.formats import How

SHARED = Path(__file__).parents[2] / "shared" / "data" / "traces"
SWF = """; Version: 2.2
; UnixStartTime: 749458803
 1   0 10 1451 128 -1 -1 128 3600 -1 1 7 1 3 2 -1 -1 -1
 2 1460 -1 3726  64 -1 2048 64 -1 -1 0 8 1 -1 -1 -1 -1 -1
 3 1500 -1   -1  64 -1 -1 64 -1 -1 5 8 1 -1 -1 -1 -1 -1
 4 1600 5
"""
PHILLY = "timestamp,duration,num_gpus,gpu_time,cluster\n2017-10-09 07:01:55,66.0,4,264.0,11cb48\nbroken\n"
HELIOS = """job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue
9,u1,vc3,16,64,2,COMPLETED,2020-04-01 00:00:00,2020-04-01 00:01:00,2020-04-01 01:01:00,3600,60
10,u1,vc3,1,4,1,NODE_FAIL,2020-04-01 00:00:00,2020-04-01 00:01:00,2020-04-01 00:02:00,60,60
"""
MURI = """job_id,num_gpu,submit_time,iterations,model_name,batch_size,duration,interval
0,8,0,100,vgg16,16,490000,46122000
"""
ALIBABA = """\
name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
p0,12500,16384,1,460,,LS,Running,0,500,0
p1,12000,16384,2,1000,V100M32,LS,Succeeded,10,900,20
p2,12000,16384,1,1000,V100M16|V100M32,LS,Running,10,1000,20
p3,12000,16384,1,1000,,BE,Failed,10,900,20
p4,12000,16384,1,1000,,BE,Pending,10,,
"""
GAVEL = "ResNet-18 (batch size 64)\tpython3 main.py\t/x\t--num_steps\t1\t10000\t2\t1.0\t-1.0\t12.5\n"
TABLE = {"v100": {"('ResNet-18 (batch size 64)', 2)": {"null": 50.0}, "('A3C', 2)": {"null": 0.0}}}


def jobs_of(tmp_path: Path, text: str, how: How | None = None) -> tuple[traces.TraceHeader, list[traces.TraceJob]]:
    source, made = tmp_path / "list", tmp_path / "t.jsonl"
    source.write_text(text)
    header = convert([str(source)], made, Wanted(how=how or How()))
    return header, list(traces.read_jobs(made))


def test_the_standard_workload_format(tmp_path):
    header, (first, second) = jobs_of(tmp_path, SWF)
    assert (first.job.submit_time_s, first.ran.start_time_s, first.ran.elapsed_s) == (749458803, 749458813, 1451)
    assert (first.ran.amounts, first.job.time_limit_s, first.job.user) == (Resources(128, 0, 0), 3600, "user7")
    assert (first.job.partitions, first.ran.name, first.ran.state) == (("queue2",), "app3", "COMPLETED")
    assert (second.ran.state, second.ran.max_rss_mb, second.ran.start_time_s) == ("FAILED", 2, None)
    assert (header.counts["broken-line"], header.counts["rows"]) == (1, 4)


def test_philly(tmp_path):
    header, (item,) = jobs_of(tmp_path, PHILLY)
    assert (item.ran.amounts.gpus, item.ran.elapsed_s, item.job.partitions) == (4, 66, ("11cb48",))
    assert (header.counts["state-assumed"], header.counts["broken-line"]) == (1, 1)


def test_helios(tmp_path):
    _, (first, second) = jobs_of(tmp_path, HELIOS)
    assert (first.ran.amounts, first.ran.nodes, first.job.partitions) == (Resources(64, 16, 0), 2, ("vc3",))
    assert second.ran.state == "NODE_FAIL"
    assert first.ran.start_time_s - first.job.submit_time_s == 60


def test_muri(tmp_path):
    _, (item,) = jobs_of(tmp_path, MURI)
    assert (item.ran.amounts.gpus, item.ran.elapsed_s, item.job.submit_time_s) == (8, 490, 0)
    assert item.ran.name == "vgg16 (batch size 16)"


def test_pods_that_the_list_ends_with_have_not_ended(tmp_path):
    header, (first, second, third) = jobs_of(tmp_path, ALIBABA)
    assert (first.ran.amounts, first.ran.elapsed_s, first.ran.state) == (Resources(13, 1, 16384), 500, "CANCELLED")
    assert (second.job.gpu_type, second.ran.state, second.ran.elapsed_s) == ("V100M32", "COMPLETED", 880)
    assert third.ran.state == "FAILED"
    assert (header.counts["not-ended"], header.counts["gpu-share"]) == (2, 1)
    assert "no-submit-time" not in header.counts


def test_gavel_with_its_table(tmp_path):
    table = tmp_path / "simulation_throughputs.json"
    table.write_text(json.dumps(TABLE))
    other = GAVEL.replace("ResNet-18", "Unheard-of")
    header, (item,) = jobs_of(tmp_path, GAVEL + other, How(throughputs=table))
    assert (item.ran.elapsed_s, item.ran.amounts.gpus, item.job.submit_time_s) == (200, 2, 12)
    assert header.counts["broken-line"] == 1
    with pytest.raises(TraceError, match="--throughputs"):
        jobs_of(tmp_path, GAVEL)
    table.write_text('{"k80": 1}')
    with pytest.raises(TraceError, match="not the table"):
        jobs_of(tmp_path, GAVEL, How(throughputs=table))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([SWF, PHILLY, HELIOS, MURI, ALIBABA]), st.binary(max_size=40), st.integers(0, 500))
def test_no_change_to_a_list_makes_it_crash(tmp_path_factory, text, junk, where):
    source = tmp_path_factory.mktemp("lists") / "list"
    data = text.encode()
    source.write_bytes(data[:where] + junk + data[where:])
    try:
        assert look([str(source)], Wanted()).jobs <= 4
    except TraceError:
        return


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("name", ["alibaba-gpu-v2023/openb_pod_list_default.csv", "philly/philly-head20000.csv",
                                  "muri/trace1.csv", "muri/trace2.csv", "swf/lublin_256.swf",
                                  "swf/NASA-iPSC-1993-3.swf"])  # fmt: skip
def test_real_lists_are_used_whole(name):
    tally = look([str(SHARED / name)], Wanted())
    assert tally.jobs > 200
    assert tally.share_used == 1
