"""What Slurm's controller does, as one environment of the compiled core: who holds what, who waits, who starts next.

Every job is one of the core's line, as every start is Slurm's own: those of ours join in when their lease is over, or
when an update takes it away. Jobs come unannounced; a job is known by the number of its first row in the arrays.
"""

import math
from collections.abc import Sequence

from tapfinger_hpc import fit, reserve
from tapfinger_hpc.frame import DONE, WAITING
from tapfinger_hpc.sim import core, others
from tapfinger_hpc.state import Node, Partition, PendingJob, Resources
from tapfinger_hpc.stats import COMPLETED

ENV = 0
"""The one environment."""
ROOM = 64
"""For so many jobs at first; doubled when there are more."""
OUTCOMES = {core.COMPLETED: COMPLETED, core.TIMEOUT: "TIMEOUT", core.OUT_OF_MEMORY: "OUT_OF_MEMORY"}
"""In Slurm's words."""


class Controller:
    """One cluster in event time.

    Nodes and partitions are numbered in the order of their names, in which ``reserve`` looks at them too.
    """

    def __init__(self, nodes: Sequence[Node], partitions: Sequence[Partition], now_s: float) -> None:
        self._nodes = {node.name: number for number, node in enumerate(sorted(nodes, key=lambda node: node.name))}
        self.node_names = tuple(self._nodes)
        self._partitions = tuple(sorted(partitions, key=lambda partition: partition.name))
        # Kinds of jobs are what they ask of a GPU: nothing, a type that there is, one that no node has.
        types = sorted({node.gpu_type for node in nodes} - {""})
        self._kinds = {name: kind for kind, name in enumerate(["", *types])}
        self._sizes = core.Sizes(
            agents=len(partitions),
            kinds=len(self._kinds) + 1,
            menu=1,
            cpus=0,
            gpus=0,
            places=0,
            jobs=ROOM,
            nodes=len(nodes),
            views=1,
        )
        self.frame, self.truth = core.empty(1, self._sizes)
        self._set_up(nodes, now_s)
        self._waiting: dict[int, int] = {}  # numbers of jobs, and how many rows each has
        self._running: dict[int, int] = {}
        self._next_s: float | None = None  # the next event, where it is known

    # -- what happens --------------------------------------------------------------------------------------------

    def submit(self, job: PendingJob, now_s: float, *, begin_s: float, lasts_s: float) -> int:
        """The job comes when time passes up to this moment; its number.

        Args:
            begin_s: it is not started before.
            lasts_s: how long it takes on what it asks for; infinity where its memory is too little for it.
        """
        first, members = int(self.truth.jobs[ENV]), job.nodes_wanted
        while first + members > self._sizes.jobs:
            self._sizes = self._sizes._replace(jobs=2 * self._sizes.jobs)
            self.frame, self.truth = core.enlarged(self.frame, self.truth, self._sizes)
        rows = slice(first, first + members)
        self.frame.arrival[ENV, rows], self._next_s = now_s, None
        self.truth.job["others"][ENV, rows] = True
        self.truth.job["members"][ENV, rows] = members
        self._write(rows, job, "", begin_s, lasts_s)
        self.truth.jobs[ENV] += members
        self._waiting[first] = members
        return first

    def change(self, number: int, job: PendingJob, node: str, now_s: float, *, begin_s: float, lasts_s: float) -> None:
        """What a waiting job asks for from now on, and the node that it is pinned to (none if empty).

        It takes effect when time next passes; nothing else may be due by now.
        """
        self._hold_at(now_s)
        self._write(slice(number, number + job.nodes_wanted), job, node, begin_s, lasts_s)

    def put_off(self, number: int, job: PendingJob, now_s: float, *, begin_s: float) -> None:
        """A waiting job is not started before this; nothing else may be due by now."""
        self._hold_at(now_s)
        self.truth.job["begin"][ENV, number : number + job.nodes_wanted] = _begin(job, begin_s)

    def set_node(self, name: str, *, available: bool) -> None:
        """Whether anything may start on the node from now on."""
        self.frame.available[ENV, self._nodes[name]] = available

    def next_event_s(self) -> float:
        """When something next happens by itself; infinity if nothing will."""
        if self._next_s is None:
            self._next_s = core.next_event(self.frame, self.truth, ENV)
        return self._next_s

    def pass_until(self, now_s: float) -> tuple[list[int], list[int]]:
        """Time goes on, event by event, and whoever may start does; the jobs that started, and those that ended."""
        self._next_s = core.pass_until_then(self.frame, self.truth, ENV, now_s)
        started, ended = [], []
        if sum(self._waiting.values()) != self.truth.look["lined"][ENV]:
            started = [number for number in self._waiting if self.frame.status[ENV, number] != WAITING]
            for number in started:
                self._running[number] = self._waiting.pop(number)
        if sum(self._running.values()) != self.frame.running_count[ENV]:
            ended = [number for number in self._running if self.frame.status[ENV, number] == DONE]
            for number in ended:
                del self._running[number]
        return started, ended

    # -- what is seen --------------------------------------------------------------------------------------------

    def place_of(self, number: int, members: int) -> tuple[str, tuple[str, ...]]:
        """The partition of a job that was started, and its nodes."""
        nodes = self.frame.node[ENV, number : number + members].tolist()
        return self._partitions[self.frame.partition[ENV, number]].name, tuple(self.node_names[node] for node in nodes)

    def start_s(self, number: int) -> float:
        """When the job was started."""
        return float(self.frame.start[ENV, number])

    def end_of(self, number: int) -> tuple[float, str]:
        """When the job ended, or will, and how."""
        return float(self.truth.end[ENV, number]), OUTCOMES[int(self.truth.job["outcome"][ENV, number])]

    def free(self, node: str) -> Resources:
        """What nobody holds of the node."""
        return Resources(*self.frame.free[ENV, self._nodes[node]].tolist())

    def _set_up(self, nodes: Sequence[Node], now_s: float) -> None:
        frame, truth = self.frame, self.truth
        frame.now[ENV] = now_s
        frame.partitions[ENV], frame.nodes[ENV], frame.kinds[ENV] = self._sizes.agents, len(nodes), self._sizes.kinds
        for number, partition in enumerate(self._partitions):
            frame.member[ENV, number, [self._nodes[name] for name in partition.nodes]] = True
        for node in nodes:
            number = self._nodes[node.name]
            frame.capacity[ENV, number] = (node.capacity.cpus, node.capacity.gpus, node.capacity.mem_mb)
            frame.free[ENV, number] = (node.free.cpus, node.free.gpus, node.free.mem_mb)
            frame.available[ENV, number] = node.available
            truth.cpu_step[ENV, number] = node.cpu_step
            for name, kind in self._kinds.items():
                frame.usable[ENV, kind, number] = name in ("", node.gpu_type)
        frame.usable[ENV, -1] = False
        truth.look["again"] = math.inf

    def _hold_at(self, now_s: float) -> None:
        """It is this late, and something is about to change."""
        self.frame.now[ENV], self._next_s = now_s, None

    def _write(self, rows: slice, job: PendingJob, node: str, begin_s: float, lasts_s: float) -> None:
        amounts, entries = reserve.per_node(job), self.truth.job[ENV, rows]
        entries["cpus"], entries["gpus"], entries["mem_mb"] = amounts.cpus, amounts.gpus, amounts.mem_mb
        entries["limit"] = math.inf if job.time_limit_s is None else job.time_limit_s
        entries["priority"], entries["lasts"] = job.priority, lasts_s
        entries["begin"] = _begin(job, begin_s)
        entries["pin"] = self._nodes[node] if node else others.ANY
        self.frame.kind[ENV, rows] = self._kinds.get(job.gpu_type, self._sizes.kinds - 1)
        self.frame.reach[ENV, rows] = [
            partition.name in job.partitions and fit.open_to(job, partition) for partition in self._partitions
        ]


def _begin(job: PendingJob, begin_s: float) -> float:
    return begin_s if job.eligible else math.inf
