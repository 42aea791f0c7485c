"""What the network sees of a live state: finite numbers of no scale, and options that hold on the cluster."""

import random

import numpy as np
from cluster_states import NODE, foreign, job, node, running, speed, state, states
from hypothesis import given, settings
from msgspec.structs import replace

from tapfinger_hpc import fit
from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.features.graph import Graphs
from tapfinger_hpc.features.options import TASK_COLUMNS, Options
from tapfinger_hpc.live import ENV, View
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import ClusterState, Partition, Resources

TWO = (Partition("pa", ("n1",)), Partition("pb", ("n2",)))
ONE = np.array([ENV])


def seen(view: View) -> Graphs:
    return graph.build(view.frame, ONE, measures.allocate(view.frame))


def tasks(view: View) -> Options:
    waits = np.zeros(view.frame.member.shape[:2], np.bool_)
    return options.tasks(view.frame, ONE, waits, 0, measures.allocate(view.frame), options.no_advice(view.frame))


def column(graphs: Graphs, kind: str, name: str) -> list[float]:
    return graphs.features[kind][:, graph.COLUMNS[kind].index(name)].tolist()


@given(states())
@settings(max_examples=60, deadline=None)
def test_every_state_has_finite_features_of_the_size_of_one(given: ClusterState) -> None:
    view = View(given)
    for kind, values in seen(view).features.items():
        assert values.shape[1] == len(graph.COLUMNS[kind])
        assert np.isfinite(values).all()
        assert np.abs(values).max(initial=0) <= 16, kind
    offered = tasks(view)
    assert np.isfinite(offered.features).all()
    assert np.isfinite(offered.agents).all()


@given(states())
@settings(max_examples=60, deadline=None)
def test_every_option_of_a_live_state_fits_on_the_cluster(given: ClusterState) -> None:
    view = View(given)
    offered = tasks(view)
    first = np.searchsorted(offered.row_of, np.arange(len(offered.env)))
    jobs = offered.value[first]
    scratch = measures.allocate(view.frame)
    places = options.places(
        view.frame, ONE, offered.env, offered.partition, jobs, scratch, options.no_advice(view.frame)
    )
    assert set(places.row_of.tolist()) == set(range(len(jobs)))
    for row, at, choice in zip(places.row_of, places.value, places.choice, strict=True):
        waiting, kind = view.jobs[places.job[row]], view.kinds[view.frame.kind[ENV, places.job[row]]]
        amounts, there = Resources(*kind.given[choice].tolist()), given.nodes[at]
        partition = given.partitions[places.partition[row]].name
        assert (partition, there.name) in {(part.name, each.name) for part, each in fit.reachable(given, waiting)}
        assert fit.allowed(waiting, amounts)
        assert fit.fits_node(waiting, there, amounts)


@given(states())
@settings(max_examples=40, deadline=None)
def test_edges_between_partitions_and_our_jobs_are_among_what_fit_calls_reachable(given: ClusterState) -> None:
    view = View(given)
    names = [partition.name for partition in given.partitions]
    taken = set(map(tuple, seen(view).may_take.T.tolist()))
    for number, waiting in enumerate(view.jobs):
        reachable = {names.index(partition.name) for partition, _ in fit.reachable(given, waiting)}
        here = {partition for partition, pending in taken if pending == number}
        assert here
        assert here <= reachable


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
    for mine, other in zip(seen(View(given)), seen(View(shuffled)), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_seconds_count_only_in_proportion() -> None:
    def scaled(times: int) -> ClusterState:
        held = Resources(4, 2, 10000)
        model = SpeedModel((1, 16), (1, 4), (1,), tuple(s * times for s in (90, 50, 60, 20)))
        waiting = [
            job(str(number), (1000 - 100 * number) * times, job_class=name, time_limit_s=600 * times)
            for number, name in enumerate(["known", "known", ""])
        ]
        return state(
            *waiting,
            nodes=[node("n1", NODE - held), node("n2")],
            running=(running("9", "n1", held, job_class="known", start_time_s=970 * times, end_limit_s=1500 * times),),
            classes=(JobClass("known", model),),
            time_s=1000.0 * times,
        )

    short, long = View(scaled(1)), View(scaled(10))
    for kind, values in seen(short).features.items():
        np.testing.assert_allclose(values, seen(long).features[kind], atol=1e-5, err_msg=kind)
    np.testing.assert_allclose(tasks(short).features, tasks(long).features, atol=1e-5)


def test_a_job_with_longer_to_run_shows_a_later_release() -> None:
    model = JobClass("known", speed(g1=1000))
    late = running("1", "n1", Resources(1, 1, 1000), job_class="known", start_time_s=800, end_limit_s=5000)
    early = running("2", "n2", Resources(1, 1, 1000), job_class="known", start_time_s=0, end_limit_s=5000)
    given = state(job("3"), running=(late, early), classes=(model,), time_s=900.0)
    on_n1, on_n2 = column(seen(View(given)), "node", "next_release_log")
    assert on_n1 > on_n2


def test_a_node_that_is_down_offers_nothing() -> None:
    nodes = (node("n1"), replace(node("n2"), available=False))
    view = View(state(job("1", partitions=("pa", "pb")), nodes=nodes, partitions=TWO))
    graphs = seen(view)
    assert column(graphs, "node", "available") == [1, 0]
    assert column(graphs, "partition", "gpus_of_cluster") == [1, 0]
    assert tasks(view).partition.tolist() == [0]


def test_a_job_whose_nodes_are_all_idle_waits_for_nothing() -> None:
    given = state(
        job("1"),
        job("2", partitions=("pb",)),
        job("3", partitions=("pa", "pb")),
        partitions=TWO,
        nodes=[node("n1"), node("n2", NODE - Resources(1, 1, 1))],
        running=(running("9", "n2", Resources(1, 1, 1)),),
    )
    offered = tasks(View(given))
    idle = dict(zip(offered.value.tolist(), offered.idle.tolist(), strict=True))
    assert idle == {0: True, 1: False, 2: False}


def test_the_cost_of_waiting_is_known_where_a_running_job_will_make_room() -> None:
    model = JobClass("known", speed(g1=1000, g4=250))
    wide = job("1", job_class="known", maximum=Resources(4, 4, 8000), minimum=Resources(4, 1, 8000))
    holding = running("9", "n1", Resources(1, 3, 1000), job_class="known", start_time_s=0, end_limit_s=110)
    busy = node("n1", NODE - Resources(1, 3, 1000))

    def gain(time_s: float) -> float:
        given = state(wide, nodes=[busy], running=(holding,), classes=(model,), time_s=time_s)
        return float(tasks(View(given)).features[0, TASK_COLUMNS.index("price_0_later_over_now")])

    assert gain(100.0) < -1  # in ten seconds four GPUs will be free, on which it runs four times as fast
    assert gain(100.0) < gain(5.0)


def test_jobs_of_others_and_held_jobs_are_not_ours_to_place() -> None:
    others = (foreign("2", Resources(1, 1, 1000)), job("3", eligible=False), job("4", partitions=("pz",)))
    assert tasks(View(state(job("1"), *others))).value.tolist() == [0]
