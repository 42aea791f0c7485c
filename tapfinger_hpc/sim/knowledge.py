"""What is told of the speed of tasks before they run: the truth, an estimate, or what was learned from other episodes.

A ``Belief`` holds the believed times of a scenario's types on all amounts; the core fills frames from it, and keeps the
true ones to itself. On which amounts a type can run at all is always known, as its least amounts are in the paper.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from tapfinger_hpc.sim.scenarios import TaskType, Workload, worth_having

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
