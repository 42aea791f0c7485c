"""The graph of a state: right columns, right edges, no scale, no order of its own."""

import random

import numpy as np
import pytest
from cluster_states import fixed, foreign, job, node, running, speed, state, states
from hypothesis import given, settings
from msgspec.structs import replace

from tapfinger_hpc import fit, graph
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import ClusterState, Node, Partition, Resources

TWO = (Partition("pa", ("n1",)), Partition("pb", ("n2",)))


def column(built: graph.Graph, kind: str, name: str) -> list[float]:
    return built.features[kind][:, graph.COLUMNS[kind].index(name)].tolist()


def pairs(built: graph.Graph, edge: str) -> set[tuple[int, int]]:
    (key,) = (each for each in graph.EDGES if each[1] == edge)
    return set(map(tuple, built.edges[key].T.tolist()))


@given(states())
@settings(max_examples=60, deadline=None)
def test_every_state_has_finite_features_with_the_columns_of_the_schema(given: ClusterState) -> None:
    built = graph.build(given)
    counts = {
        "partition": len(given.partitions),
        "node": len(given.nodes),
        "pending": len(given.pending),
        "running": len(given.running),
        "coordinator": 1,
    }
    for kind, names in graph.COLUMNS.items():
        assert built.features[kind].shape == (counts[kind], len(names))
        assert np.isfinite(built.features[kind]).all()
        assert np.abs(built.features[kind]).max(initial=0) < 60


@given(states())
@settings(max_examples=60, deadline=None)
def test_edges_between_partitions_and_our_jobs_are_what_fit_calls_reachable(given: ClusterState) -> None:
    built = graph.build(given)
    names = [partition.name for partition in given.partitions]
    taken = pairs(built, "may_take")
    for position, waiting in zip(built.job_position.tolist(), built.jobs, strict=True):
        reachable = {names.index(partition.name) for partition, _ in fit.reachable(given, waiting)}
        assert {partition for partition, pending in taken if pending == position} == reachable


@given(states())
@settings(max_examples=30, deadline=None)
def test_every_edge_has_its_opposite(given: ClusterState) -> None:
    built = graph.build(given)
    for forward, back in zip(graph.EDGES[::2], graph.EDGES[1::2], strict=True):
        assert (forward[0], forward[2]) == (back[2], back[0])
        assert (built.edges[forward] == built.edges[back][::-1]).all()


def test_jobs_of_others_and_held_jobs_are_seen_and_are_not_ours_to_place() -> None:
    built = graph.build(
        state(job("1"), foreign("2", Resources(1, 1, 1000)), job("3", eligible=False), job("4", partitions=("pz",)))
    )
    assert [each.job_id for each in built.jobs] == ["1"]
    assert column(built, "pending", "managed") == [1, 0, 1, 1]
    assert column(built, "pending", "eligible") == [1, 1, 0, 1]
    assert (0, 1) in pairs(built, "may_take")


def test_the_order_in_which_a_state_is_listed_makes_no_difference() -> None:
    given = state(
        *(job(str(number), number * 7 % 5) for number in range(9)),
        nodes=[node(f"n{number}") for number in range(4)],
        partitions=[Partition("pa", ("n0", "n1")), Partition("pb", ("n1", "n2", "n3"))],
        running=(running("90", "n1", Resources(1, 1, 1)), running("91", "n3", Resources(2, 1, 1))),
    )
    draw, shuffled = random.Random(1), given
    for part in ("nodes", "partitions", "pending", "running"):
        items = list(getattr(given, part))
        draw.shuffle(items)
        shuffled = replace(shuffled, **{part: tuple(items)})
    for kind in graph.COLUMNS:
        assert (graph.build(shuffled).features[kind] == graph.build(given).features[kind]).all()


