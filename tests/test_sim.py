"""The simulated cluster: time, Slurm's own turn, what updates do, and whole workloads."""

import pytest
from cluster_states import NODE, job, speed
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc import workload
from tapfinger_hpc.decision import Placement, guard_all, update_for
from tapfinger_hpc.policies import registry
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.sim.cluster import SimulatedCluster
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.random_clusters import random_cluster
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import Resources
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace, TraceJob

HUNDRED = JobClass("hundred", speed(g1=100, g2=60, g4=40))
ONE_NODE = ClusterSpec.uniform(partitions=1, nodes_each=1)
TWO_NODES = ClusterSpec.uniform(partitions=1, nodes_each=2)


def submitted(job_id: str, at_s: int, gpus: int, *, scale: float = 1.0, **fields) -> TraceJob:
    """A job of 100 s on 1 GPU that asks for this many and may have 1-4."""
    values = {"job_class": "hundred", "lease_until_s": None, "priority": 0, "time_limit_s": 600}
    return TraceJob(job(job_id, at_s, requested=Resources(4 * gpus, gpus, 8000), **(values | fields)), scale)


def trace(*jobs: TraceJob, classes=(HUNDRED,)) -> Trace:
    return Trace("test", tuple(classes), jobs)


def world(spec: ClusterSpec, *jobs: TraceJob, **knobs) -> tuple[SimulatedCluster, SimClock]:
    clock = SimClock()
    return SimulatedCluster(spec, trace(*jobs), clock, **knobs), clock


def by_id(records: tuple[JobRecord, ...]) -> dict[str, JobRecord]:
    return {record.job_id: record for record in records}


# Stock Slurm.


def test_on_stock_slurm_jobs_start_in_order_with_what_they_ask_for():
    records = by_id(replay(trace(submitted("1", 0, 4), submitted("2", 1, 2), submitted("3", 2, 2)), ONE_NODE))
    assert (records["1"].start_s, records["1"].end_s) == (0, pytest.approx(40))
    assert records["2"].start_s == records["3"].start_s == pytest.approx(40)
    assert records["2"].amounts == Resources(8, 2, 8000)
    assert (records["2"].waiting_s, records["2"].running_s, records["2"].completion_s) == pytest.approx((39, 60, 99))


def test_on_stock_slurm_a_short_job_is_backfilled_and_a_long_one_is_not():
    jobs = (
        submitted("1", 0, 2, time_limit_s=120),
        submitted("2", 1, 4, time_limit_s=120),
        submitted("3", 2, 1, time_limit_s=180),
        submitted("4", 3, 1, time_limit_s=110),
    )
    records = by_id(replay(trace(*jobs), ONE_NODE))
    assert records["4"].start_s == 3
    assert records["2"].start_s == pytest.approx(103)
    assert records["3"].start_s > 103


def test_a_job_is_ended_by_its_time_limit():
    (record,) = replay(trace(submitted("1", 0, 1, scale=9.0)), ONE_NODE)
    assert (record.running_s, record.outcome) == (600, "TIMEOUT")


def test_a_job_with_too_little_memory_fails():
    hungry = JobClass("hundred", SpeedModel((1,), (1,), (1000, 9000), (None, 10.0)))
    (record,) = replay(trace(submitted("1", 0, 1), classes=(hungry,)), ONE_NODE)
    assert record.outcome == "OUT_OF_MEMORY"


def test_a_job_of_several_partitions_starts_where_there_is_room_first():
    spec = ClusterSpec.uniform(partitions=2, nodes_each=1)
    jobs = submitted("1", 0, 4), submitted("2", 1, 4, partitions=("pa", "pb"))
    records = by_id(replay(trace(*jobs), spec))
    assert (records["2"].partition, records["2"].nodes, records["2"].start_s) == ("pb", ("n2",), 1)


def test_a_job_of_two_nodes_holds_its_part_of_each():
    wide = submitted("1", 0, 4, nodes_wanted=2, managed=False)
    cluster, clock = world(TWO_NODES, wide)
    assert {each.free.gpus for each in cluster.observe().nodes} == {2}
    clock.wait(1000)
    assert cluster.records()[0].nodes == ("n1", "n2")
    assert {each.free for each in cluster.observe().nodes} == {NODE}


