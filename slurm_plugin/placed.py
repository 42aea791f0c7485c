"""The jobs in Slurm's hands: placed and not seen running yet. Every one can be taken back, whatever happened.

A placement is written to the journal, then made, then read back; what did not take, did not start, or was lost by a
crash gets its request back. Everything is compared with what the cluster shows: no update is assumed to have held.
"""

import logging
from collections.abc import Sequence

from msgspec.structs import replace

from slurm_plugin.jobs import NOT_MARKED
from slurm_plugin.journal import Intent, IntentState, JobMemory, Journal, Note
from tapfinger_hpc import decision, log
from tapfinger_hpc.cluster import Clock, Cluster
from tapfinger_hpc.config import AgentConfig
from tapfinger_hpc.decision import TOP_PRIORITY, Decision, JobUpdate, Placement
from tapfinger_hpc.state import ClusterState, JobKey, PendingJob

START_PATIENCE_S = 15.0
"""A placed job starts within a second (median 0.5 s), or 7 s with Slurm's default batch_sched_delay."""
RETRY_S = (15.0, 60.0)
"""How long a job waits after its first and its second placement that did not start; after a third it is Slurm's."""
_RAN: tuple[IntentState, ...] = ("started", "gone")
_UNDO_AGAIN_S = 5.0

logger = logging.getLogger(__name__)


def original_of(job: PendingJob, placement: Placement) -> JobUpdate:
    """What gives the job back everything that this placement changes."""
    return JobUpdate(
        job_id=job.job_id,
        submit_time_s=job.submit_time_s,
        partition=None if job.partitions == (placement.partition,) else ",".join(job.partitions),
        node="",
        amounts=job.requested,
        tasks=job.tasks,
        gpu_type=job.gpu_type,
        priority=job.priority,
    )


def why_take_back(intent: Intent, job: PendingJob, state: ClusterState, patience_s: float) -> str:
    """Why a placed job that still waits gets its request back; "" while it may still start."""
    if intent.state == "written":
        return "whether it was placed is not known"
    node = next((node for node in state.nodes if node.name == intent.update.node), None)
    if node is None or not node.available:
        return f"node {intent.update.node} cannot be used any more"
    if not job.eligible:
        return f"it may not start: {job.why}"
    if state.time_s - intent.changed_s > patience_s:
        return f"Slurm did not start it within {patience_s:g} s"
    return ""


def looks_untouched(intent: Intent, job: PendingJob, now_s: float) -> bool:
    """Whether the job is as if it had never been placed: the update was lost in a crash, or never made."""
    return (
        job.managed
        and job.requested == intent.original.amounts
        and job.priority != TOP_PRIORITY
        and job.lease_until_s is not None
        and job.lease_until_s > now_s
    )


def undo_of(intent: Intent, job: PendingJob, begin_s: int) -> JobUpdate:
    """The update that takes a placement back. Amounts that somebody changed since then stay as they are."""
    changed_since = intent.state in ("open", *_RAN) and job.requested != intent.update.amounts
    return replace(
        intent.original,
        submit_time_s=job.submit_time_s,
        amounts=None if changed_since else intent.original.amounts,
        begin_s=begin_s,
    )


