"""Lower bounds: never above what exhaustive search or any policy reaches; tasks that crowd each other raise them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tapfinger_hpc.sim import players, scenarios
from tapfinger_hpc.sim.bound import alone, bound
from tapfinger_hpc.sim.episodes import play
from tapfinger_hpc.sim.scenarios import Scenario, TaskType, Workload

pytest.importorskip("scipy")


def flat(slots: int, minimum: tuple[int, int] = (1, 1)) -> TaskType:
    """More than the minimum brings nothing."""
    rate = np.zeros((4, 4))
    rate[minimum[0] :, minimum[1] :] = 1 / slots
    return TaskType(f"flat{slots}", minimum, rate)


def faster(slots: int) -> TaskType:
    """Twice the GPUs, half the time, but only with as many CPUs."""
    rate = np.zeros((4, 4))
    for cpus, gpus in itertools.product(range(1, 4), repeat=2):
        rate[cpus, gpus] = min(cpus, gpus) / slots
    return TaskType(f"faster{slots}", (1, 1), rate)


def tiny(seed: int) -> Workload:
    source = np.random.default_rng(seed)
    capacities = tuple((int(c), int(g)) for c, g in source.integers(1, 4, size=(2, 2)))
    scenario = Scenario("tiny", capacities, 1.5, 4, (flat(int(source.integers(1, 4))), faster(6)))
    return scenarios.draw(scenario, seed)


def best_possible(workload: Workload) -> int:
    """The least sum of completion times: every start, agent and amounts of every task, in turn."""
    capacities = np.array(workload.scenario.capacities)
    latest = int(workload.arrival.max()) + 24
    used = np.zeros((len(capacities), 2 * latest, 2), dtype=int)
    best = len(workload.arrival) * 2 * latest

    def search(task: int, total: int) -> None:
        nonlocal best
        if task == len(workload.arrival):
            best = min(best, total)
            return
        kind = workload.scenario.types[workload.type[task]]
        arrival = int(workload.arrival[task])
        for amounts in np.argwhere(kind.rate > 0):
            lasts = int(np.ceil(1 / kind.rate[tuple(amounts)] - 1e-9))
            for agent in np.flatnonzero(workload.reachable[task]).tolist():
                for start in range(arrival, latest):
                    if total + start + lasts - arrival >= best:
                        break
                    window = used[agent, start : start + lasts]
                    if (window <= capacities[agent] - amounts).all():
                        window += amounts
                        search(task + 1, total + start + lasts - arrival)
                        window -= amounts

    search(0, 0)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_exhaustive_search_never_finds_less_than_the_bound(seed):
    workload = tiny(seed)
    found = bound(workload, tolerance=1e-6)
    assert found.alone <= found.programme <= best_possible(workload) / len(workload.arrival) + 1e-6


def whole_programme(workload: Workload) -> float:
    """The mean completion time of the linear programme with every variable written out, and a row for every slot."""
    from scipy.optimize import linprog

    capacities = np.array(workload.scenario.capacities)
    tasks, latest = len(workload.arrival), int(workload.arrival.max()) + 24
    costs, of_task, holds = [], [], []
    for task in range(tasks):
        kind, arrival = workload.scenario.types[workload.type[task]], int(workload.arrival[task])
        for amounts in np.argwhere(kind.rate > 0):
            lasts = int(np.ceil(1 / kind.rate[tuple(amounts)] - 1e-9))
            for agent in np.flatnonzero(workload.reachable[task]):
                if (amounts > capacities[agent]).any():
                    continue
                for start in range(arrival, latest):
                    held = np.zeros((len(capacities), 2 * latest, 2))
                    held[agent, start : start + lasts] = amounts
                    costs.append(start + lasts - arrival)
                    of_task.append(np.eye(tasks)[task])
                    holds.append(held.ravel())
    limits = np.repeat(capacities[:, None], 2 * latest, axis=1).ravel()
    found = linprog(costs, np.array(holds).T, limits, np.array(of_task).T, np.ones(tasks), method="highs")
    return found.fun / tasks


@pytest.mark.parametrize("seed", range(4))
def test_columns_as_they_are_asked_for_come_to_the_value_of_the_whole_programme(seed):
    workload = tiny(seed)
    found = bound(workload, tolerance=1e-6)
    assert found.gap <= 1e-6
    assert found.programme == pytest.approx(whole_programme(workload), rel=1e-5)


def test_two_tasks_that_fill_the_only_agent_follow_each_other():
    scenario = Scenario("one", ((2, 2),), 1, 2, (flat(4, (2, 2)),))
    workload = Workload(scenario, 0, np.array([0, 0]), np.array([0, 0]), np.ones((2, 1), bool))
    found = bound(workload, tolerance=1e-6)
    assert found.alone == 4
    assert found.programme == pytest.approx((4 + 8) / 2)


def test_a_task_alone_takes_the_agent_that_is_large_enough_among_those_it_reaches():
    scenario = Scenario("two", ((1, 1), (3, 3)), 1, 2, (faster(6),))
    workload = Workload(scenario, 0, np.array([0, 0]), np.array([0, 0]), np.array([[True, False], [True, True]]))
    assert alone(workload).tolist() == [6, 2]


@pytest.mark.parametrize("name", ["fifo", "srtf", "min"])
def test_no_policy_is_below_the_bound(name):
    scenario = replace(scenarios.scenario("uniform-3"), tasks=60)
    workloads = [scenarios.draw(scenario, seed) for seed in range(3)]
    for workload, episode in zip(workloads, play(workloads, players.make(name, seed=0)), strict=True):
        found = bound(workload)
        assert found.alone <= found.programme <= episode.mean_jct


def test_a_rough_solution_is_a_bound_too_and_says_how_much_it_may_lack():
    workload = scenarios.draw(scenarios.scenario("order-3"), 1)
    rough, fine = bound(workload, rounds=1), bound(workload, tolerance=1e-6)
    assert rough.programme <= fine.programme + 1e-6
    assert fine.programme <= rough.programme * (1 + rough.gap) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seeds", "recorded_alone", "recorded"), [("hetero-6", 4, 3.061, 3.187), ("uniform-3", 8, 3.001, 3.150)]
)
def test_the_recorded_bounds_come_out_within_their_spread_over_seeds(name, seeds, recorded_alone, recorded):
    found = [bound(scenarios.workload(name, seed)) for seed in range(seeds)]
    for values, expected in (
        ([one.alone for one in found], recorded_alone),
        ([one.programme for one in found], recorded),
    ):
        assert abs(np.mean(values) - expected) < 1.5 * np.std(values)
