"""The amounts that a job may sensibly be given, with the time it is expected to take on each.

Pure and cached by content: states arrive as new objects with every request, the curves in them stay the same.
"""

from functools import lru_cache

import numpy as np

from tapfinger_hpc.speed import SpeedModel, prior
from tapfinger_hpc.state import ClusterState, PendingJob, Resources

MOST_PER_RESOURCE = 24
"""Longer ranges are thinned out to about this many amounts, evenly on a log scale."""
RISK = 0.75
"""Standard deviations of log time that must lie between the expected time and the job's time limit."""


class Choices:
    """Allowed amounts on which the job can run, none better than another in every respect (a Pareto set)."""

    def __init__(self, grid: np.ndarray, seconds: np.ndarray) -> None:
        self.grid = grid  # [choice, 3] CPUs, GPUs, MiB
        self.seconds = seconds  # [choice]

    def __len__(self) -> int:
        return len(self.seconds)

    def amounts(self) -> list[Resources]:
        """All of them, in ascending order of GPUs, CPUs and memory."""
        return [resources(row) for row in self.grid]

    def least(self) -> Resources | None:
        """The least GPUs, then CPUs, then memory; None where nothing will do."""
        return resources(self.grid[0]) if len(self) else None


def resources(row: np.ndarray) -> Resources:
    """One row of a grid as amounts."""
    cpus, gpus, mem_mb = row.tolist()
    return Resources(cpus, gpus, mem_mb)


def of(state: ClusterState, job: PendingJob, capacity: Resources) -> Choices:
    """The choices of a job on an empty node of this capacity."""
    return _choices(
        speed_of(state, job), job.minimum, job.maximum, job.requested, job.tasks, job.time_limit_s, capacity
    )


def speed_of(state: ClusterState, job: PendingJob) -> SpeedModel:
    """What is known of the job's class, or the prior where nothing is."""
    known = state.job_class(job.job_class) if job.job_class else None
    return known.speed if known is not None else _prior(job.requested, job.time_limit_s)


def seconds_on(model: SpeedModel, grid: np.ndarray) -> np.ndarray:
    """Expected seconds of many amounts at once, as ``SpeedModel.duration_s`` gives them one by one."""
    return np.array([model.duration_s(resources(row)) for row in grid])


@lru_cache(maxsize=4096)
def _prior(requested: Resources, time_limit_s: int | None) -> SpeedModel:
    return prior(requested, time_limit_s)


@lru_cache(maxsize=16384)
def _choices(
    model: SpeedModel,
    minimum: Resources,
    maximum: Resources,
    requested: Resources,
    tasks: int,
    time_limit_s: int | None,
    capacity: Resources,
) -> Choices:
    cpus = _thinned(minimum.cpus, min(maximum.cpus, capacity.cpus), requested.cpus, tasks)
    gpus = _thinned(minimum.gpus, min(maximum.gpus, capacity.gpus), requested.gpus, 1)
    most_mem = min(maximum.mem_mb, capacity.mem_mb)
    mem = sorted(
        {amount for amount in (minimum.mem_mb, most_mem, *model.mem_mb) if minimum.mem_mb <= amount <= most_mem}
    )
    grid = np.array([(cpu, gpu, mem_mb) for gpu in gpus for cpu in cpus for mem_mb in mem], dtype=np.int64).reshape(
        -1, 3
    )
    seconds = seconds_on(model, grid)
    runs = np.isfinite(seconds)
    if time_limit_s is not None and runs.any():
        deviation = np.array([model.log_std_at(resources(row)) for row in grid])
        safe = runs & (seconds * np.exp(RISK * deviation) <= time_limit_s)
        # Where no amounts are safe the fastest are the best that can be done.
        runs = safe if safe.any() else runs & (seconds <= 1.05 * seconds[runs].min())
    grid, seconds = grid[runs], seconds[runs]
    best = _undominated(grid, seconds)
    return Choices(grid[best], seconds[best])


def _undominated(grid: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    points = np.column_stack([grid, seconds])
    no_worse = (points[:, None, :] <= points[None, :, :]).all(axis=2)  # [a, b] a is no worse than b anywhere
    better = no_worse & (points[:, None, :] < points[None, :, :]).any(axis=2)
    undominated: np.ndarray = ~better.any(axis=0)
    return undominated


def _thinned(least: int, most: int, asked: int, step: int) -> list[int]:
    """Multiples of ``step`` in the range, all or spread evenly on a log scale, with its ends and the request."""
    first, last = -(-least // step), most // step
    if last < first:
        return []
    if last - first < MOST_PER_RESOURCE:
        return [count * step for count in range(first, last + 1)]
    spread = np.geomspace(max(1, first), last, MOST_PER_RESOURCE - 1).round().astype(int).tolist()
    return [count * step for count in sorted({first, *spread, min(max(asked // step, first), last)})]