class Placements:
    """The book of placements: makes them, follows them, takes them back."""

    def __init__(self, cluster: Cluster, clock: Clock, journal: Journal, config: AgentConfig) -> None:
        self._cluster, self._clock, self._journal, self._config = cluster, clock, journal, config
        self._open: dict[JobKey, Intent] = {intent.key: intent for intent in journal.open_intents()}
        self._memories: dict[JobKey, JobMemory] = {memory.key: memory for memory in journal.memories()}
        self._looked_up: set[JobKey] = set()
        self._undone_s: dict[JobKey, float] = {}
        self._left: dict[JobKey, str] = {}
        self._first_s = clock.now_s()

    @property
    def open_keys(self) -> set[JobKey]:
        """Jobs that are in Slurm's hands."""
        return set(self._open)

    def reconcile(self, state: ClusterState) -> None:
        """Compares the book with the cluster, and takes back what is stuck."""
        pending = {job.key: job for job in state.pending}
        running = {job.key for job in state.running}
        for intent in list(self._open.values()):
            job = pending.get(intent.key)
            if intent.key in running:
                self._close(intent, "started", "")
            elif job is None:
                self._close(intent, "gone", "it waits no more, and was not seen running")
            elif looks_untouched(intent, job, state.time_s):
                self._close(intent, "lost", "the cluster shows it as if it had not been placed")
            elif why := why_take_back(intent, job, state, START_PATIENCE_S):
                self._take_back(intent, job, why)
        for job in state.pending:
            if job.key not in self._open and job.key not in self._looked_up:
                self._look_up(job)
        self._looked_up &= set(pending)

    def remember(self, state: ClusterState) -> None:
        """Notes since when our jobs may start, and why marked ones are not ours; forgets those that are gone."""
        fresh = []
        for job in state.pending:
            if job.managed and job.eligible and self._memory(job.key).eligible_since_s is None:
                # One that was here before us may have been eligible all the time.
                since_s = job.submit_time_s if job.submit_time_s >= self._first_s else state.time_s
                fresh.append(replace(self._memory(job.key), eligible_since_s=float(since_s)))
        self._keep(fresh)
        here = {job.key for job in state.pending}
        gone = [key for key in self._memories if key not in here]
        self._journal.forget(gone)
        for key in gone:
            del self._memories[key]
        self._note_left(state, here)

    def prepare(self, state: ClusterState) -> ClusterState:
        """The state as it will be: placed jobs hold their room already, those that may not be placed now are marked."""
        state = replace(state, pending=tuple(self._marked(job, state.time_s) for job in state.pending))
        nodes = {node.name for node in state.nodes}
        for intent in self._open.values():
            job = next((job for job in state.pending if job.key == intent.key), None)
            if job is not None and intent.update.node in nodes:
                state = decision.after(state, job, _placement(intent, job))
        return state

    def make(self, decisions: Sequence[Decision], state: ClusterState, decision_id: str, decided_s: float) -> int:
        """Carries out guarded decisions; how many took. All are on the disk before the first is made."""
        jobs = {job.key: job for job in state.pending}
        placing = [(jobs[one.key], one.placement) for one in decisions if one.placement is not None]
        intents = self._journal.write_intents(
            Intent(
                job_id=job.job_id,
                submit_time_s=job.submit_time_s,
                ticket=job.ticket,
                decision_id=decision_id,
                decided_s=decided_s,
                update=decision.update_for(job, placement),
                original=original_of(job, placement),
            )
            for job, placement in placing
        )
        return sum(
            self._make(intent, job, placement) for intent, (job, placement) in zip(intents, placing, strict=True)
        )

    def renew(self, state: ClusterState) -> None:
        """Renews leases of which less than half is left, all of one length with one command."""
        due: dict[int, list[JobKey]] = {}
        for job in state.pending:
            lease_s = job.lease_s or self._config.lease_s
            if job.managed and job.lease_until_s is not None and job.lease_until_s - state.time_s < lease_s / 2:
                due.setdefault(lease_s, []).append(job.key)
        for lease_s, keys in due.items():
            outcome = self._cluster.renew(keys, int(self._clock.now_s()) + lease_s)
            if not outcome.applied:
                log.event(logger, logging.WARNING, "lease-not-renewed", jobs=len(keys), why=outcome.why)

    def give_up_old(self, state: ClusterState) -> None:
        """Gives jobs that waited too long to Slurm, as they are."""
        for job in state.pending:
            since_s = self._memory(job.key).eligible_since_s
            if not (job.managed and job.eligible) or since_s is None:
                continue
            if state.time_s - since_s > self._config.max_hold_s:
                why = f"no place within {self._config.max_hold_s} s"
                outcome = self._cluster.apply(JobUpdate(job.job_id, job.submit_time_s, begin_s=0))
                self._keep([replace(self._memory(job.key), given_up=why)])
                self._note(job.key, "given up", why if outcome.applied else f"{why}; {outcome.why}")

    def leave(self, state: ClusterState) -> None:
        """Before the agent goes: nothing stays pinned. What waits starts by itself, with what its user asked for."""
        pending = {job.key: job for job in state.pending}
        for intent in list(self._open.values()):
            if job := pending.get(intent.key):
                self._undo(intent, job, "restored", "the agent ends", begin_s=0)

    def _make(self, intent: Intent, job: PendingJob, placement: Placement) -> bool:
        now_s = self._clock.now_s()
        # In the book first: if anything below fails, the next look finds it there.
        self._open[intent.key] = intent
        outcome = self._cluster.apply(intent.update)
        if outcome.applied:
            self._open[intent.key] = self._journal.move(intent, "open", "", self._clock.now_s())
            log.event(
                logger,
                logging.INFO,
                "placed",
                job=job.job_id,
                ticket=intent.ticket,
                decision=intent.decision_id,
                node=placement.node,
                partition=placement.partition,
                cpus=placement.amounts.cpus,
                gpus=placement.amounts.gpus,
                mem_mb=placement.amounts.mem_mb,
                since_decision_ms=round((now_s - intent.decided_s) * 1000),
            )
            return True
        log.event(
            logger,
            logging.WARNING,
            "not-placed",
            job=job.job_id,
            ticket=intent.ticket,
            decision=intent.decision_id,
            why=outcome.why,
        )
        self._failed(job.key, outcome.why)
        self._undo(intent, job, "refused", outcome.why)
        return False

    def _take_back(self, intent: Intent, job: PendingJob, why: str) -> None:
        now_s = self._clock.now_s()
        if now_s - self._undone_s.get(intent.key, 0.0) < _UNDO_AGAIN_S:
            return
        self._undone_s[intent.key] = now_s
        if self._memory(intent.key).failures < len(RETRY_S):
            restored = self._undo(intent, job, "restored", why)
        else:
            restored = self._undo(intent, job, "given up", why, begin_s=0)
        if restored:
            del self._undone_s[intent.key]
            if intent.state == "open":
                self._failed(intent.key, why)

    def _undo(self, intent: Intent, job: PendingJob, state: IntentState, why: str, begin_s: int | None = None) -> bool:
        """Gives the job its request back, with a new lease unless it is to start at once."""
        lease_until_s = int(self._clock.now_s()) + (job.lease_s or self._config.lease_s)
        outcome = self._cluster.apply(undo_of(intent, job, lease_until_s if begin_s is None else begin_s))
        if outcome.applied:
            self._close(intent, state, why)
            return True
        log.event(
            logger,
            logging.ERROR,
            "not-restored",
            job=job.job_id,
            ticket=intent.ticket,
            decision=intent.decision_id,
            why=outcome.why,
            undoing=why,
        )
        return False

    def _look_up(self, job: PendingJob) -> None:
        """A job that waits again after it was placed (requeued), or is pinned by an agent whose journal is lost."""
        self._looked_up.add(job.key)
        latest = self._journal.latest_intent(job.job_id, job.ticket) if job.ticket else None
        if latest is not None and latest.state in _RAN:
            if not self._undo(latest, job, "restored", "it was requeued"):
                self._looked_up.discard(job.key)
        elif latest is None and job.ticket and not job.managed and job.priority == TOP_PRIORITY:
            outcome = self._cluster.apply(JobUpdate(job.job_id, job.submit_time_s, node=""))
            self._note(job.key, "freed", f"it was pinned to a node, and no journal knows why; {outcome.why or 'freed'}")

    def _close(self, intent: Intent, state: IntentState, why: str) -> None:
        now_s = self._clock.now_s()
        self._journal.move(intent, state, why, now_s)
        self._open.pop(intent.key, None)
        log.event(
            logger,
            logging.INFO if state in _RAN else logging.WARNING,
            state.replace(" ", "-"),
            job=intent.job_id,
            ticket=intent.ticket,
            decision=intent.decision_id,
            node=intent.update.node,
            since_decision_ms=round((now_s - intent.decided_s) * 1000),
            why=why,
        )

    def _failed(self, key: JobKey, why: str = "") -> None:
        memory = self._memory(key)
        failures = memory.failures + 1
        if failures > len(RETRY_S):
            self._keep([replace(memory, failures=failures, given_up=f"{failures} placements did not start: {why}")])
        else:
            retry_s = self._clock.now_s() + RETRY_S[failures - 1]
            self._keep([replace(memory, failures=failures, retry_s=retry_s)])

    def _marked(self, job: PendingJob, now_s: float) -> PendingJob:
        memory = self._memories.get(job.key)
        if memory is None or not job.managed:
            return job
        if memory.given_up:
            return replace(job, managed=False, why=f"given to Slurm: {memory.given_up}", lease_until_s=None)
        if job.eligible and now_s < memory.retry_s:
            return replace(
                job, eligible=False, why=f"its last placement did not start; next try at {memory.retry_s:.0f}"
            )
        return job

    def _memory(self, key: JobKey) -> JobMemory:
        return self._memories.get(key) or JobMemory(*key)

    def _keep(self, memories: Sequence[JobMemory]) -> None:
        self._journal.remember(memories)
        self._memories.update((memory.key, memory) for memory in memories)

    def _note(self, key: JobKey, kind: str, text: str) -> None:
        self._journal.note([Note(self._clock.now_s(), *key, kind, text)])
        log.event(logger, logging.INFO, kind.replace(" ", "-"), job=key[0], why=text)

    def _note_left(self, state: ClusterState, here: set[JobKey]) -> None:
        """Why jobs that ask for us are left to Slurm, once per reason."""
        left = {job.key: job.why for job in state.pending if _asked_for(job) and job.key not in self._open}
        for key, why in left.items():
            if self._left.get(key) != why:
                self._note(key, "left", why)
        self._left = {key: why for key, why in {**self._left, **left}.items() if key in here}


def _asked_for(job: PendingJob) -> bool:
    return not job.managed and not job.why.startswith(NOT_MARKED)


def _placement(intent: Intent, job: PendingJob) -> Placement:
    update = intent.update
    assert update.node is not None and update.amounts is not None
    return Placement(update.partition or job.partitions[0], update.node, update.amounts)
