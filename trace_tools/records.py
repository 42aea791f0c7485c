"""What accounting knows of one job that has ended: the struct between the readers of accounting and those who learn.

A record is a plain value. Nothing here reads a file: ``reading`` makes records of sacct and of other lists, the agent's
journal makes them of jobs that it has placed.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from tapfinger_hpc.state import Name, Resources
from tapfinger_hpc.units import Mark

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

_NUMBER = re.compile(r"(?<![a-zA-Z])0x[0-9a-fA-F]+|\d+(?:[.]\d+)*")
_UNIQUE = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE)


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


def plain_name(name: str) -> str:
    """A job name without what changes from run to run: ``train_lr0.01_seed3`` and ``train_lr0.1_seed12`` are alike."""
    return _NUMBER.sub("#", _UNIQUE.sub("#", name.strip().lower()))[:256]
