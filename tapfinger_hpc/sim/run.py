"""A whole workload on a simulated cluster, with a policy or with stock Slurm alone.

The loop has the agent's order: observe, decide, guard, apply, take back what did not take, renew leases, wait.
"""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from tapfinger_hpc import fit
from tapfinger_hpc.decision import Decision, JobUpdate, after, guard_all, update_for
from tapfinger_hpc.policies.base import Policy
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.sim.cluster import SimulatedCluster
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import ClusterState, JobKey, PendingJob
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace

PATIENCE_S = 5.0
"""How long a placed job may stay pending before it is given back its former request."""


def replay(
    trace: Trace,
    spec: ClusterSpec,
    policy: Policy | None = None,
    *,
    classes: Iterable[JobClass] | None = None,
    interval_s: float = 10.0,
    lease_s: int = 60,
    max_hold_s: float = 14400.0,
    update_latency_s: float = 0.0,
    refusal: float = 0.0,
    seed: int = 0,
    report: Callable[[int], None] = lambda ended: None,
) -> tuple[JobRecord, ...]:
    """Runs every job of the trace to its end.

    Args:
        policy: None is stock Slurm: priority order and backfill with what was requested.
        classes: what the policy is told of the classes' speed; None tells it the truth (but for each job's own scale).
        interval_s: longest time between two looks while jobs wait; an arrival or an end brings one at once.
        max_hold_s: a job that waited this long is given to Slurm as it is.
        report: told how many jobs have ended, now and then.
    """
    clock = SimClock()
    cluster = SimulatedCluster(
        spec,
        trace,
        clock,
        hook=policy is not None,
        lease_s=lease_s,
        update_latency_s=update_latency_s,
        refusal=refusal,
        seed=seed,
    )
    if policy is None:
        while not cluster.finished:
            clock.wait(float("inf"))
            report(cluster.ended)
        return cluster.records()
    loop = _Loop(cluster, policy, tuple(trace.classes if classes is None else classes), lease_s, max_hold_s)
    while not cluster.finished:
        loop.turn()
        report(cluster.ended)
        if not cluster.finished:
            # Leases are renewed when half of them is over: a longer sleep would let them lapse.
            clock.wait(min(interval_s, lease_s / 3) if loop.jobs_wait else float("inf"))
    return cluster.records()


class _Loop:
    """What the agent does in one turn, on a simulated cluster."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        policy: Policy,
        classes: tuple[JobClass, ...],
        lease_s: int,
        max_hold_s: float,
    ) -> None:
        self._cluster, self._policy, self._classes = cluster, policy, classes
        self._lease_s, self._max_hold_s = lease_s, max_hold_s
        self._under_way: dict[JobKey, tuple[Decision, PendingJob, float]] = {}
        self.jobs_wait = False

    def turn(self) -> None:
        """One look at the cluster, and what follows from it."""
        state = self._settle(replace(self._cluster.observe(), classes=self._classes))
        if _has_room(state):
            allowed, _, _ = guard_all(self._policy.decide(state), state)
            jobs = {job.key: job for job in state.pending}
            for decision in allowed:
                if decision.placement is not None:
                    self._place(decision, jobs[decision.key], state.time_s)
        self._renew()

    def _place(self, decision: Decision, job: PendingJob, now_s: float) -> None:
        assert decision.placement is not None
        if self._cluster.apply(update_for(job, decision.placement)).applied:
            self._under_way[job.key] = (decision, job, now_s)
        else:
            self._give_back(job, now_s)

    def _give_back(self, job: PendingJob, now_s: float) -> None:
        """The job's former values, and a new lease."""
        self._cluster.apply(
            JobUpdate(
                job_id=job.job_id,
                submit_time_s=job.submit_time_s,
                partition=",".join(job.partitions),
                node="",
                amounts=job.requested,
                tasks=job.tasks,
                priority=job.priority,
                begin_s=int(now_s) + self._lease_s,
            )
        )

    def _settle(self, state: ClusterState) -> ClusterState:
        """The state with placements that are under way counted as running; late ones are taken back."""
        pending = {job.key: job for job in state.pending}
        for key, (decision, job, placed_s) in list(self._under_way.items()):
            if key not in pending:
                del self._under_way[key]
            elif state.time_s - placed_s > PATIENCE_S:
                del self._under_way[key]
                self._give_back(job, state.time_s)
            elif decision.placement is not None:
                node = state.node(decision.placement.node)
                # A job of others may have been faster: then there is no room to count this one in, and it is late.
                if fit.fits_node(pending[key], node, decision.placement.amounts):
                    state = after(state, pending[key], decision.placement)
        return state

    def _renew(self) -> None:
        """Longer leases for jobs whose lease is half over, except for those that were held long enough."""
        state = self._cluster.observe()
        held = [job for job in state.pending if job.managed and job.lease_until_s is not None]
        self.jobs_wait = any(job.managed for job in state.pending)
        due = [
            job.key
            for job in held
            if job.lease_until_s is not None
            and job.lease_until_s - state.time_s < self._lease_s / 2
            and state.time_s - job.submit_time_s < self._max_hold_s
        ]
        if due:
            self._cluster.renew(due, int(state.time_s) + self._lease_s)


def _has_room(state: ClusterState) -> bool:
    """Whether anything of ours could be placed at all: on a full cluster a policy need not be asked."""
    least = {(job.minimum, job.tasks): job for job in state.pending if job.managed and job.eligible}
    wanted = [amounts for amounts in map(fit.smallest, least.values()) if amounts is not None]
    return any(node.available and node.free.covers(amounts) for node in state.nodes for amounts in wanted)
