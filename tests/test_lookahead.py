"""Look-ahead: it improves on the heuristic, keeps every rule, and knows nothing of the true future."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc.frame import FUTURE, RUNNING, WAITING
from tapfinger_hpc.policies.compiled import lookahead, price
from tapfinger_hpc.policies.compiled.lookahead import Effort, Lookahead
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim import core, scenarios
from tapfinger_hpc.sim.episodes import CompiledPlayer, place_all, play

BRIEF = Effort(futures=4, depth=5, alternatives=3, first=2)
POOR = Prices(patience=50.0, length=0.0, age=0.0, reach=0.0, room=0.0, keepers=0.0, retries=0.0).array()
"""A heuristic that takes at once whatever is free, first come, first served."""


def after(workload, slots, prices=price.DEFAULT):
    """An environment that the heuristic has played for so many slots, with its newest tasks not yet placed."""
    frame, truth = core.environments([workload])
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    for _ in range(slots):
        place_all(frame, truth, 0, out, price.decide(frame, 0, prices, out))
        core.advance(frame, truth, 0)
    return frame, truth


def decided(player, frame):
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    return out[: player.decide(frame, 0, out)].tolist()


def small(seed):
    return scenarios.random_scenario(np.random.default_rng(seed), tasks=30)


@pytest.mark.slow  # compiled anew, the search takes a minute
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 8))
def test_whatever_the_scenario_all_that_it_decides_fits_and_the_frame_stays_as_it_is(seed, slots):
    scenario = small(seed)
    frame, truth = after(scenarios.draw(scenario, seed), slots)
    before = [array.copy() for array in frame]
    rows = decided(Lookahead(scenario, effort=BRIEF), frame)
    assert all(np.array_equal(array, was) for array, was in zip(frame, before, strict=True))
    assert place_all(frame, truth, 0, np.array(rows, np.int64).reshape(-1, 6), len(rows)) == len(rows)
    assert len({job for job, *_ in rows}) == len(rows)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8))
def test_the_same_state_gives_the_same_decision_whatever_the_true_future(seed, slots):
    scenario = scenarios.scenario("uniform-3")
    frame, _ = after(scenarios.draw(scenario, seed), slots)
    first = decided(Lookahead(scenario, effort=BRIEF), frame)
    to_come = np.flatnonzero(frame.status[0] == FUTURE)
    source = np.random.default_rng(seed)
    frame.kind[0, to_come] = source.integers(2, size=len(to_come))
    frame.arrival[0, to_come] = frame.now[0] + 1 + np.sort(source.integers(50, size=len(to_come)))
    frame.reach[0, to_come] = source.random((len(to_come), 3)) < 0.5
    frame.expected_end[0, to_come] = 1.0
    assert decided(Lookahead(scenario, effort=BRIEF), frame) == first
    assert decided(Lookahead(scenario, effort=BRIEF), frame) == first


@pytest.mark.slow
def test_where_it_plays_without_futures_to_compare_it_decides_as_the_heuristic_does():
    scenario = scenarios.scenario("hetero-6")
    frame, _ = after(scenarios.draw(scenario, 1), 12)
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    count = price.decide(frame, 0, price.DEFAULT, out)
    never = replace(BRIEF, surely=1e9)
    assert count
    assert decided(Lookahead(scenario, price.DEFAULT, never), frame) == out[:count].tolist()


@pytest.mark.slow
def test_a_state_taken_over_into_the_scratch_room_plays_on_as_the_true_one():
    """Windows, queues and running tasks are all there: with no more arrivals both come to the same end."""
    scenario = replace(scenarios.scenario("uniform-3"), tasks=60, arrivals=12.0, window=3)
    frame, truth = after(scenarios.draw(scenario, 3), 9)
    room, room_truth = core.environments([scenarios.draw(scenario, 0)] * 3)
    arrived = frame.status[0] != FUTURE
    assert (frame.reach[0] & ~frame.seen[0])[frame.status[0] == WAITING].any()
    assert (frame.status[0] == RUNNING).any()
    truth.jobs[0] = truth.next[0]
    names = lookahead._enter_state(frame, 0, room, room_truth)
    lookahead._copy(room, room_truth, lookahead.BASE, lookahead.ROLLOUT, len(names))
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    for there, its_truth, env in ((frame, truth, 0), (room, room_truth, lookahead.ROLLOUT)):
        for _ in range(200):
            place_all(there, its_truth, env, out, price.decide(there, env, price.DEFAULT, out))
            core.advance(there, its_truth, env)
    assert core.over(truth, 0)
    assert (np.delete(truth.end[0], ~arrived) > 0).all()
    assert np.array_equal(room_truth.end[lookahead.ROLLOUT, : len(names)], truth.end[0, names])


@pytest.mark.slow
def test_of_two_jobs_the_one_that_blocks_a_node_for_long_is_made_to_wait():
    """The heuristic without patience starts the long job first, since it stands first; ten short ones wait for it."""
    long, short = scenarios._flat("long", (8, 8), 20), scenarios._flat("short", (8, 8), 1)
    scenario = scenarios.Scenario("two", ((8, 8),), 0.0001, 6, (long, short))
    workload = scenarios.Workload(
        scenario, 0, np.zeros(6, np.int64), np.array([0, 1, 1, 1, 1, 1]), np.ones((6, 1), dtype=bool)
    )
    frame, _ = core.environments([workload])
    blind = Prices(length=0.0, age=0.0, retries=0.0).array()
    out = np.zeros((6, 6), np.int64)
    price.decide(frame, 0, blind, out)
    assert out[0, 0] == 0
    player = Lookahead(scenario, blind, Effort(futures=4, depth=30, alternatives=3, first=4))
    rows = decided(player, frame)
    assert [scenario.types[workload.type[job]].name for job, *_ in rows] == ["short"]
    assert player.labels[player.labels[:, lookahead.JOB] == 0, lookahead.MEAN].min() < 0


def test_sampled_futures_are_what_the_scenario_draws():
    scenario = scenarios.scenario("hetero-6")
    futures = lookahead.sample(scenario, 7.0, 400, 10, 0)
    there = np.isfinite(futures.arrival)
    assert there.sum(axis=1).tolist() == futures.size.tolist()
    assert futures.arrival[there].min() == 8
    assert futures.arrival[there].max() == 17
    assert (np.sort(futures.arrival, axis=1) == futures.arrival).all()
    assert futures.size.mean() == pytest.approx(60, abs=2)
    assert futures.kind[there].mean() == pytest.approx(0.5, abs=0.03)
    reached = futures.reach[there].sum(axis=1)
    assert np.bincount(reached, minlength=7)[1:] / len(reached) == pytest.approx(np.full(6, 1 / 6), abs=0.02)
    assert futures.reach[there].mean(axis=0) == pytest.approx(np.full(6, 3.5 / 6), abs=0.02)


@pytest.mark.slow
def test_it_betters_a_poor_heuristic_by_much():
    scenario = replace(scenarios.scenario("uniform-3"), tasks=90)
    workloads = [scenarios.draw(scenario, seed) for seed in range(4)]
    poor = np.mean([episode.mean_jct for episode in play(workloads, CompiledPlayer("poor", price.decide, POOR))])
    effort = Effort(futures=16, depth=10, alternatives=4, first=4)
    better = np.mean([episode.mean_jct for episode in play(workloads, Lookahead(scenario, POOR, effort))])
    assert better < 0.98 * poor
