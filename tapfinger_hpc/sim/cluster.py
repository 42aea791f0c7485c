"""A simulated cluster behind the same seam as the real one, in event time.

It grants no powers that Slurm does not: an update may be refused, half-taken, or leave a job pinned to a busy node for
ever, and a job whose lease runs out is started by "Slurm" with what it asked for. The true runtime of a job is known
only here, and is not in what ``observe`` returns.
"""

import heapq
import math
import random
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from tapfinger_hpc import fit, reserve
from tapfinger_hpc.decision import JobUpdate, Outcome
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.state import (
    ClusterState,
    JobKey,
    Node,
    Partition,
    PendingJob,
    Resources,
    RunningJob,
    Share,
)
from tapfinger_hpc.stats import COMPLETED, JobRecord
from tapfinger_hpc.trace import Trace, TraceJob

FIRST_PRIORITY = 4294901760
"""What Slurm's priority/basic gives the first job of a cluster; each later one gets one less."""


class ClusterSpec(msgspec.Struct, frozen=True):
    """The nodes of a cluster while nothing runs, and its partitions."""

    nodes: tuple[Node, ...]
    partitions: tuple[Partition, ...]

    @classmethod
    def uniform(cls, partitions: int = 3, nodes_each: int = 2, capacity: Resources | None = None) -> "ClusterSpec":
        """Partitions pa, pb, ... of equal nodes n1, n2, ...: the sandbox's default shape."""
        amounts = capacity or Resources(16, 4, 64000)
        names = [f"n{number}" for number in range(1, partitions * nodes_each + 1)]
        return cls(
            tuple(Node(name, amounts, amounts) for name in names),
            tuple(
                Partition(f"p{chr(ord('a') + index)}", tuple(names[index * nodes_each : (index + 1) * nodes_each]))
                for index in range(partitions)
            ),
        )

    @property
    def capacity(self) -> Resources:
        """All nodes together."""
        return sum((node.capacity for node in self.nodes), Resources())


class _Waiting:
    """A pending job as Slurm holds it: what would start, where, and not before when."""

    def __init__(self, trace_job: TraceJob, job: PendingJob, begin_s: float) -> None:
        self.trace_job = trace_job
        self.job = job  # ``requested`` is what Slurm would start it with now
        self.node = ""  # ReqNodeList
        self.begin_s = begin_s  # 0: at once
        self.settles_s = 0.0  # an update takes effect only then