# What we can do.


def test_the_state_holds_neither_classes_nor_true_runtimes():
    cluster, _ = world(ONE_NODE, submitted("1", 0, 1, scale=0.123))
    seen = cluster.observe()
    assert seen.classes == ()
    assert b"123" not in seen.to_json()


def test_with_the_hook_a_job_of_ours_waits_for_us_and_others_do_not():
    cluster, _ = world(ONE_NODE, submitted("1", 0, 1), submitted("2", 0, 1, managed=False), lease_s=50)
    seen = cluster.observe()
    assert [(each.job_id, each.lease_until_s, each.managed) for each in seen.pending] == [("1", 50, True)]
    assert [each.job_id for each in seen.running] == ["2"]


def test_without_the_hook_every_job_is_slurms():
    cluster, _ = world(ONE_NODE, submitted("1", 0, 1), hook=False)
    assert cluster.observe().pending == ()
    assert not cluster.observe().running[0].managed


def test_a_job_whose_lease_runs_out_is_started_by_slurm_with_what_it_asked_for():
    cluster, clock = world(ONE_NODE, submitted("1", 0, 2), lease_s=50)
    clock.wait(500)
    assert by_id(cluster.records())["1"].start_s == 50
    assert by_id(cluster.records())["1"].amounts == Resources(8, 2, 8000)


def test_a_renewed_lease_holds_the_job_longer():
    cluster, clock = world(ONE_NODE, submitted("1", 0, 2), lease_s=50)
    clock.wait(40)
    assert cluster.renew([("1", 0), ("gone", 0)], 90).applied
    clock.wait(30)
    assert cluster.observe().pending[0].lease_until_s == 90
    clock.wait(500)
    assert by_id(cluster.records())["1"].start_s == 90


def test_a_placed_job_starts_at_once_even_behind_a_blocked_one():
    blocked = submitted("1", 0, 4, managed=False)
    cluster, clock = world(ONE_NODE, submitted("0", 0, 1, managed=False), blocked, submitted("2", 1, 1))
    clock.wait(1)
    (mine,) = (each for each in cluster.observe().pending if each.managed)
    amounts = Resources(6, 3, 9000)
    assert cluster.apply(update_for(mine, Placement("pa", "n1", amounts))).applied
    (now,) = (each for each in cluster.observe().running if each.managed)
    assert (now.amounts, now.start_time_s, now.end_limit_s) == (amounts, 1, 601)


def test_a_latency_lies_between_an_update_and_the_start():
    cluster, clock = world(ONE_NODE, submitted("1", 0, 1), update_latency_s=0.5)
    mine = cluster.observe().pending[0]
    assert cluster.apply(update_for(mine, Placement("pa", "n1", mine.requested))).applied
    assert cluster.observe().running == ()
    clock.wait(0.6)
    clock.wait(1000)
    assert cluster.records()[0].start_s == 0.5


def test_refusals_leave_the_job_as_it_was():
    cluster, _ = world(ONE_NODE, submitted("1", 0, 1), refusal=1.0)
    before = cluster.observe()
    outcome = cluster.apply(update_for(before.pending[0], Placement("pa", "n1", NODE)))
    assert not outcome.applied
    assert "refused" in outcome.why
    assert cluster.observe() == before


def test_on_a_drained_node_nothing_starts_and_what_runs_goes_on():
    cluster, clock = world(ONE_NODE, submitted("1", 0, 1, managed=False), submitted("2", 10, 1, managed=False))
    cluster.set_node("n1", available=False)
    clock.wait(100)
    clock.wait(100)
    assert [record.job_id for record in cluster.records()] == ["1"]
    cluster.set_node("n1", available=True)
    assert [each.job_id for each in cluster.observe().running] == ["2"]


# Time.


def test_a_wait_ends_early_when_a_job_comes_or_ends():
    _, clock = world(ONE_NODE, submitted("1", 30, 1, managed=False))
    clock.wait(1000)
    assert clock.now_s() == 30
    clock.wait(1000)
    assert clock.now_s() == pytest.approx(130)
    clock.wait(20)
    assert clock.now_s() == pytest.approx(150)


