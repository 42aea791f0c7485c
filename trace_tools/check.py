"""What is in a trace, and what is wrong with it. Pure: a trace in, findings out."""

import math
from collections import Counter
from collections.abc import Iterator
from statistics import fmean

import msgspec

from tapfinger_hpc import fit
from tapfinger_hpc.state import Resources
from tapfinger_hpc.trace import Trace, TraceJob
from tapfinger_hpc.workload import arrival_span_s

MOST_FINDINGS = 20


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


def report(trace: Trace) -> TraceReport:
    """Counts, classes, load and what is wrong."""
    jobs = [item.job for item in trace.jobs]
    wrong = list(_wrong(trace))
    submits = [job.submit_time_s for job in jobs]
    span_s = arrival_span_s(trace)
    lasting = {item.job.key: _running_s(trace, item) for item in trace.jobs}
    classes = []
    for job_class in trace.classes:
        times = [lasting[job.key] for job in jobs if job.job_class == job_class.name]
        finite = [seconds for seconds in times if math.isfinite(seconds)]
        mean_s = fmean(finite) if finite else 0.0
        classes.append(ClassReport(job_class.name, len(times), job_class.observations, round(mean_s, 3)))
    finite = [seconds for seconds in lasting.values() if math.isfinite(seconds)]
    return TraceReport(
        source=trace.source,
        jobs=len(jobs),
        managed=sum(job.managed for job in jobs),
        with_ranges=sum(job.minimum != job.maximum for job in jobs),
        first_submit_s=min(submits, default=0),
        last_submit_s=max(submits, default=0),
        partitions=dict(sorted(Counter(name for job in jobs for name in job.partitions).items())),
        gpus_requested={
            str(gpus): count for gpus, count in sorted(Counter(job.requested.gpus for job in jobs).items())
        },
        mean_running_s=round(fmean(finite), 3) if finite else 0.0,
        gpus_busy=round(_busy(trace, lasting, "gpus") / span_s, 3),
        cpus_busy=round(_busy(trace, lasting, "cpus") / span_s, 3),
        classes=tuple(classes),
        wrong=tuple(wrong[:MOST_FINDINGS]),
        wrong_count=len(wrong),
    )


def _wrong(trace: Trace) -> Iterator[str]:
    seen: set[tuple[str, int]] = set()
    for item in trace.jobs:
        job = item.job
        if job.key in seen:
            yield f"job {job.job_id}: listed twice"
        seen.add(job.key)
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


def _busy(trace: Trace, lasting: dict[tuple[str, int], float], resource: str) -> float:
    return sum(
        _amount(item.job.requested, resource) * lasting[item.job.key]
        for item in trace.jobs
        if math.isfinite(lasting[item.job.key])
    )


def _amount(amounts: Resources, resource: str) -> int:
    return int(getattr(amounts, resource))
