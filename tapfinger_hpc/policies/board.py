"""The state that a policy works on while it decides: placements are put on it one after the other.

What the board allows is what ``guard`` allows on the state that the placements before it leave; the room for jobs that
are not ours (``reserve``) is asked for only where such jobs wait.
"""

import math
from collections.abc import Iterable

from tapfinger_hpc import fit, reserve
from tapfinger_hpc.decision import Alternative, Decision, Placement, after
from tapfinger_hpc.state import ClusterState, JobKey, Node, Partition, PendingJob, Resources

MAX_RUNNERS_UP = 16


class Board:
    """Free amounts as placements take them, and the decisions made so far."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.free = {node.name: node.free for node in state.nodes}
        self._nodes = {node.name: node for node in state.nodes}
        self._others_wait = any(not job.managed and job.eligible for job in state.pending)
        self._protection = reserve.Protection(state)
        self._delaying: dict[str, list[tuple[float, int, Resources, str]]] = {}
        self._reach: dict[JobKey, list[tuple[Partition, Node]]] = {}
        self._placed: list[Decision] = []
        self._waiting: list[Decision] = []

    def jobs(self) -> list[PendingJob]:
        """The jobs that need a decision, in order of submission."""
        return [job for job in self.state.pending if job.managed and job.eligible]

    def reach(self, job: PendingJob) -> list[tuple[Partition, Node]]:
        """Every node on which the job could ever run, with the first partition that leads to it."""
        if job.key not in self._reach:
            first: dict[str, tuple[Partition, Node]] = {}
            for partition, node in fit.reachable(self.state, job):
                first.setdefault(node.name, (partition, node))
            self._reach[job.key] = list(first.values())
        return self._reach[job.key]

    def fits(self, node: Node, amounts: Resources) -> bool:
        """Whether the amounts are free on a node that is within the job's reach."""
        return self.free[node.name].covers(fit.granted(node, amounts))

    def delays(self, job: PendingJob, node: Node, amounts: Resources) -> str | None:
        """Which job of others would start later; None if none would."""
        if not self._others_wait:
            return None
        limit_s = math.inf if job.time_limit_s is None else job.time_limit_s
        known = self._delaying.setdefault(node.name, [])
        for held_s, priority, held, why in known:
            # What holds as much for as long delays as well, also after further placements.
            if limit_s >= held_s and job.priority <= priority and amounts.covers(held):
                return why
        refusal = self._protection.would_delay(job, node, amounts)
        if refusal is not None:
            known.append((limit_s, job.priority, amounts, refusal))
        return refusal

    def place(
        self,
        job: PendingJob,
        placement: Placement,
        reason: str,
        score: float = 0.0,
        runners_up: Iterable[Alternative] = (),
    ) -> None:
        """Decides that the job runs there, and takes the amounts off."""
        node = self._nodes[placement.node]
        self.free[node.name] = self.free[node.name] - fit.granted(node, placement.amounts)
        if self._others_wait:
            self.state = after(self.state, job, placement)
            self._protection = reserve.Protection(self.state)
        self._placed.append(_decision(job, placement, reason, score, runners_up))

    def wait(self, job: PendingJob, reason: str, score: float = 0.0, runners_up: Iterable[Alternative] = ()) -> None:
        """Decides that the job waits."""
        self._waiting.append(_decision(job, None, reason, score, runners_up))

    def decisions(self) -> tuple[Decision, ...]:
        """Placements in the order in which they were made, then the jobs that wait."""
        return (*self._placed, *self._waiting)


def _decision(
    job: PendingJob, placement: Placement | None, reason: str, score: float, runners_up: Iterable[Alternative]
) -> Decision:
    return Decision(
        job_id=job.job_id,
        submit_time_s=job.submit_time_s,
        placement=placement,
        reason=reason[:1000],
        score=score,
        runners_up=tuple(runners_up)[:MAX_RUNNERS_UP],
    )
