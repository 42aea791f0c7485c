"""A simulated cluster behind the same seam as the real one: Slurm's words for one environment of the compiled core.

It grants no powers that Slurm does not: an update may be refused, half-taken, or leave a job pinned to a busy node for
ever, and a job whose lease runs out is started by "Slurm" with what it asked for. The true runtime of a job is known
only here, and is not in what ``observe`` returns.
"""

import math
import random
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from tapfinger_hpc import fit, reserve
from tapfinger_hpc.decision import JobUpdate, Outcome
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.controller import Controller
from tapfinger_hpc.state import ClusterState, JobKey, PendingJob, RunningJob, Share
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace, TraceJob

FIRST_PRIORITY = 4294901760
"""What Slurm's priority/basic gives the first job of a cluster; each later one gets one less."""


class _Job:
    """A job as Slurm shows it, from its submission to its end."""

    def __init__(self, trace_job: TraceJob, job: PendingJob, begin_s: float, lasts_s: float) -> None:
        self.trace_job = trace_job
        self.job = job  # ``requested`` is what Slurm would start it with now
        self.number = -1  # with the controller
        self.node = ""  # ReqNodeList
        self.begin_s = begin_s  # 0: at once
        self.settles_s = 0.0  # an update takes effect only then
        self.lasts_s = lasts_s  # on what is requested

    @property
    def due_s(self) -> float:
        return max(self.begin_s, self.settles_s)


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
        self._nodes = {node.name: node for node in sorted(spec.nodes, key=lambda node: node.name)}
        self._controller = Controller(spec.nodes, spec.partitions, clock.now_s())
        self._hook, self._lease_s = hook, lease_s
        self._update_latency_s, self._refusal = update_latency_s, refusal
        self._draw = random.Random(seed)
        self._arrivals = sorted(trace.jobs, key=lambda item: item.job.submit_time_s)[::-1]  # the next one is last
        self._start_s = int(clock.now_s())
        self._waiting: dict[JobKey, _Job] = {}
        self._jobs: dict[int, _Job] = {}  # those that wait or run, by their number
        self._running: dict[int, RunningJob] = {}
        self._records: list[JobRecord] = []
        self._submitted = 0
        self._seen: ClusterState | None = None  # until something changes
        clock.attach(self)
        self.advance(clock.now_s())

    # -- the seam ------------------------------------------------------------------------------------------------

    def observe(self) -> ClusterState:
        """One snapshot, as a real cluster would give it: no classes, no true runtimes."""
        now_s = self._clock.now_s()
        if self._seen is None or self._seen.time_s != now_s:
            self._seen = ClusterState(
                time_s=now_s,
                nodes=tuple(self._nodes.values()),
                partitions=tuple(self._partitions.values()),
                pending=tuple(self._as_seen(job) for job in self._waiting.values()),
                running=tuple(self._running.values()),
            )
        return self._seen

    def apply(self, update: JobUpdate) -> Outcome:
        """Sets the fields that the update names, as scontrol does: not atomically, and not always truthfully."""
        job = self._waiting.get(update.key)
        if job is None:
            return Outcome(False, f"job {update.job_id} has already started or ended")
        if self._refusal and self._draw.random() < self._refusal:
            return Outcome(False, f"job {update.job_id}: Slurm refused the update")
        names = update.partition.split(",") if update.partition else []
        unknown = [name for name in names if name not in self._partitions]
        if unknown:
            return Outcome(False, f"job {update.job_id}: invalid partition {unknown[0]!r}")
        if update.node and update.node not in self._nodes:
            return Outcome(False, f"job {update.job_id}: invalid node {update.node!r}")
        self._set(job, update, names)
        if update.amounts is not None and not self._could_ever_run(job):
            # Slurm says no, yet keeps the new values: the caller has to give the job its former ones.
            return Outcome(False, f"job {update.job_id}: requested partition configuration not available now")
        if not self._update_latency_s:
            self._pass_until(self._clock.now_s())
        return Outcome(True)

    def renew(self, jobs: Sequence[JobKey], until_s: int) -> Outcome:
        """Moves the earliest start of those that still wait."""
        self._seen = None
        for key in jobs:
            job = self._waiting.get(key)
            if job is not None:
                job.begin_s = float(until_s)
                self._controller.put_off(job.number, job.job, self._clock.now_s(), begin_s=job.due_s)
        return Outcome(True)

    # -- the world -----------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every job of the trace has arrived and ended."""
        return not (self._arrivals or self._jobs)

    @property
    def ended(self) -> int:
        """How many jobs have ended."""
        return len(self._records)

    def records(self) -> tuple[JobRecord, ...]:
        """The jobs that have ended, in order of their ends."""
        return tuple(self._records)

    def submit(self, trace_job: TraceJob, *, lease_s: int | None = None) -> JobKey:
        """A job arrives now, whatever its submit time says; ``lease_s`` is what its own mark asks for."""
        job = replace(trace_job.job, submit_time_s=int(self._clock.now_s()))
        self._arrive(TraceJob(job, trace_job.scale), job, self._clock.now_s(), lease_s)
        self._pass_until(self._clock.now_s())
        return job.key

    def set_node(self, name: str, *, available: bool) -> None:
        """Drains a node, or brings it back; what runs there goes on."""
        self._seen = None
        self._nodes[name] = replace(self._nodes[name], available=available)
        self._controller.set_node(name, available=available)
        self._pass_until(self._clock.now_s())

    def next_event_s(self) -> float:
        """When something next happens by itself; infinity if nothing will."""
        event_s = self._controller.next_event_s()
        if self._arrivals:
            return min(event_s, self._start_s + self._arrivals[-1].job.submit_time_s)
        return event_s

    def advance(self, now_s: float) -> bool:
        """Lets everything happen that is due now; whether that is worth a look (a job came or ended)."""
        came = False
        while self._arrivals and self._start_s + self._arrivals[-1].job.submit_time_s <= now_s:
            trace_job = self._arrivals.pop()
            job = replace(trace_job.job, submit_time_s=self._start_s + trace_job.job.submit_time_s)
            self._arrive(trace_job, job, now_s)
            came = True
        return self._pass_until(now_s) or came

    # -- inside --------------------------------------------------------------------------------------------------

    def _arrive(self, trace_job: TraceJob, job: PendingJob, now_s: float, lease_s: int | None = None) -> None:
        for name in job.partitions:
            if name not in self._partitions:
                known = ", ".join(self._partitions)
                raise TraceError(
                    f"submitting job {job.job_id} of trace {self._trace.source!r}: the cluster has no partition "
                    f"{name!r}; known: {known}"
                )
        priority = job.priority or FIRST_PRIORITY - self._submitted
        self._submitted += 1
        self._seen = None
        leased = self._hook and job.managed
        if leased:
            job = replace(job, priority=priority, ticket=f"{self._submitted}")
        else:
            why = "the submit hook did not lease it" if job.managed else job.why or "not marked"
            job = replace(job, priority=priority, managed=False, why=why)
        begin_s = job.submit_time_s + float(self._lease_s if lease_s is None else lease_s) if leased else 0.0
        arrived = _Job(trace_job, job, begin_s, self._trace.true_duration_s(trace_job, job.requested))
        arrived.number = self._controller.submit(job, now_s, begin_s=begin_s, lasts_s=arrived.lasts_s)
        self._waiting[job.key] = self._jobs[arrived.number] = arrived

    def _as_seen(self, waiting: _Job) -> PendingJob:
        """What the queue shows: a job that was given a node looks like one whose user asked for it, and is not ours."""
        job = waiting.job
        if waiting.node and job.managed:
            why = f"it asks for node {waiting.node}"
            return replace(job, managed=False, why=why, minimum=job.requested, maximum=job.requested)
        if not waiting.begin_s:
            return job
        return replace(job, lease_until_s=int(waiting.begin_s))

    def _set(self, waiting: _Job, update: JobUpdate, partitions: list[str]) -> None:
        job = waiting.job
        if partitions:
            job = replace(job, partitions=tuple(partitions))
        if update.amounts is not None:
            job = replace(job, requested=update.amounts, tasks=update.tasks)
            waiting.lasts_s = self._trace.true_duration_s(waiting.trace_job, update.amounts)
        if update.priority is not None:
            job = replace(job, priority=update.priority)
        waiting.job, self._seen = job, None
        if update.node is not None:
            waiting.node = update.node
        if update.begin_s is not None:
            waiting.begin_s = float(update.begin_s)
        now_s = self._clock.now_s()
        waiting.settles_s = now_s + self._update_latency_s
        self._controller.change(
            waiting.number, job, waiting.node, now_s, begin_s=waiting.due_s, lasts_s=waiting.lasts_s
        )

    def _could_ever_run(self, waiting: _Job) -> bool:
        job = waiting.job
        return any(
            fit.could_fit_node(job, replace(self._nodes[name], available=True), reserve.per_node(job))
            for partition in job.partitions
            for name in self._partitions[partition].nodes
            if waiting.node in ("", name)
        )

    def _pass_until(self, now_s: float) -> bool:
        """Time goes on in the controller; whether a job ended."""
        started, ended = self._controller.pass_until(now_s)
        if not started and not ended:
            return False
        self._seen = None
        for number in started:
            self._begin(self._jobs[number])
        changed = {share.node for number in (*started, *ended) for share in self._running[number].shares}
        for name in changed:
            self._nodes[name] = replace(self._nodes[name], free=self._controller.free(name))
        self._end([self._jobs.pop(number) for number in ended])
        return bool(ended)

    def _begin(self, started: _Job) -> None:
        job, start_s = started.job, self._controller.start_s(started.number)
        partition, nodes = self._controller.place_of(started.number, job.nodes_wanted)
        amounts = reserve.per_node(job)
        del self._waiting[job.key]
        self._running[started.number] = RunningJob(
            job_id=job.job_id,
            submit_time_s=job.submit_time_s,
            partition=partition,
            shares=tuple(Share(name, amounts) for name in nodes),
            start_time_s=int(start_s),
            end_limit_s=None if job.time_limit_s is None else math.ceil(start_s + job.time_limit_s),
            user=job.user,
            job_class=job.job_class,
            managed=job.managed,
        )

    def _end(self, jobs: Iterable[_Job]) -> None:
        """Their records, in the order of their ends."""
        ends = {job.number: self._controller.end_of(job.number) for job in jobs}
        for job in sorted(jobs, key=lambda job: (ends[job.number][0], job.job.job_id)):
            running, (end_s, outcome) = self._running.pop(job.number), ends[job.number]
            self._records.append(
                JobRecord(
                    job_id=running.job_id,
                    submit_s=float(running.submit_time_s),
                    start_s=self._controller.start_s(job.number),
                    end_s=end_s,
                    partition=running.partition,
                    nodes=tuple(share.node for share in running.shares),
                    requested=job.trace_job.job.requested,
                    amounts=running.amounts,
                    job_class=running.job_class,
                    managed=job.trace_job.job.managed,
                    outcome=outcome,
                )
            )
