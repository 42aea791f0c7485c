"""Finds the constants of the compiled price heuristic for a scenario: evolution of a normal distribution (CMA-ES).

Every generation is judged on workloads of its own, the same for all its candidates: nothing can be learnt by heart. The
distribution's last mean is what was found; it is kept only if it beats the constants it started from on workloads that
no generation saw. Seeded; the time that it may take is the caller's.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.policies import constants
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.policies.constants import SPACE, WITH_MEMORY, Space
from tapfinger_hpc.sim import core, sites
from tapfinger_hpc.sim.core import Truth, compiled
from tapfinger_hpc.sim.episodes import place_all
from tapfinger_hpc.sim.scenarios import CLUSTER, Scenario, Workload, draw, random_scenario

DRAWN_TASKS = 128
HELD_OUT = 100
"""Workloads that decide whether what was found is kept."""
BEGIN = 32
"""Workloads that decide with which constants a search begins, where there is a choice."""
_BEGIN_SEED, _HELD_OUT_SEED, _SEARCH_SEED = 2_000_000, 3_000_000, 4_000_000
_MAX_SLOTS = 20_000


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    scenario: str
    prices: Prices
    mean: float
    """Mean over the workloads held out: slots of completion time; over drawn scenarios, its logarithm."""
    started_at: float
    """The same of the constants that the search started from."""
    generations: int
    minutes: float
    seed: int

    def save(self, path: Path, **more: Any) -> None:
        """As JSON, with how it was found; ``more`` stands beside it."""
        found = {name: getattr(self, name) for name in ("scenario", "mean", "started_at", "generations", "minutes")}
        constants.write(path, self.prices, {**found, "seed": self.seed, **more})


def tune(
    scenario: Scenario | str,
    minutes: float,
    seed: int = 0,
    *,
    start: Prices | None = None,
    others: Sequence[Prices] = (),
    drawn: Callable[[int], Workload] | None = None,
    population: int = 14,
    episodes: int = 16,
    generations: int = 1_000_000,
    held_out: int = HELD_OUT,
    workers: int = 1,
    progress: Callable[[int, float, float], None] = lambda generation, elapsed_s, spread: None,
) -> Tuned:
    """Searches for so long.

    Args:
        scenario: or one of ``scenarios.DRAWN``: another cluster, load and set of speed curves for each workload.
        start: constants to beat, and to begin with.
        others: to begin with instead, where they do better.
        drawn: makes the workload of a seed, in event time; ``scenario`` is then its name alone.
        workers: threads; what is found does not depend on them but by the time.
        progress: told of each generation: how many there were, the seconds passed and the spread of its candidates.
    """
    began = time.monotonic()
    start = begin = start or Prices()
    space = WITH_MEMORY if drawn or scenario == CLUSTER else SPACE
    made = drawn or partial(_workload, scenario)
    if others:
        workloads = [made(_BEGIN_SEED + number) for number in range(BEGIN)]
        begin = (start, *others)[int(_summary(scenario, scores(workloads, [start, *others], workers)).argmin())]
    search = _Evolution(_to_unit(begin, space), 0.12, population, np.random.default_rng(seed))
    generation = 0
    while time.monotonic() - began < 60 * minutes and generation < generations:
        first = _SEARCH_SEED + (seed * 10_000 + generation) * episodes
        workloads = [made(first + number) for number in range(episodes)]
        candidates = search.ask()
        values = scores(workloads, [_from_unit(begin, candidate, space) for candidate in candidates], workers)
        outside = np.abs(candidates - np.clip(candidates, 0, 1)).sum(axis=1)
        search.tell(candidates, _summary(scenario, values) + 0.1 * outside)
        generation += 1
        progress(generation, time.monotonic() - began, search.spread)
    workloads = [made(_HELD_OUT_SEED + number) for number in range(held_out)]
    last = list(dict.fromkeys((start, begin, _from_unit(begin, search.mean, space))))
    means = _summary(scenario, scores(workloads, last, workers))
    best = int(means.argmin())
    return Tuned(
        scenario=scenario if isinstance(scenario, str) else scenario.name,
        prices=last[best],
        mean=float(means[best]),
        started_at=float(means[0]),
        generations=generation,
        minutes=minutes,
        seed=seed,
    )


def scores(workloads: list[Workload], candidates: list[Prices], workers: int = 1) -> np.ndarray:
    """Mean completion time of each candidate on each workload, [candidate, workload]."""
    frame, truth = core.environments(workloads)
    arrays = [prices.array() for prices in candidates]

    def of(env: int) -> list[float]:
        out = np.zeros((frame.waiting.shape[1], 6), np.int64)
        return [play_price(frame, truth, env, each, out) for each in arrays]

    # Compiled code holds no lock, and environments share nothing.
    with ThreadPoolExecutor(workers) as threads:
        return np.array(list(threads.map(of, range(len(workloads))))).T


@compiled
def play_price(frame: Frame, truth: Truth, env: int, parameters: np.ndarray, out: np.ndarray) -> float:
    """Plays the episode of an environment from its start; its mean completion time, infinity where it gets nowhere."""
    core.restart(frame, truth, env)
    total = 0.0
    for _ in range(_MAX_SLOTS):
        place_all(frame, truth, env, out, price.decide(frame, env, parameters, out))
        total += core.advance(frame, truth, env)
        if core.over(truth, env):
            return total / truth.jobs[env]
    return np.inf


def _summary(scenario: Scenario | str, values: np.ndarray) -> np.ndarray:
    """One number for each candidate. Drawn workloads count alike, whether their tasks are short or long."""
    return np.log(values).mean(axis=1) if isinstance(scenario, str) else values.mean(axis=1)


def _workload(scenario: Scenario | str, seed: int) -> Workload:
    # Short ones of those that are drawn: a search sees more clusters in its time.
    if scenario == CLUSTER:
        return sites.workload(seed, tasks=DRAWN_TASKS)
    if isinstance(scenario, str):
        scenario = random_scenario(np.random.default_rng(seed), tasks=DRAWN_TASKS)
    return draw(scenario, seed)


def _to_unit(prices: Prices, space: Space) -> np.ndarray:
    """[constant of the space] 0 at its lower bound, 1 at its upper one."""
    unit = []
    for name, (low, high, factor) in space.items():
        value = getattr(prices, name)
        unit.append(np.log(max(value, low) / low) / np.log(high / low) if factor else (value - low) / (high - low))
    return np.clip(np.array(unit), 0.0, 1.0)


def _from_unit(start: Prices, unit: np.ndarray, space: Space) -> Prices:
    values = {}
    for at, (name, (low, high, factor)) in zip(np.clip(unit, 0.0, 1.0).tolist(), space.items(), strict=True):
        values[name] = round(low * (high / low) ** at if factor else low + (high - low) * at, 4)
    return start._replace(**values)


class _Evolution:
    """(mu/mu_w, lambda)-CMA-ES as in Hansen's tutorial (arXiv:1604.00772), with its default constants."""

    def __init__(self, mean: np.ndarray, spread: float, population: int, source: np.random.Generator) -> None:
        size = len(mean)
        self.mean, self.spread = mean, spread
        self._population, self._source = population, source
        weights = np.log((population + 1) / 2) - np.log(np.arange(1, population // 2 + 1))
        self._weights = weights / weights.sum()
        self._mass = mass = 1 / (self._weights**2).sum()
        self._path_c_rate = (4 + mass / size) / (size + 4 + 2 * mass / size)
        self._path_s_rate = (mass + 2) / (size + mass + 5)
        self._one_rate = 2 / ((size + 1.3) ** 2 + mass)
        self._mu_rate = min(1 - self._one_rate, 2 * (mass - 2 + 1 / mass) / ((size + 2) ** 2 + mass))
        self._damping = 1 + 2 * max(0.0, np.sqrt((mass - 1) / (size + 1)) - 1) + self._path_s_rate
        self._normal = np.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))
        self._path_c, self._path_s, self._covariance = np.zeros(size), np.zeros(size), np.eye(size)
        self._told = 0

    def ask(self) -> np.ndarray:
        """Candidates, [population, constant]."""
        variances, self._axes = np.linalg.eigh(self._covariance)
        self._deviations = np.sqrt(np.maximum(variances, 1e-12))
        steps = self._source.standard_normal((self._population, len(self.mean)))
        return self.mean + self.spread * (steps * self._deviations) @ self._axes.T

    def tell(self, candidates: np.ndarray, costs: np.ndarray) -> None:
        """What they cost."""
        self._told += 1
        best = np.argsort(costs, kind="stable")[: len(self._weights)]
        steps = (candidates[best] - self.mean) / self.spread
        step = self._weights @ steps
        self.mean = self.mean + self.spread * step
        white = self._axes @ ((self._axes.T @ step) / self._deviations)
        rate = self._path_s_rate
        self._path_s = (1 - rate) * self._path_s + np.sqrt(rate * (2 - rate) * self._mass) * white
        length = np.linalg.norm(self._path_s)
        stalled = length / np.sqrt(1 - (1 - rate) ** (2 * self._told)) > (1.4 + 2 / (len(self.mean) + 1)) * self._normal
        rate = self._path_c_rate
        self._path_c = (1 - rate) * self._path_c
        if not stalled:
            self._path_c += np.sqrt(rate * (2 - rate) * self._mass) * step
        self._covariance = (
            (1 - self._one_rate - self._mu_rate) * self._covariance
            + self._one_rate * np.outer(self._path_c, self._path_c)
            + self._mu_rate * (steps.T * self._weights) @ steps
        )
        self.spread *= float(np.exp(self._path_s_rate / self._damping * (length / self._normal - 1)))
