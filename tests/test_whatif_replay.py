"""``tapfinger evaluate --trace``, the whole way: a trace, a cluster, the replays, and what is told of them."""

import json

import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from tapfinger_hpc import trace as traces
from tapfinger_hpc.cli import LENT, borrowed, tapfinger
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.state import Resources
from tapfinger_hpc.trace import Ran, Trace, TraceJob
from tapfinger_hpc.whatif import evaluation, playing
from tapfinger_hpc.whatif.evaluation import Lent
from tapfinger_hpc.whatif.ranges import without_memory
from tapfinger_hpc.whatif.report import CHANGED, WhatIf, Window, rows
from tapfinger_hpc.workload import WorkloadKnobs, random_trace

pytestmark = pytest.mark.slow
NAMES = {"class0": "alpha", "class1": "bravo", "class2": "charlie"}
CLUSTER = """
[[node]]
names = "n[1-4]"
cpus = 16
gpus = 4
mem = "64000M"
[[partition]]
name = "pa"
nodes = "n[1-2]"
[[partition]]
name = "pb"
nodes = "n[3-4]"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cluster, and what its accounting would say of jobs that stock Slurm ran there."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "cluster.toml").write_text(CLUSTER)
    spec = ClusterSpec.uniform(2, 2, Resources(16, 4, 64000))
    drawn = random_trace(7, spec, WorkloadKnobs(jobs=150, load=0.9, classes=3, mean_s=900.0, job_spread=0.2))
    ran = {record.job_id: record for record in replay(drawn, spec)}
    jobs = tuple(TraceJob(_submitted(item), 1.0, _ran(item, ran[item.job.job_id])) for item in drawn.jobs)
    traces.write(Trace("site", (), jobs, 1_700_000_000), folder / "site.jsonl")
    traces.write(drawn, folder / "truth.jsonl")
    return folder


def _submitted(item):
    asked = item.job.requested
    return replace(item.job, minimum=asked, maximum=asked, managed=False, job_class="", user="ann")


def _ran(item, record):
    return Ran(
        record.outcome,
        record.running_s,
        record.amounts,
        start_time_s=int(record.start_s),
        account="lab",
        name=NAMES[item.job.job_class],
    )


def evaluated(folder, *arguments: str) -> WhatIf:
    file = folder / "found.json"
    given = ["--trace", str(folder / "site.jsonl"), "--cluster", str(folder / "cluster.toml"), "--json", str(file)]
    done = CliRunner().invoke(tapfinger, ["evaluate", *given, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return msgspec.json.decode(file.read_bytes(), type=WhatIf)


def test_stock_slurm_replayed_is_what_stock_slurm_did(folder):
    found = evaluated(folder, "--policies", "easy,price", "--plots", str(folder / "plots"))
    assert found.fidelity.near == 1.0
    assert found.fidelity.correlation == pytest.approx(1.0, abs=0.01)
    assert found.fidelity.replayed_mean_waiting_s == pytest.approx(found.fidelity.real_mean_waiting_s, rel=0.01, abs=1)
    assert (found.jobs, found.managed, found.left_out) == (150, 150, {})
    assert {path.name for path in (folder / "plots").iterdir()} == {
        f"what-if-{what}.{kind}" for what in ("completion", "over-time") for kind in ("svg", "png")
    }


def test_amounts_change_only_where_they_may(folder):
    found = evaluated(folder, "--policies", "price", "--amounts", "both", "--draws", "2")
    assert [row.name for row in found.rows] == ["easy", "price", "price, may change"]
    assert found.row("price").changed == 0
    assert 0 < found.row("price", CHANGED).changed <= found.ranged
    assert found.draws == 2
    assert found.row("price").completion.low <= found.row("price").completion.value


def test_what_the_fitted_models_promise_is_about_what_the_true_curves_give(folder):
    lent = Lent(**{name: borrowed(name) for name in LENT})
    loaded = evaluation.load(folder / "site.jsonl", str(folder / "cluster.toml"), {}, "all", lent)
    plan = evaluation.prepare(loaded).plan
    # The same jobs with the same ranges; the policy goes on believing what was fitted.
    true = {item.job.job_id: item for item in traces.read(folder / "truth.jsonl").jobs}
    curves = {one.name: without_memory(one) for one in traces.read(folder / "truth.jsonl").classes}
    of_fitted = {item.job.job_class: true[item.job.job_id].job.job_class for item in plan.changed.jobs}
    classes = tuple(replace(curves[name], name=fitted) for fitted, name in of_fitted.items())
    jobs = tuple(replace(item, scale=true[item.job.job_id].scale) for item in plan.changed.jobs)
    true_plan = replace(plan, changed=Trace("true", classes, jobs))
    window = Window(plan.counted, loaded.shape.spec)
    changes = []
    for each in (plan, true_plan):
        found = playing.replays(each, loaded.shape.spec, [playing.Contender("price", "price")], amounts=(CHANGED,))
        changes.append(rows(list(found), window, {item.job.key: item for item in plan.kept.jobs})[1].completion.value)
    assert changes[0] < -0.03, "amounts bring something here"
    assert changes[0] == pytest.approx(changes[1], abs=0.08)


def test_a_part_of_the_trace_begins_with_the_jobs_that_were_there(folder):
    whole = traces.read(folder / "site.jsonl")
    middle = whole.jobs[75].job.submit_time_s
    since = str(whole.zero_s + middle)
    found = evaluated(folder, "--policies", "easy", "--since", since, "--jobs", "40")
    assert found.jobs == 40
    assert any("fill the cluster at the begin" in note for note in found.notes)
    assert found.fidelity.near > 0.75


def test_a_policy_that_cannot_be_replayed_is_answered_with_those_that_can(folder):
    given = ["--trace", str(folder / "site.jsonl"), "--cluster", str(folder / "cluster.toml")]
    done = CliRunner().invoke(tapfinger, ["evaluate", *given, "--policies", "srtf"])
    assert done.exit_code == 2
    assert "srtf" in done.output
    assert "price" in done.output


def test_a_trace_of_which_no_job_is_left_says_why(folder):
    given = ["--trace", str(folder / "site.jsonl"), "--cluster", str(folder / "cluster.toml"), "--policies", "easy"]
    done = CliRunner().invoke(tapfinger, ["evaluate", *given, "--since", "2035-01-01"])
    assert done.exit_code == 1
    assert "no job was submitted" in str(done.exception)


def test_made_up_traces_are_replayed_with_their_own_classes(folder):
    made = folder / "made.jsonl"
    CliRunner().invoke(tapfinger, ["trace", "synth", "--jobs", "30", "-o", str(made)], catch_exceptions=False)
    file = folder / "made.json"
    sandbox = folder / "sandbox.toml"
    sandbox.write_text(CLUSTER + '[[partition]]\nname = "pc"\n')
    done = CliRunner().invoke(
        tapfinger,
        ["evaluate", "--trace", str(made), "--cluster", str(sandbox), "--policies", "price", "--json", str(file)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    found = json.loads(file.read_bytes())
    assert found["fidelity"] is None
    assert found["ranged"] > 0


def test_many_jobs_at_once_are_all_started_though_few_are_planned_at_a_time(folder):
    spec = ClusterSpec.uniform(1, 10, Resources(16, 0, 64000))
    asked = traces.read(folder / "site.jsonl").jobs[0].job
    one = Resources(1, 0, 100)
    jobs = tuple(
        TraceJob(
            replace(asked, job_id=str(n), submit_time_s=0, partitions=("pa",), requested=one, minimum=one, maximum=one),
            1.0,
            Ran("COMPLETED", 1000.0, one),
        )
        for n in range(300)
    )
    records = replay(Trace("array", (), jobs), spec)
    assert sum(record.start_s == 0 for record in records) == 160
    assert max(record.start_s for record in records) == 1000
