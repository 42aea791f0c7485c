"""The nouns of a cluster: what a policy sees, and all that it sees.

Values are immutable, compare by content, stand in canonical order, and are their own JSON (msgspec). Times are
seconds since the epoch, memory is MiB. No type here can hold the true runtime of a job; that is ``trace.TraceJob``.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import force_setattr

from tapfinger_hpc.errors import StateError
from tapfinger_hpc.speed import JobClass

MAX_AMOUNT = 2**40
Count = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
JobKey = tuple[str, int]
"""Job id and submit time: Slurm uses a job id again after a crash, the pair is unique."""


class Resources(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """Amounts of the three resources."""

    cpus: Count = 0
    gpus: Count = 0
    mem_mb: Count = 0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus, self.mem_mb + other.mem_mb)

    def __sub__(self, other: "Resources") -> "Resources":
        """What is left, never below zero: Slurm may grant more than a node's configured amounts."""
        return Resources(
            max(0, self.cpus - other.cpus), max(0, self.gpus - other.gpus), max(0, self.mem_mb - other.mem_mb)
        )

    def covers(self, other: "Resources") -> bool:
        """Whether ``other`` is no more than this in every resource."""
        return other.cpus <= self.cpus and other.gpus <= self.gpus and other.mem_mb <= self.mem_mb

    def __str__(self) -> str:
        return f"{self.cpus} CPUs, {self.gpus} GPUs, {self.mem_mb} MiB"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node: its configured amounts and what no job holds now."""

    name: Name
    capacity: Resources
    free: Resources
    available: bool = True
    """False while down, draining or reserved: nothing new may start here."""
    gpu_type: str = ""
    cpu_step: Annotated[int, Meta(ge=1, le=64)] = 1
    """CPUs that Slurm hands out together (threads per core)."""


class Partition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One Slurm partition; one agent of the policy."""

    name: Name
    nodes: tuple[str, ...]
    up: bool = True
    max_time_s: Count | None = None


class PendingJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job in the queue. ``managed`` ones are ours to place; the others are seen so that they are not delayed."""

    job_id: Name
    """As Slurm prints it, ``123`` or ``123_4``."""
    submit_time_s: Count
    partitions: tuple[str, ...]
    requested: Resources
    """What the user asked for, on all nodes together."""
    minimum: Resources
    maximum: Resources
    """Least and greatest amounts that the job declares; equal to ``requested`` where it declares none."""
    tasks: Annotated[int, Meta(ge=1)] = 1
    """CPUs are given in multiples of this."""
    nodes_wanted: Annotated[int, Meta(ge=1)] = 1
    """Above 1 only for jobs that are not managed."""
    user: str = ""
    job_class: str = ""
    gpu_type: str = ""
    time_limit_s: Count | None = None
    priority: Count = 0
    managed: bool = False
    eligible: bool = True
    """False while held, waiting for a dependency, or at an array's task limit."""
    why: str = ""
    """Why it is not managed, or not eligible."""
    lease_until_s: Count | None = None
    lease_s: Count | None = None
    """For how long its lease is renewed; None: as the agent is configured."""
    planned_start_s: Count | None = None
    """When Slurm's own backfill expects to start it; None where Slurm has not said."""
    planned_nodes: tuple[str, ...] = ()
    ticket: str = ""
    """Identity of the submission where the cluster gives one: kept when the job is requeued, unlike its submit time."""

    def __post_init__(self) -> None:
        if not self.maximum.covers(self.minimum):
            raise ValueError(f"job {self.job_id}: minimum {self.minimum} is above maximum {self.maximum}")
        if not self.partitions:
            raise ValueError(f"job {self.job_id}: no partition")

    @property
    def key(self) -> JobKey:
        return (self.job_id, self.submit_time_s)


class Share(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """What a running job holds on one node."""

    node: Name
    amounts: Resources


class RunningJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job that holds resources now."""

    job_id: Name
    submit_time_s: Count
    partition: str
    shares: tuple[Share, ...]
    start_time_s: Count
    end_limit_s: Count | None = None
    """When its time limit ends it; None if unlimited."""
    user: str = ""
    job_class: str = ""
    managed: bool = False

    @property
    def key(self) -> JobKey:
        return (self.job_id, self.submit_time_s)

    @property
    def amounts(self) -> Resources:
        return sum((share.amounts for share in self.shares), Resources())


class ClusterState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a policy is told: one snapshot of one cluster, in canonical order (names; submit time, then job id)."""

    time_s: Annotated[float, Meta(ge=0)]
    nodes: tuple[Node, ...]
    partitions: tuple[Partition, ...]
    pending: tuple[PendingJob, ...] = ()
    running: tuple[RunningJob, ...] = ()
    classes: tuple[JobClass, ...] = ()
    """The job classes that pending and running jobs may name, with what is known of their speed."""

    def __post_init__(self) -> None:
        force_setattr(self, "nodes", _sorted_by_name("nodes", self.nodes))
        force_setattr(self, "partitions", _sorted_by_name("partitions", self.partitions))
        force_setattr(self, "classes", _sorted_by_name("classes", self.classes))
        force_setattr(self, "pending", _sorted_jobs("pending", self.pending))
        force_setattr(self, "running", _sorted_jobs("running", self.running))
        known = {node.name for node in self.nodes}
        for partition in self.partitions:
            missing = sorted(set(partition.nodes) - known)
            if missing:
                raise ValueError(f"partitions: {partition.name} names node {missing[0]!r}, which is not among nodes")

    def node(self, name: str) -> Node:
        """The node of this name; StateError if there is none."""
        return _named("node", name, self.nodes)

    def partition(self, name: str) -> Partition:
        """The partition of this name; StateError if there is none."""
        return _named("partition", name, self.partitions)

    def job_class(self, name: str) -> JobClass | None:
        """What is known of this class; None where nothing is."""
        return next((job_class for job_class in self.classes if job_class.name == name), None)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> "ClusterState":
        """Reads a state. msgspec.ValidationError names the field that is wrong (``$.nodes[0].free.cpus``)."""
        return msgspec.json.decode(text, type=cls)


def _sorted_by_name(field: str, items: tuple) -> tuple:
    ordered = tuple(sorted(items, key=lambda item: item.name))
    for before, after in pairwise(ordered):
        if before.name == after.name:
            raise ValueError(f"{field}: {after.name!r} is listed twice")
    return ordered


def _sorted_jobs(field: str, jobs: tuple) -> tuple:
    ordered = tuple(sorted(jobs, key=lambda job: (job.submit_time_s, _numeric(job.job_id))))
    keys = {job.key for job in ordered}
    if len(keys) != len(ordered):
        raise ValueError(f"{field}: a job is listed twice")
    return ordered


@lru_cache(maxsize=1 << 16)  # the same jobs are put in order again with every placement
def _numeric(job_id: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdecimal() else (0, part) for part in job_id.split("_"))


def _named(noun: str, name: str, items: tuple):
    for item in items:
        if item.name == name:
            return item
    raise StateError(f"{noun} {name!r} is not in the state; known: {', '.join(item.name for item in items)}")
