"""Room for jobs that are not ours."""

from cluster_states import NODE, fixed, foreign, job, node, running, state, states
from hypothesis import given, settings

from tapfinger_hpc import fit, reserve
from tapfinger_hpc.decision import Placement, after
from tapfinger_hpc.reserve import Profile, Protection, plan
from tapfinger_hpc.state import Partition, Resources

WHOLE = Resources(16, 4, 64000)
HALF = Resources(8, 2, 32000)


def test_running_jobs_free_their_amounts_at_their_limits():
    busy = state(
        nodes=(node("n1", Resources()),), running=(running("1", "n1", HALF, end_limit_s=500), running("2", "n1", HALF))
    )
    profile = Profile(busy)
    assert profile.moments() == [100.0, 500.0, 1000.0]
    assert not profile.has_room(busy.nodes[0], 100, 500, HALF)
    assert profile.has_room(busy.nodes[0], 500, 600, HALF)
    assert not profile.has_room(busy.nodes[0], 500, 1001, WHOLE)
    assert profile.has_room(busy.nodes[0], 1000, 9000, WHOLE)


def test_a_job_without_limit_is_not_expected_to_end():
    busy = state(nodes=(node("n1", HALF),), running=(running("1", "n1", HALF, end_limit_s=None),))
    assert plan(busy, [foreign("9", WHOLE)], Profile(busy)) == []


def test_what_is_taken_is_taken_for_its_time_only():
    idle = state(nodes=(node("n1"),))
    profile = Profile(idle)
    profile.take(idle.nodes[0], 200, 300, HALF)
    assert profile.has_room(idle.nodes[0], 100, 200, WHOLE)
    assert not profile.has_room(idle.nodes[0], 100, 201, WHOLE)
    assert profile.has_room(idle.nodes[0], 250, 300, HALF)
    assert profile.has_room(idle.nodes[0], 300, 400, WHOLE)


def test_jobs_are_planned_in_turn_and_small_ones_fill_gaps():
    busy = state(nodes=(node("n1", HALF),), running=(running("1", "n1", HALF, end_limit_s=700),))
    jobs = [
        foreign("10", WHOLE, time_limit_s=600),
        foreign("11", HALF, 1, time_limit_s=600),
        foreign("12", HALF, 2, time_limit_s=6000),
    ]
    starts = {made.job.job_id: made.start_s for made in plan(busy, jobs, Profile(busy))}
    assert starts == {"10": 700.0, "11": 100.0, "12": 1300.0}


def test_a_job_of_several_nodes_waits_until_so_many_have_room_together():
    busy = state(nodes=(node("n1", Resources()), node("n2")), running=(running("1", "n1", WHOLE, end_limit_s=800),))
    wide = foreign("9", WHOLE + WHOLE, nodes_wanted=2)
    (made,) = plan(busy, [wide], Profile(busy))
    assert (made.start_s, made.nodes) == (800.0, ("n1", "n2"))


def test_a_pinned_job_is_planned_on_its_node_alone():
    idle = state()
    pinned = fixed("5", HALF)
    (made,) = plan(idle, [pinned], Profile(idle), {pinned.key: "n2"})
    assert made.nodes == ("n2",)


def test_a_job_is_not_planned_in_a_partition_that_would_not_run_it():
    short = state(partitions=(Partition("pa", ("n1",), max_time_s=60),))
    assert plan(short, [foreign("9", HALF, time_limit_s=600)], Profile(short)) == []


def test_slurms_own_plan_is_followed():
    idle = state()
    planned = foreign("9", HALF, planned_start_s=5000, planned_nodes=("n2",))
    (made,) = plan(idle, [planned], Profile(idle))
    assert (made.start_s, made.nodes) == (5000.0, ("n2",))


def test_nobody_is_delayed_where_no_other_job_waits():
    mine = job("1")
    assert Protection(state(mine, job("2"))).would_delay(mine, node("n1"), NODE) is None


def test_the_last_free_node_is_left_to_a_job_that_slurm_serves_first():
    mine, theirs = job("1", time_limit_s=600), foreign("2", WHOLE, priority=2000)
    one = state(mine, theirs, nodes=(node("n1"),))
    assert "job 2" in (Protection(one).would_delay(mine, one.nodes[0], HALF) or "")
    two = state(mine, theirs)
    assert Protection(two).would_delay(mine, two.nodes[0], HALF) is None


def test_a_job_of_lower_priority_is_not_protected():
    mine, theirs = job("1", priority=2000), foreign("2", WHOLE, priority=1000)
    one = state(mine, theirs, nodes=(node("n1"),))
    assert Protection(one).would_delay(mine, one.nodes[0], HALF) is None


def test_a_held_job_is_not_protected():
    mine, held = job("1"), foreign("2", WHOLE, priority=2000, eligible=False, why="held")
    one = state(mine, held, nodes=(node("n1"),))
    assert Protection(one).would_delay(mine, one.nodes[0], HALF) is None


def test_a_short_job_may_run_before_a_planned_one_and_a_long_one_may_not():
    theirs = foreign("9", WHOLE, priority=2000)
    busy = state(
        theirs,
        nodes=(node("n1", HALF),),
        running=(running("1", "n1", HALF, end_limit_s=700),),
    )
    assert Protection(busy).would_delay(job("5", time_limit_s=600), busy.nodes[0], HALF) is None
    assert Protection(busy).would_delay(job("5", time_limit_s=601), busy.nodes[0], HALF) is not None
    assert Protection(busy).would_delay(job("5", time_limit_s=None), busy.nodes[0], HALF) is not None


def test_nodes_that_a_protected_job_cannot_use_are_free_to_take():
    theirs = foreign("9", WHOLE, partitions=("pb",), priority=2000)
    parts = (Partition("pa", ("n1",)), Partition("pb", ("n2",)))
    two = state(theirs, partitions=parts)
    assert Protection(two).would_delay(job("1"), two.node("n1"), WHOLE) is None


@settings(max_examples=60, deadline=None)
@given(states(jobs=6))
def test_a_placement_that_delays_nobody_leaves_every_protected_start_as_it_was(drawn):
    for mine in drawn.pending:
        protected = [other for other in reserve.waiting_in_order(drawn) if not other.managed]
        protected = [other for other in protected if other.priority >= mine.priority]
        for partition, where in fit.reachable(drawn, mine):
            least = fit.smallest(mine)
            if not mine.managed or least is None or not fit.fits_node(mine, where, least):
                continue
            if Protection(drawn).would_delay(mine, where, least) is not None:
                continue
            then = after(drawn, mine, Placement(partition.name, where.name, least))
            before = {made.job.key: made.start_s for made in plan(drawn, protected, Profile(drawn))}
            later = {made.job.key: made.start_s for made in plan(then, protected, Profile(then))}
            assert all(later[key] <= start_s for key, start_s in before.items())


@settings(max_examples=60, deadline=None)
@given(states(jobs=8))
def test_a_plan_never_takes_more_than_a_node_has(drawn):
    waiting = reserve.waiting_in_order(drawn)
    made = plan(drawn, waiting, Profile(drawn))
    for moment in {reservation.start_s for reservation in made}:
        for where in drawn.nodes:
            held = Resources()
            for reservation in made:
                limit_s = reservation.job.time_limit_s
                ends_s = float("inf") if limit_s is None else reservation.start_s + limit_s
                if where.name in reservation.nodes and reservation.start_s <= moment < ends_s:
                    held += fit.granted(where, reserve.per_node(reservation.job))
            assert where.capacity.covers(held)
