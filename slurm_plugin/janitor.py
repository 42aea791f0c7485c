"""Repairs, once, what a dead agent left behind: jobs that were placed and cannot start get their request back.

Needs the journal and Slurm, and neither agent nor server; for cron, a timer or EpilogSlurmctld. While an agent is in
charge it touches nothing. Running it twice is as good as once.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from slurm_plugin import hookfile
from slurm_plugin.journal import Intent, Journal, Note
from slurm_plugin.placed import looks_untouched, undo_of
from tapfinger_hpc.cluster import Cluster
from tapfinger_hpc.config import AgentConfig
from tapfinger_hpc.decision import TOP_PRIORITY, JobUpdate
from tapfinger_hpc.state import ClusterState, PendingJob


class Repair(msgspec.Struct, frozen=True):
    """What was done for one job."""

    job_id: str
    submit_time_s: int
    done: bool
    what: str


class Report(msgspec.Struct, frozen=True):
    """What a run of the janitor found and did."""

    agent: str
    """What is known of the agent."""
    acted: bool
    """False where it left everything to a live agent."""
    repairs: tuple[Repair, ...] = ()

    @property
    def failed(self) -> bool:
        return any(not repair.done for repair in self.repairs)


def tidy(
    cluster: Cluster,
    journal: Journal,
    config: AgentConfig,
    *,
    force: bool = False,
    now_s: Callable[[], float] = time.time,
) -> Report:
    """Frees the jobs that a dead agent left pinned.

    Raises:
        SlurmError: the cluster does not answer.
    """
    agent, in_charge = _agent(config, now_s())
    if in_charge and not force:
        return Report(agent, acted=False)
    state = cluster.observe()
    pending = {job.key: job for job in state.pending}
    running = {job.key for job in state.running}
    repairs = []
    for intent in journal.open_intents():
        if intent.key in running:
            journal.move(intent, "started", "seen by the janitor", now_s())
        elif (job := pending.get(intent.key)) is None:
            journal.move(intent, "gone", "seen by the janitor", now_s())
        elif looks_untouched(intent, job, state.time_s):
            journal.move(intent, "lost", "seen by the janitor", now_s())
        else:
            repairs.append(_restore(cluster, journal, intent, job, now_s))
    done = {(repair.job_id, repair.submit_time_s) for repair in repairs}
    repairs += _requeued(cluster, journal, state, done, now_s)
    return Report(agent, acted=True, repairs=tuple(repairs))


def _agent(config: AgentConfig, now_s: float) -> tuple[str, bool]:
    """What the sign of life says, and whether an agent follows the placements now."""
    sign = hookfile.read(Path(config.hook_file))
    if sign is None:
        return f"no sign of life in {config.hook_file}", False
    age_s = now_s - sign.at_s
    said = f"mode {sign.mode}, sign of life {age_s:.0f} s old"
    return said, sign.fresh(now_s) and sign.mode in ("enforce", "degraded")


def _restore(cluster: Cluster, journal: Journal, intent: Intent, job: PendingJob, now_s: Callable[[], float]) -> Repair:
    """Gives the job its request back and lets Slurm start it."""
    outcome = cluster.apply(undo_of(intent, job, begin_s=0))
    if not outcome.applied:
        return Repair(*job.key, done=False, what=f"its request could not be restored: {outcome.why}")
    journal.move(intent, "restored", "by the janitor: the agent is not in charge", now_s())
    return Repair(*job.key, done=True, what=f"freed from node {intent.update.node}, with its original request")


def _requeued(
    cluster: Cluster, journal: Journal, state: ClusterState, done: set[tuple[str, int]], now_s: Callable[[], float]
) -> list[Repair]:
    """Jobs that run again after they were placed, and pinned ones that no journal knows."""
    repairs = []
    for job in state.pending:
        if not job.ticket or job.key in done:
            continue
        latest = journal.latest_intent(job.job_id, job.ticket)
        if latest is not None and latest.state in ("started", "gone"):
            repairs.append(_restore(cluster, journal, latest, job, now_s))
        elif latest is None and not job.managed and job.priority == TOP_PRIORITY:
            outcome = cluster.apply(JobUpdate(job.job_id, job.submit_time_s, node=""))
            what = outcome.why or "freed from its node; no journal knows its original request"
            journal.note([Note(now_s(), *job.key, "freed", what)])
            repairs.append(Repair(*job.key, done=outcome.applied, what=what))
    return repairs
