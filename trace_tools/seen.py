"""What is kept of the jobs of one class that have ended: sums that each further job moves on, whatever their number.

Durations are kept by the amounts that jobs ran on, those of jobs that did not finish as lower bounds, memory peaks by
GPUs. Nothing is fitted here, so nothing heavy is imported; ``speeds`` and ``peaks`` read these sums.
"""

import math
from collections.abc import Iterable

import msgspec

from trace_tools.records import EndedJob

MOST_CELLS = 48
"""Amounts that are kept apart; beyond, those on which the fewest jobs ran are forgotten."""
MOST_BOUNDS = 8
LASTING = 200.0
"""Jobs on the same amounts that are remembered: of more, the older ones fade."""
_STEPS_PER_OCTAVE = 4
_NO_WORK = frozenset({"BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED"})
"""States of jobs whose own work never ran, or ran elsewhere."""


class Sums(msgspec.Struct):
    """Count, mean and squared deviations of logarithms."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        if self.count >= LASTING:
            self.squares *= 1 - 1 / self.count
            self.count -= 1
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)


class Cell(msgspec.Struct):
    """Amounts, and the log seconds of the jobs that finished on them."""

    cpus: int
    gpus: int
    mem_mb: int
    gpu_type: str
    log_s: Sums
    last_s: int = 0


class Bound(msgspec.Struct):
    """Jobs that ended before their work did: they would have taken at least so long."""

    cpus: int
    gpus: int
    mem_mb: int
    gpu_type: str
    log_s: float
    count: int = 1


class Peak(msgspec.Struct):
    """Log MiB that jobs on so many GPUs held at most."""

    gpus: int
    log_mb: Sums
    greatest_mb: int = 0


class Room(msgspec.Struct):
    """An amount of memory on so many GPUs, and the jobs for which it was enough, or too little."""

    gpus: int
    mem_mb: int
    jobs: int = 1


class Seen(msgspec.Struct):
    """All that is kept of one class."""

    name: str
    finished: int = 0
    """On one node, so that their durations count."""
    unfinished: int = 0
    several_nodes: int = 0
    """Left out: a class's model is of one node."""
    last_s: int = 0
    """End of the latest job; 0 where the source has no times."""
    cells: list[Cell] = []
    bounds: list[Bound] = []
    peaks: list[Peak] = []
    enough: list[Room] = []
    """The least memory with which a job finished, by GPUs."""
    short: list[Room] = []
    """The most memory that was too little, by GPUs."""

    def add(self, job: EndedJob) -> None:
        """Takes in one more job of this class."""
        ended_s = job.start_time_s + math.ceil(job.elapsed_s) if job.start_time_s is not None else 0
        self.last_s = max(self.last_s, ended_s)
        if job.state in _NO_WORK:
            self.unfinished += 1
            return
        if job.nodes > 1:
            self.several_nodes += 1
            return
        if job.finished:
            self.finished += 1
            self._cell(job, ended_s).log_s.add(math.log(job.elapsed_s))
        else:
            self.unfinished += 1
            self._bound(job)
        self._memory(job)

    def spread(self) -> tuple[float, float]:
        """How often jobs finished on amounts on which one had before, and their squared deviations of log seconds."""
        return (
            sum(cell.log_s.count - 1 for cell in self.cells),
            sum(cell.log_s.squares for cell in self.cells),
        )

    def _cell(self, job: EndedJob, ended_s: int) -> Cell:
        amounts, mem_mb = job.granted, stepped(job.granted.mem_mb)
        for cell in self.cells:
            if (
                cell.cpus == amounts.cpus
                and cell.gpus == amounts.gpus
                and cell.mem_mb == mem_mb
                and cell.gpu_type == job.gpu_type
            ):
                cell.last_s = max(cell.last_s, ended_s)
                return cell
        if len(self.cells) >= MOST_CELLS:
            self.cells.remove(min(self.cells, key=lambda cell: (cell.log_s.count, cell.last_s)))
        self.cells.append(Cell(amounts.cpus, amounts.gpus, mem_mb, job.gpu_type, Sums(), ended_s))
        return self.cells[-1]

    def _bound(self, job: EndedJob) -> None:
        """Of bounds on the same amounts the greatest is kept, as it says what the others say."""
        amounts, log_s = job.granted, math.log(job.elapsed_s)
        for bound in self.bounds:
            if (bound.cpus, bound.gpus, bound.gpu_type) == (amounts.cpus, amounts.gpus, job.gpu_type):
                if abs(log_s - bound.log_s) < 1 / _STEPS_PER_OCTAVE:
                    bound.count += 1
                elif log_s > bound.log_s:
                    bound.count = 1
                bound.log_s = max(bound.log_s, log_s)
                return
        self.bounds.append(Bound(amounts.cpus, amounts.gpus, stepped(amounts.mem_mb), job.gpu_type, log_s))
        if len(self.bounds) > MOST_BOUNDS:
            self.bounds.remove(min(self.bounds, key=lambda bound: bound.log_s))

    def _memory(self, job: EndedJob) -> None:
        gpus, mem_mb = job.granted.gpus, job.granted.mem_mb
        if job.state == "OUT_OF_MEMORY":
            # What it held before it was ended says less than that it wanted more.
            if mem_mb:
                _room(self.short, gpus, mem_mb, max)
            return
        if job.max_rss_mb:
            peak = next((one for one in self.peaks if one.gpus == gpus), None)
            if peak is None:
                self.peaks.append(peak := Peak(gpus, Sums()))
            peak.log_mb.add(math.log(job.max_rss_mb))
            peak.greatest_mb = max(peak.greatest_mb, job.max_rss_mb)
        if job.finished and mem_mb:
            _room(self.enough, gpus, mem_mb, min)


def taken_in(classes: dict[str, Seen], jobs: Iterable[tuple[str, EndedJob]]) -> set[str]:
    """Adds jobs to their classes by name; the names of those that changed."""
    changed = set()
    for name, job in jobs:
        classes.setdefault(name, Seen(name)).add(job)
        changed.add(name)
    return changed


def stepped(mem_mb: int) -> int:
    """Memory in quarters of an octave, so that amounts that hardly differ are one; 0 stays 0."""
    if mem_mb <= 0:
        return 0
    return round(2 ** (round(math.log2(mem_mb) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE))


def _room(rooms: list[Room], gpus: int, mem_mb: int, better) -> None:
    for room in rooms:
        if room.gpus == gpus:
            room.mem_mb = better(room.mem_mb, mem_mb)
            room.jobs += 1
            return
    rooms.append(Room(gpus, mem_mb))
