"""What is in a trace, and what is wrong with it."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tapfinger_hpc import fit
from tapfinger_hpc import trace as traces
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.trace import Trace, TraceJob

MOST_FINDINGS = 20
MOST_REMEMBERED = 4_000_000
"""Jobs of which it is noticed that they come again: memory is not to grow with the file."""


class ClassReport(msgspec.Struct, frozen=True):
    """One class of the header, and its jobs."""

    name: str
    jobs: int
    observations: int
    mean_running_s: float
    """On the requested amounts, of the jobs that can run on them."""


class TraceReport(msgspec.Struct, frozen=True):
    """The trace in numbers."""

    source: str
    jobs: int
    managed: int
    with_ranges: int
    first_submit_s: int
    last_submit_s: int
    partitions: dict[str, int]
    """How many jobs name each."""
    gpus_requested: dict[str, int]
    """How many jobs ask for so many."""
    mean_running_s: float
    gpus_busy: float
    cpus_busy: float
    """GPUs and CPUs that the requests keep busy on average while jobs arrive: over those of a cluster, its load."""
    classes: tuple[ClassReport, ...]
    wrong: tuple[str, ...]
    """What makes jobs unusable; empty in a good trace. At most 20 are listed."""
    wrong_count: int
    counts: dict[str, int] = {}
    """Rows of the source by what became of them, as the header tells it; empty of a trace that is made up."""


def report(trace: Trace) -> TraceReport:
    """Counts, classes, load and what is wrong."""
    return _report(trace, trace.jobs, {})


def report_of_file(path: Path) -> TraceReport:
    """The same of a file, job by job: a trace need not fit into memory.

    Raises:
        TraceError: the file cannot be read, or is not what was written.
    """
    header = traces.read_header(path)
    return _report(Trace(header.source, header.classes, (), header.zero_s), traces.read_jobs(path), header.counts)


def _report(trace: Trace, jobs: Iterable[TraceJob], counts: dict[str, int]) -> TraceReport:
    sums = _Sums(trace)
    for item in jobs:
        sums.add(item)
    span_s = max(1.0, (sums.last_s - sums.first_s) * sums.jobs / (sums.jobs - 1)) if sums.jobs > 1 else 1.0
    finite_s, finite = sum(row.seconds for row in sums.rows.values()), sum(row.finite for row in sums.rows.values())
    return TraceReport(
        source=trace.source,
        jobs=sums.jobs,
        managed=sums.managed,
        with_ranges=sums.with_ranges,
        first_submit_s=sums.first_s,
        last_submit_s=sums.last_s,
        partitions=dict(sorted(sums.partitions.items())),
        gpus_requested={str(gpus): count for gpus, count in sorted(sums.gpus.items())},
        mean_running_s=round(finite_s / finite, 3) if finite else 0.0,
        gpus_busy=round(sums.gpu_s / span_s, 3),
        cpus_busy=round(sums.cpu_s / span_s, 3),
        classes=tuple(sums.rows[each.name].report(each) for each in trace.classes),
        wrong=tuple(sums.wrong),
        wrong_count=sums.wrong_count,
        counts=counts,
    )


class _ClassSums:
    """Of the jobs of one class: how many, and the seconds of those that can run as requested."""

    def __init__(self) -> None:
        self.jobs = self.finite = 0
        self.seconds = 0.0

    def report(self, job_class: JobClass) -> ClassReport:
        mean_s = self.seconds / self.finite if self.finite else 0.0
        return ClassReport(job_class.name, self.jobs, job_class.observations, round(mean_s, 3))


class _Sums:
    """What a report needs of the jobs, gathered one by one."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._seen: set[int] = set()
        self.rows = {each.name: _ClassSums() for each in trace.classes}
        self.jobs = self.managed = self.with_ranges = 0
        self.first_s = self.last_s = 0
        self.partitions: Counter[str] = Counter()
        self.gpus: Counter[int] = Counter()
        self.cpu_s = self.gpu_s = 0.0
        self.wrong: list[str] = []
        self.wrong_count = 0

    def add(self, item: TraceJob) -> None:
        job = item.job
        self.first_s = min(self.first_s, job.submit_time_s) if self.jobs else job.submit_time_s
        self.last_s = max(self.last_s, job.submit_time_s) if self.jobs else job.submit_time_s
        self.jobs += 1
        self.managed += job.managed
        self.with_ranges += job.minimum != job.maximum
        self.partitions.update(job.partitions)
        self.gpus[job.requested.gpus] += 1
        for finding in self._wrong(item):
            self.wrong_count += 1
            if len(self.wrong) < MOST_FINDINGS:
                self.wrong.append(finding)
        row = self.rows.setdefault(job.job_class, _ClassSums())
        row.jobs += 1
        running_s = _running_s(self._trace, item)
        if math.isfinite(running_s):
            row.finite += 1
            row.seconds += running_s
            self.cpu_s += job.requested.cpus * running_s
            self.gpu_s += job.requested.gpus * running_s

    def _wrong(self, item: TraceJob) -> Iterator[str]:
        mark = hash(item.job.key)
        if mark in self._seen:
            yield f"job {item.job.job_id}: listed twice"
        if len(self._seen) < MOST_REMEMBERED:
            self._seen.add(mark)
        yield from _unplayable(self._trace, item)


def _unplayable(trace: Trace, item: TraceJob) -> Iterator[str]:
    job = item.job
    if not job.eligible:
        yield f"job {job.job_id}: not eligible, so it would never start"
    if job.managed and job.nodes_wanted > 1:
        yield f"job {job.job_id}: managed, but asks for {job.nodes_wanted} nodes; only one-node jobs can be"
    if fit.smallest(job) is None:
        yield f"job {job.job_id}: no multiple of its {job.tasks} tasks lies in its range of CPUs"
    running_s = trace.true_duration_s(item, job.requested)
    if math.isinf(running_s):
        yield f"job {job.job_id}: cannot run on what it asks for ({job.requested}): too little memory for its class"
    elif item.ran is None and job.time_limit_s is not None and running_s > job.time_limit_s:
        limit_s = job.time_limit_s
        yield f"job {job.job_id}: takes {running_s:.0f} s on what it asks for, beyond its limit of {limit_s} s"


def _running_s(trace: Trace, item: TraceJob) -> float:
    running_s = trace.true_duration_s(item, item.job.requested)
    return running_s if item.job.time_limit_s is None else min(running_s, float(item.job.time_limit_s))
