"""What is offered while a decision is made: never what does not fit, and all that does."""

import random

import numpy as np
from cluster_states import NODE, fixed, foreign, job, node, running, speed, state, states
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tapfinger_hpc import fit, graph
from tapfinger_hpc.policies import choices
from tapfinger_hpc.room import AGENT_COLUMNS, AMOUNT_HEADS, OPTION_COLUMNS, Options, Pick, Room
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import ClusterState, Partition, PendingJob, Resources

BOTH = (Partition("pa", ("n1",)), Partition("pb", ("n2",)))


def check(options: Options) -> None:
    assert options.features.shape == (len(options.values), len(OPTION_COLUMNS[options.head]))
    assert options.agents.shape == (len(options.partitions), len(AGENT_COLUMNS))
    assert np.isfinite(options.features).all()
    assert np.isfinite(options.agents).all()
    assert (np.diff(options.row_of) >= 0).all()
    assert set(options.row_of.tolist()) == set(range(len(options.partitions)))


def of_row(options: Options, row: int) -> list[int]:
    return options.values[options.row_of == row].tolist()


def drawn(options: Options, row: int, draw: random.Random) -> int:
    return draw.choice(of_row(options, row))


def finished(room: Room, pick: Pick, draw: random.Random) -> Pick:
    """The pick with a node and amounts drawn from what is offered."""
    options = room.nodes_for([pick])
    check(options)
    pick = Pick(pick.partition, pick.job, drawn(options, 0, draw))
    for head in AMOUNT_HEADS:
        options = room.amounts_for(head, [pick])
        check(options)
        pick = pick.with_amount(head, drawn(options, 0, draw))
    return pick


def offered(room: Room) -> set[tuple[int, int]]:
    options = room.tasks()
    if options is None:
        return set()
    check(options)
    return {
        (int(options.partitions[row]), int(waiting))
        for row, waiting in zip(options.row_of, options.values, strict=True)
    }


