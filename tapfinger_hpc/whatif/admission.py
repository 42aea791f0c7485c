"""Which jobs of a trace a cluster can take, and as what. Pure: a trace and a cluster in, jobs and counts out.

A job is replayed on what it held, for as long as it ran; where the cluster has no such partition, or less time for it,
it is fitted in, and counted under the name of what was done. No job is dropped without one.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from tapfinger_hpc import fit, reserve
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.state import Partition, PendingJob, Resources
from tapfinger_hpc.trace import Ran, TraceJob
from tapfinger_hpc.whatif.shape import Shape

LEFT_OUT = {
    "no-node-holds-it": "no node, or too few of them, of its partitions has what the job held",
    "gpu-type-unknown": "it asked for a type of GPU that no node has",
    "too-long": "it ran for longer than its partitions allow",
    "listed-twice": "a job of the same number that was submitted in the same second",
}
"""Why jobs are not replayed."""
ASSUMED = {
    "partition-mapped": "put into the partition that --partition names for its own",
    "partition-unknown": "the cluster has no such partition: it may use all that can hold it",
    "limit-cut": "its time limit is over what its partitions allow: cut to that",
    "limit-of-partition": "without a time limit: that of its partitions",
    "limit-stretched": "it ran on beyond its time limit: the limit was set to that",
    "priority-passed-over": "accounting has priorities for some jobs alone: all are served in order of submission",
}
"""What was done to jobs that are replayed."""


class Admission(msgspec.Struct, frozen=True):
    """The jobs that are replayed, and what became of all."""

    jobs: tuple[TraceJob, ...]
    left_out: dict[str, int]
    assumed: dict[str, int]
    by_priority: bool
    """Whether jobs are served by the priorities of accounting, else in order of submission."""


def admit(jobs: Iterable[TraceJob], shape: Shape, mapped: Mapping[str, tuple[str, ...]]) -> Admission:
    """Fits jobs to the cluster.

    Args:
        mapped: partitions of the cluster for partitions of the trace.
    """
    gate = _Gate(shape, mapped)
    admitted: dict[tuple[str, int], TraceJob] = {}
    for item in jobs:
        fitted = gate.fitted(item)
        if fitted is not None and admitted.setdefault(fitted.job.key, fitted) is not fitted:
            gate.left_out["listed-twice"] += 1
    taken = list(admitted.values())
    priorities = {item.job.priority for item in taken}
    by_priority = 0 not in priorities and len(priorities) > 1
    if not by_priority:
        gate.assumed["priority-passed-over"] += sum(item.job.priority > 0 for item in taken) * (0 in priorities)
        taken = [replace(item, job=replace(item.job, priority=0)) for item in taken]
    return Admission(tuple(taken), dict(+gate.left_out), dict(+gate.assumed), by_priority)


class _Gate:
    def __init__(self, shape: Shape, mapped: Mapping[str, tuple[str, ...]]) -> None:
        self._spec, self._memory_counts, self._mapped = shape.spec, shape.memory_counts, mapped
        self._partitions = {partition.name: partition for partition in shape.spec.partitions}
        self._gpu_types = {node.gpu_type for node in shape.spec.nodes if node.capacity.gpus}
        self._holding: dict[tuple[Resources, int, str], frozenset[str]] = {}
        self.left_out: Counter[str] = Counter()
        self.assumed: Counter[str] = Counter()

    def fitted(self, item: TraceJob) -> TraceJob | None:
        """The job as it is replayed; None of one that is left out, and counted."""
        job, ran = self._as_held(item)
        if job.gpu_type and job.gpu_type not in self._gpu_types:
            if "" not in self._gpu_types:
                self.left_out["gpu-type-unknown"] += 1
                return None
            job = replace(job, gpu_type="")  # a cluster that does not tell its types
        named = self._named(job)
        able = [name for name in named if name in self._able(job)]
        if not able:
            self.left_out["no-node-holds-it"] += 1
            return None
        limited = self._limited(job, ran, [self._partitions[name] for name in able])
        if limited is None:
            self.left_out["too-long"] += 1
            return None
        return TraceJob(replace(limited, partitions=tuple(able)), item.scale, ran)

    def _as_held(self, item: TraceJob) -> tuple[PendingJob, Ran | None]:
        """Amounts are those that it had; of memory what it asked for, where accounting does not say."""
        job, ran = item.job, item.ran
        if ran is None:
            return (job if self._memory_counts else _without_memory(job)), None
        held = replace(ran.amounts, mem_mb=ran.amounts.mem_mb or job.requested.mem_mb)
        if not self._memory_counts:
            job, held = _without_memory(job), replace(held, mem_mb=0)
        if job.requested == job.minimum == job.maximum:
            job = replace(job, minimum=held, maximum=held)
        job = replace(job, requested=held, nodes_wanted=max(ran.nodes, 1), managed=job.managed and ran.nodes == 1)
        return job, replace(ran, amounts=held)

    def _named(self, job: PendingJob) -> tuple[str, ...]:
        """The partitions of the cluster that it is submitted to."""
        names: dict[str, None] = {}
        for name in job.partitions:
            names.update(dict.fromkeys(self._mapped.get(name, (name,))))
        if any(name in self._mapped for name in job.partitions):
            self.assumed["partition-mapped"] += 1
        known = tuple(name for name in names if name in self._partitions)
        if known:
            return known
        self.assumed["partition-unknown"] += 1
        return tuple(self._partitions)

    def _able(self, job: PendingJob) -> frozenset[str]:
        """Partitions with enough nodes that could hold the job if they were empty."""
        amounts = reserve.per_node(job)
        key = (amounts, job.nodes_wanted, job.gpu_type)
        if key not in self._holding:
            nodes = {node.name for node in self._spec.nodes if fit.could_fit_node(job, node, amounts)}
            self._holding[key] = frozenset(
                name for name, each in self._partitions.items() if len(nodes & set(each.nodes)) >= job.nodes_wanted
            )
        return self._holding[key]

    def _limited(self, job: PendingJob, ran: Ran | None, able: list[Partition]) -> PendingJob | None:
        """With a time limit with which it may enter one of these partitions, and under which it ran."""
        most_s = None if any(each.max_time_s is None for each in able) else max(each.max_time_s or 0 for each in able)
        lasted_s = 0 if ran is None else math.ceil(ran.elapsed_s)
        # Slurm ends jobs up to a minute late, and later where OverTimeLimit says so.
        if most_s is not None and lasted_s > most_s + max(120, most_s // 10):
            return None
        limit_s = job.time_limit_s
        if limit_s is None and most_s is not None:
            self.assumed["limit-of-partition"] += 1
            limit_s = most_s
        elif limit_s is not None and most_s is not None and limit_s > most_s:
            self.assumed["limit-cut"] += 1
            limit_s = most_s
        if limit_s is not None and lasted_s > limit_s:
            self.assumed["limit-stretched"] += 1
            limit_s = lasted_s if most_s is None else min(lasted_s, most_s)
        return replace(job, time_limit_s=limit_s)


def _without_memory(job: PendingJob) -> PendingJob:
    return replace(
        job,
        requested=replace(job.requested, mem_mb=0),
        minimum=replace(job.minimum, mem_mb=0),
        maximum=replace(job.maximum, mem_mb=0),
    )


def largest(spec: ClusterSpec) -> Resources:
    """The most of each that one of the nodes has."""
    return Resources(
        max(node.capacity.cpus for node in spec.nodes),
        max(node.capacity.gpus for node in spec.nodes),
        max(node.capacity.mem_mb for node in spec.nodes),
    )
