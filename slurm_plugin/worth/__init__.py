"""What TapFinger would have been worth while it watched, or was worth while it enforced: ``tapfinger report``.

Reads the journal, and of Slurm only what nodes there are. Each ended job is held against what was decided for it
(accounts.py), and their sum is told with an interval and with the jobs that lost (sums.py).
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from slurm_plugin.classes import ClassesFile
from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.journal import KEEP_S, Journal
from slurm_plugin.worth.accounts import Account, Seen, Shape, book
from slurm_plugin.worth.sums import Sum, total
from tapfinger_hpc import trace as traces
from tapfinger_hpc.config import Config
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import ClusterState, PendingJob
from tapfinger_hpc.trace import Ran, Trace, TraceJob
from trace_tools.records import EndedJob

WATCHED = (
    "Decisions were made on a queue that did not follow them: each is held against its own job, as if the others had "
    "run as they did. What these would have gained or lost by it is not in the figures.",
    "Where the queue is full Slurm starts the next job before the agent has looked: that counts as no change, and a "
    "job that never waited is not in the figures at all.",
)
ENFORCED = (
    "How long stock Slurm would have taken is an estimate: running times from the models of the job classes, waiting "
    "from order and backfill of these jobs alone on the cluster as it is now. Jobs of others are not in the journal; "
    "with them stock Slurm would have been slower, so this leans against TapFinger where there are many.",
)
FOR_ALL = (
    "Classes may have been learned from these very jobs. Intervals hold what the models doubt, and other stretches of "
    "such time; for a replay: tapfinger report --trace FILE, then tapfinger evaluate --trace FILE --cluster live.",
)


class Worth(msgspec.Struct, frozen=True):
    """Everything that `tapfinger report` tells."""

    since_s: int
    until_s: int
    ended: int
    """Jobs of ours that ended in this time."""
    watched: Sum | None
    enforced: Sum | None
    left_out: dict[str, int]
    """How many, by reason."""
    unfinished: tuple[str, ...]
    """Enforced jobs that did not finish on less than they asked for: what they lost is not in the figures."""
    notes: tuple[str, ...]
    """What the figures cannot say."""
    accounts: tuple[Account, ...] = ()


def report(config: Config, since_s: int, until_s: int) -> Worth:
    """What the journal says of the jobs that ended in this time.

    Raises:
        JournalError: there is no journal that can be read.
    """
    seen = _seen(config, since_s, until_s)
    shape, why_no_shape = _shape(config)
    found = book(seen, ClassesFile(_path(config.agent.classes_file)).known(), shape)
    watched, enforced = total(found.accounts, "watched"), total(found.accounts, "enforced")
    notes = [*(WATCHED if watched else ()), *(ENFORCED if enforced else ()), *FOR_ALL]
    if enforced and why_no_shape:
        notes.append(f"Slurm does not tell its nodes, so stock Slurm's waiting is not known: {why_no_shape}")
    if since_s < time.time() - KEEP_S:
        notes.append(f"The journal keeps {KEEP_S // 86400} days.")
    return Worth(
        since_s,
        until_s,
        ended=len(seen),
        watched=watched,
        enforced=enforced,
        left_out={why: len(ids) for why, ids in found.left_out.items()},
        unfinished=tuple(_unfinished(seen)),
        notes=tuple(notes),
        accounts=found.accounts,
    )


def write_trace(config: Config, since_s: int, until_s: int, path: Path) -> int:
    """Writes the jobs that ended in this time as a trace, for a replay; how many they are.

    Raises:
        JournalError: there is no journal that can be read.
        TraceError: the file cannot be written.
    """
    jobs = [_trace_job(one.job) for one in _seen(config, since_s, until_s)]
    jobs.sort(key=lambda item: (item.job.submit_time_s, item.job.job_id))
    moments = (datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") for moment in (since_s, until_s))
    traces.write(Trace(f"journal of tapfinger agent, {' to '.join(moments)}", (), tuple(jobs)), path)
    return len(jobs)


def _seen(config: Config, since_s: int, until_s: int) -> list[Seen]:
    with Journal.reading(Path(config.agent.journal)) as journal:
        jobs = journal.ended_between(since_s, until_s)
        keys = {(job.job_id, job.submit_time_s) for job in jobs}
        told, intents = journal.told_of(keys), journal.intents_of(keys)
    return [
        Seen(job, tuple(told.get(key, ())), tuple(intents.get(key, ())))
        for job in jobs
        if (key := (job.job_id, job.submit_time_s))
    ]


def _shape(config: Config) -> tuple[Shape | None, str]:
    try:
        state: ClusterState = SlurmCluster.from_config(config).observe()
    except SlurmError as error:
        return None, str(error)
    nodes = {node.name: node.capacity for node in state.nodes}
    return Shape(nodes, {partition.name: partition.nodes for partition in state.partitions}), ""


def _unfinished(seen: Sequence[Seen]) -> list[str]:
    return [
        f"{one.job.job_id} ({one.job.state}, on {one.job.granted} where {one.job.requested} were asked for)"
        for one in seen
        if one.intents and not one.job.finished and not one.job.granted.covers(one.job.requested)
    ]


def _trace_job(job: EndedJob) -> TraceJob:
    ours = job.mark is not None and job.nodes == 1
    least, most = job.mark.bounds(job.requested) if job.mark and ours else (job.requested, job.requested)
    return TraceJob(
        PendingJob(
            job_id=job.job_id,
            submit_time_s=job.submit_time_s,
            partitions=(job.partition or "unknown",),
            requested=job.requested,
            minimum=least,
            maximum=most,
            nodes_wanted=job.nodes,
            user=job.user,
            job_class=job.mark.job_class if job.mark else "",
            gpu_type=job.gpu_type,
            time_limit_s=job.time_limit_s,
            managed=ours,
        ),
        ran=Ran(
            state=job.state,
            elapsed_s=job.elapsed_s,
            amounts=job.granted,
            nodes=job.nodes,
            start_time_s=job.start_time_s,
            max_rss_mb=job.max_rss_mb,
            account=job.account,
            name=job.name,
        ),
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None