def test_waiting_without_end_for_nothing_is_refused():
    _, clock = world(ONE_NODE)
    with pytest.raises(RuntimeError, match="nothing will happen"):
        clock.wait(float("inf"))


# Whole workloads.


@pytest.mark.parametrize("name", [None, "fifo", "min", "price", "random"])
def test_every_job_of_a_workload_ends_once_and_the_same_way_each_time(name):
    def run() -> tuple[JobRecord, ...]:
        return replay(drawn, ClusterSpec.uniform(), name and registry.make(name))

    drawn = workload.demo_trace(5, 30)
    records = run()
    assert sorted(record.job_id for record in records) == sorted(item.job.job_id for item in drawn.jobs)
    assert run() == records


class Checked:
    """A policy whose states and decisions are held against what must always be true of a cluster."""

    def __init__(self, policy) -> None:
        self.policy, self.name, self.looks = policy, policy.name, 0

    def decide(self, state):
        self.looks += 1
        for node in state.nodes:
            held = sum((share.amounts for run in state.running for share in run.shares if share.node == node.name),
                       Resources())  # fmt: skip
            assert node.free + held == node.capacity
        decisions = self.policy.decide(state)
        assert guard_all(decisions, state)[1] == []
        return decisions


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["fifo", "min", "price", "random"]))
def test_on_any_cluster_and_workload_nodes_add_up_and_decisions_pass_the_guard(seed, name):
    draw = workload.random.Random(seed)
    spec = random_cluster(draw)
    drawn = workload.random_trace(seed, spec, workload.random_knobs(draw, jobs=25))
    checked = Checked(registry.make(name))
    records = replay(drawn, spec, checked, update_latency_s=draw.choice((0.0, 0.7)), refusal=draw.choice((0.0, 0.2)))
    assert len(records) == 25
    assert checked.looks or not any(item.job.managed for item in drawn.jobs)
    for record in records:
        item = next(item for item in drawn.jobs if item.job.job_id == record.job_id)
        assert record.start_s >= record.submit_s
        if item.job.managed:
            # Outside its range only if Slurm started it with what was asked for.
            inside = item.job.maximum.covers(record.amounts) and record.amounts.covers(item.job.minimum)
            assert inside or record.amounts == item.job.requested
        else:
            assert record.amounts.gpus >= item.job.requested.gpus


def test_a_policy_that_always_waits_only_holds_jobs_as_long_as_it_may():
    class Idle:
        name = "idle"

        def decide(self, _state):
            return ()

    (record,) = replay(trace(submitted("1", 0, 1)), ONE_NODE, Idle(), lease_s=20, max_hold_s=100)
    assert 100 <= record.start_s <= 140
    assert record.amounts == Resources(4, 1, 8000)


def test_a_policy_is_told_only_what_it_is_given_of_the_classes():
    seen = []

    class Spy:
        name = "spy"

        def decide(self, state):
            seen.append(state.classes)
            return registry.make("fifo").decide(state)

    replay(trace(submitted("1", 0, 1)), ONE_NODE, Spy(), classes=())
    assert seen[0] == ()
    replay(trace(submitted("1", 0, 1)), ONE_NODE, Spy())
    assert seen[-1] == (HUNDRED,)


def test_a_refused_placement_is_taken_back_and_tried_again():
    records = replay(
        trace(*(submitted(f"{number}", number, 1) for number in range(12))),
        ONE_NODE,
        registry.make("price"),
        refusal=0.5,
        seed=1,
    )
    assert len(records) == 12
    assert all(record.outcome == "COMPLETED" for record in records)


def test_the_price_heuristic_beats_stock_slurm_on_the_demo_by_far():
    from tapfinger_hpc.stats import reduction

    spec, stock, price = ClusterSpec.uniform(), [], []
    for seed in range(4):
        drawn = workload.demo_trace(seed)
        for means, policy in ((stock, None), (price, registry.make("price"))):
            records = replay(drawn, spec, policy)
            means.append(sum(record.completion_s for record in records) / len(records))
    assert reduction(stock, price).low > 0.3
