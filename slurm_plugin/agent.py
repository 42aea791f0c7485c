"""The selection loop: look at the queue, ask the policy server, guard again, place, renew leases. Once a second or so.

It can die at any line: leases run out and Slurm starts the jobs with what their users asked for; what was placed is in
the journal and is taken back by the next agent or by the janitor. It runs the same on a simulated cluster.
"""

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm_plugin import hookfile
from slurm_plugin.classes import ClassesFile
from slurm_plugin.ended import Endings
from slurm_plugin.hookfile import HookMode
from slurm_plugin.journal import Journal, Note, Told
from slurm_plugin.naming import Names
from slurm_plugin.placed import Placements
from tapfinger_hpc import log
from tapfinger_hpc.cluster import Clock, Cluster
from tapfinger_hpc.config import AgentConfig
from tapfinger_hpc.decision import Decision, guard_all
from tapfinger_hpc.errors import ConfigError, ServerError, SlurmError
from tapfinger_hpc.state import ClusterState, JobKey
from tapfinger_hpc.wire import DecideResponse

Decide = Callable[[ClusterState], DecideResponse]

ASK_AGAIN_S = 3.0
"""How soon the same question is asked again after an answer that placed nothing: what waits may age into a place."""
PROBE_S = 10.0
"""How often the server is asked while nothing waits, so that the hook does not lease jobs for a dead one."""
LONGEST_BACK_OFF_S = 30.0
MOST_PLACEMENTS = 32
"""In one cycle; then the queue is looked at again, because each takes some 25 ms and the state grows old."""
LAST_LOOKS_S = 3.0
"""How long an agent that is told to end waits for jobs that it has just placed, before it takes them back."""
_PRUNE_S = 3600.0

_FIGURES = re.compile(r"\d+(?:\.\d+)?")

logger = logging.getLogger(__name__)


