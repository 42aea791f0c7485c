"""What is told of the speed of tasks before they run: the truth, an estimate, or what was learned from other episodes.

A ``Belief`` holds the believed times of a scenario's types on all amounts; the core fills frames from it, and keeps the
true ones to itself. On which amounts a type can run at all is always known, as its least amounts are in the paper.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.sim.scenarios import DRAWN, SLOT_S, Scenario, TaskType, Workload, worth_having
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources

LEAST_ERROR, MOST_ERROR = 0.05, 0.2
"""Standard deviation of the logarithm of an estimate, drawn for each kind: from measured well to guessed at."""
LEVEL_SHARE = 0.5
"""Share of the variance of an estimate that is an error of all its times alike; the rest is one of slopes."""


@dataclass(frozen=True, eq=False)
class Belief:
    """What is believed of the types of a scenario, in their order."""

    slots: tuple[np.ndarray, ...]  # of each type float64 [CPUs + 1, GPUs + 1]; infinite where it cannot run
    log_std: tuple[float, ...]
    """Standard deviation of the logarithm of these times."""

    @cached_property
    def menus(self) -> tuple[np.ndarray, ...]:
        """int64 [choice, 2] of each type the amounts that are thought worth having: that save a whole slot."""
        return tuple(worth_having(np.maximum(1.0, np.rint(slots))) for slots in self.slots)


@lru_cache(maxsize=256)
def estimated(workload: Workload) -> Belief:
    """True times off by a smooth log-normal error of level and slopes, drawn anew for each type and episode: the same
    for every policy that plays the workload.
    """
    source = np.random.default_rng((workload.seed, zlib.crc32(workload.scenario.name.encode()), zlib.crc32(b"curves")))
    log_std = tuple(source.uniform(LEAST_ERROR, MOST_ERROR, size=len(workload.scenario.types)).tolist())
    return Belief(
        tuple(_estimate(kind, std, source) for kind, std in zip(workload.scenario.types, log_std, strict=True)), log_std
    )


def of_classes(scenario: Scenario, classes: Iterable[JobClass]) -> Belief:
    """What job classes say of the scenario's types: those of the same names, a slot being ``SLOT_S`` seconds.

    Raises:
        ScenarioError: a type has no class, or each seed of the scenario has types of its own.
    """
    if scenario.name in DRAWN:
        raise ScenarioError(f"scenario {scenario.name!r} has other types for each seed: no class is learned of them")
    known = {one.name: one for one in classes}
    if missing := [kind.name for kind in scenario.types if kind.name not in known]:
        raise ScenarioError(
            f"scenario {scenario.name!r}: the classes given ({', '.join(sorted(known)) or 'none'}) lack its types "
            f"{', '.join(missing)}; learn them with `tapfinger simulate --trace` and `tapfinger trace fit`"
        )
    told = [_told(kind, known[kind.name]) for kind in scenario.types]
    return Belief(tuple(slots for slots, _ in told), tuple(log_std for _, log_std in told))


def _told(kind: TaskType, job_class: JobClass) -> tuple[np.ndarray, float]:
    """Slots on all amounts, and the mean deviation of their logarithm."""
    slots, deviations = np.full(kind.slots.shape, np.inf), []
    for cpus, gpus in np.argwhere(np.isfinite(kind.slots)).tolist():
        amounts = Resources(cpus, gpus, 0)
        slots[cpus, gpus] = job_class.speed.duration_s(amounts) / SLOT_S
        deviations.append(job_class.speed.log_std_at(amounts))
    return slots, float(np.mean(deviations))


def _estimate(kind: TaskType, log_std: float, source: np.random.Generator) -> np.ndarray:
    """The mean over amounts of the squared error's expectation is ``log_std`` squared, whatever the type's extent."""
    able = np.isfinite(kind.slots)
    slopes = [_standardised(axis[able]) for axis in np.log(np.maximum(1, np.indices(kind.slots.shape)))]
    slopes = [slope for slope in slopes if slope.any()]
    level, *tilts = source.standard_normal(1 + len(slopes))
    share = LEVEL_SHARE if slopes else 1.0
    error = np.sqrt(share) * level + np.zeros(able.sum())
    for tilt, slope in zip(tilts, slopes, strict=True):
        error += np.sqrt((1 - share) / len(slopes)) * tilt * slope
    believed = np.full(kind.slots.shape, np.inf)
    believed[able] = kind.slots[able] * np.exp(log_std * error)
    return believed


def _standardised(values: np.ndarray) -> np.ndarray:
    """Of mean 0 and variance 1; 0 where they are all alike."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))