def test_seconds_and_amounts_count_only_in_proportion() -> None:
    def scaled(times: int, more: int) -> ClusterState:
        capacity = Resources(16 * more, 4 * more, 64000 * more)
        held = Resources(4 * more, 2 * more, 10000 * more)
        model = SpeedModel((more, 16 * more), (more, 4 * more), (1,), tuple(s * times for s in (90, 50, 60, 20)))
        waiting = [
            job(
                str(number),
                (1000 - 100 * number) * times,
                requested=Resources(4 * more, more, 8000 * more),
                minimum=Resources(4 * more, more, 8000 * more),
                maximum=Resources(4 * more, more, 8000 * more),
                job_class=name,
                time_limit_s=600 * times,
            )
            for number, name in enumerate(["known", "known", ""])
        ]
        return state(
            *waiting,
            nodes=[node("n1", capacity - held, capacity=capacity), node("n2", capacity, capacity=capacity)],
            running=(running("9", "n1", held, job_class="known", start_time_s=970 * times, end_limit_s=1500 * times),),
            classes=(JobClass("known", model),),
            time_s=1000.0 * times,
        )

    small, large = graph.build(scaled(1, 1)), graph.build(scaled(10, 4))
    for kind in graph.COLUMNS:
        assert small.features[kind] == pytest.approx(large.features[kind], abs=1e-5), kind


def test_a_job_of_a_class_that_nobody_knows_is_said_to_be_one() -> None:
    known = JobClass("known", speed(g1=100, g2=60))
    built = graph.build(state(job("1", job_class="known"), job("2", job_class="new"), job("3"), classes=(known,)))
    assert column(built, "pending", "known_class") == [1, 0, 0]


def test_a_job_that_gains_by_gpus_and_one_that_does_not_have_different_numbers() -> None:
    classes = (JobClass("flat", speed(g1=100, g4=100)), JobClass("steep", speed(g1=100, g4=25)))
    built = graph.build(state(job("1", job_class="flat"), job("2", job_class="steep"), classes=classes))
    flat, steep = column(built, "pending", "gain_per_doubling")
    assert flat == pytest.approx(0)
    assert steep > 0.5


def test_a_job_with_longer_to_run_shows_a_later_release() -> None:
    model = JobClass("known", speed(g1=1000))
    late = running("1", "n1", Resources(1, 1, 1000), job_class="known", start_time_s=800, end_limit_s=5000)
    early = running("2", "n2", Resources(1, 1, 1000), job_class="known", start_time_s=0, end_limit_s=5000)
    built = graph.build(state(job("3"), running=(late, early), classes=(model,), time_s=900.0))
    on_n1, on_n2 = column(built, "node", "next_release_log")
    assert on_n1 > on_n2


def test_jobs_that_differ_only_in_name_and_age_share_their_numbers() -> None:
    built = graph.build(state(*(job(str(number), number) for number in range(6)), fixed("7", Resources(1, 1, 1000))))
    kinds = {waiting.job_id: kind for waiting, kind in zip(built.jobs, built.kind_of.tolist(), strict=True)}
    assert len({kinds[str(number)] for number in range(6)}) == 1
    assert kinds["7"] != kinds["0"]


def test_a_node_that_is_down_offers_nothing() -> None:
    nodes = (node("n1"), replace(node("n2"), available=False))
    built = graph.build(state(job("1"), nodes=nodes, partitions=TWO))
    assert column(built, "node", "available") == [1, 0]
    assert column(built, "node", "gpus_free_share") == [1, 0]
    assert column(built, "partition", "gpus_of_cluster") == [1, 0]


def test_a_state_without_nodes_or_jobs_has_a_graph() -> None:
    built = graph.build(ClusterState(0.0, (), ()))
    assert built.jobs == ()
    assert built.features["coordinator"].shape[0] == 1


def test_limits_are_what_fit_calls_the_greatest() -> None:
    half = Node("n1", Resources(16, 4, 64000), Resources(5, 1, 9000), cpu_step=2)
    assert graph.limits(job("1", tasks=2), half) == graph.row(fit.greatest(job("1", tasks=2), half))
    assert graph.limits(fixed("2", Resources(6, 1, 1000)), half) == (-1, -1, -1)
