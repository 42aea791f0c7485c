"""Live states as frames: they say what ``fit`` says, change as the state would, and heed every refusal."""

import numpy as np
import pytest
from cluster_states import NODE, fixed, foreign, job, node, running, speed, state, states
from hypothesis import given, settings

from tapfinger_hpc import fit, live
from tapfinger_hpc.decision import after, guard_all
from tapfinger_hpc.frame import RUNNING
from tapfinger_hpc.live import ENV, View, row_of
from tapfinger_hpc.policies.compiled import asking, easy, fifo, minimum, price, random_, srtf, tetris
from tapfinger_hpc.policies.outlook import remaining_s
from tapfinger_hpc.sim import core
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import Partition, Resources

SCALES = JobClass("scales", speed(g1=400, g2=200, g4=100))
DECIDERS = {
    "random": (random_.decide, [7.0, 0.0, 0.0]),
    "min": (minimum.decide, [7.0]),
    "fifo": (fifo.decide, [asking.EFFICIENCY]),
    "easy": (easy.decide, [asking.EFFICIENCY]),
    "srtf": (srtf.decide, []),
    "tetris": (tetris.decide, [asking.EFFICIENCY]),
    "price": (price.decide, price.DEFAULT),
}


def rows_of(view: View, name: str = "price") -> np.ndarray:
    """What this policy would place now."""
    decide, parameters = DECIDERS[name]
    out = np.zeros((view.frame.waiting.shape[1], 6), np.int64)
    return out[: decide(view.frame, ENV, np.array(parameters), out)]


def carry_out(view: View, name: str) -> int:
    """Decides anew after every refusal, as long as there is something to place; how many placements."""
    placed = 0
    while not view.exhausted and len(rows := rows_of(view, name)):
        if view.refusal(rows[0]) is None:
            view.place(rows[0], "tried")
            placed += 1
    return placed


@pytest.mark.slow
@given(seen=states())
@settings(max_examples=150, deadline=None)
def test_something_fits_in_the_frame_where_it_fits_on_the_cluster(seen) -> None:
    view = View(seen)
    frame = view.frame
    for number, pending in enumerate(view.jobs):
        kind = view.kinds[frame.kind[ENV, number]]
        assert len(kind.seconds)
        reachable = {(partition.name, each.name) for partition, each in fit.reachable(seen, pending)}
        coarsest = max(each.cpu_step for _, each in fit.reachable(seen, pending))
        for given_, taken in zip(kind.given.tolist(), kind.taken.tolist(), strict=True):
            amounts = Resources(*given_)
            assert fit.allowed(pending, amounts)
            for p, partition in enumerate(seen.partitions):
                for n, each in enumerate(seen.nodes):
                    fits = core.fits(frame, ENV, number, p, n, *taken)
                    truly = (partition.name, each.name) in reachable and fit.fits_node(pending, each, amounts)
                    assert truly or not fits
                    assert fits or not truly or each.cpu_step < coarsest


@given(seen=states())
@settings(max_examples=60, deadline=None)
def test_every_job_of_ours_is_in_the_frame_or_could_run_nowhere(seen) -> None:
    view = View(seen)
    ours = [pending for pending in seen.pending if pending.managed and pending.eligible]
    assert sorted((*view.jobs, *view.impossible), key=ours.index) == ours
    assert view.frame.waiting_count[ENV] == len(view.jobs)
    for number, pending in enumerate(view.jobs):
        reached = {seen.partitions[p].name for p in np.flatnonzero(view.frame.reach[ENV, number])}
        assert reached
        assert reached <= {partition.name for partition, _ in fit.reachable(seen, pending)}


@given(seen=states())
@settings(max_examples=60, deadline=None)
def test_what_runs_holds_what_its_nodes_lack_until_its_expected_end(seen) -> None:
    frame = View(seen).frame
    held = frame.free[ENV].copy()
    for entry in frame.running[ENV, : frame.running_count[ENV]]:
        held[frame.node[ENV, entry]] += frame.amounts[ENV, entry]
    assert held.tolist() == [list(row_of(each.capacity)) for each in seen.nodes]
    ends = sorted(frame.expected_end[ENV, frame.running[ENV, : frame.running_count[ENV]]].tolist())
    assert ends == sorted(remaining_s(seen, each) for each in seen.running for _ in each.shares)
    starts = frame.start[ENV, frame.running[ENV, : frame.running_count[ENV]]]
    assert (np.diff(starts) >= 0).all()


@given(seen=states())
@settings(max_examples=80, deadline=None)
def test_a_placement_changes_the_frame_as_it_changes_the_state(seen) -> None:
    view = View(seen)
    rows = rows_of(view)
    for row in rows:
        if view.refusal(row) is not None:
            break
        placement = view.place(row, "tried")
        seen = after(seen, view.jobs[row[0]], placement)
        again = View(seen).frame
        assert view.frame.free.tolist() == again.free.tolist()
        assert view.frame.status[ENV, row[0]] == RUNNING
        assert row[0] not in view.frame.waiting[ENV, : view.frame.waiting_count[ENV]]
        assert view.frame.expected_end[ENV, row[0]] == view.seconds(row)


@pytest.mark.parametrize("name", DECIDERS)
@given(seen=states())
@settings(max_examples=25, deadline=None)
def test_whatever_a_compiled_policy_places_on_a_view_passes_the_guard(name, seen) -> None:
    view = View(seen)
    carry_out(view, name)
    allowed, refused, _ = guard_all(view.decisions(), seen)
    assert refused == []
    assert all(decision.reason for decision in allowed)


