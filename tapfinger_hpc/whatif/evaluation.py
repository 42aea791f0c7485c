"""From files to a plan, and from replays to a report.

What other rooms know is handed in: how Slurm's files describe a cluster, and which job classes accounting shows.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path

import msgspec
from msgspec.structs import replace

from tapfinger_hpc import __version__
from tapfinger_hpc import trace as traces
from tapfinger_hpc.errors import ConfigError, TraceError
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import JobKey
from tapfinger_hpc.trace import Trace, TraceJob
from tapfinger_hpc.whatif import report
from tapfinger_hpc.whatif.admission import Admission, admit
from tapfinger_hpc.whatif.preparation import Managed, Plan, plan
from tapfinger_hpc.whatif.report import Replayed, WhatIf
from tapfinger_hpc.whatif.shape import Shape


@dataclass(frozen=True)
class Lent:
    """What other rooms know."""

    cluster: Callable[[str], Shape]
    """The cluster that a file describes."""
    classes: Callable[[Trace], tuple[tuple[JobClass, ...], Mapping[JobKey, str]]]
    """The job classes of a trace with their speed models, and the class of each job."""
    moment: Callable[[str, tzinfo, float], int | None]
    """Seconds since the epoch of a moment as people write it."""


@dataclass(frozen=True)
class Loaded:
    """A trace, and the cluster that it is replayed on."""

    source: str
    trace: Trace
    shape: Shape
    mapped: Mapping[str, tuple[str, ...]]
    """Partitions of the cluster for partitions of the trace."""
    managed: Managed
    lent: Lent

    def second(self, moment: str | None) -> float | None:
        """On the clock of the trace; a time ago counts from its last submission."""
        if not moment:
            return None
        last_s = self.trace.zero_s + max(item.job.submit_time_s for item in self.trace.jobs)
        moment_s = self.lent.moment(moment, UTC, last_s)
        return None if moment_s is None else float(moment_s - self.trace.zero_s)

    def before(self, until_s: float) -> "Loaded":
        """The same with the jobs that were submitted before then alone."""
        jobs = tuple(item for item in self.trace.jobs if item.job.submit_time_s < until_s)
        return dataclasses.replace(self, trace=replace(self.trace, jobs=jobs))

    def classes(self) -> tuple[tuple[JobClass, ...], Mapping[JobKey, str]]:
        """The job classes of the trace, fitted unless they are its own; and the class of each job."""
        if not any(item.ran for item in self.trace.jobs):
            return self.trace.classes, {item.job.key: item.job.job_class for item in self.trace.jobs}
        return self.lent.classes(self.trace)


class Prepared(msgspec.Struct, frozen=True):
    """All that a replay needs, and what a report tells of it."""

    source: str
    shape: Shape
    admission: Admission
    plan: Plan


def load(trace_file: Path, cluster: str, mapped: Mapping[str, tuple[str, ...]], managed: Managed, lent: Lent) -> Loaded:
    """Reads both.

    Raises:
        TraceError: the trace cannot be read, or has no jobs.
        ConfigError: the cluster cannot be read, or a partition is not there.
    """
    shape = lent.cluster(cluster)
    known = {partition.name for partition in shape.spec.partitions}
    for old, names in mapped.items():
        unknown = sorted(set(names) - known)
        if unknown:
            raise ConfigError(
                f"partition {old}={','.join(names)}: the cluster has no partition {unknown[0]!r}; "
                f"known: {', '.join(sorted(known))}"
            )
    trace = traces.read(trace_file)
    if not trace.jobs:
        raise TraceError(f"trace {str(trace_file)!r}: no jobs")
    return Loaded(str(trace_file), trace, shape, mapped, managed, lent)


def prepare(
    loaded: Loaded,
    *,
    from_s: float | None = None,
    until_s: float | None = None,
    jobs: int | None = None,
    told: Sequence[JobClass] | None = None,
) -> Prepared:
    """Learns the job classes, and fits the jobs of a stretch of time to the cluster.

    Args:
        told: what policies know of the classes; None: what is learned here.

    Raises:
        TraceError: no job is left.
    """
    learned, class_of = loaded.classes()
    chosen, first_s = window(loaded.trace, from_s, until_s, jobs)
    admission = admit(chosen, loaded.shape, loaded.mapped)
    counted = frozenset(item.job.key for item in admission.jobs if item.job.submit_time_s >= first_s)
    if not counted:
        why = ", ".join(f"{count} {name}" for name, count in admission.left_out.items())
        raise TraceError(f"trace {loaded.source!r}: no job is left to replay ({why})")
    made = plan(admission, loaded.shape, loaded.source, learned, class_of, loaded.managed, counted, told)
    return Prepared(loaded.source, loaded.shape, admission, made)


def window(trace: Trace, from_s: float | None, until_s: float | None, jobs: int | None) -> tuple[list[TraceJob], float]:
    """The first so many jobs of a stretch of time, with those before it that were still there then; when it begins."""
    first_s, last_s = (-1.0 if from_s is None else from_s), (float("inf") if until_s is None else until_s)
    inside = [item for item in trace.jobs if first_s <= item.job.submit_time_s < last_s][:jobs]
    if not inside:
        raise TraceError(
            f"trace {trace.source!r}: no job was submitted in the time that was asked for; its {len(trace.jobs)} jobs "
            "can be looked at with `tapfinger trace check`"
        )
    first_s = float(inside[0].job.submit_time_s)
    # Whoever waited at the begin waited for others, so these are replayed from the first of them on.
    waited = [item.job.submit_time_s for item in trace.jobs if item.job.submit_time_s < first_s < _started_s(item)]
    warm_s = min(waited, default=first_s)
    before = [item for item in trace.jobs if item.job.submit_time_s < first_s and _ended_s(item) > warm_s]
    return [*(_from_its_start(item, warm_s) for item in before), *inside], first_s


def reported(
    prepared: Prepared, replays: Sequence[Replayed], draws: int = 0, compared: Sequence[tuple[str, str]] = ()
) -> WhatIf:
    """The figures of all replays.

    Args:
        draws: how often speed curves were drawn again.
        compared: names of policies, and of those that they are compared with beside stock Slurm.
    """
    made, admission = prepared.plan, prepared.admission
    seen = report.Window(made.counted, prepared.shape.spec)
    jobs = {item.job.key: item for item in made.kept.jobs}
    return WhatIf(
        version=__version__,
        trace=prepared.source,
        cluster=str(prepared.shape),
        notes=prepared.shape.notes + _notes(admission, made),
        window_s=seen.last_s - seen.first_s,
        jobs=len(made.counted),
        managed=made.managed,
        ranged=made.ranged,
        classes=made.classes,
        left_out=admission.left_out,
        assumed=admission.assumed,
        blocks=seen.blocks,
        draws=draws if made.changed is not None else 0,
        times_s=tuple(float(f"{moment:.6g}") for moment in (seen.times_s - seen.first_s).tolist()),
        fidelity=report.fidelity(replays[0], seen, jobs),
        rows=report.rows(replays, seen, jobs),
        pairs=report.pairs(replays, seen, compared),
    )


def _from_its_start(item: TraceJob, warm_s: float) -> TraceJob:
    """Of a job that ran already: as if it were submitted when it started, for what it waited for is not replayed."""
    start_s = _started_s(item)
    if not item.job.submit_time_s < start_s < warm_s:
        return item
    return replace(item, job=replace(item.job, submit_time_s=int(start_s)))


def _started_s(item: TraceJob) -> float:
    """That of its submission, where nothing else is known."""
    known = None if item.ran is None else item.ran.start_time_s
    return float(item.job.submit_time_s if known is None else known)


def _ended_s(item: TraceJob) -> float:
    return _started_s(item) + (0.0 if item.ran is None else item.ran.elapsed_s)


def _notes(admission: Admission, made: Plan) -> tuple[str, ...]:
    order = "by the priorities that accounting has" if admission.by_priority else "in order of submission"
    notes = [f"stock Slurm serves jobs {order}, with backfill; dependencies, holds and reservations are not known"]
    filling = len(made.kept.jobs) - len(made.counted)
    if filling:
        notes.append(f"{filling:,} jobs of before fill the cluster at the begin, and do not count")
    return tuple(notes)
