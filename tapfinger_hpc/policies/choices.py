"""The amounts that a job may sensibly be given, with the time it is expected to take on each.

Pure and cached by content: states arrive as new objects with every request, the curves in them stay the same.
"""

import math
from functools import lru_cache

import numpy as np

from tapfinger_hpc.speed import SpeedModel, prior
from tapfinger_hpc.state import ClusterState, PendingJob, Resources

MOST_PER_RESOURCE = 24
"""Longer ranges are thinned out to about this many amounts, evenly on a log scale."""
GAIN = 0.01
"""By how much more amounts must shorten a job to be a choice at all."""
RISK = 2.0
"""Standard deviations of log time between expected time and time limit, below which a job is not slowed down."""
USUAL_LIMIT = 3.0
"""Users ask for some three times the time that a job takes (as ``speed.prior`` assumes of unknown jobs) ..."""
LIMIT_LOG_STD = 0.8
"""... and this far are they off. Mu'alem & Feitelson (2001): estimates are mostly 1 to 10 times too long."""


class Choices:
    """Allowed amounts on which the job can run, each faster than all that are less (a Pareto set)."""

    def __init__(self, grid: np.ndarray, seconds: np.ndarray) -> None:
        self.grid = grid  # [choice, 3] CPUs, GPUs, MiB; ascending in GPUs, CPUs, MiB
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
    """The choices of a job on an empty node of this capacity.

    A class that is not known to run on anything in the job's range tells nothing of this job: then the prior holds.
    """
    bounds = (job.minimum, job.maximum, job.requested, job.tasks, job.time_limit_s, capacity)
    known = _choices(speed_of(state, job), *bounds)
    return known if len(known) else _choices(_prior(job.requested, job.minimum, job.maximum, job.time_limit_s), *bounds)


def speed_of(state: ClusterState, job: PendingJob) -> SpeedModel:
    """What is known of the job's class, or the prior where nothing is."""
    known = state.job_class(job.job_class) if job.job_class else None
    if known is not None:
        return known.speed
    return _prior(job.requested, job.minimum, job.maximum, job.time_limit_s)