# Refusals.


def reserved(*jobs, nodes=None, **fields):
    """A job of others that Slurm would serve first waits for half of n1."""
    theirs = foreign("9", Resources(8, 2, 32000), priority=5000, partitions=("others",))
    nodes = nodes or (node("n1"), node("n2"))
    partitions = (Partition("pa", tuple(each.name for each in nodes)), Partition("others", ("n1",)))
    return state(*jobs, theirs, nodes=nodes, partitions=partitions, **fields)


def test_a_node_that_is_refused_is_tried_no_more_and_another_one_is() -> None:
    whole = [fixed(str(number), NODE, time_limit_s=90_000) for number in (1, 2)]
    view = View(reserved(*whole))
    row = np.array([0, 1, 0, *row_of(NODE)])
    assert "job 9" in (view.refusal(row) or "")
    assert view.refusals == 1
    assert carry_out(view, "srtf") == 1
    assert view.refusals == 1, "the other job holds as much for as long: what is refused to one is refused to both"
    assert "job 9" in (view.why_refused(0) or "")
    assert "job 9" in (view.why_refused(1) or "")


def test_a_job_that_ends_in_time_is_not_kept_from_a_node_by_the_refusal_of_a_long_one() -> None:
    ends = running("8", "n2", NODE, end_limit_s=4000)
    busy = (node("n1"), node("n2", Resources()))
    theirs = foreign("9", Resources(32, 8, 128000), nodes_wanted=2, priority=5000)
    long, short = fixed("1", NODE, time_limit_s=90_000), fixed("2", NODE, time_limit_s=600)
    view = View(state(long, short, theirs, nodes=busy, running=(ends,)))
    row = [0, 0, 0, *row_of(NODE)]
    assert view.refusal(np.array(row)) is not None
    row[0] = 1
    assert view.refusal(np.array(row)) is None


def test_on_its_last_node_a_job_is_tried_with_less() -> None:
    view = View(reserved(job("1", job_class="scales", time_limit_s=90_000), nodes=(node("n1"),), classes=(SCALES,)))
    assert view.refusal(np.array([0, 1, 0, 1, 4, 4000])) is not None
    (row,) = rows_of(view)
    assert row[4] <= 3
    assert carry_out(view, "price") == 1


def test_where_there_is_no_room_for_more_kinds_all_of_a_kind_are_kept_from_the_node(monkeypatch) -> None:
    monkeypatch.setattr(live, "SPARE_KINDS", 0)
    jobs = [fixed(str(number), NODE, time_limit_s=90_000, priority=1000 + number) for number in (1, 2)]
    view = View(reserved(*jobs))
    assert view.refusal(np.array([0, 1, 0, *row_of(NODE)])) is not None
    assert not view.frame.usable[ENV, view.frame.kind[ENV, 1], 0]
    assert view.frame.usable[ENV, view.frame.kind[ENV, 1], 1]


# Menus.


def test_a_menu_is_short_and_keeps_what_is_fastest_to_within_a_little() -> None:
    cpus, gpus = (1, 64), (1, 8)
    steep = JobClass("steep", SpeedModel(cpus, gpus, (1,), (8000.0, 1000.0, 1000.0, 100.0), (0.1,)))
    large = Resources(64, 8, 256_000)
    wide = job("1", job_class="steep", maximum=large, time_limit_s=None)
    view = View(state(wide, nodes=(node("n1", large, capacity=large),), classes=(steep,)))
    (kind,) = view.kinds
    assert 8 <= len(kind.seconds) <= live.MOST_CHOICES
    assert kind.given[0].tolist() == [1, 1, 4000]
    assert kind.seconds.min() <= 1.5 * steep.speed.duration_s(large)


def test_amounts_are_counted_in_whole_cores_and_of_what_takes_as_much_the_fastest_is_given() -> None:
    by_cpus = JobClass("by cpus", SpeedModel((1, 16), (0,), (1,), (1600.0, 100.0)))
    threaded = node("n1", cpu_step=2)
    pending = job("1", job_class="by cpus", minimum=Resources(1, 0, 4000), maximum=Resources(7, 0, 4000))
    (kind,) = View(state(pending, nodes=(threaded,), classes=(by_cpus,))).kinds
    assert kind.given[:, 0].tolist() == [2, 4, 6, 7]
    assert kind.taken[:, 0].tolist() == [2, 4, 6, 8]


def test_running_jobs_of_ours_are_of_the_kind_of_those_that_wait_and_jobs_of_others_of_none() -> None:
    held = Resources(1, 1, 4000)
    some = [
        running("7", "n1", held, job_class="scales", managed=True),
        running("8", "n1", held, job_class="scales"),
        running("9", "n1", held, job_class="other", managed=True),
    ]
    other = JobClass("other", speed(g1=40, g2=20))
    view = View(state(job("1", job_class="scales"), running=tuple(some), classes=(SCALES, other)))
    frame = view.frame
    first, second, third = frame.kind[ENV, frame.running[ENV, :3]].tolist()
    assert (first, second) == (frame.kind[ENV, 0], -1)
    assert third not in (-1, first)
    assert frame.seconds[ENV, third, : frame.choices[ENV, third]] == pytest.approx([40.0, 20.0])
