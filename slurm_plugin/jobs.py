"""From Slurm's records to the jobs of a ClusterState: what is ours, what may start, what is held. Pure.

What makes a job ours is the mark in its comment (or its partition's configuration) together with the lease in
AdminComment, which only the submit hook and administrators can write.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from slurm_plugin.parse import JobRecord
from tapfinger_hpc.config import PartitionConfig, partition_mark
from tapfinger_hpc.errors import UnitError
from tapfinger_hpc.state import PendingJob, Resources, RunningJob, Share
from tapfinger_hpc.units import Mark, parse_mark

ARRAY_WINDOW = 16
"""How many waiting tasks of one array are looked at; the others follow as these start."""

HOLDING = {"R", "CG", "CF", "S", "ST", "SI", "SO", "RS"}
"""States in which a job has a node: running, completing, configuring, suspended, stopped, being resized."""

NOT_MARKED = "not marked"
"""Begins the reason of every job that does not ask for us."""

_LEASE = re.compile(r"(?:^|\s)tapfinger lease=(\d+) ticket=(\S+)")
_LEFT = re.compile(r"(?:^|\s)tapfinger left: (.*)")
_STARTABLE = ("None", "Priority", "Resources", "BeginTime", "ReqNodeNotAvail", "Nodes required", "(null)")
"""Reasons of room, order or lease; all others (limits, holds, licenses) stop the job wherever it is put."""


class Site(msgspec.Struct, frozen=True):
    """What holds for all jobs of a cluster."""

    partitions: Mapping[str, PartitionConfig] = {}
    """Those whose jobs are managed by configuration."""
    memory_counts: bool = True
    """Memory is a consumable resource."""
    needs_lease: bool = True
    """Only leased jobs are ours. False where nothing is changed anyway and the hook leases none: observe, advise."""
    exclusive_words: frozenset[str] = frozenset()
    """Values of OverSubscribe with which a job has its nodes to itself."""
    whole_node: Mapping[str, Resources] = {}
    """By partition, the least that a job has which takes a node for itself."""
    array_limits: Mapping[str, int] = {}
    """How many tasks of an array may run at a time, by array; without an entry all may."""
    gpus_come_and_go: bool = True
    """Whether a job can be given its first GPU, and be left without any."""


class Lease(msgspec.Struct, frozen=True):
    """What the hook wrote into AdminComment of a job that it took."""

    lease_s: int
    ticket: str
    """Identity of the submission: kept through a requeue, not shared by a later job of the same number."""


def lease_of(admin_comment: str) -> Lease | None:
    """The hook's lease; None for a job that it did not take."""
    match = _LEASE.search(admin_comment)
    return Lease(int(match[1]), match[2]) if match else None


def why_left(admin_comment: str) -> str:
    """Why the hook left the job to Slurm; "" where it did not say so."""
    match = _LEFT.search(admin_comment)
    return match[1] if match else ""


def pending_jobs(records: Sequence[JobRecord], site: Site, now_s: float) -> list[PendingJob]:
    """The waiting jobs of a snapshot; tasks of an array one by one, the first few of each.

    Args:
        records: all jobs of the snapshot, because a limit on an array counts those that run.
        site: what holds for all jobs of this cluster.
        now_s: time of the snapshot.
    """
    jobs: list[PendingJob] = []
    arrays: dict[str, list[tuple[int, PendingJob]]] = {}
    for record in records:
        if record.state != "PD" or not record.partitions:
            continue
        job = _pending(record, site, now_s)
        if record.together:
            tasks = [(number, replace(job, job_id=f"{record.array_id}_{number}")) for number in record.tasks_together]
            arrays.setdefault(record.array_id, []).extend(tasks[:ARRAY_WINDOW])
        elif record.array_tasks and not record.asked_nodes:
            arrays.setdefault(record.array_id, []).append((int(record.array_tasks), job))
        else:
            jobs.append(job)
    active = _active_tasks(records)
    for array_id, numbered in arrays.items():
        limit = site.array_limits.get(array_id)
        jobs.extend(_within_limit([job for _, job in sorted(numbered)], limit, active.get(array_id, 0)))
    return jobs


def running_jobs(records: Iterable[JobRecord], site: Site) -> list[RunningJob]:
    """The jobs that hold nodes, with their amounts shared out evenly among their nodes.

    Slurm can tell the exact share of each node, but only at the price of one more and longer command a cycle; it
    matters for jobs of several nodes alone, and there only for what is expected to become free later.
    """
    return [_running(record, site) for record in records if record.state in HOLDING and record.nodes]


def _pending(record: JobRecord, site: Site, now_s: float) -> PendingJob:
    mark, why = _mark(record, site.partitions)
    lease = lease_of(record.admin_comment)
    why = why or _why_not_managed(record, mark, lease, site)
    managed = not why
    asked = record.amounts if managed else _whole_nodes(record, site)
    minimum, maximum = mark.bounds(asked) if mark and managed else (asked, asked)
    if not site.gpus_come_and_go:
        minimum, maximum = (_with_gpus_as(asked, bound) for bound in (minimum, maximum))
    blocked = _why_not_eligible(record, now_s, leased=lease is not None)
    planned = _is_planned(record, now_s) and not managed
    return PendingJob(
        job_id=record.job_id,
        submit_time_s=record.submit_s,
        partitions=record.partitions,
        requested=asked,
        minimum=minimum,
        maximum=maximum,
        tasks=record.tasks,
        nodes_wanted=1 if managed else record.node_count,
        user=record.user,
        job_class=mark.job_class if mark else "",
        gpu_type=record.gpu_type,
        time_limit_s=record.time_limit_s,
        priority=record.priority,
        managed=managed,
        eligible=not blocked,
        why="; ".join(filter(None, (why, blocked))),
        lease_until_s=record.eligible_s if managed and lease else None,
        lease_s=lease.lease_s if managed and lease else None,
        planned_start_s=record.start_s if planned else None,
        planned_nodes=record.planned_nodes if planned else (),
        ticket=lease.ticket if lease else "",
    )