def seconds_on(model: SpeedModel, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected seconds and their log deviation on many amounts at once, as the model gives them one by one."""
    log_seconds, log_std = _tables(model)
    grid = np.where([False, False, True] & (grid == 0), model.mem_mb[-1], grid)  # memory is not counted
    expected = np.zeros(len(grid))
    deviation = np.zeros(len(grid))
    lower, share = zip(
        *(_brackets(axis, grid[:, column]) for column, axis in enumerate((model.cpus, model.gpus, model.mem_mb))),
        strict=True,
    )
    for corner in np.ndindex(2, 2, 2):
        weight = np.ones(len(grid))
        index = []
        for resource, above in enumerate(corner):
            weight = weight * (share[resource] if above else 1 - share[resource])
            index.append(lower[resource] + (above & (share[resource] > 0)))
        value = log_seconds[tuple(index)]
        expected += np.where(weight > 0, weight * np.where(weight > 0, value, 0.0), 0.0)
        deviation += weight * log_std[tuple(index)]
    below = (grid < [model.cpus[0], model.gpus[0], model.mem_mb[0]]).any(axis=1)
    return np.where(below, np.inf, np.exp(expected)), deviation


@lru_cache(maxsize=4096)
def _tables(model: SpeedModel) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(model.cpus), len(model.gpus), len(model.mem_mb))
    seconds = np.array([math.inf if value is None else math.log(value) for value in model.seconds]).reshape(shape)
    deviation = np.array(model.log_std if len(model.log_std) > 1 else model.log_std * len(model.seconds))
    return seconds, deviation.reshape(shape)


def _brackets(axis: tuple[int, ...], amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of the axis value at or below each amount, and the share of the next one (on a log scale above 0)."""
    points = np.array(axis, dtype=float)
    clamped = np.clip(amounts.astype(float), points[0], points[-1])
    lower = np.clip(np.searchsorted(points, clamped, side="right") - 1, 0, len(points) - 1)
    upper = np.minimum(lower + 1, len(points) - 1)
    low, high = points[lower], points[upper]
    inside = (clamped > low) & (high > low)
    linear = (clamped - low) / np.where(high > low, high - low, 1.0)
    positive = np.where(low > 0, low, 1.0)
    logarithmic = np.log(clamped / positive, where=clamped > 0, out=np.zeros_like(clamped)) / np.where(
        (high > low) & (low > 0), np.log(np.where(high > positive, high, positive * 2) / positive), 1.0
    )
    return lower, np.where(inside, np.where(low > 0, logarithmic, linear), 0.0)


@lru_cache(maxsize=4096)
def _prior(requested: Resources, minimum: Resources, maximum: Resources, time_limit_s: int | None) -> SpeedModel:
    """Of the request, as far as the range allows it: below the prior's memory nothing is known to run."""
    return prior(resources(np.array(_nearest(requested, minimum, maximum))), time_limit_s)


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
    grid = _grid(model, minimum, maximum, requested, tasks, capacity)
    seconds, deviation = seconds_on(model, grid)
    runs = np.asarray(np.isfinite(seconds))
    if time_limit_s is not None and runs.any():
        as_asked = np.array([_nearest(requested, minimum, maximum)])
        asked_s, asked_deviation = (values[0] for values in seconds_on(model, as_asked))
        longer, narrower = _told_by_limit(float(asked_s), float(asked_deviation), time_limit_s)
        seconds, asked_s = seconds * longer, asked_s * longer
        in_time = seconds * np.exp(RISK * narrower * deviation) <= time_limit_s
        # The user chose the limit for what was asked: amounts that are no slower are no riskier than that.
        no_slower = seconds <= min(1.001 * asked_s, time_limit_s)
        safe = runs & (in_time | no_slower)
        runs = np.asarray(safe if safe.any() else seconds <= 1.001 * seconds[runs].min())
    grid, seconds = grid[runs], seconds[runs]
    best = worth_having(grid, seconds)
    return Choices(grid[best], seconds[best])


def _grid(
    model: SpeedModel, minimum: Resources, maximum: Resources, requested: Resources, tasks: int, capacity: Resources
) -> np.ndarray:
    """Allowed amounts, [amounts, 3]. More memory than the least is tried only where the model knows a difference."""
    cpus = _thinned(minimum.cpus, min(maximum.cpus, capacity.cpus), requested.cpus, tasks)
    gpus = _thinned(minimum.gpus, min(maximum.gpus, capacity.gpus), requested.gpus, 1)
    most_mb = min(maximum.mem_mb, capacity.mem_mb)
    known_mb = {amount for amount in model.mem_mb if minimum.mem_mb <= amount <= most_mb}
    mem = sorted(known_mb | {minimum.mem_mb, most_mb}) if minimum.mem_mb <= most_mb else []
    rows = [(cpu, gpu, mem_mb) for gpu in gpus for cpu in cpus for mem_mb in mem]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _told_by_limit(asked_s: float, log_std: float, time_limit_s: int) -> tuple[float, float]:
    """How much longer than its class the job is expected to be, and the share of the deviation that is left.

    The limit is the user's own guess at the job's length: it counts for little where the class is known well.
    """
    if not math.isfinite(asked_s) or time_limit_s <= 0:
        return 1.0, 1.0
    weight = log_std**2 / (log_std**2 + LIMIT_LOG_STD**2)
    return (time_limit_s / USUAL_LIMIT / asked_s) ** weight, math.sqrt(1 - weight)


def _nearest(requested: Resources, minimum: Resources, maximum: Resources) -> tuple[int, int, int]:
    return (
        min(max(requested.cpus, minimum.cpus), maximum.cpus),
        min(max(requested.gpus, minimum.gpus), maximum.gpus),
        min(max(requested.mem_mb, minimum.mem_mb), maximum.mem_mb),
    )


def worth_having(grid: np.ndarray, seconds: np.ndarray, gain: float = GAIN) -> np.ndarray:
    """Positions of the amounts that no lesser amounts come within ``gain`` of; ``grid`` ascends."""
    kept: list[int] = []
    for position in np.arange(len(grid)):
        lesser = (grid[kept] <= grid[position]).all(axis=1)
        if not (lesser & (seconds[kept] <= (1 + gain) * seconds[position])).any():
            kept.append(int(position))
    return np.array(kept, dtype=np.int64)


def _thinned(least: int, most: int, asked: int, step: int) -> list[int]:
    """Multiples of ``step`` in the range, all or spread evenly on a log scale, with its ends and the request."""
    first, last = -(-least // step), most // step
    if last < first:
        return []
    if last - first < MOST_PER_RESOURCE:
        return [count * step for count in range(first, last + 1)]
    spread = np.geomspace(max(1, first), last, MOST_PER_RESOURCE - 1).round().astype(int).tolist()
    return [count * step for count in sorted({first, *spread, min(max(asked // step, first), last)})]