class SimulatedCluster:
    """A cluster on which the jobs of a trace arrive, wait, run and end.

    Args:
        hook: whether managed jobs are leased at submission, as the submit hook does while the agent lives. Without it
            every job is stock Slurm's.
        lease_s: how long a leased job waits before Slurm starts it by itself.
        update_latency_s: time from an update to the start that it asks for.
        refusal: share of updates that are refused without effect.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        trace: Trace,
        clock: SimClock,
        *,
        hook: bool = True,
        lease_s: int = 60,
        update_latency_s: float = 0.0,
        refusal: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._trace, self._clock = trace, clock
        self._partitions = {partition.name: partition for partition in spec.partitions}
        self._nodes = {node.name: node for node in spec.nodes}
        self._hook, self._lease_s = hook, lease_s
        self._update_latency_s, self._refusal = update_latency_s, refusal
        self._draw = random.Random(seed)
        self._arrivals = sorted(trace.jobs, key=lambda item: item.job.submit_time_s)[::-1]  # the next one is last
        self._start_s = int(clock.now_s())
        self._waiting: dict[JobKey, _Waiting] = {}
        self._running: dict[JobKey, RunningJob] = {}
        self._begun: dict[JobKey, tuple[TraceJob, float]] = {}
        self._ends: list[tuple[float, str, JobKey, str]] = []  # heap of (time, job id, key, outcome)
        self._records: list[JobRecord] = []
        self._submitted = 0
        clock.attach(self)
        self.advance(clock.now_s())

    # -- the seam ------------------------------------------------------------------------------------------------

    def observe(self) -> ClusterState:
        """One snapshot, as a real cluster would give it: no classes, no true runtimes."""
        return ClusterState(
            time_s=self._clock.now_s(),
            nodes=tuple(self._nodes.values()),
            partitions=tuple(self._partitions.values()),
            pending=tuple(self._as_seen(waiting) for waiting in self._waiting.values()),
            running=tuple(self._running.values()),
        )

    def apply(self, update: JobUpdate) -> Outcome:
        """Sets the fields that the update names, as scontrol does: not atomically, and not always truthfully."""
        waiting = self._waiting.get(update.key)
        if waiting is None:
            return Outcome(False, f"job {update.job_id} has already started or ended")
        if self._refusal and self._draw.random() < self._refusal:
            return Outcome(False, f"job {update.job_id}: Slurm refused the update")
        names = update.partition.split(",") if update.partition else []
        unknown = [name for name in names if name not in self._partitions]
        if unknown:
            return Outcome(False, f"job {update.job_id}: invalid partition {unknown[0]!r}")
        if update.node and update.node not in self._nodes:
            return Outcome(False, f"job {update.job_id}: invalid node {update.node!r}")
        self._set(waiting, update, names)
        if update.amounts is not None and not self._could_ever_run(waiting):
            # Slurm says no, yet keeps the new values: the caller has to give the job its former ones.
            return Outcome(False, f"job {update.job_id}: requested partition configuration not available now")
        if not self._update_latency_s:
            self._schedule()
        return Outcome(True)

    def renew(self, jobs: Sequence[JobKey], until_s: int) -> Outcome:
        """Moves the earliest start of those that still wait."""
        for key in jobs:
            if key in self._waiting:
                self._waiting[key].begin_s = float(until_s)
        return Outcome(True)

    # -- the world -----------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every job of the trace has arrived and ended."""
        return not (self._arrivals or self._waiting or self._running)

    def records(self) -> tuple[JobRecord, ...]:
        """The jobs that have ended, in order of their ends."""
        return tuple(self._records)

    def submit(self, trace_job: TraceJob, *, lease_s: int | None = None) -> JobKey:
        """A job arrives now, whatever its submit time says; ``lease_s`` is what its own mark asks for."""
        job = replace(trace_job.job, submit_time_s=int(self._clock.now_s()))
        self._arrive(TraceJob(job, trace_job.scale), job, lease_s)
        self._schedule()
        return job.key

    def set_node(self, name: str, *, available: bool) -> None:
        """Drains a node, or brings it back; what runs there goes on."""
        self._nodes[name] = replace(self._nodes[name], available=available)
        self._schedule()

    def next_event_s(self) -> float:
        """When something next happens by itself; infinity if nothing will."""
        now_s = self._clock.now_s()
        moments = [
            moment
            for waiting in self._waiting.values()
            for moment in (waiting.begin_s, waiting.settles_s)
            if moment > now_s
        ]
        if self._arrivals:
            moments.append(self._start_s + self._arrivals[-1].job.submit_time_s)
        if self._ends:
            moments.append(self._ends[0][0])
        return min(moments, default=math.inf)

    def advance(self, now_s: float) -> bool:
        """Lets everything happen that is due now; whether that is worth a look (a job came or ended)."""
        woke = False
        while self._ends and self._ends[0][0] <= now_s:
            end_s, _, key, outcome = heapq.heappop(self._ends)
            self._end(key, end_s, outcome)
            woke = True
        while self._arrivals and self._start_s + self._arrivals[-1].job.submit_time_s <= now_s:
            trace_job = self._arrivals.pop()
            job = replace(trace_job.job, submit_time_s=self._start_s + trace_job.job.submit_time_s)
            self._arrive(trace_job, job)
            woke = True
        self._schedule()
        return woke

    # -- inside --------------------------------------------------------------------------------------------------

    def _arrive(self, trace_job: TraceJob, job: PendingJob, lease_s: int | None = None) -> None:
        priority = job.priority or FIRST_PRIORITY - self._submitted
        self._submitted += 1
        leased = self._hook and job.managed
        if leased:
            job = replace(job, priority=priority, ticket=f"{self._submitted}")
        else:
            why = "the submit hook did not lease it" if job.managed else job.why or "not marked"
            job = replace(job, priority=priority, managed=False, why=why)
        begin_s = job.submit_time_s + float(self._lease_s if lease_s is None else lease_s) if leased else 0.0
        self._waiting[job.key] = _Waiting(trace_job, job, begin_s)

    def _as_seen(self, waiting: _Waiting) -> PendingJob:
        """What the queue shows: a job that was given a node looks like one whose user asked for it, and is not ours."""
        job = waiting.job
        if waiting.node and job.managed:
            why = f"it asks for node {waiting.node}"
            return replace(job, managed=False, why=why, minimum=job.requested, maximum=job.requested)
        if not waiting.begin_s:
            return job
        return replace(job, lease_until_s=int(waiting.begin_s))

    def _set(self, waiting: _Waiting, update: JobUpdate, partitions: list[str]) -> None:
        job = waiting.job
        if partitions:
            job = replace(job, partitions=tuple(partitions))
        if update.amounts is not None:
            job = replace(job, requested=update.amounts, tasks=update.tasks)
        if update.priority is not None:
            job = replace(job, priority=update.priority)
        waiting.job = job
        if update.node is not None:
            waiting.node = update.node
        if update.begin_s is not None:
            waiting.begin_s = float(update.begin_s)
        waiting.settles_s = self._clock.now_s() + self._update_latency_s

    def _could_ever_run(self, waiting: _Waiting) -> bool:
        job = waiting.job
        return any(
            fit.could_fit_node(job, replace(self._nodes[name], available=True), reserve.per_node(job))
            for partition in job.partitions
            for name in self._partitions[partition].nodes
            if waiting.node in ("", name)
        )

    def _schedule(self) -> None:
        """Slurm's own turn: by priority, with backfill on time limits and the amounts that each job now asks for."""
        now_s = self._clock.now_s()
        due = [
            waiting
            for waiting in self._waiting.values()
            if waiting.job.eligible and waiting.begin_s <= now_s and waiting.settles_s <= now_s
        ]
        due.sort(key=lambda waiting: (-waiting.job.priority, waiting.job.submit_time_s))
        while due and not self._has_room_now(due[-1]):
            due.pop()  # behind it nothing could start, so where it is planned does not matter
        if not due:
            return
        state = replace(self.observe(), pending=())
        pins = {waiting.job.key: waiting.node for waiting in due if waiting.node}
        jobs = [waiting.job for waiting in due]
        for reservation in reserve.plan(state, jobs, reserve.Profile(state), pins):
            if reservation.start_s <= now_s:
                self._begin(reservation)

    def _has_room_now(self, waiting: _Waiting) -> bool:
        job, amounts = waiting.job, reserve.per_node(waiting.job)
        for name in job.partitions:
            partition = self._partitions[name]
            roomy = sum(
                fit.fits_node(job, self._nodes[node], amounts) for node in partition.nodes if waiting.node in ("", node)
            )
            if partition.up and roomy >= job.nodes_wanted:
                return True
        return False

    def _begin(self, reservation: reserve.Reservation) -> None:
        now_s = self._clock.now_s()
        key = reservation.job.key
        waiting = self._waiting.pop(key)
        job, amounts = waiting.job, reserve.per_node(waiting.job)
        for name in reservation.nodes:
            node = self._nodes[name]
            self._nodes[name] = replace(node, free=node.free - fit.granted(node, amounts))
        limit_s = math.inf if job.time_limit_s is None else float(job.time_limit_s)
        self._running[key] = RunningJob(
            job_id=job.job_id,
            submit_time_s=job.submit_time_s,
            partition=next(
                name for name in job.partitions if set(reservation.nodes) <= set(self._partitions[name].nodes)
            ),
            shares=tuple(Share(name, amounts) for name in reservation.nodes),
            start_time_s=int(now_s),
            end_limit_s=None if math.isinf(limit_s) else math.ceil(now_s + limit_s),
            user=job.user,
            job_class=job.job_class,
            managed=job.managed,
        )
        self._begun[key] = (waiting.trace_job, now_s)
        lasts_s, outcome = self._fate(waiting.trace_job, job.requested, limit_s)
        heapq.heappush(self._ends, (now_s + lasts_s, job.job_id, key, outcome))

    def _fate(self, trace_job: TraceJob, amounts: Resources, limit_s: float) -> tuple[float, str]:
        true_s = self._trace.true_duration_s(trace_job, amounts)
        if math.isinf(true_s):
            return 1.0, "OUT_OF_MEMORY"
        return (limit_s, "TIMEOUT") if true_s > limit_s else (true_s, COMPLETED)

    def _end(self, key: JobKey, end_s: float, outcome: str) -> None:
        running = self._running.pop(key)
        trace_job, start_s = self._begun.pop(key)
        for share in running.shares:
            node = self._nodes[share.node]
            self._nodes[share.node] = replace(node, free=node.free + fit.granted(node, share.amounts))
        self._records.append(
            JobRecord(
                job_id=running.job_id,
                submit_s=float(running.submit_time_s),
                start_s=start_s,
                end_s=end_s,
                partition=running.partition,
                nodes=tuple(share.node for share in running.shares),
                requested=trace_job.job.requested,
                amounts=running.amounts,
                job_class=running.job_class,
                managed=trace_job.job.managed,
                outcome=outcome,
            )
        )
