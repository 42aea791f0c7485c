"""What became of jobs, and what that says: completion times, waiting, GPU use, and by how much one run beats another.

Pure, and standard library only: the demo reads it beside the agent, without numpy.
"""

import math
import random
from collections.abc import Sequence
from statistics import fmean, median

import msgspec

from tapfinger_hpc.state import Resources

COMPLETED = "COMPLETED"
RESAMPLES = 4000


class JobRecord(msgspec.Struct, frozen=True):
    """One job that has ended, on whichever cluster."""

    job_id: str
    submit_s: float
    start_s: float
    end_s: float
    partition: str
    nodes: tuple[str, ...]
    requested: Resources
    """What the user asked for."""
    amounts: Resources
    """What the job had, on all its nodes together."""
    job_class: str = ""
    managed: bool = False
    outcome: str = COMPLETED
    """In Slurm's words: COMPLETED, TIMEOUT, OUT_OF_MEMORY, ..."""

    @property
    def completion_s(self) -> float:
        """From submission to the end."""
        return self.end_s - self.submit_s

    @property
    def waiting_s(self) -> float:
        """From submission to the start."""
        return self.start_s - self.submit_s

    @property
    def running_s(self) -> float:
        return self.end_s - self.start_s


class Summary(msgspec.Struct, frozen=True):
    """One run in a few numbers; times in seconds."""

    jobs: int
    not_completed: int
    mean_completion_s: float
    median_completion_s: float
    p95_completion_s: float
    mean_waiting_s: float
    p95_waiting_s: float
    mean_running_s: float
    makespan_s: float
    """From the first submission to the last end."""
    gpu_use: float
    """GPU seconds held, as a share of all GPU seconds of the makespan."""


class Reduction(msgspec.Struct, frozen=True):
    """By how much a mean fell, as a fraction of the first, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def summarise(records: Sequence[JobRecord], gpus: int) -> Summary:
    """The numbers of one run on a cluster with this many GPUs; all zero where there are no records."""
    if not records:
        return Summary(0, 0, *([0.0] * 8))
    completion = [record.completion_s for record in records]
    waiting = [record.waiting_s for record in records]
    makespan_s = max(record.end_s for record in records) - min(record.submit_s for record in records)
    held = sum(record.amounts.gpus * record.running_s for record in records)
    return Summary(
        jobs=len(records),
        not_completed=sum(record.outcome != COMPLETED for record in records),
        mean_completion_s=fmean(completion),
        median_completion_s=median(completion),
        p95_completion_s=percentile(completion, 95),
        mean_waiting_s=fmean(waiting),
        p95_waiting_s=percentile(waiting, 95),
        mean_running_s=fmean(record.running_s for record in records),
        makespan_s=makespan_s,
        gpu_use=held / (gpus * makespan_s) if gpus and makespan_s > 0 else 0.0,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile with linear interpolation between neighbours (numpy's default)."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("percentile of no values")
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def reduction(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Reduction:
    """By how much the mean fell, with a paired percentile bootstrap: ``before[i]`` and ``after[i]`` belong together.

    Pairs may be the jobs of one run, or the means of several runs with a seed each. Jobs of one run queue behind each
    other and are not independent, so only runs give an interval that says what another run would show.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"reduction of {len(before)} values to {len(after)}: expected as many, and at least one")
    if sum(before) <= 0:
        raise ValueError("reduction: the mean before is not above zero")
    draw = random.Random(seed)
    count = len(before)
    drawn = []
    for _ in range(RESAMPLES):
        picked = draw.choices(range(count), k=count)
        total = sum(before[pair] for pair in picked)
        if total > 0:
            drawn.append(1 - sum(after[pair] for pair in picked) / total)
    return Reduction(1 - sum(after) / sum(before), percentile(drawn, 2.5), percentile(drawn, 97.5))


def paired_reduction(before: Sequence[JobRecord], after: Sequence[JobRecord], *, seed: int = 0) -> Reduction:
    """By how much the mean completion time of the same jobs fell from one run to another; jobs are paired by id."""
    second = {record.job_id: record.completion_s for record in after}
    missing = [record.job_id for record in before if record.job_id not in second]
    if missing or len(before) != len(second):
        raise ValueError(f"the runs hold different jobs: {len(before)} and {len(second)}, missing {missing[:3]}")
    return reduction(
        [record.completion_s for record in before], [second[record.job_id] for record in before], seed=seed
    )
