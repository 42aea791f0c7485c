"""What accounting knows of one job that has ended: between the readers of accounting and those who learn from it.

A record is a plain value. ``of_trace_job`` makes one of a job of a trace, the agent's journal makes them of jobs that
it has placed.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from tapfinger_hpc.state import Name, Resources
from tapfinger_hpc.trace import TraceJob
from tapfinger_hpc.units import Mark, Range

ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "RECONFIG_FAIL",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States in which a job has ended for good. All else is on its way, or a word that no Slurm release knows."""
SHORT = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "DL": "DEADLINE",
    "F": "FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PR": "PREEMPTED",
    "TO": "TIMEOUT",
}
"""Slurm's short words for those that it tells of a job of its own."""


class EndedJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job that has ended and that ran for a while: what it had, and how long it took on it."""

    job_id: Name
    """As Slurm prints it: ``123``, ``123_4`` of an array, ``1853+0`` as the head of a heterogeneous job."""
    state: str
    """One word of ``ENDED``."""
    elapsed_s: Annotated[float, Meta(gt=0)]
    """For how long it ran, in its last run. The whole of its work only where ``finished``."""
    granted: Resources
    """What it held, on all nodes together; ``mem_mb`` is 0 where accounting does not say."""
    requested: Resources
    """What it asked for, on all nodes together."""
    nodes: Annotated[int, Meta(ge=1)] = 1
    node_names: tuple[str, ...] = ()
    """Those that it ran on; () where the source does not say."""
    gpu_type: str = ""
    submit_time_s: int = 0
    """Seconds since the epoch; 0 where the source has no times."""
    start_time_s: int | None = None
    time_limit_s: int | None = None
    """None where there is none, or where accounting does not say."""
    max_rss_mb: int | None = None
    """The most memory that one of its tasks held, rounded up; None where nothing was measured."""
    partition: str = ""
    user: str = ""
    account: str = ""
    name: str = ""
    """The job's name, as its user wrote it."""
    mark: Mark | None = None
    """What its comment declares, where accounting keeps comments and the comment can be read."""

    @property
    def finished(self) -> bool:
        """Whether the job did all of its work; otherwise ``elapsed_s`` is only a lower bound of its duration."""
        return self.state == "COMPLETED"


def of_trace_job(item: TraceJob, zero_s: int = 0) -> EndedJob | None:
    """What a job of a trace says of how it ran; None of a job that is made up.

    Args:
        zero_s: the second since the epoch at which the trace begins, where its times count from there.
    """
    job, ran = item.job, item.ran
    if ran is None:
        return None
    return EndedJob(
        job_id=job.job_id,
        state=ran.state,
        elapsed_s=ran.elapsed_s,
        granted=ran.amounts,
        requested=job.requested,
        nodes=ran.nodes,
        gpu_type=job.gpu_type,
        submit_time_s=job.submit_time_s + zero_s,
        start_time_s=None if ran.start_time_s is None else ran.start_time_s + zero_s,
        time_limit_s=job.time_limit_s,
        max_rss_mb=ran.max_rss_mb,
        partition=job.partitions[0],
        user=job.user,
        account=ran.account,
        name=ran.name,
        mark=_mark_of(item) if job.managed else None,
    )


def _mark_of(item: TraceJob) -> Mark:
    least, most = item.job.minimum, item.job.maximum
    return Mark(
        gpus=Range(least.gpus, most.gpus),
        cpus=Range(least.cpus, most.cpus),
        mem_mb=Range(least.mem_mb, most.mem_mb),
        job_class=item.job.job_class,
    )
