"""What is proposed for a job (Decision), what Slurm is asked to set (JobUpdate), what came of it (Outcome).

``guard`` stands between the first and the second: pure, used live and in training.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tapfinger_hpc import fit, reserve
from tapfinger_hpc.state import (
    ClusterState,
    Count,
    JobKey,
    Name,
    PendingJob,
    Resources,
    RunningJob,
    Share,
)

TOP_PRIORITY = 4294967290
"""Just under Slurm's INFINITE and NO_VAL marks: a placed job is not held up behind a blocked one (measured)."""


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A partition, a node in it, and amounts."""

    partition: Name
    node: Name
    amounts: Resources

    def __str__(self) -> str:
        return f"{self.node} ({self.partition}) with {self.amounts}"


class Alternative(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A runner-up: what else was considered, and how it scored."""

    placement: Placement | None
    """None stands for waiting."""
    score: float


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the policy proposes for one pending job: a placement, or to wait."""

    job_id: Name
    submit_time_s: Count
    placement: Placement | None
    """None: let it wait (the lease is renewed)."""
    reason: Annotated[str, Meta(max_length=1000)]
    """For people: shown by ``tapfinger explain``."""
    score: float = 0.0
    """Higher is better; comparable within one answer of one policy only."""
    runners_up: Annotated[tuple[Alternative, ...], Meta(max_length=16)] = ()

    @property
    def key(self) -> JobKey:
        return (self.job_id, self.submit_time_s)


class JobUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One update of one pending job: only what Slurm really lets us set. None leaves a field as it is."""

    job_id: Name
    submit_time_s: Count
    partition: str | None = None
    """Sent only when it changes; one name, or several with commas to give a job back to all that it asked for."""
    node: str | None = None
    """"" clears the node list."""
    amounts: Resources | None = None
    tasks: Annotated[int, Meta(ge=1)] = 1
    gpu_type: str = ""
    priority: Count | None = None
    begin_s: int | None = None
    """Earliest start; 0 is now."""

    @property
    def key(self) -> JobKey:
        return (self.job_id, self.submit_time_s)


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of an update, as read back. A refusal is a result, not an exception."""

    applied: bool
    why: str = ""
    """Why not; empty where it was applied."""


def update_for(job: PendingJob, placement: Placement) -> JobUpdate:
    """The update that makes Slurm start the job as placed, now."""
    return JobUpdate(
        job_id=job.job_id,
        submit_time_s=job.submit_time_s,
        partition=None if job.partitions == (placement.partition,) else placement.partition,
        node=placement.node,
        amounts=placement.amounts,
        tasks=job.tasks,
        gpu_type=job.gpu_type,
        priority=TOP_PRIORITY,
        begin_s=0,
    )


def guard(decision: Decision, state: ClusterState) -> str | None:
    """Why this decision must not be carried out on this state; None where it may.

    A decision to wait is always allowed. Never raises for any decision that has the right types.
    """
    if decision.placement is None:
        return None
    job = next((job for job in state.pending if job.key == decision.key), None)
    if job is None:
        return f"job {decision.job_id} is no longer pending"
    if not job.managed:
        return f"job {job.job_id} is left to Slurm: {job.why or 'it is not managed'}"
    if not job.eligible:
        return f"job {job.job_id} may not start yet: {job.why or 'it is not eligible'}"
    place, amounts = decision.placement, decision.placement.amounts
    reach = [node for partition, node in fit.reachable(state, job) if partition.name == place.partition]
    if not reach:
        return f"partition {place.partition} is not open to job {job.job_id}"
    node = next((node for node in reach if node.name == place.node), None)
    if node is None:
        return f"node {place.node} cannot take job {job.job_id} in partition {place.partition}"
    if not fit.allowed(job, amounts):
        return f"{amounts} is outside what job {job.job_id} declares ({job.minimum} to {job.maximum})"
    if not fit.fits_node(job, node, amounts):
        return f"{amounts} does not fit on {node.name}, where {node.free} are free"
    return reserve.Protection(state).would_delay(job, node, amounts)


def after(state: ClusterState, job: PendingJob, placement: Placement) -> ClusterState:
    """The state once the job runs as placed."""
    node = state.node(placement.node)
    taken = replace(node, free=node.free - fit.granted(node, placement.amounts))
    start_s = int(state.time_s)
    running = RunningJob(
        job_id=job.job_id,
        submit_time_s=job.submit_time_s,
        partition=placement.partition,
        shares=(Share(node.name, placement.amounts),),
        start_time_s=start_s,
        end_limit_s=None if job.time_limit_s is None else start_s + job.time_limit_s,
        user=job.user,
        job_class=job.job_class,
        managed=job.managed,
    )
    return replace(
        state,
        nodes=tuple(taken if other.name == node.name else other for other in state.nodes),
        pending=tuple(other for other in state.pending if other.key != job.key),
        running=(*state.running, running),
    )


def guard_all(
    decisions: Iterable[Decision], state: ClusterState
) -> tuple[list[Decision], list[tuple[Decision, str]], ClusterState]:
    """Guards decisions in order, each on the state that the ones before it leave.

    Returns:
        those that may be carried out, those refused with the reason, and the state after the first.
    """
    allowed: list[Decision] = []
    refused: list[tuple[Decision, str]] = []
    for decision in decisions:
        why = guard(decision, state)
        if why is not None:
            refused.append((decision, why))
            continue
        allowed.append(decision)
        if decision.placement is not None:
            job = next(job for job in state.pending if job.key == decision.key)
            state = after(state, job, decision.placement)
    return allowed, refused, state
