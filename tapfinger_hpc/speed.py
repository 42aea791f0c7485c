"""How long a job class takes on given amounts of CPU, GPU and memory, and how sure we are.

A model is a grid of seconds over the three resources, read with log-linear interpolation: any fitted curve can be
written so, and reading it needs nothing but the standard library. Above the grid more brings nothing; below it nothing
is known to run, so the job is taken not to. Values are immutable.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from tapfinger_hpc.errors import ConfigError

if TYPE_CHECKING:
    from tapfinger_hpc.state import Resources

Axis = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1, max_length=64)]


class SpeedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a whole job over a grid of amounts.

    ``seconds`` has one entry per grid point, memory varying fastest, then GPUs, then CPUs
    (shape [cpus, gpus, mem_mb] in C order); None says that the job cannot run there (out of memory).
    ``log_std`` is the standard deviation of log seconds, one entry per grid point or a single one for all.
    """

    cpus: Axis
    gpus: Axis
    mem_mb: Axis
    seconds: tuple[Annotated[float, Meta(gt=0)] | None, ...]
    log_std: Annotated[tuple[Annotated[float, Meta(ge=0)], ...], Meta(min_length=1)] = (0.0,)

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus", "mem_mb"):
            axis = getattr(self, name)
            if any(after <= before for before, after in pairwise(axis)):
                raise ValueError(f"{name}: {axis} does not ascend")
        points = len(self.cpus) * len(self.gpus) * len(self.mem_mb)
        if len(self.seconds) != points:
            raise ValueError(f"seconds: {len(self.seconds)} entries for a grid of {points} points")
        if len(self.log_std) not in (1, points):
            raise ValueError(f"log_std: {len(self.log_std)} entries, expected 1 or {points}")

    def duration_s(self, amounts: "Resources") -> float:
        """Expected seconds on these amounts; infinity where the job cannot run.

        Memory of 0 is that of a cluster that does not count memory: there is enough of it.
        """
        if amounts.cpus < self.cpus[0] or amounts.gpus < self.gpus[0] or 0 < amounts.mem_mb < self.mem_mb[0]:
            return math.inf
        corners = self._corners(amounts)
        log_seconds = 0.0
        for index, weight in corners:
            seconds = self.seconds[index]
            if seconds is None:
                return math.inf
            log_seconds += weight * math.log(seconds)
        return math.exp(log_seconds)

    def log_std_at(self, amounts: "Resources") -> float:
        """Standard deviation of log seconds on these amounts."""
        if len(self.log_std) == 1:
            return self.log_std[0]
        return sum(weight * self.log_std[index] for index, weight in self._corners(amounts))

    def _corners(self, amounts: "Resources") -> list[tuple[int, float]]:
        """The grid points around ``amounts`` with their interpolation weights (those above 0)."""
        corners = [(0, 1.0)]
        mem_mb = amounts.mem_mb or self.mem_mb[-1]
        for axis, amount in ((self.cpus, amounts.cpus), (self.gpus, amounts.gpus), (self.mem_mb, mem_mb)):
            lower, upper, share = _bracket(axis, amount)
            steps = [(lower, 1.0 - share)] if share == 0.0 else [(lower, 1.0 - share), (upper, share)]
            corners = [(index * len(axis) + step, weight * part) for index, weight in corners for step, part in steps]
        return corners


class JobClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs that behave alike, and what is known of their speed."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    speed: SpeedModel
    observations: Annotated[int, Meta(ge=0)] = 0
    """Finished jobs that the model was learned from."""


def read_classes(path: Path) -> tuple[JobClass, ...]:
    """The classes of a file that ``tapfinger trace fit`` or ``tapfinger learn`` wrote.

    Raises:
        ConfigError: it cannot be read, and why.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[JobClass, ...])
    except OSError as error:
        raise ConfigError(f"job classes {str(path)!r} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"job classes {str(path)!r}: {error}; make them with `tapfinger trace fit` or `tapfinger learn`"
        ) from error


def prior(requested: "Resources", time_limit_s: int | None) -> SpeedModel:
    """What to believe of a job of unknown class: a third of its time limit on what it asks for, sub-linear gains.

    The GPU exponent 0.6 is the median over Pollux's six models on one node with 1 to 4 GPUs and the global batch kept
    (0.80, 0.71, 0.62, 0.56, 0.16, -0.24; OSDI'21 artifact), the CPU exponent 0.3 that over the three tasks of
    TapFinger's test-bed table (0.40, 0.34, 0.09); the wide deviation says how little this is worth for one job.

    More CPUs than asked for are not thought to help, except for as many more GPUs. Memory is not known to be enough
    below what is asked for, nor with more GPUs unless it grows with them: each has a process of its own, and a job that
    runs out of memory is lost.
    """
    at_request = (time_limit_s or 3600) / 3
    cpus = _powers_of_two(max(1, requested.cpus))
    gpus = _powers_of_two(max(1, requested.gpus)) if requested.gpus else (0,)
    times = {gpu: max(1.0, gpu / max(1, requested.gpus)) for gpu in gpus}
    needed_mb = {gpu: math.ceil(max(1, requested.mem_mb) * times[gpu]) for gpu in gpus}
    mem_mb = tuple(sorted(set(needed_mb.values())))
    seconds = tuple(
        at_request
        * max(max(1, requested.cpus) / cpu, 1 / times[gpu]) ** 0.3
        * ((max(1, requested.gpus) / gpu) ** 0.6 if gpu else 1.0)
        if mem >= needed_mb[gpu]
        else None
        for cpu in cpus
        for gpu in gpus
        for mem in mem_mb
    )
    return SpeedModel(cpus=cpus, gpus=gpus, mem_mb=mem_mb, seconds=seconds, log_std=(1.0,))


def _powers_of_two(amount: int) -> tuple[int, ...]:
    """Grid around a requested amount: 1/8 to 8 times of it, at least 1."""
    return tuple(sorted({max(1, math.ceil(amount * 2.0**power)) for power in range(-3, 4)}))


def _bracket(axis: Sequence[int], amount: int) -> tuple[int, int, float]:
    """Positions of the axis values around ``amount``, and the share of the upper one (on a log scale above 0)."""
    if amount <= axis[0]:
        return 0, 0, 0.0
    if amount >= axis[-1]:
        return len(axis) - 1, len(axis) - 1, 0.0
    upper = bisect_right(axis, amount)
    lower = upper - 1
    low, high = axis[lower], axis[upper]
    if amount == low:
        return lower, lower, 0.0
    if low <= 0:
        return lower, upper, (amount - low) / (high - low)
    return lower, upper, math.log(amount / low) / math.log(high / low)
