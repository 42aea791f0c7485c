"""The compiled price heuristic: what decides each choice, by hand, and what holds on any cluster."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc import frame as frames
from tapfinger_hpc.policies import constants
from tapfinger_hpc.policies.compiled import price, tune_cli, tune_price, tuned
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim import core, scenarios
from tapfinger_hpc.sim.episodes import CompiledPlayer, place_all, play

SEEDS = st.integers(0, 2**31)
PLAIN = Prices(
    base=0.1, backlog=1.0, load=0.0, local=1.0, cpu=0.0, mem=0.0, adapt=0.0, scarcest=0.0, size=1.0, age=0.0, reach=0.0,
    length=1.0, patience=1.0, margin=0.0, packing=0.0, reserve=1.0, room=0.0, later=0.0, soon=0.5, idle=0.0,
    retries=0.0, keepers=8.0, ease=0.0, crowd=0.0,
)  # fmt: skip
"""GPUs alone have a price, and only that of the backlog."""


def cluster(nodes, kinds, waiting, running=(), *, now=100.0, slot=0.0, partitions=None):
    """A frame of one environment.

    Args:
        nodes: capacity of each; it is a partition of its own unless ``partitions`` lists the nodes of each.
        kinds: for each its menu: seconds by amounts.
        waiting: (kind, partitions that may take it, seconds waited).
        running: (node, amounts, seconds to its expected end); of the last kind.
    """
    partitions = partitions or [[node] for node in range(len(nodes))]
    frame = frames.allocate(
        1,
        partitions=len(partitions),
        nodes=len(nodes),
        kinds=len(kinds),
        choices=max(len(menu) for menu in kinds),
        jobs=max(1, len(waiting) + len(running)),
    )
    frame.partitions[0], frame.nodes[0], frame.now[0], frame.slot[0] = len(partitions), len(nodes), now, slot
    frame.capacity[0] = frame.free[0] = nodes
    frame.available[0] = True
    frame.kinds[0] = len(kinds)
    for partition, members in enumerate(partitions):
        frame.member[0, partition, members] = True
    for kind, menu in enumerate(kinds):
        frame.choices[0, kind] = len(menu)
        for choice, (amounts, seconds) in enumerate(menu.items()):
            frame.menu[0, kind, choice], frame.seconds[0, kind, choice] = amounts, seconds
    for job, (kind, reach, waited) in enumerate(waiting):
        frame.kind[0, job], frame.arrival[0, job] = kind, now - waited
        frame.status[0, job] = frames.WAITING
        frame.reach[0, job, reach] = frame.seen[0, job, reach] = True
        frame.waiting[0, job] = job
    frame.waiting_count[0] = len(waiting)
    for position, (node, amounts, rest) in enumerate(running):
        job = len(waiting) + position
        frame.kind[0, job], frame.status[0, job], frame.node[0, job] = len(kinds) - 1, frames.RUNNING, node
        frame.amounts[0, job], frame.start[0, job], frame.expected_end[0, job] = amounts, now - 1, now + rest
        frame.running[0, position] = job
        frame.free[0, node] -= amounts
    frame.running_count[0] = len(running)
    return frame


def decided(frame, prices=PLAIN):
    """Job: (node, amounts) of what starts now."""
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    count = price.decide(frame, 0, prices.array(), out)
    return {int(row[0]): (int(row[2]), tuple(row[3:].tolist())) for row in out[:count]}


def on_gpus(**seconds):
    """A menu: g4=10 is 10 s on 4 GPUs (with one CPU)."""
    return {(1, int(name[1:]), 0): value for name, value in seconds.items()}


NODE = (16, 8, 0)
SLOWING = on_gpus(g1=100.0, g4=40.0, g8=30.0)


# -- what decides --------------------------------------------------------------------------------------------------


def test_a_job_alone_takes_the_amounts_on_which_it_is_fastest():
    assert decided(cluster([NODE], [SLOWING], [(0, [0], 0)])) == {0: (0, (1, 8, 0))}


def test_with_others_waiting_for_the_node_a_job_takes_less():
    # With five others: 8 GPUs cost 30 (1 + 5.1), 4 cost 40 (1 + 2.55), 1 costs 100 (1 + 0.64).
    assert decided(cluster([NODE], [SLOWING], [(0, [0], 0)] * 6))[0] == (0, (1, 4, 0))


def test_jobs_running_on_a_node_count_as_pressure_as_far_as_load_says():
    busy = cluster([NODE], [SLOWING], [(0, [0], 0)], [(0, (1, 0, 0), 1000.0)] * 4)
    assert decided(busy, PLAIN) == {0: (0, (1, 8, 0))}
    assert decided(busy, PLAIN._replace(load=1.0)) == {0: (0, (1, 4, 0))}


@pytest.mark.parametrize(("rest_s", "amounts"), [(20.0, None), (80.0, (1, 1, 0))])
def test_a_job_waits_for_an_expected_release_only_where_that_is_cheaper(rest_s, amounts):
    # On the one free GPU it takes 100 s; on all eight 30 s, after the wait.
    frame = cluster([NODE], [SLOWING], [(0, [0], 0)], [(0, (1, 7, 0), rest_s)])
    assert decided(frame, PLAIN._replace(base=0.0)).get(0, (0, None))[1] == amounts


def test_patience_and_margin_make_a_job_start_where_it_would_wait():
    frame = cluster([NODE], [SLOWING], [(0, [0], 0)], [(0, (1, 7, 0), 60.0)])
    assert decided(frame, PLAIN._replace(base=0.0)) == {}
    assert decided(frame, PLAIN._replace(base=0.0, patience=1.5))
    assert decided(frame, PLAIN._replace(base=0.0, margin=0.2))


def test_what_a_job_waits_for_costs_too_where_it_may_lie_idle():
    # Eight GPUs in 60 s: 30 s, and 60 s of waiting, against 100 s on the one that is free.
    frame = cluster([NODE], [SLOWING], [(0, [0], 0)], [(0, (1, 7, 0), 60.0)])
    assert decided(frame, PLAIN) == {}
    assert decided(frame, PLAIN._replace(idle=3.0)) == {0: (0, (1, 1, 0))}


@pytest.mark.parametrize(("lasts_s", "reserve", "starts"), [(50.0, 1.0, False), (50.0, 0.0, True), (5.0, 1.0, True)])
def test_a_job_that_waits_keeps_its_room_from_jobs_that_would_still_run_then(lasts_s, reserve, starts):
    whole, half = on_gpus(g8=4.0), on_gpus(g4=lasts_s)
    frame = cluster([NODE], [whole, half], [(0, [0], 0), (1, [0], 0)], [(0, (1, 4, 0), 5.0)])
    assert (1 in decided(frame, PLAIN._replace(reserve=reserve))) is starts


def test_of_two_equal_jobs_the_one_that_can_use_fewer_nodes_is_served_first():
    wide, narrow = (0, [0, 1], 0), (0, [0], 0)
    frame = cluster([NODE, NODE], [on_gpus(g8=10.0)], [wide, narrow], [(1, (1, 8, 0), 1000.0)])
    assert list(decided(frame, PLAIN._replace(reach=1.0, local=0.0))) == [1]


def test_of_two_equal_jobs_the_one_that_waited_longer_is_served_first():
    frame = cluster([NODE], [on_gpus(g8=10.0)], [(0, [0], 0), (0, [0], 50)])
    assert list(decided(frame, PLAIN._replace(age=1.0))) == [1]


def test_shorter_jobs_are_served_first_unless_length_does_not_count():
    frame = cluster([NODE], [on_gpus(g8=100.0), on_gpus(g8=10.0)], [(0, [0], 0), (1, [0], 0)])
    assert list(decided(frame, PLAIN)) == [1]
    assert list(decided(frame, PLAIN._replace(length=0.0))) == [0]


@pytest.mark.parametrize(("packing", "node"), [(0.5, 1), (-0.5, 0)])
def test_packing_says_whether_fuller_or_emptier_nodes_are_preferred(packing, node):
    frame = cluster([NODE, NODE], [on_gpus(g1=10.0)], [(0, [0, 1], 0)], [(1, (1, 4, 0), 1000.0)])
    assert decided(frame, PLAIN._replace(packing=packing))[0][0] == node


@pytest.mark.parametrize(("room", "node"), [(0.0, 0), (1.0, 1)])
def test_a_job_leaves_alone_the_room_in_which_newcomers_of_other_kinds_would_be_fast(room, node):
    # Five GPUs are free on the first node, four on the second; the kind that runs is twice as fast on five as on fewer.
    small, large = on_gpus(g1=10.0), on_gpus(g3=10.0, g5=5.0)
    running = [(0, (1, 3, 0), 1000.0), (1, (1, 4, 0), 1000.0)]
    frame = cluster([NODE, NODE], [small, large], [(0, [0, 1], 0)], running)
    assert decided(frame, PLAIN._replace(room=room))[0][0] == node


def test_a_small_node_is_dearer_than_a_large_one_as_far_as_size_says():
    frame = cluster([(16, 2, 0), (16, 8, 0)], [on_gpus(g1=10.0, g2=8.0)], [(0, [0, 1], 0)])
    assert decided(frame, PLAIN._replace(size=1.0))[0] == (1, (1, 2, 0))
    assert decided(frame, PLAIN._replace(size=-1.0))[0][0] == 0  # turned round, to see that it is this that decides


def test_cpus_and_memory_have_a_price_of_their_own():
    frame = cluster([(16, 8, 1000)], [{(1, 1, 100): 12.0, (1, 1, 1000): 10.0, (16, 1, 0): 10.5}], [(0, [0], 0)] * 3)
    assert decided(frame)[0] == (0, (1, 1, 1000))
    assert decided(frame, PLAIN._replace(mem=1.0))[0] == (0, (16, 1, 0))
    assert decided(frame, PLAIN._replace(mem=1.0, cpu=1.0))[0] == (0, (1, 1, 100))


def test_a_resource_that_is_held_and_wanted_more_weighs_more_where_prices_adapt():
    menu = {(1, 4, 0): 10.0, (15, 1, 0): 11.0}
    frame = cluster([(64, 8, 0)], [menu], [(0, [0], 0)] * 3, [(0, (0, 4, 0), 1000.0)])
    assert decided(frame, PLAIN._replace(cpu=4.0))[0] == (0, (1, 4, 0))
    assert decided(frame, PLAIN._replace(cpu=4.0, adapt=3.0))[0] == (0, (15, 1, 0))


def test_a_plan_made_again_puts_first_the_job_that_would_have_to_wait():
    # The first takes the node that the second alone can use, though the other one would do as well.
    waiting, blind = [(0, [0, 1], 0), (1, [0], 0)], PLAIN._replace(backlog=0.0)
    frame = cluster([NODE, NODE], [on_gpus(g8=9.0), on_gpus(g8=10.0)], waiting)
    assert decided(frame, blind) == {0: (0, (1, 8, 0))}
    assert decided(frame, blind._replace(retries=1.0)) == {0: (1, (1, 8, 0)), 1: (0, (1, 8, 0))}


def test_a_job_that_stands_behind_a_window_is_not_placed_through_it():
    frame = cluster([NODE, NODE], [on_gpus(g8=9.0)], [(0, [0, 1], 0)])
    frame.seen[0, 0, 0] = False
    assert decided(frame) == {0: (1, (1, 8, 0))}


@pytest.mark.parametrize(("reveal", "starts"), [(0.0, 0), (1.0, 1)])
def test_of_two_equal_jobs_the_one_that_keeps_more_agents_from_seeing_others_is_served_first(reveal, starts):
    waiting, busy = [(0, [0], 0), (0, [0, 1], 0), (0, [0, 1], 0)], [(1, (1, 8, 0), 1000.0)]
    frame = cluster([NODE, NODE], [on_gpus(g8=10.0)], waiting, busy)
    frame.seen[0, 2] = False
    assert list(decided(frame, PLAIN._replace(backlog=0.0, reveal=reveal))) == [starts]


def test_a_node_that_is_down_takes_nothing():
    frame = cluster([NODE, NODE], [on_gpus(g8=9.0)], [(0, [0, 1], 0)])
    frame.available[0, 0] = False
    assert decided(frame) == {0: (1, (1, 8, 0))}


def test_a_job_that_has_waited_beyond_patience_comes_before_the_job_that_would_be_done_first():
    frame = cluster([NODE], [on_gpus(g8=50.0), on_gpus(g8=5.0)], [(0, [0], 1000.0), (1, [0], 0.0)])
    for patience, first in ((np.inf, 1), (9.0, 0)):
        placed, layout = price.lay_out(frame, 0, PLAIN.array(), patience, 0)
        assert layout.rows[:placed, 0].tolist() == [first]


def test_what_a_starving_job_waits_for_is_kept_whole_whoever_else_keeps_something():
    frame = cluster(
        [NODE], [on_gpus(g8=50.0), on_gpus(g2=500.0)], [(0, [0], 1000.0), (1, [0], 0.0)], [(0, (1, 4, 0), 9.0)]
    )
    heedless = PLAIN._replace(keepers=0.0, backlog=0.0)
    for patience, starts in ((np.inf, [1]), (9.0, [])):
        placed, layout = price.lay_out(frame, 0, heedless.array(), patience, 0)
        assert layout.rows[:placed, 0].tolist() == starts


def test_the_plan_says_when_a_job_that_waits_will_start_and_what_it_might_have_now():
    frame = cluster([NODE], [on_gpus(g2=100.0, g8=30.0)], [(0, [0], 0)], [(0, (1, 4, 0), 5.0)])
    placed, layout = price.lay_out(frame, 0, PLAIN.array(), np.inf, 3)
    assert placed == 0
    assert layout.rows[0].tolist() == [0, 0, 0, 1, 8, 0]
    assert (layout.start[0], layout.lasts[0]) == (5.0, 30.0)
    assert layout.others[0, 0].tolist() == [0, 0, 0, 1, 2, 0]
    assert layout.cost[0] == layout.waiting[0] < layout.other_cost[0, 0] < layout.other_cost[0, 1] == np.inf


# -- what holds anywhere -------------------------------------------------------------------------------------------


def any_cluster(source):
    """Nodes in several partitions, three resources, event time; some jobs cannot run anywhere."""
    nodes = [tuple(source.integers(1, (65, 9, 1000)).tolist()) for _ in range(source.integers(1, 8))]
    partitions = [
        sorted({int(node) for node in source.integers(len(nodes), size=source.integers(1, 5))})
        for _ in range(source.integers(1, 5))
    ]
    kinds = []
    for _ in range(source.integers(1, 5)):
        amounts = source.integers(0, (17, 5, 400), size=(source.integers(1, 6), 3))
        kinds.append({tuple(row): float(source.exponential(100.0)) + 0.1 for row in amounts.tolist()})
    waiting = [
        (
            int(source.integers(len(kinds))),
            [int(way) for way in source.integers(len(partitions), size=source.integers(1, 4))],
            float(source.exponential(50.0)),
        )
        for _ in range(source.integers(0, 30))
    ]
    running = []
    free = np.array(nodes)
    for _ in range(source.integers(0, 12)):
        node = int(source.integers(len(nodes)))
        amounts = source.integers(0, free[node] + 1)
        free[node] -= amounts
        running.append((node, tuple(amounts.tolist()), float(source.normal(50.0, 60.0))))
    return cluster(nodes, kinds, waiting, running, partitions=partitions)


def any_prices(source):
    drawn = {name: source.uniform(low, high) for name, (low, high, _) in constants.SPACE.items()}
    return Prices(**drawn, mem=source.uniform(0, 1))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_whatever_the_cluster_and_the_constants_every_placement_fits_and_the_frame_stays_as_it_is(seed):
    source = np.random.default_rng(seed)
    frame, prices = any_cluster(source), any_prices(source)
    before = [array.copy() for array in frame]
    placed = decided(frame, prices)
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    count = price.decide(frame, 0, prices.array(), out)
    assert all(np.array_equal(array, was) for array, was in zip(frame, before, strict=True))
    assert {int(row[0]): (int(row[2]), tuple(row[3:].tolist())) for row in out[:count]} == placed
    assert len(placed) == count
    free = frame.free[0].copy()
    for job, partition, node, *amounts in out[:count].tolist():
        assert frame.status[0, job] == frames.WAITING
        assert frame.seen[0, job, partition]
        assert frame.member[0, partition, node]
        menu = frame.menu[0, frame.kind[0, job], : frame.choices[0, frame.kind[0, job]]]
        assert (menu == amounts).all(axis=1).any()
        free[node] -= amounts
    assert (free >= 0).all()


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_the_whole_plan_begins_with_what_is_decided_and_has_a_row_for_every_job_that_can_run(seed):
    source = np.random.default_rng(seed)
    frame, prices = any_cluster(source), any_prices(source)
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    count = price.decide(frame, 0, prices.array(), out)
    placed, layout = price.lay_out(frame, 0, prices.array(), np.inf, 4)
    assert layout.rows[:placed].tolist() == out[:count].tolist()
    assert (layout.start[:placed] == 0.0).all()
    behind = layout.rows[placed:]
    assert (layout.start[placed:][behind[:, 0] >= 0] > 0.0).all()
    named = layout.rows[layout.rows[:, 0] >= 0, 0].tolist()
    assert len(set(named)) == len(named)
    for job in frame.waiting[0, : frame.waiting_count[0]].tolist():
        nodes = frame.member[0, frame.reach[0, job]].any(axis=0)
        menu = frame.menu[0, frame.kind[0, job], : frame.choices[0, frame.kind[0, job]]]
        assert (job in named) == bool((menu[:, None] <= frame.capacity[0, nodes]).all(axis=2).any())
    for others, costs in zip(layout.others, layout.other_cost, strict=True):
        assert (np.diff(costs[np.isfinite(costs)]) >= 0).all()
        for _, partition, node, *amounts in others[np.isfinite(costs)].tolist():
            assert frame.member[0, partition, node]
            assert (np.array(amounts) <= frame.free[0, node]).all()


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_with_nothing_running_some_job_that_can_run_starts(seed):
    source = np.random.default_rng(seed)
    frame, prices = any_cluster(source), any_prices(source)
    frame.running_count[0] = 0
    frame.free[0] = frame.capacity[0]
    can = False
    for job in frame.waiting[0, : frame.waiting_count[0]].tolist():
        nodes = frame.member[0, frame.seen[0, job]].any(axis=0)
        menu = frame.menu[0, frame.kind[0, job], : frame.choices[0, frame.kind[0, job]]]
        can |= bool((menu[:, None] <= frame.capacity[0, nodes]).all(axis=2).any())
    assert bool(decided(frame, prices)) == can


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_every_task_of_a_random_scenario_is_run_and_all_that_was_decided_fitted(seed):
    source = np.random.default_rng(seed)
    workload = scenarios.draw(scenarios.random_scenario(source, tasks=40), seed)
    frame, truth = core.environments([workload])
    prices, out = any_prices(source).array(), np.zeros((frame.waiting.shape[1], 6), np.int64)
    for _ in range(20_000):
        count = price.decide(frame, 0, prices, out)
        assert place_all(frame, truth, 0, out, count) == count
        core.advance(frame, truth, 0)
        if core.over(truth, 0):
            break
    assert core.over(truth, 0)


def test_the_future_of_the_workload_does_not_change_a_decision():
    scenario = scenarios.scenario("hetero-6")
    frame, truth = core.environments([scenarios.draw(scenario, 1)])
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    for _ in range(10):
        place_all(frame, truth, 0, out, price.decide(frame, 0, price.DEFAULT, out))
        core.advance(frame, truth, 0)
    first = decided(frame, Prices())
    later = frame.status[0] == frames.FUTURE
    assert first
    assert later.any()
    frame.kind[0, later] = 0
    frame.arrival[0, later] += 5.0
    frame.reach[0, later] = True
    assert decided(frame, Prices()) == first


def test_constants_for_a_scenario_beat_none_but_its_own_minimum_amounts():
    workload = scenarios.draw(scenarios.scenario("hetero-6"), 5)
    (episode,) = play([workload], CompiledPlayer("price", price.decide, tuned.prices("hetero-6").array()))
    alone = np.mean([workload.scenario.types[kind].slots.min() for kind in workload.type])
    assert alone < episode.mean_jct < 1.25 * alone


# -- tuning --------------------------------------------------------------------------------------------------------


SHORT = replace(scenarios.scenario("uniform-3"), tasks=60)


def test_tuning_with_the_same_seed_finds_the_same_constants():
    runs = [tune_price.tune(SHORT, 1.0, 3, population=4, episodes=2, generations=3, held_out=4) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].generations == 3


@pytest.mark.slow
def test_clusters_in_event_time_can_be_tuned_for_and_there_memory_has_a_price_too():
    poor = PLAIN._replace(patience=4.0, margin=0.3, backlog=10.0, room=1.0)
    found = tune_price.tune("cluster", 1.0, 1, start=poor, population=8, episodes=2, generations=4, held_out=6)
    assert (found.scenario, found.generations) == ("cluster", 4)
    assert found.mean < found.started_at
    assert found.prices.mem != poor.mem


def test_what_is_found_is_never_worse_on_the_held_out_workloads_than_what_was_there():
    poor = PLAIN._replace(patience=4.0, margin=0.3, backlog=10.0)
    found = tune_price.tune(SHORT, 1.0, 1, start=poor, population=8, episodes=4, generations=6, held_out=8)
    assert found.mean < found.started_at
    assert found.prices != poor


def test_a_search_begins_with_the_best_of_the_constants_that_it_is_given():
    poor = PLAIN._replace(patience=4.0, margin=0.3, backlog=10.0)
    short = {"population": 4, "episodes": 2, "generations": 0, "held_out": 4}
    found = tune_price.tune(SHORT, 1.0, 1, start=poor, others=tuned.shipped(), **short)
    assert found.prices in tuned.shipped()
    assert found.mean < found.started_at
    assert tune_price.tune(SHORT, 1.0, 1, start=found.prices, others=[poor], **short).prices == found.prices


def test_the_evolution_comes_to_the_minimum_of_a_bowl():
    source = np.random.default_rng(0)
    search = tune_price._Evolution(np.full(5, 0.9), 0.2, 10, source)
    for _ in range(150):
        candidates = search.ask()
        search.tell(candidates, ((candidates - 0.3) ** 2 * [1, 10, 100, 1, 10]).sum(axis=1))
    assert np.abs(search.mean - 0.3).max() < 1e-3


def test_the_shipped_constants_are_within_the_space_that_is_searched():
    for prices in (Prices(), *tuned.SCENARIOS.values()):
        for name, (low, high, _) in constants.SPACE.items():
            assert low <= getattr(prices, name) <= high, name


def test_the_command_writes_constants_that_can_be_read_again(tmp_path):
    out = tmp_path / "prices.json"
    done = CliRunner().invoke(
        tune_cli.tune, ["--scenario", "order-3", "--minutes", "0.0001", "--out", str(out), "--seed", "7"]
    )
    assert done.exit_code == 0, done.output
    assert isinstance(constants.read(out), Prices)
