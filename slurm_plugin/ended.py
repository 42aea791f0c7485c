"""Jobs that have ended, as Slurm still tells for some minutes: into the journal, for job classes to be learned from.

One more squeue, and only in a cycle in which a job of ours, or one with a declared class, has left its nodes.
"""

import logging
from collections.abc import Callable, Sequence

from slurm_plugin.jobs import lease_of
from slurm_plugin.journal import Journal
from slurm_plugin.naming import Names
from slurm_plugin.parse import JobRecord
from tapfinger_hpc import log
from tapfinger_hpc.errors import SlurmError, UnitError
from tapfinger_hpc.state import ClusterState, JobKey, Resources
from tapfinger_hpc.units import Mark, parse_mark
from trace_tools.records import SHORT, EndedJob

PATIENCE_S = 240.0
"""Slurm forgets ended jobs after MinJobAge, 300 s unless configured."""
MOST_AT_ONCE = 200

logger = logging.getLogger(__name__)


class Endings:
    """Sees jobs end from one snapshot to the next."""

    def __init__(
        self, find: Callable[[str], Sequence[JobRecord]], journal: Journal, names: Names | None = None
    ) -> None:
        """``find`` gives the records that a comma-separated list of job numbers means, ended ones too."""
        self._find, self._journal, self._names = find, journal, names
        self._running: set[JobKey] = set()
        self._gone: dict[JobKey, float] = {}
        """Jobs that run no more, and since when, until Slurm says how they ended."""

    def look(self, state: ClusterState) -> None:
        """Journals what has ended since the last look. What Slurm does not tell now is asked again at the next."""
        running = {job.key for job in state.running if job.managed or job.job_class}
        self._gone.update(dict.fromkeys(self._running - running, state.time_s))
        self._running = running
        asked = list(self._gone)[:MOST_AT_ONCE]
        if not asked:
            return
        try:
            records = {(one.job_id, one.submit_s): one for one in self._find(",".join(job_id for job_id, _ in asked))}
        except SlurmError as error:
            log.event(logger, logging.WARNING, "endings-unknown", jobs=len(asked), why=error)
            records = {}
            asked = [key for key in asked if state.time_s - self._gone[key] > PATIENCE_S]
        jobs = [job for key in asked if key in records and (job := self._ended(records[key])) is not None]
        self._journal.keep_ended(jobs, state.time_s)
        for key in asked:
            del self._gone[key]

    def _ended(self, record: JobRecord) -> EndedJob | None:
        lease = lease_of(record.admin_comment)
        intent = self._journal.latest_intent(record.job_id, lease.ticket) if lease else None
        asked = intent.original.amounts if intent else None
        account, name = self._names.of(record.job_id, record.submit_s) if self._names else ("", "")
        return record_of(record, asked, account, name)


def record_of(
    record: JobRecord, requested: Resources | None = None, account: str = "", name: str = ""
) -> EndedJob | None:
    """What squeue says of a job that has ended; None of one that has not, that was requeued, or that never ran."""
    if record.state not in SHORT or not record.start_s or not record.end_s or record.end_s <= record.start_s:
        return None
    return EndedJob(
        job_id=record.job_id,
        state=SHORT[record.state],
        elapsed_s=float(record.end_s - record.start_s),
        granted=record.amounts,
        requested=requested or record.amounts,
        nodes=record.node_count,
        node_names=record.nodes,
        gpu_type=record.gpu_type,
        submit_time_s=record.submit_s,
        start_time_s=record.start_s,
        time_limit_s=record.time_limit_s,
        partition=record.partitions[0] if record.partitions else "",
        user=record.user,
        account=account,
        name=name,
        mark=_mark(record.comment),
    )


def _mark(comment: str) -> Mark | None:
    try:
        return parse_mark(comment)
    except UnitError:
        return None