def _with_gpus_as(asked: Resources, bound: Resources) -> Resources:
    """The bound with no GPU where none was asked for, and with at least one where some were."""
    return replace(bound, gpus=max(1, bound.gpus) if asked.gpus else 0)


def _mark(record: JobRecord, partitions: Mapping[str, PartitionConfig]) -> tuple[Mark | None, str]:
    """The declared ranges, or None and why the job is not ours. "" as reason where the mark can be used."""
    if "comment" in record.cut and record.comment.split()[:1] == ["tapfinger"]:
        return Mark(), "its comment is too long to be read"
    try:
        mark = parse_mark(record.comment)
    except UnitError as error:
        return Mark(), str(error)
    configured = [partitions[name] for name in record.partitions if name in partitions]
    if mark is None and len(configured) < len(record.partitions):
        return None, NOT_MARKED
    for partition in configured:
        mark = _merged(mark or Mark(), partition_mark(partition))
    return mark, ""


def _merged(mark: Mark, default: Mark) -> Mark:
    """The job's own ranges, and those of the first of its partitions that gives any where it declares none."""
    return replace(
        mark, gpus=mark.gpus or default.gpus, cpus=mark.cpus or default.cpus, mem_mb=mark.mem_mb or default.mem_mb
    )


def _why_not_managed(record: JobRecord, mark: Mark | None, lease: Lease | None, site: Site) -> str:
    """Why a job with a mark is left to Slurm; "" where it is ours."""
    if left := why_left(record.admin_comment):
        return left
    if lease is None and site.needs_lease:
        return "the submit hook did not lease it"
    if not record.batch or record.het_id:
        return "not an ordinary batch job"
    if record.asked_nodes:
        return f"it asks for node {','.join(record.asked_nodes)}"
    if record.constraint:
        return f"it asks for {record.constraint}"
    if record.sharing in site.exclusive_words:
        return "it asks for a whole node"
    if "partition" in record.cut:
        return "its list of partitions is too long to be read"
    if record.node_count > 1:
        return f"it asks for {record.node_count} nodes"
    assert mark is not None
    if site.memory_counts and not record.amounts.mem_mb and mark.mem_mb is None:
        return "it asks for all memory of a node"
    return ""


def _why_not_eligible(record: JobRecord, now_s: float, *, leased: bool) -> str:
    """Why it could not start even if there were room; "" where it could."""
    if record.priority == 0:
        return f"held ({record.reason})"
    if record.dependent:
        return f"it waits for other jobs ({record.reason})"
    if record.reason and not record.reason.startswith(_STARTABLE):
        return record.reason
    if not leased and record.eligible_s is not None and record.eligible_s > now_s:
        return f"it begins at {record.eligible_s}"
    return ""


def _whole_nodes(record: JobRecord, site: Site) -> Resources:
    """What the job will take: of a node that it has to itself, all."""
    if record.sharing not in site.exclusive_words:
        return record.amounts
    wholes = [site.whole_node[name] for name in record.partitions if name in site.whole_node]
    asked, count = record.amounts, record.node_count
    return Resources(
        max(asked.cpus, count * min((whole.cpus for whole in wholes), default=0)),
        max(asked.gpus, count * min((whole.gpus for whole in wholes), default=0)),
        max(asked.mem_mb, count * min((whole.mem_mb for whole in wholes), default=0)),
    )


def _is_planned(record: JobRecord, now_s: float) -> bool:
    return record.start_s is not None and record.start_s > now_s and bool(record.planned_nodes)


def _within_limit(tasks: Sequence[PendingJob], limit: int | None, active: int) -> list[PendingJob]:
    """The waiting tasks of an array; those beyond the array's own limit may not start yet."""
    if limit is None:
        return list(tasks)
    startable = max(0, limit - active)
    late = [
        replace(task, eligible=False, why=task.why or f"its array runs {limit} tasks at a time")
        for task in tasks[startable:]
    ]
    return [*tasks[:startable], *late]


def _active_tasks(records: Iterable[JobRecord]) -> dict[str, int]:
    """How many tasks of each array hold nodes now, or are placed and will in a moment."""
    active: dict[str, int] = {}
    for record in records:
        if record.array_tasks and (record.state in HOLDING or (record.state == "PD" and record.asked_nodes)):
            active[record.array_id] = active.get(record.array_id, 0) + 1
    return active


def _running(record: JobRecord, site: Site) -> RunningJob:
    mark, why = _mark(record, site.partitions)
    lease = lease_of(record.admin_comment)
    # What was leased is ours however it runs. Where nothing is leased it is what would have been.
    managed = not why and (lease is not None or not (site.needs_lease or _why_not_managed(record, mark, lease, site)))
    return RunningJob(
        job_id=record.job_id,
        submit_time_s=record.submit_s,
        partition=record.partitions[0] if record.partitions else "",
        shares=_shares(record),
        start_time_s=record.start_s or 0,
        end_limit_s=record.end_s if record.time_limit_s is not None else None,
        user=record.user,
        job_class=mark.job_class if mark else "",
        managed=managed,
    )


def _shares(record: JobRecord) -> tuple[Share, ...]:
    count = len(record.nodes)
    amounts = record.amounts
    each = Resources(-(-amounts.cpus // count), -(-amounts.gpus // count), -(-amounts.mem_mb // count))
    return tuple(Share(node, each) for node in record.nodes)
