"""Which jobs of a trace are replayed, on which amounts, and what is told of it; without a replay."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from tapfinger_hpc.sim import cli
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import Node, Partition, PendingJob, Resources
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Ran, TraceJob
from tapfinger_hpc.whatif import preparation, report
from tapfinger_hpc.whatif.admission import Admission, admit
from tapfinger_hpc.whatif.ranges import known_range, without_memory
from tapfinger_hpc.whatif.report import Replayed, Window
from tapfinger_hpc.whatif.shape import Shape
from tapfinger_hpc.whatif.straying import strayed

NODE, HELD = Resources(16, 4, 64000), Resources(4, 1, 8000)


def shape(capacity: Resources = NODE, **partitions: int | None) -> Shape:
    """Two nodes; partitions by name with their time limits."""
    nodes = tuple(Node(name, capacity, capacity) for name in ("n1", "n2"))
    limits = partitions or {"gpu": None}
    return Shape("test", ClusterSpec(nodes, tuple(Partition(n, ("n1", "n2"), max_time_s=s) for n, s in limits.items())))


def job(number: int = 1, held: Resources = HELD, *, elapsed_s: float = 600.0, **fields) -> TraceJob:
    nodes = fields.pop("nodes", 1)
    state = fields.pop("state", "COMPLETED")
    start_s = fields.pop("start_s", 60 * number + 5)
    asked = PendingJob(
        job_id=str(number),
        submit_time_s=60 * number,
        requested=held,
        minimum=held,
        maximum=held,
        **{"partitions": ("gpu",), "time_limit_s": 3600, **fields},
    )
    return TraceJob(asked, 1.0, Ran(state, elapsed_s, held, nodes=nodes, start_time_s=start_s))


def admitted(*jobs: TraceJob, on: Shape | None = None, **mapped: Sequence[str]) -> Admission:
    return admit(jobs, on or shape(), {name: tuple(names) for name, names in mapped.items()})


# Which jobs.


def test_a_job_is_replayed_on_what_it_held():
    asked = job(held=Resources(4, 1, 8000))
    held = replace(asked, ran=replace(asked.ran, amounts=Resources(8, 1, 0)))
    (taken,) = admitted(held).jobs
    assert taken.job.requested == taken.job.maximum == taken.ran.amounts == Resources(8, 1, 8000)


def test_jobs_that_no_node_holds_are_left_out_and_counted():
    found = admitted(
        job(1, Resources(17, 1, 1)), job(2, Resources(96, 0, 0), nodes=3), job(3, Resources(32, 0, 0), nodes=2)
    )
    assert found.left_out == {"no-node-holds-it": 2}
    assert [item.job.job_id for item in found.jobs] == ["3"]


def test_a_partition_that_the_cluster_does_not_have_is_mapped_or_any_that_holds_the_job():
    on = shape(new=None, other=None)
    found = admitted(job(1, partitions=("old",)), job(2, partitions=("lost",)), on=on, old=["new"])
    assert [item.job.partitions for item in found.jobs] == [("new",), ("new", "other")]
    assert found.assumed == {"partition-mapped": 1, "partition-unknown": 1}


@pytest.mark.parametrize(
    ("limit_s", "elapsed_s", "becomes", "reason"),
    [
        (3600, 600.0, 3600, {}),
        (None, 600.0, 7200, {"limit-of-partition": 1}),
        (9000, 600.0, 7200, {"limit-cut": 1}),
        (3600, 3625.0, 3625, {"limit-stretched": 1}),
    ],
)
def test_time_limits_are_those_with_which_the_job_could_have_run_here(limit_s, elapsed_s, becomes, reason):
    found = admitted(job(time_limit_s=limit_s, elapsed_s=elapsed_s), on=shape(gpu=7200))
    assert found.jobs[0].job.time_limit_s == becomes
    assert found.assumed == reason


def test_a_job_that_ran_for_longer_than_its_partitions_allow_is_left_out():
    assert admitted(job(time_limit_s=None, elapsed_s=9000.0), on=shape(gpu=7200)).left_out == {"too-long": 1}


def test_gpu_types_count_where_the_cluster_tells_its_own():
    wants = job(gpu_type="a100")
    assert admitted(wants).jobs[0].job.gpu_type == ""
    typed = shape()
    nodes = tuple(replace(node, gpu_type="v100") for node in typed.spec.nodes)
    typed = replace(typed, spec=replace(typed.spec, nodes=nodes))
    assert admitted(wants, on=typed).left_out == {"gpu-type-unknown": 1}


def test_priorities_count_only_where_all_jobs_have_them():
    assert admitted(job(1, priority=5), job(2, priority=9)).by_priority
    found = admitted(job(1, priority=5), job(2))
    assert not found.by_priority
    assert {item.job.priority for item in found.jobs} == {0}
    assert found.assumed == {"priority-passed-over": 1}


def test_memory_is_no_matter_where_the_cluster_does_not_count_it():
    found = admitted(job(held=Resources(4, 1, 999_000)), on=shape(Resources(16, 4, 0)))
    assert found.jobs[0].job.requested == Resources(4, 1, 0)


def test_of_a_job_that_is_listed_twice_one_is_replayed():
    assert admitted(job(1), job(1)).left_out == {"listed-twice": 1}


# On which amounts.


def grid_class(log_std: Sequence[float], observations: int = 9) -> JobClass:
    """800 s / CPUs / GPUs on 1, 2, 4, 8 CPUs (with these deviations) and 1, 2, 4 GPUs that need 4, 8 and 16 GB."""
    cpus, gpus, mem = (1, 2, 4, 8), (1, 2, 4), (4000, 8000, 16000)
    seconds = tuple(800 / c / g if m >= 4000 * g else None for c in cpus for g in gpus for m in mem)
    deviations = tuple(log_std[i] for i in range(len(cpus)) for _ in gpus for _ in mem)
    return JobClass("u/a/train", SpeedModel(cpus, gpus, mem, seconds, deviations), observations)


def test_ranges_reach_as_far_as_the_class_is_known():
    known = grid_class([0.6, 0.3, 0.3, 0.35])
    least, greatest = known_range(known, Resources(4, 1, 32000), Resources(16, 4, 64000))
    assert (least.cpus, greatest.cpus) == (2, 8), "on one CPU the class is much less sure"
    assert (least.gpus, greatest.gpus) == (1, 4)
    assert least.mem_mb == greatest.mem_mb == 32000


def test_more_gpus_are_offered_only_with_the_memory_for_them():
    _, greatest = known_range(grid_class([0.3] * 4), Resources(4, 1, 8000), Resources(16, 4, 64000))
    assert greatest.gpus == 2
    _, greatest = known_range(grid_class([0.3] * 4), Resources(4, 1, 500), Resources(16, 4, 64000))
    assert greatest.gpus == 4, "a job that ran with less than its class needs says nothing of memory"


def test_no_range_reaches_beyond_the_largest_node():
    _, greatest = known_range(grid_class([0.3] * 4), Resources(4, 1, 32000), Resources(6, 2, 64000))
    assert (greatest.cpus, greatest.gpus) == (4, 2)


def test_a_class_of_few_jobs_leaves_amounts_as_they_were():
    held = Resources(4, 1, 32000)
    assert known_range(grid_class([0.3] * 4, observations=4), held, Resources(16, 4, 64000)) == (held, held)


def test_memory_can_be_taken_out_of_a_class():
    bare = without_memory(grid_class([0.3] * 4))
    assert bare.speed.duration_s(Resources(4, 4, 1)) == pytest.approx(50)
    assert bare.speed.duration_s(Resources(4, 4, 0)) == pytest.approx(50)


def planned(
    *jobs: TraceJob,
    managed: preparation.Managed = "all",
    known: JobClass | None = None,
    told: Sequence[JobClass] | None = None,
) -> preparation.Plan:
    admission = admitted(*jobs)
    keys = frozenset(item.job.key for item in admission.jobs)
    learned = (known or grid_class([0.3] * 4),)
    return preparation.plan(
        admission, shape(), "test", learned, dict.fromkeys(keys, learned[0].name), managed, keys, told
    )


def test_a_job_takes_its_own_time_times_what_its_class_says_of_other_amounts():
    plan = planned(job(1, Resources(4, 1, 32000), elapsed_s=500.0))
    (free,) = plan.changed.jobs
    assert plan.changed.true_duration_s(free, Resources(4, 1, 32000)) == pytest.approx(500)
    assert plan.changed.true_duration_s(free, Resources(8, 2, 32000)) == pytest.approx(125)
    assert plan.kept.jobs[0].job.minimum == plan.kept.jobs[0].job.maximum


def test_policies_may_be_told_less_than_is_true():
    believed = grid_class([0.3, 0.3, 0.3, 0.9])
    plan = planned(job(1, Resources(4, 1, 32000)), told=[believed])
    (free,) = plan.changed.jobs
    assert free.job.maximum.cpus == 4, "ranges reach as far as policies know the class"
    assert plan.told[0].speed.log_std_at(Resources(8, 1)) == pytest.approx(0.9)
    assert plan.changed.classes[0].speed.log_std_at(Resources(8, 1)) == pytest.approx(0.3)
    assert planned(job(1, Resources(4, 1, 32000)), told=[]).changed is None


def test_jobs_that_did_not_finish_keep_their_amounts():
    plan = planned(job(1, Resources(4, 1, 32000)), job(2, Resources(4, 1, 32000), state="FAILED"))
    assert plan.ranged == 1
    assert plan.changed.jobs[1].job.minimum == plan.changed.jobs[1].job.maximum
    assert plan.managed == 2


def test_which_jobs_are_managed_can_be_chosen():
    jobs = (job(1), job(2, Resources(4, 0, 8000)), job(3, Resources(8, 2, 8000), nodes=2), job(4, managed=True))
    counts = [planned(*jobs, managed=choice).managed for choice in ("all", "gpu", "marked")]
    assert counts == [3, 2, 1]


# What is asked.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trace", "t.jsonl", "--cluster", "c", "--scenario", "hetero-6"], ["--scenario", "--trace"]),
        (["--trace", "t.jsonl", "--cluster", "c", "--seeds", "3"], ["--seeds", "--trace"]),
        (["--trace", "t.jsonl"], ["--trace", "--cluster"]),
        (["--cluster", "slurm.conf", "--scenario", "hetero-6"], ["--cluster", "--trace"]),
        ([], ["--scenario", "--trace"]),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments, named):
    done = CliRunner().invoke(cli.evaluate, ["--policies", "easy", *arguments])
    assert done.exit_code == 2
    assert all(option in done.output for option in named)


# What is told.


def record(item: TraceJob, wait_s: float, lasts_s: float | None = None, **fields) -> JobRecord:
    start_s = item.job.submit_time_s + wait_s
    return JobRecord(
        job_id=item.job.job_id,
        submit_s=float(item.job.submit_time_s),
        start_s=start_s,
        end_s=start_s + (item.ran.elapsed_s if lasts_s is None else lasts_s),
        partition="gpu",
        nodes=("n1",),
        requested=item.job.requested,
        **{"amounts": item.job.requested, **fields},
    )


def window_of(jobs: Sequence[TraceJob]) -> Window:
    return Window(frozenset(item.job.key for item in jobs), shape().spec)


def test_a_replay_that_does_what_was_done_is_faithful():
    jobs = [job(number, start_s=60 * number + number % 7) for number in range(1, 40)]
    easy = Replayed("easy", report.KEPT, tuple(record(item, item.job.submit_time_s // 60 % 7) for item in jobs), 1.0)
    found = report.fidelity(easy, window_of(jobs), {item.job.key: item for item in jobs})
    assert found.near == 1.0
    assert found.correlation == pytest.approx(1.0)
    assert found.waits_as_it_was
    assert found.real_mean_completion_s == found.replayed_mean_completion_s


def test_waiting_the_other_way_round_is_told():
    jobs = [job(number, start_s=60 * number + 1000 * number) for number in range(1, 20)]
    easy = Replayed("easy", report.KEPT, tuple(record(item, 20_000 - item.job.submit_time_s) for item in jobs), 1.0)
    found = report.fidelity(easy, window_of(jobs), {item.job.key: item for item in jobs})
    assert found.correlation == pytest.approx(-1.0)
    assert found.near < 0.5


def test_a_replay_in_which_nobody_waits_is_told_not_to_be_trusted():
    jobs = [job(number, start_s=60 * number + 1000) for number in range(1, 20)]
    easy = Replayed("easy", report.KEPT, tuple(record(item, 0.0) for item in jobs), 1.0)
    found = report.fidelity(easy, window_of(jobs), {item.job.key: item for item in jobs})
    assert not found.waits_as_it_was
    assert found.correlation is None


def test_a_trace_without_starts_has_no_fidelity():
    jobs = [job(1, start_s=None), job(2, start_s=None)]
    easy = Replayed("easy", report.KEPT, tuple(record(item, 0.0) for item in jobs), 1.0)
    assert report.fidelity(easy, window_of(jobs), {item.job.key: item for item in jobs}) is None


def test_rows_are_changes_of_the_same_jobs():
    jobs = [job(number) for number in range(1, 200)]
    base = Replayed("easy", report.KEPT, tuple(record(item, 600.0) for item in jobs), 1.0)
    faster = tuple(record(item, 300.0, amounts=Resources(8, 1, 8000)) for item in jobs)
    rows = report.rows(
        [base, Replayed("price", report.CHANGED, faster, 1.0)], window_of(jobs), {j.job.key: j for j in jobs}
    )
    assert rows[0].completion is None
    assert (rows[1].completion.value, rows[1].waiting.value) == (-0.25, -0.5)
    assert rows[1].completion.clear
    assert (rows[0].changed, rows[1].changed) == (0, 199)


def test_jobs_that_only_fill_the_cluster_do_not_count():
    jobs = [job(number) for number in range(1, 11)]
    found = window_of(jobs[5:]).of([record(item, 0.0) for item in jobs])
    assert [item.job_id for item in found] == sorted((item.job.job_id for item in jobs[5:]), key=int)


def test_other_curves_leave_a_job_its_own_time_on_its_own_amounts():
    plan = planned(job(1, Resources(4, 1, 32000), elapsed_s=500.0), known=grid_class([0.9, 0.3, 0.3, 0.5]))
    elsewhere = set()
    for seed in range(5):
        trace = strayed(plan.changed, seed)
        (item,) = trace.jobs
        assert trace.true_duration_s(item, Resources(4, 1, 32000)) == pytest.approx(500)
        elsewhere.add(trace.true_duration_s(item, Resources(8, 1, 32000)))
    assert len(elsewhere) == 5
    assert min(elsewhere) < plan.changed.true_duration_s(plan.changed.jobs[0], Resources(8, 1, 32000)) < max(elsewhere)


def test_intervals_with_other_curves_are_wider():
    source = np.random.default_rng(3)
    before, blocks = source.exponential(100.0, 1000), np.repeat(np.arange(20), 50)
    after = 0.8 * before
    narrow = report.change(before, after, blocks)
    wide = report.change(before, after, blocks, [0.7 * before, 0.8 * before, 0.95 * before])
    assert narrow.value == wide.value == pytest.approx(-0.2)
    assert wide.low < narrow.low
    assert wide.high > narrow.high


def test_intervals_over_stretches_of_time_hold_what_they_promise():
    """Jobs of one stretch share their luck, as they share a queue: intervals over jobs would be far too narrow."""
    source = np.random.default_rng(5)
    blocks = np.repeat(np.arange(25), 40)
    inside = 0
    for trial in range(40):
        luck = np.exp(source.normal(0.0, 0.4, 25))[blocks]
        before = source.exponential(100.0, 1000)
        found = report.change(before, before * luck, blocks, seed=trial)
        inside += found.low <= math.exp(0.08) - 1 <= found.high
    assert inside >= 0.8 * 40