class Agent:
    """One agent on one cluster; ``decide`` is how it asks the server."""

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        decide: Decide,
        journal: Journal,
        config: AgentConfig,
        *,
        classes: ClassesFile | None = None,
        names: Names | None = None,
        endings: Endings | None = None,
    ) -> None:
        self._cluster, self._clock, self._decide = cluster, clock, decide
        self._journal, self._config = journal, config
        self._classes = classes or ClassesFile(None)
        self._names, self._endings = names, endings
        self._placements = Placements(cluster, clock, journal, config)
        self._hook_file = Path(config.hook_file) if config.hook_file else None
        self._disable_file = Path(config.disable_file) if config.disable_file else None
        self._server = _ServerHealth()
        self._told: dict[JobKey, tuple[object, str]] = {}
        self._question: object = None
        self._said: dict[str, str] = {}
        self._pruned_s = 0.0

    def run(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Cycles until told to stop, then leaves nothing pinned."""
        self._say("agent", "started", f"mode {self._config.mode}")
        try:
            while not stopping():
                self.cycle()
                if stopping():
                    break
                self._clock.wait(self._config.interval_s)
        finally:
            self.leave()

    def cycle(self) -> None:
        """One look and what follows from it. Raises nothing that a later cycle might not meet: it is noted instead."""
        mode = self._mode()
        try:
            self._cycle(mode)
            self._say("cycle", "ok", "")
        except SlurmError as error:
            self._say("slurm", str(error), str(error))
            mode = "degraded"
        except Exception as error:  # noqa: BLE001 - see below
            # Whatever it is, jobs must not wait for its repair: leases run out while we are degraded.
            if self._said.get("cycle") != repr(error):
                log.event(logger, logging.ERROR, "cycle-failed", why=repr(error), error=error)
            self._say("cycle", repr(error), f"a cycle failed: {error!r}")
            mode = "degraded"
        if mode == "enforce" and not self._server.answers:
            mode = "degraded"
        self._sign(mode)

    def leave(self) -> None:
        """Takes back what is placed and has not started, and tells the hook that no agent is there."""
        if self._hook_file is not None:
            self._hook_file.unlink(missing_ok=True)
        if self._mode() == "enforce":
            try:
                self._leave_placements()
            except SlurmError as error:
                log.event(logger, logging.WARNING, "left-in-haste", why=error)
        self._say("agent", "ended", "")

    def _leave_placements(self) -> None:
        until_s = self._clock.now_s() + LAST_LOOKS_S
        state = self._cluster.observe()
        self._placements.reconcile(state)
        while self._placements.open_keys and self._clock.now_s() < until_s:
            self._clock.wait(0.3)
            state = self._cluster.observe()
            self._placements.reconcile(state)
        self._placements.leave(state)

    def _cycle(self, mode: HookMode) -> None:
        state = self._cluster.observe()
        self._say("slurm", "answers", "")
        if self._names is not None:
            state = self._names.named(state)
        if mode == "enforce":
            self._placements.reconcile(state)
            self._placements.give_up_old(state)
        self._placements.remember(state)
        if self._endings is not None:
            self._endings.look(state)
        prepared = self._classes.attach(self._placements.prepare(state))
        if mode == "disabled":
            return
        if mode == "enforce" and self._server.answers:
            self._placements.renew(prepared)
        if self._worth_asking(prepared):
            self._ask(prepared, mode)
        self._prune(state.time_s)

    def _ask(self, state: ClusterState, mode: HookMode) -> None:
        now_s = self._clock.now_s()
        try:
            answer = self._decide(state)
        except ServerError as error:
            self._server.failed(now_s)
            self._say("server", "silent", f"{error}; leases are not renewed until it answers")
            return
        decided_s = self._clock.now_s()
        self._server.answered(now_s, placed=any(one.placement is not None for one in answer.decisions))
        self._say("server", answer.policy.name, f"policy {answer.policy.name} answers {answer.policy.fallback_why}")
        placements = [one for one in answer.decisions if one.placement is not None][:MOST_PLACEMENTS]
        changes = mode == "enforce" and placements
        fresh = self._placements.prepare(self._cluster.observe()) if changes else state
        allowed, refused, _ = guard_all(placements, fresh)
        tickets = {job.key: job.ticket for job in state.pending}
        self._tell(answer, {one.key: why for one, why in refused}, mode, decided_s, tickets)
        if mode == "enforce" and allowed:
            self._placements.make(allowed, fresh, answer.decision_id, decided_s)

    def _worth_asking(self, state: ClusterState) -> bool:
        now_s = state.time_s
        if not self._server.may_be_asked(now_s):
            return False
        waiting = [job.key for job in state.pending if job.managed and job.eligible]
        if not self._server.answers:
            return True
        if not waiting:
            return self._server.silent_for_s(now_s) >= PROBE_S
        before, self._question = self._question, _question(state)
        return self._server.placed or before != self._question or self._server.silent_for_s(now_s) >= ASK_AGAIN_S

    def _tell(
        self,
        answer: DecideResponse,
        refused: dict[JobKey, str],
        mode: HookMode,
        at_s: float,
        tickets: dict[JobKey, str],
    ) -> None:
        """Journals each decision that says something new about its job."""
        server_refused = {one.decision.key: one for one in answer.refused}
        told = []
        for one in answer.decisions:
            why = refused.get(one.key, "")
            if not why and one.placement is None and one.key in server_refused:
                why = server_refused[one.key].why
            if self._told.get(one.key) != (_gist(one), why):
                self._told[one.key] = (_gist(one), why)
                told.append(Told(at_s, answer.decision_id, answer.policy.name, one, why, mode))
                _log_decision(one, why, answer, mode, tickets.get(one.key, ""))
        self._journal.tell(told)
        here = {one.key for one in answer.decisions}
        self._told = {key: gist for key, gist in self._told.items() if key in here}

    def _mode(self) -> HookMode:
        disabled = self._disable_file is not None and self._disable_file.exists()
        mode: HookMode = "disabled" if disabled else self._config.mode
        self._say("mode", mode, f"mode {mode}")
        return mode

    def _sign(self, mode: HookMode) -> None:
        if self._hook_file is None:
            return
        try:
            hookfile.write(self._hook_file, mode, self._clock.now_s(), self._config.lease_s)
            self._said.pop("hook-file", None)
        except ConfigError as error:
            self._say("hook-file", str(error), str(error))

    def _say(self, about: str, what: str, text: str) -> None:
        """Logs and journals what changed, not what goes on."""
        if self._said.get(about) == what:
            return
        first = about not in self._said
        self._said[about] = what
        if not text and first:
            return
        log.event(logger, logging.INFO, about, state=what, why=text if text != what else "")
        try:
            self._journal.note([Note(self._clock.now_s(), "", 0, about, text or what)])
        except sqlite3.Error as error:
            # A full disk must not silence the agent: nothing is placed then, and the log has it.
            log.event(logger, logging.ERROR, "journal-fails", why=error)

    def _prune(self, now_s: float) -> None:
        if now_s - self._pruned_s > _PRUNE_S:
            self._pruned_s = now_s
            self._journal.prune(now_s)


class _ServerHealth:
    """Whether the server answers, and when it may be asked again where it does not."""

    def __init__(self) -> None:
        self.answers = False
        self.placed = False
        self._asked_s = 0.0
        self._back_off_s = 0.0

    def answered(self, now_s: float, *, placed: bool) -> None:
        self.answers, self.placed, self._asked_s, self._back_off_s = True, placed, now_s, 0.0

    def failed(self, now_s: float) -> None:
        self.answers, self.placed, self._asked_s = False, False, now_s
        self._back_off_s = min(LONGEST_BACK_OFF_S, max(1.0, 2 * self._back_off_s))

    def may_be_asked(self, now_s: float) -> bool:
        return self.silent_for_s(now_s) >= self._back_off_s

    def silent_for_s(self, now_s: float) -> float:
        """Time since it was last asked; also right where the clock was put back."""
        return abs(now_s - self._asked_s)


@contextmanager
def only_one(journal: Path) -> Iterator[None]:
    """Holds the lock that keeps a second agent away from this journal.

    Raises:
        ConfigError: another agent has it.
    """
    path = journal.with_name(journal.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"agent.journal {str(journal)!r}: its lock cannot be made: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise ConfigError(f"another agent (process {holder or 'unknown'}) uses the journal {str(journal)!r}") from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _question(state: ClusterState) -> object:
    """All of a state on which an answer depends, but for the passing of time."""
    pending = tuple(
        (job.key, job.requested, job.minimum, job.maximum, job.partitions, job.priority, job.managed, job.eligible)
        for job in state.pending
    )
    return state.nodes, state.partitions, tuple(job.key for job in state.running), pending, state.classes


def _gist(one: Decision) -> object:
    """What makes a decision another one to a reader: the place and the reason, but not the figures in it."""
    return one.placement, _FIGURES.sub("#", one.reason)


def _log_decision(one: Decision, refused: str, answer: DecideResponse, mode: HookMode, ticket: str) -> None:
    log.event(
        logger,
        logging.INFO,
        "decided",
        job=one.job_id,
        ticket=ticket,
        decision=answer.decision_id,
        mode=mode,
        place=one.placement or "wait",
        reason=one.reason,
        refused=refused,
    )
