"""Where a class should run next: on the amounts of which its model is least sure."""

import math
from collections.abc import Sequence
from statistics import fmean

import msgspec

from tapfinger_hpc.state import Resources
from trace_tools.seen import Seen

_CPU_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_GPU_STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16)


class Point(msgspec.Struct, frozen=True):
    """What is believed of the class on some amounts."""

    amounts: Resources
    seconds: float
    """The typical job's."""
    doubt: float
    """Standard deviation of its logarithm: 0.1 is some 10 %."""


def candidates(cpus: tuple[int, int], gpus: tuple[int, int], mem_mb: int) -> list[Resources]:
    """Amounts within these ranges, both ends among them, in steps that grow with them."""
    return [Resources(cpu, gpu, mem_mb) for cpu in _steps(*cpus, _CPU_STEPS) for gpu in _steps(*gpus, _GPU_STEPS)]


def curve(seen: Seen, amounts: Sequence[Resources]) -> list[Point]:
    """What is believed on these amounts, of a class of which something was seen."""
    from trace_tools.speeds import Belief  # numpy, which the agent beside must not load

    means, doubts, _ = Belief(seen).predicted([(one.cpus, one.gpus, one.mem_mb) for one in amounts])
    return [Point(one, math.exp(mean), float(doubt)) for one, mean, doubt in zip(amounts, means, doubts, strict=True)]


def first(amounts: Sequence[Resources]) -> Resources:
    """Where to begin: few GPUs and half of the CPUs, which most jobs can run on."""
    cpus = sorted({one.cpus for one in amounts})
    gpus = min(one.gpus for one in amounts)
    return next(one for one in amounts if one.gpus == gpus and one.cpus == cpus[len(cpus) // 2])


def least_sure(points: Sequence[Point]) -> Point:
    """The next amounts to run on; of those of which the model is as little sure, the smallest."""
    most = max(point.doubt for point in points)
    unsure = [point for point in points if point.doubt >= 0.98 * most]
    return min(unsure, key=lambda point: (point.amounts.gpus, point.amounts.cpus))


def mean_doubt(points: Sequence[Point]) -> float:
    """How unsure the model is of the whole curve."""
    return math.sqrt(fmean(point.doubt**2 for point in points))


def _steps(least: int, greatest: int, axis: Sequence[int]) -> list[int]:
    return sorted({least, greatest, *(step for step in axis if least < step < greatest)})
