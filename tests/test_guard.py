"""What the guard lets through, and the state that a placement leaves."""

import pytest
from cluster_states import NODE, fixed, foreign, job, node, state, states
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc import fit
from tapfinger_hpc.decision import TOP_PRIORITY, Decision, Placement, after, guard, guard_all, update_for
from tapfinger_hpc.state import ClusterState, Partition, Resources

ONE = Resources(4, 1, 8000)


def decide(job_id: str, placement: Placement | None, submit_time_s: int = 0) -> Decision:
    return Decision(job_id, submit_time_s, placement, "for the test")


def on(name: str, amounts: Resources = ONE, partition: str = "pa") -> Placement:
    return Placement(partition, name, amounts)


def test_a_placement_that_fits_is_allowed():
    assert guard(decide("1", on("n1")), state(job("1"))) is None


def test_waiting_is_always_allowed():
    assert guard(decide("nobody", None), state()) is None


@pytest.mark.parametrize(
    ("decision", "pending", "why"),
    [
        (decide("2", on("n1")), job("1"), "no longer pending"),
        (decide("1", on("n1"), submit_time_s=7), job("1"), "no longer pending"),
        (decide("1", on("n1")), foreign("1", ONE, why="not marked"), "not marked"),
        (decide("1", on("n1")), job("1", eligible=False, why="held"), "held"),
        (decide("1", on("n1", partition="pb")), job("1"), "partition pb is not open"),
        (decide("1", on("n9")), job("1"), "node n9 cannot take"),
        (decide("1", on("n1", Resources(4, 5, 8000))), job("1"), "outside what job 1 declares"),
        (decide("1", on("n1", Resources(5, 1, 8000))), job("1", tasks=2), "outside what job 1 declares"),
    ],
)
def test_a_decision_that_must_not_be_carried_out_is_refused_with_the_reason(decision, pending, why):
    assert why in (guard(decision, state(pending)) or "")


def test_a_node_without_room_is_refused():
    full = state(job("1"), nodes=(node("n1", Resources(4, 0, 64000)),))
    assert "does not fit on n1" in (guard(decide("1", on("n1")), full) or "")


def test_a_drained_node_is_refused():
    drained = state(job("1"), nodes=(node("n1", available=False), node("n2")))
    assert "cannot take" in (guard(decide("1", on("n1")), drained) or "")
    assert guard(decide("1", on("n2")), drained) is None


def test_a_partition_that_is_down_is_refused():
    down = state(job("1"), partitions=(Partition("pa", ("n1",), up=False),))
    assert "not open" in (guard(decide("1", on("n1")), down) or "")


def test_a_job_that_slurm_would_serve_first_keeps_its_room():
    theirs = foreign("2", NODE, priority=2000)
    one = state(job("1"), theirs, nodes=(node("n1"),))
    assert "job 2" in (guard(decide("1", on("n1")), one) or "")


def test_each_decision_is_guarded_on_what_those_before_it_leave():
    asked = Resources(16, 4, 8000)
    both = state(fixed("1", asked), fixed("2", asked, 1), fixed("3", asked, 2))
    decisions = [decide("1", on("n1", asked)), decide("2", on("n1", asked), 1), decide("3", on("n2", asked), 2)]
    allowed, refused, left = guard_all(decisions, both)
    assert [decision.job_id for decision in allowed] == ["1", "3"]
    assert [(decision.job_id, "does not fit" in why) for decision, why in refused] == [("2", True)]
    assert [job.job_id for job in left.pending] == ["2"]


def test_one_job_is_not_placed_twice():
    _, refused, _ = guard_all([decide("1", on("n1")), decide("1", on("n2"))], state(job("1")))
    assert len(refused) == 1


def test_a_placed_job_runs_until_its_limit_and_holds_whole_cores():
    before = state(job("1", time_limit_s=600), nodes=(node("n1", cpu_step=2),))
    left = after(before, before.pending[0], on("n1", Resources(3, 1, 8000)))
    assert left.pending == ()
    (now,) = left.running
    assert (now.start_time_s, now.end_limit_s, now.partition) == (100, 700, "pa")
    assert left.nodes[0].free == Resources(12, 3, 56000)


def test_an_update_says_all_that_slurm_needs_and_the_partition_only_if_it_changes():
    update = update_for(job("1", tasks=2, gpu_type="a100"), on("n1"))
    assert (update.node, update.amounts, update.tasks, update.gpu_type) == ("n1", ONE, 2, "a100")
    assert (update.priority, update.begin_s, update.partition) == (TOP_PRIORITY, 0, None)
    assert update_for(job("1", partitions=("pa", "pb")), on("n1")).partition == "pa"


@st.composite
def decisions(draw, cluster: ClusterState) -> list[Decision]:
    """Decisions of any quality for a state: right ones, near misses and nonsense."""
    made = []
    anything = st.builds(Resources, st.integers(0, 40), st.integers(0, 6), st.integers(0, 130_000))
    where = st.sampled_from([each.name for each in cluster.nodes] + ["n99"])
    for _ in range(draw(st.integers(0, 8))):
        meant = draw(st.sampled_from([*cluster.pending, job("ghost")]))
        amounts = st.sampled_from([fit.smallest(meant) or ONE, meant.requested, meant.maximum]) | anything
        placement = st.builds(Placement, st.sampled_from([*meant.partitions, "pb"]), where, amounts)
        made.append(Decision(*meant.key, draw(st.none() | placement), "drawn"))
    return made


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_is_proposed_no_node_is_overfilled_and_nothing_raises(data):
    before = data.draw(states())
    allowed, refused, left = guard_all(data.draw(decisions(before)), before)
    jobs = {pending.key: pending for pending in before.pending}
    placed = [decision for decision in allowed if decision.placement is not None]
    assert all(why for _, why in refused)
    assert len({decision.key for decision in placed}) == len(placed)
    for where in before.nodes:
        taken = Resources()
        for decision in placed:
            assert decision.placement is not None
            if decision.placement.node == where.name:
                taken += fit.granted(where, decision.placement.amounts)
                assert where.available
                assert fit.allowed(jobs[decision.key], decision.placement.amounts)
                assert jobs[decision.key].managed
                assert jobs[decision.key].eligible
        assert where.free.covers(taken)
        assert left.node(where.name).free + taken == where.free
