"""What is replayed: the jobs as they were, and with amounts of which the model of their class knows something. Pure."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import JobKey
from tapfinger_hpc.trace import Trace, TraceJob
from tapfinger_hpc.whatif.admission import Admission, largest
from tapfinger_hpc.whatif.ranges import known_range, without_memory
from tapfinger_hpc.whatif.shape import Shape

Managed = Literal["marked", "gpu", "all"]
MANAGED: tuple[Managed, ...] = ("all", "gpu", "marked")
"""Which jobs of one node are ours: all of them, those with GPUs, or those that carried the mark."""
FINISHED = "COMPLETED"


class Plan(msgspec.Struct, frozen=True):
    """What is replayed, and what of it counts."""

    kept: Trace
    """Every job on the amounts that it had."""
    changed: Trace | None
    """Managed jobs with ranges; None where no job has one."""
    counted: frozenset[JobKey]
    """Jobs of the window; others only fill the cluster at its begin."""
    managed: int
    """Of those that count."""
    ranged: int
    classes: int
    """That are known, of those of the managed jobs."""
    told: tuple[JobClass, ...]
    """What policies know of them."""


def plan(
    admission: Admission,
    shape: Shape,
    source: str,
    learned: Sequence[JobClass],
    class_of: Mapping[JobKey, str],
    managed: Managed,
    counted: frozenset[JobKey],
    told: Sequence[JobClass] | None = None,
) -> Plan:
    """Gives the jobs to whom they belong, and what may change of them.

    Args:
        learned: classes with their speed models: how long jobs truly take.
        class_of: the class of each job that has one.
        told: the same as far as policies know them; None: they know what is true.
    """
    known = {one.name: one for one in learned}
    believed = known if told is None else {one.name: one for one in told}
    bare = {name: without_memory(one) for name, one in known.items()}
    most = largest(shape.spec)
    kept, changed, ranged = [], [], 0
    for item in admission.jobs:
        marked = item.job.managed
        ours = item.job.nodes_wanted == 1 and (
            marked or managed == "all" or (managed == "gpu" and item.job.requested.gpus > 0)
        )
        name = class_of.get(item.job.key, item.job.job_class if item.ran is None else "")
        fixed = _of_class(item, name if name in known else "", bare, ours)
        kept.append(fixed)
        free = fixed
        if ours and name in known and name in believed:
            free = _with_range(item, fixed, believed[name], most, marked)
        ranged += free is not fixed and free.job.key in counted
        changed.append(free)
    used = {item.job.job_class for item in kept if item.job.managed}
    true = known if _is_made_up(admission) else bare
    classes = tuple(one for name, one in true.items() if name in used)
    if told is not None:
        true = {one.name: without_memory(one) for one in told}
    of = Trace(source, classes, tuple(kept))
    return Plan(
        kept=of,
        changed=replace(of, jobs=tuple(changed)) if ranged else None,
        counted=counted,
        managed=sum(item.job.managed and item.job.key in counted for item in kept),
        ranged=ranged,
        classes=len(classes),
        told=tuple(one for name, one in true.items() if name in used),
    )


def _is_made_up(admission: Admission) -> bool:
    return any(item.ran is None for item in admission.jobs)


def _of_class(item: TraceJob, name: str, bare: Mapping[str, JobClass], ours: bool) -> TraceJob:
    """The job on the amounts that it had, for as long as it ran: its class's time on them, times its own scale."""
    job = replace(
        item.job, managed=ours, job_class=name, minimum=item.job.requested, maximum=item.job.requested, tasks=1
    )
    if item.ran is None:
        return replace(item, job=job)
    if name:
        usual_s = bare[name].speed.duration_s(job.requested)
        if 0 < usual_s < float("inf") and job.nodes_wanted == 1:
            return TraceJob(job, item.ran.elapsed_s / usual_s, item.ran)
    return TraceJob(replace(job, job_class=""), 1.0, item.ran)


def _with_range(item: TraceJob, fixed: TraceJob, known: JobClass, most, marked: bool) -> TraceJob:
    """With the range that it declared, or else that of its class.

    Only jobs that finished: of the others nobody knows how long they would have taken on anything else.
    """
    job = item.job
    if item.ran is None:
        least, greatest = job.minimum, job.maximum
    elif item.ran.state != FINISHED or not fixed.job.job_class:
        return fixed
    else:
        least, greatest = known_range(known, job.requested, most)
        if marked and job.minimum != job.maximum:
            least, greatest = _declared(job.minimum, job.maximum, job.requested.mem_mb)
    if least == greatest:
        return fixed
    return replace(fixed, job=replace(fixed.job, minimum=least, maximum=greatest))


def _declared(least, greatest, mem_mb: int):
    return replace(least, mem_mb=mem_mb), replace(greatest, mem_mb=mem_mb)
