"""The class of jobs of ours that declare none: by user, account and job name, as classes are learned from accounting.

Account and name do not change while a job waits, so each is asked for once, with one more squeue in cycles in which
such jobs are new.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from tapfinger_hpc import log
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import ClusterState, PendingJob, RunningJob
from trace_tools.classes import class_name

MOST_KNOWN = 4000
"""Jobs whose account and name are remembered."""
MOST_AT_ONCE = 400

Ask = Callable[[Sequence[str]], Mapping[str, tuple[str, str]]]
"""Account and name of jobs, by number; of an array by the number of the array."""

Job = TypeVar("Job", PendingJob, RunningJob)

logger = logging.getLogger(__name__)


class Names:
    """Accounts and names of the jobs that were seen."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: dict[tuple[str, int], tuple[str, str]] = {}

    def named(self, state: ClusterState) -> ClusterState:
        """The state in which every job of ours has a class; those of which Slurm does not tell stay without."""
        jobs: list[PendingJob | RunningJob] = [*state.pending, *state.running]
        unknown = {_key(job) for job in jobs if _nameless(job)} - set(self._known)
        if unknown:
            self._learn(sorted(unknown)[:MOST_AT_ONCE])
        return replace(
            state,
            pending=tuple(self._with_class(job) for job in state.pending),
            running=tuple(self._with_class(job) for job in state.running),
        )

    def of(self, job_id: str, submit_time_s: int) -> tuple[str, str]:
        """Account and name; "" where they were never asked for."""
        return self._known.get((_number(job_id), submit_time_s), ("", ""))

    def _learn(self, keys: Sequence[tuple[str, int]]) -> None:
        try:
            told = self._ask([number for number, _ in keys])
        except SlurmError as error:
            log.event(logger, logging.WARNING, "names-unknown", jobs=len(keys), why=error)
            return
        for key in keys:
            self._known[key] = told.get(key[0], ("", ""))
        for key in list(self._known)[: max(0, len(self._known) - MOST_KNOWN)]:
            del self._known[key]

    def _with_class(self, job: Job) -> Job:
        if not _nameless(job):
            return job
        account, name = self.of(*job.key)
        return replace(job, job_class=class_name(job.user, account, name)) if account or name else job


def _nameless(job: PendingJob | RunningJob) -> bool:
    return job.managed and not job.job_class


def _key(job: PendingJob | RunningJob) -> tuple[str, int]:
    return (_number(job.job_id), job.submit_time_s)


def _number(job_id: str) -> str:
    return job_id.partition("_")[0]
