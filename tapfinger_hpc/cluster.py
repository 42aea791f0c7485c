"""The seam between thinking and a cluster: two backends (simulated, Slurm) pass one contract test.

Neither a policy, nor the guard, nor the agent can tell which of them it has.
"""

from collections.abc import Sequence
from typing import Protocol

from tapfinger_hpc.decision import JobUpdate, Outcome
from tapfinger_hpc.state import ClusterState, JobKey


class Cluster(Protocol):
    """A cluster that can be looked at and whose pending jobs can be changed."""

    def observe(self) -> ClusterState:
        """One snapshot. Raises SlurmError where the cluster does not answer."""
        ...

    def apply(self, update: JobUpdate) -> Outcome:
        """Carries out one update and reads it back.

        ``applied`` is True only if the job is seen to have every value of the update (or already runs with them).
        A part may have been set where it is False: the caller gives the job its former values back. Never raises for
        a refusal.
        """
        ...

    def renew(self, jobs: Sequence[JobKey], until_s: int) -> Outcome:
        """Moves the earliest start of pending jobs to ``until_s``, all in one go.

        A job that has meanwhile started or ended is passed over; ``why`` names jobs that could not be renewed.
        """
        ...


class Clock(Protocol):
    """Time, so that a simulated second need not last one."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def wait(self, seconds: float) -> None:
        """Returns after this time, or earlier when something happened that is worth a look."""
        ...
