"""Trace files, and ``tapfinger trace``."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cluster_states import job, speed
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tapfinger_hpc import trace as traces
from tapfinger_hpc import workload
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from tapfinger_hpc.trace import Ran, Trace, TraceJob
from trace_tools.check import report
from trace_tools.cli import trace as command

KNOWN = JobClass("known", speed(g1=100, g4=40))


def small(*jobs: TraceJob) -> Trace:
    return Trace("test", (KNOWN,), jobs or (TraceJob(job("1", job_class="known"), 2.0),))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_a_trace_is_read_back_as_it_was_written(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    drawn = workload.demo_trace(seed, 12)
    traces.write(drawn, path)
    assert traces.read(path) == drawn


def test_the_true_duration_is_that_of_the_class_times_the_jobs_own_scale():
    made = small()
    assert made.true_duration_s(made.jobs[0], Resources(1, 1, 1000)) == pytest.approx(200)
    assert made.true_duration_s(made.jobs[0], Resources(1, 4, 1000)) == pytest.approx(80)


def test_a_trace_of_version_1_is_still_read(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    traces.write(small(), path)
    header, line = path.read_bytes().splitlines()
    kept = {name: value for name, value in json.loads(header).items() if name in ("format", "source", "classes")}
    path.write_bytes(json.dumps({**kept, "version": 1}).encode() + b"\n" + line + b"\n")
    assert traces.read(path) == small()


def seen(job_id: str, *, submitted: int = 1_700_000_000, amounts: Resources | None = None) -> TraceJob:
    """A job that accounting saw run for 100 s on 4 CPUs and 1 GPU."""
    ran = Ran("COMPLETED", 100.0, amounts or Resources(4, 1, 16000), start_time_s=submitted + 5, name="train")
    return TraceJob(job(job_id, submit_time_s=submitted), ran=ran)


def test_times_of_accounting_are_read_as_seconds_from_the_first_submission_in_order(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    traces.write(Trace("site", (), (seen("8", submitted=1_700_000_900), seen("7"))), path)
    read = traces.read(path)
    assert [(item.job.job_id, item.job.submit_time_s, item.ran.start_time_s) for item in read.jobs] == [
        ("7", 0, 5),
        ("8", 900, 905),
    ]
    assert read.zero_s == 1_700_000_000
    traces.write(read, path)
    assert traces.read(path) == read


def test_a_job_of_no_class_takes_as_long_as_it_took_and_less_on_more_gpus():
    trace = Trace("site", (), (seen("7"),))
    assert trace.true_duration_s(trace.jobs[0], Resources(4, 1, 16000)) == 100
    assert trace.true_duration_s(trace.jobs[0], Resources(4, 2, 32000)) < 100
    assert trace.true_duration_s(trace.jobs[0], Resources(2, 1, 16000)) > 100


def test_nothing_is_left_beside_a_trace_and_none_is_half_written(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    traces.write(small(), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        traces.write(replace(small(), source=object()), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: [b'{"format": "other"}'], "line 1"),
        (lambda lines: [lines[0].replace(b'"version":2', b'"version":3'), *lines[1:]], "version"),
        (lambda lines: [lines[0], b"{"], "line 2"),
        (lambda lines: [lines[0], lines[1].replace(b'"scale":2.0', b'"scale":0')], "scale"),
        (lambda lines: [lines[0], lines[1].replace(b'"cpus":4', b'"cpus":-4', 1)], "cpus"),
        (lambda lines: [lines[0], lines[1].replace(b'"known"', b'"other"')], "'other'"),
        (lambda lines: [lines[0], lines[1].replace(b'"scale"', b'"runtime"')], "runtime"),
        (lambda lines: [lines[0]], "0 jobs, where the header says 1"),
        (lambda lines: [lines[0], lines[1].replace(b'"scale":2.0', b'"scale":2.5')], "sha256"),
    ],
)
def test_what_cannot_be_read_is_refused_with_line_and_field(tmp_path: Path, change, named):
    path = tmp_path / "t.jsonl"
    traces.write(small(), path)
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())))
    with pytest.raises(TraceError, match=named):
        traces.read(path)


def test_a_file_that_is_not_there_is_refused_with_its_name(tmp_path: Path):
    with pytest.raises(TraceError, match=r"gone\.jsonl"):
        traces.read(tmp_path / "gone.jsonl")


# The report.


def test_a_good_trace_is_counted_and_nothing_is_wrong():
    drawn = workload.demo_trace(1, 40)
    found = report(drawn)
    assert (found.jobs, found.managed, found.wrong) == (40, 40, ())
    assert sum(found.gpus_requested.values()) == 40
    assert sum(row.jobs for row in found.classes) == 40
    assert found.gpus_busy / 24 == pytest.approx(0.8, abs=0.15)


@pytest.mark.parametrize(
    ("fields", "scale", "wrong"),
    [
        ({"eligible": False}, 1.0, "never start"),
        ({"nodes_wanted": 2}, 1.0, "2 nodes"),
        ({"tasks": 17}, 1.0, "17 tasks"),
        ({"time_limit_s": 90}, 1.0, "beyond its limit of 90 s"),
    ],
)
def test_what_makes_a_job_unusable_is_said(fields, scale, wrong):
    found = report(small(TraceJob(job("7", job_class="known", **fields), scale)))
    assert found.wrong_count == 1
    assert "job 7" in found.wrong[0]
    assert wrong in found.wrong[0]


def test_a_job_that_is_listed_twice_is_said():
    twice = TraceJob(job("7", job_class="known"))
    assert "twice" in report(small(twice, twice)).wrong[0]


def test_an_empty_trace_has_a_report():
    assert report(Trace("nothing", (KNOWN,), ())).jobs == 0


# The command.


def test_a_workload_is_made_and_checked_from_the_command_line(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    made = CliRunner().invoke(command, ["synth", "--jobs", "30", "--seed", "4", "--load", "0.6", "-o", str(path)])
    assert made.exit_code == 0, made.output
    assert traces.read(path) == workload.demo_trace(4, 30, load=0.6)
    checked = CliRunner().invoke(command, ["check", str(path), "--json"])
    assert checked.exit_code == 0
    assert json.loads(checked.output)["jobs"] == 30
    shown = CliRunner().invoke(command, ["check", str(path)])
    assert shown.exit_code == 0
    assert "resnet50-imagenet" in shown.output


def test_a_trace_with_something_wrong_is_shown_and_fails(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    traces.write(small(*(TraceJob(job(f"{n}", job_class="known", time_limit_s=9)) for n in range(1, 30))), path)
    checked = CliRunner().invoke(command, ["check", str(path)])
    assert checked.exit_code == 1
    assert "wrong: job 1:" in checked.output
    assert "and 9 more" in checked.output