@given(states(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_whatever_is_chosen_among_the_options_fits(given: ClusterState, draw: random.Random) -> None:
    room = Room(graph.build(given))
    free = {each.name: each for each in given.nodes}
    placed = set()
    while (options := room.tasks()) is not None:
        row = draw.randrange(len(options.partitions))
        pick = finished(room, Pick(int(options.partitions[row]), drawn(options, row, draw)), draw)
        waiting, name = room.graph.jobs[pick.job], given.nodes[pick.node].name
        partition = given.partitions[pick.partition].name
        assert waiting.managed
        assert waiting.eligible
        assert waiting.key not in placed
        assert (partition, name) in {(part.name, there.name) for part, there in fit.reachable(given, waiting)}
        assert fit.allowed(waiting, pick.amounts)
        assert fit.fits_node(waiting, free[name], pick.amounts)
        assert room.fits(pick)
        free[name] = replace(free[name], free=free[name].free - fit.granted(free[name], pick.amounts))
        placed.add(waiting.key)
        room.place(pick)
        room.next_round()


@given(states())
@settings(max_examples=80, deadline=None)
def test_every_job_with_a_choice_that_fits_is_offered(given: ClusterState) -> None:
    room = Room(graph.build(given))
    expected = set()
    for index, waiting in enumerate(room.graph.jobs):
        menu = [choices.resources(each) for each in room.graph.kinds[room.graph.kind_of[index]].grid]
        for partition, there in fit.reachable(given, waiting):
            if any(fit.fits_node(waiting, there, each) for each in menu):
                expected.add((given.partitions.index(partition), index))
    assert offered(room) == expected


def test_a_node_that_fills_up_is_offered_no_longer() -> None:
    whole = fixed("1", NODE), fixed("2", NODE), fixed("3", NODE)
    room = Room(graph.build(state(*whole)))
    assert offered(room) == {(0, 0), (0, 1), (0, 2)}
    room.place(finished(room, Pick(0, 0), random.Random(0)))
    assert offered(room) == {(0, 1), (0, 2)}
    room.place(finished(room, Pick(0, 2), random.Random(0)))
    assert room.tasks() is None


def test_a_forbidden_node_is_not_offered_to_that_job_again() -> None:
    room = Room(graph.build(state(job("1"), job("2"))))
    room.forbid(Pick(0, 0, 0))
    assert of_row(room.nodes_for([Pick(0, 0), Pick(0, 1)]), 0) == [1]
    assert of_row(room.nodes_for([Pick(0, 0), Pick(0, 1)]), 1) == [0, 1]
    room.forbid(Pick(0, 0, 1))
    assert offered(room) == {(0, 1)}


def test_each_agent_is_offered_the_jobs_that_it_can_reach() -> None:
    jobs = job("1"), job("2", partitions=("pb",)), job("3", partitions=("pa", "pb"))
    assert offered(Room(graph.build(state(*jobs, partitions=BOTH)))) == {(0, 0), (1, 1), (0, 2), (1, 2)}


def test_amounts_on_which_a_class_runs_out_of_memory_are_not_offered() -> None:
    hungry = JobClass("hungry", SpeedModel((1,), (1,), (4000, 16000), (None, 100.0)))
    room = Room(graph.build(state(job("1", job_class="hungry"), classes=(hungry,))))
    pick = Pick(0, 0, 0).with_amount("gpus", 1)
    pick = pick.with_amount("cpus", of_row(room.amounts_for("cpus", [pick]), 0)[0])
    assert min(of_row(room.amounts_for("mem", [pick]), 0)) >= 16000


def test_amounts_depend_on_those_that_were_given_before() -> None:
    """More than one CPU is of use only beside more than one GPU, so it is offered only there."""
    model = SpeedModel((1, 2), (1, 2), (1,), (100.0, 100.0, 100.0, 50.0))
    fast = job("1", job_class="fast", maximum=Resources(2, 2, 4000), minimum=Resources(1, 1, 4000))
    room = Room(graph.build(state(fast, classes=(JobClass("fast", model),))))
    one, two = (Pick(0, 0, 0).with_amount("gpus", gpus) for gpus in (1, 2))
    assert of_row(room.amounts_for("cpus", [one]), 0) == [1]
    assert of_row(room.amounts_for("cpus", [two]), 0) == [2]
    assert room.only_amounts("cpus", [one, two]) == [1, 2]
    assert room.only_amounts("gpus", [Pick(0, 0, 0)]) is None


def test_the_cost_of_waiting_is_known_where_a_running_job_will_make_room() -> None:
    model = JobClass("known", speed(g1=1000, g4=250))
    wide = job("1", job_class="known", maximum=Resources(4, 4, 8000), minimum=Resources(4, 1, 8000))
    holding = running("9", "n1", Resources(1, 3, 1000), job_class="known", start_time_s=0, end_limit_s=110)
    busy = node("n1", NODE - Resources(1, 3, 1000))
    later = OPTION_COLUMNS["task"].index("price_0_later_over_now")

    def gain(time_s: float) -> float:
        given = state(wide, nodes=[busy], running=(holding,), classes=(model,), time_s=time_s)
        options = Room(graph.build(given)).tasks()
        assert options is not None
        return float(options.features[0, later])

    assert gain(100.0) < -1  # in ten seconds four GPUs will be free, on which it runs four times as fast
    assert gain(100.0) < gain(5.0)


def test_a_job_whose_nodes_are_all_idle_waits_for_nothing() -> None:
    given = state(
        job("1"),
        job("2", partitions=("pb",)),
        job("3", partitions=("pa", "pb")),
        partitions=BOTH,
        nodes=[node("n1"), node("n2", NODE - Resources(1, 1, 1))],
        running=(running("9", "n2", Resources(1, 1, 1)),),
    )
    room = Room(graph.build(given))
    assert [room.waits_for_nothing(index) for index in range(3)] == [True, False, False]


def test_headroom_is_that_of_the_scarcest_resource_on_the_roomiest_node() -> None:
    small: PendingJob = fixed("1", Resources(4, 1, 8000))
    room = Room(
        graph.build(state(small, nodes=[node("n1", Resources(8, 4, 64000)), node("n2", Resources(4, 4, 64000))]))
    )
    assert room.headroom(0, 0) == 2


def test_a_queue_of_jobs_of_others_makes_holding_dearer() -> None:
    over = OPTION_COLUMNS["gpus"].index("price_1_over_best")
    model = JobClass("known", speed(g1=100, g4=90))
    ours = job("1", job_class="known", minimum=Resources(4, 1, 8000), maximum=Resources(4, 4, 8000))

    def dearest(*others: PendingJob) -> float:
        room = Room(graph.build(state(ours, *others, classes=(model,))))
        return float(room.amounts_for("gpus", [Pick(0, 0, 0)]).features[:, over].max())

    others = (foreign(str(number), Resources(1, 1, 1000)) for number in range(2, 30))
    assert dearest(*others) > dearest() + 0.3
