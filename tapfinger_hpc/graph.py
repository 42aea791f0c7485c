"""A cluster state as a heterogeneous graph of numbers: what the learned policy sees before it places anything.

Every number is scale-free (shares of a capacity, logarithms of ratios), so one set of weights serves any cluster. Pure
numpy; what fits is asked of ``fit`` alone. Nodes of the graph stand in the canonical order of the state.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from msgspec.structs import replace

from tapfinger_hpc import fit
from tapfinger_hpc.policies import choices, outlook
from tapfinger_hpc.state import ClusterState, Node, PendingJob, Resources

SCHEMA_VERSION = 1
RESOURCES = ("cpus", "gpus", "mem")

COLUMNS: dict[str, tuple[str, ...]] = {
    "partition": (
        *(f"{name}_of_cluster" for name in RESOURCES),
        *(f"{name}_free_share" for name in RESOURCES),
        *(f"{name}_free_on_best_node" for name in RESOURCES),
        *(f"{name}_pressure_log" for name in RESOURCES),
        "nodes_log",
        "nodes_available",
        "up",
        "waiting_log",
        "running_log",
        "next_release_log",
        "mean_release_log",
    ),
    "node": (
        *(f"{name}_of_largest" for name in RESOURCES),
        *(f"{name}_free_share" for name in RESOURCES),
        "cpus_per_gpu_log",
        "available",
        "idle",
        "running_log",
        "next_release_log",
        "mean_release_log",
    ),
    "pending": (
        *(f"{name}_least_of_largest" for name in RESOURCES),
        *(f"{name}_most_of_largest" for name in RESOURCES),
        *(f"{name}_asked_of_largest" for name in RESOURCES),
        "seconds_best_log",
        "seconds_least_log",
        "seconds_cheapest_log",
        "gain_per_doubling",
        "cost_log",
        "log_std",
        "known_class",
        "age_log",
        "limit_log",
        "partitions_log",
        "partitions_share",
        "managed",
        "eligible",
        "several_nodes",
        "choices_log",
    ),
    "running": (
        *(f"{name}_of_largest" for name in RESOURCES),
        "remaining_log",
        "elapsed_log",
        "limit_left_log",
        "known_class",
        "managed",
        "nodes_log",
    ),
    "coordinator": (
        *(f"{name}_free_share" for name in RESOURCES),
        *(f"{name}_pressure_log" for name in RESOURCES),
        "partitions_log",
        "nodes_log",
        "waiting_log",
        "running_log",
        "waiting_per_node_log",
        "spread_of_seconds",
    ),
}
"""What each number of each kind of graph node is; a change needs a new SCHEMA_VERSION and a new checkpoint."""

EDGES: tuple[tuple[str, str, str], ...] = (
    ("partition", "holds", "node"),
    ("node", "belongs_to", "partition"),
    ("partition", "may_take", "pending"),
    ("pending", "may_enter", "partition"),
    ("node", "carries", "running"),
    ("running", "occupies", "node"),
    ("partition", "reports_to", "coordinator"),
    ("coordinator", "informs", "partition"),
)

PRICE_LEVELS = (0.0, 0.3, 1.0, 3.0)
"""Cost of a choice = seconds * (1 + level * crowd * share of the node that it holds), at each of these levels.

With so many jobs for each node, one that holds a share s of it for a second delays them by some s seconds in all:
level 1 is about the price at which its gain and the others' loss balance; level 0 is the job's own time.
"""
CROWD_OF_RUNNING, CROWD_OF_NODE = 0.5, 0.2
"""A running job and an idle node count as so many waiting jobs: where many run, more will come."""
NEVER = 2**62
"""Fills up tables of choices; no node has so much."""
UNKNOWN_SHARE_OF_LIMIT = 1 / 3
"""Expected time of a waiting job of others as a share of its limit, as ``speed.prior`` says."""
DEFAULT_SECONDS = 3600 * UNKNOWN_SHARE_OF_LIMIT


@dataclass(frozen=True)
class Kind:
    """Waiting jobs that may get the same amounts on the same nodes and take the same time: they share their numbers."""

    job: PendingJob
    """Any one of them."""
    places: tuple[tuple[int, int], ...]
    """(partition, node) positions on which they could ever run."""
    grid: np.ndarray  # [choice, 3] CPUs, GPUs, MiB
    log_seconds: np.ndarray  # [choice]
    log_std: float
    known: bool

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted({node for _, node in self.places}))

    @cached_property
    def partitions(self) -> tuple[int, ...]:
        return tuple(sorted({partition for partition, _ in self.places}))


class Graph:
    """Features and edges by kind, and the tables from which masks and options are made while decoding."""

    def __init__(self, state: ClusterState) -> None:
        self._view = view = _View(state)
        self.state = state
        self.jobs = tuple(state.pending[position] for position in view.ours)
        """The waiting jobs that are ours to place and could run somewhere."""
        self.job_position = np.array(view.ours, dtype=np.int64)  # [job] position among the graph's pending nodes
        self.kinds = tuple(view.kinds)
        self.kind_of = np.array([view.kind_of[position] for position in view.ours], dtype=np.int64)  # [job]
        self.grid = view.grid  # int64 [kind, choice, 3] CPUs, GPUs, MiB; NEVER beyond a kind's last choice
        self.log_seconds = view.log_seconds  # float64 [kind, choice]; infinite there
        self.age = np.log1p(view.age_s[self.job_position] / view.scale_s)  # float64 [job]
        self.scale_s = view.scale_s
        """Time scale of the state: the geometric mean of the waiting jobs' least seconds."""
        self.queue = view.queue  # float64 [node] jobs that wait for it; a job counts once, over all that it can use
        self.scarcity = view.scarcity  # float64 [3] demand for each resource over capacity, the scarcest is 1
        self.total = view.total  # float64 [3] capacity of the nodes that are available

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Kind -> float32 [graph nodes of that kind, columns]. Worked out only where something can be placed."""
        view = self._view
        return {
            "partition": view.partition_features(),
            "node": view.node_features(),
            "pending": view.pending_features(),
            "running": view.running_features(),
            "coordinator": view.coordinator_features(),
        }

    @cached_property
    def edges(self) -> dict[tuple[str, str, str], np.ndarray]:
        """Kind of edge -> int64 [2, edges]."""
        return self._view.edges()

    @cached_property
    def releases(self) -> tuple[tuple[tuple[float, Resources], ...], ...]:
        """For every node, the expected ends of what runs there: seconds from now, and the amounts."""
        ends = self._view.releases
        return tuple(tuple(sorted((seconds, amounts) for seconds, _, amounts in held)) for held in ends)


def build(state: ClusterState) -> Graph:
    """The graph of a state."""
    return Graph(state)


def row(amounts: Resources) -> tuple[int, int, int]:
    """Amounts in the order of the columns."""
    return (amounts.cpus, amounts.gpus, amounts.mem_mb)


def rows_of(amounts: Iterable[Resources]) -> np.ndarray:
    """[amounts, 3] several amounts, in the order of the columns."""
    return np.array([row(each) for each in amounts], dtype=np.float64).reshape(-1, 3)


def limits(job: PendingJob, node: Node) -> tuple[int, int, int]:
    """The greatest amounts that the job may get on the node now; -1 in every place where it does not fit."""
    greatest = fit.greatest(job, node)
    return (-1, -1, -1) if greatest is None else row(greatest)


def share(amounts: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Amounts over a capacity, resource by resource; 0 where there is none of it."""
    out = np.zeros(np.broadcast_shapes(amounts.shape, capacity.shape))
    return np.divide(amounts, capacity, out=out, where=capacity > 0)


class _View:
    """The state with everything that several features need, worked out once."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.node_index = {node.name: index for index, node in enumerate(state.nodes)}
        self.partition_index = {partition.name: index for index, partition in enumerate(state.partitions)}
        self.members = [[self.node_index[name] for name in sorted(part.nodes)] for part in state.partitions]
        self.capacity = rows_of(node.capacity for node in state.nodes)  # [node, 3]
        self.free = rows_of(node.free for node in state.nodes)  # [node, 3]
        self.available = np.array([node.available for node in state.nodes], dtype=bool)
        self.free[~self.available] = 0.0
        self.total = self.capacity[self.available].sum(axis=0)
        self.largest = self.capacity.max(axis=0, initial=0.0)
        self._classes = {job_class.name: job_class for job_class in state.classes}
        self.waiting = sum(job.eligible for job in state.pending)
        self.age_s = np.array([max(0.0, state.time_s - job.submit_time_s) for job in state.pending])  # [pending]
        self._find_kinds()
        self._tabulate()
        self._measure_demand()

    def log_time(self, seconds: float) -> float:
        return math.log1p(max(0.0, seconds) / self.scale_s)

    # What waits.

    def _find_kinds(self) -> None:
        self.kinds: list[Kind] = []
        self.ours: list[int] = []
        self.kind_of: dict[int, int] = {}
        by_content: dict[object, int | None] = {}
        for position, job in enumerate(self.state.pending):
            if not (job.managed and job.eligible):
                continue
            content = (
                job.job_class,
                job.minimum,
                job.maximum,
                job.requested,
                job.tasks,
                job.partitions,
                job.time_limit_s,
                job.gpu_type,
            )
            if content not in by_content:
                kind = self._kind(job)
                by_content[content] = None if kind is None else len(self.kinds)
                if kind is not None:
                    self.kinds.append(kind)
            index = by_content[content]
            if index is not None:
                self.ours.append(position)
                self.kind_of[position] = index

    def _kind(self, job: PendingJob) -> Kind | None:
        reach = fit.reachable(self.state, job)
        if not reach:
            return None
        capacity = Resources(*(max(row(node.capacity)[resource] for _, node in reach) for resource in range(3)))
        menu = choices.of(self.state, job, capacity)
        least = menu.least()
        if least is None:
            return None
        return Kind(
            job=job,
            places=tuple((self.partition_index[part.name], self.node_index[node.name]) for part, node in reach),
            grid=menu.grid,
            log_seconds=np.log(menu.seconds),
            log_std=choices.speed_of(self.state, job).log_std_at(least),
            known=job.job_class in self._classes,
        )

    def _tabulate(self) -> None:
        """The choices of all kinds in padded tables, and what the curve of each looks like."""
        kinds = self.kinds
        most = max((len(kind.grid) for kind in kinds), default=1)
        self.grid = np.full((len(kinds), most, 3), NEVER, dtype=np.int64)
        self.log_seconds = np.full((len(kinds), most), np.inf)
        for index, kind in enumerate(kinds):
            self.grid[index, : len(kind.grid)] = kind.grid
            self.log_seconds[index, : len(kind.grid)] = kind.log_seconds
        amounts = np.where(np.isfinite(self.log_seconds)[:, :, None], self.grid, 0)
        held = np.maximum(share(amounts, self.total).sum(axis=2), 1e-9)  # [kind, choice] shares of the cluster
        every = np.arange(len(kinds))
        best = self.log_seconds.argmin(axis=1)
        cheapest = (self.log_seconds + np.log(held)).argmin(axis=1)
        doublings = np.log(held[every, best] / held[:, 0])
        fall = self.log_seconds[:, 0] - self.log_seconds[every, best]
        gain = np.divide(fall, doublings, out=np.zeros(len(kinds)), where=doublings > 0.01)
        # [kind, 4] log seconds at best, on the least amounts, on the cheapest; gain by each doubling of what is held
        self.curves = np.stack(
            [self.log_seconds[every, best], self.log_seconds[:, 0], self.log_seconds[every, cheapest], gain], axis=1
        )
        self._work = amounts[every, cheapest] * np.exp(self.curves[:, 2:3])  # [kind, 3] amounts * seconds

    def _measure_demand(self) -> None:
        """Least time of every waiting job, the time scale, and how much work waits for each resource."""
        state, partitions = self.state, self.state.partitions
        self.queue = np.zeros(len(state.nodes))
        self.pressure = np.zeros((len(partitions), 3))
        self._reaches: list[tuple[int, ...]] = []
        menus: list[np.ndarray | tuple[float, ...]] = []
        demand = np.zeros(3)
        for position, job in enumerate(state.pending):
            index = self.kind_of.get(position)
            if index is None:
                seconds = max(1.0, (job.time_limit_s or 3600) * UNKNOWN_SHARE_OF_LIMIT)
                menus.append((*[math.log(seconds)] * 3, 0.0))
                named = sorted(set(job.partitions) & set(self.partition_index))
                reached = tuple(self.partition_index[name] for name in named)
                work = np.array(row(job.requested)) * seconds
                nodes = sorted({node for partition in reached for node in self.members[partition]})
            else:
                menus.append(self.curves[index])
                reached, work, nodes = self.kinds[index].partitions, self._work[index], list(self.kinds[index].nodes)
            self._reaches.append(reached)
            if job.eligible:
                self.queue[nodes] += job.nodes_wanted / max(1, len(nodes))
                self.pressure[list(reached)] += work / max(1, len(reached))
                demand += work
        self._menus = np.array(menus, dtype=np.float64).reshape(-1, 4)  # [pending, 4] as curves
        eligible = np.array([job.eligible for job in state.pending], dtype=bool)
        best = self._menus[eligible, 0]
        self.scale_s = math.exp(float(best.mean())) if len(best) else DEFAULT_SECONDS
        self.spread = float(best.std()) if len(best) else 0.0
        usable = self.capacity * self.available[:, None]
        capacity = np.array([usable[nodes].sum(axis=0) for nodes in self.members]).reshape(-1, 3)
        self.pressure = share(self.pressure, capacity * self.scale_s)
        self.demand = share(demand, self.total * self.scale_s)
        scarcest = self.demand.max()
        self.scarcity = self.demand / scarcest if scarcest > 0 else np.ones(3)

    # What runs.

    @cached_property
    def remaining_s(self) -> list[float]:
        """Seconds for which each running job is expected to go on."""
        return [outlook.remaining_s(self.state, job) for job in self.state.running]

    @cached_property
    def releases(self) -> list[list[tuple[float, float, Resources]]]:
        """For every node, what will be released: seconds from now, largest share of the node, amounts."""
        found: list[list[tuple[float, float, Resources]]] = [[] for _ in self.state.nodes]
        for job, remaining_s in zip(self.state.running, self.remaining_s, strict=True):
            for held in job.shares:
                index = self.node_index.get(held.node)
                if index is not None:
                    part = max(
                        amount / capacity
                        for amount, capacity in zip(row(held.amounts), self.capacity[index].tolist(), strict=True)
                        if capacity > 0
                    )
                    found[index].append((remaining_s, part, held.amounts))
        return found

    def _ends_on(self, nodes: Iterable[int]) -> tuple[float, float]:
        """Logarithms of the next release and of the mean one, weighted by the share held."""
        held = [entry for node in nodes for entry in self.releases[node]]
        if not held:
            return 0.0, 0.0
        weight = sum(part for _, part, _ in held)
        mean = sum(seconds * part for seconds, part, _ in held) / weight if weight > 0 else held[0][0]
        return self.log_time(min(seconds for seconds, _, _ in held)), self.log_time(mean)

    # Features, one function for each kind; the order of the numbers is that of COLUMNS.

    def partition_features(self) -> np.ndarray:
        rows = []
        for index, partition in enumerate(self.state.partitions):
            nodes = self.members[index]
            usable = [node for node in nodes if self.available[node]]
            capacity = self.capacity[usable].sum(axis=0)
            rows.append(
                (
                    *share(capacity, self.total),
                    *share(self.free[usable].sum(axis=0), capacity),
                    *share(self.free[usable], self.largest).max(axis=0, initial=0.0),
                    *np.log1p(self.pressure[index]),
                    math.log(max(1, len(nodes))),
                    len(usable) / max(1, len(nodes)),
                    partition.up,
                    math.log1p(sum(index in reached for reached in self._reaches)),
                    math.log1p(sum(len(self.releases[node]) for node in nodes)),
                    *self._ends_on(nodes),
                )
            )
        return _table("partition", rows)

    def node_features(self) -> np.ndarray:
        rows = []
        of_largest, free = share(self.capacity, self.largest), share(self.free, self.capacity)
        for index, node in enumerate(self.state.nodes):
            capacity = node.capacity
            rows.append(
                (
                    *of_largest[index],
                    *free[index],
                    math.log(max(1, capacity.cpus) / capacity.gpus) if capacity.gpus else 0.0,
                    node.available,
                    not self.releases[index],
                    math.log1p(len(self.releases[index])),
                    *self._ends_on((index,)),
                )
            )
        return _table("node", rows)

    def pending_features(self) -> np.ndarray:
        state = self.state
        least = share(rows_of(job.minimum for job in state.pending), self.largest)
        most = share(np.minimum(rows_of(job.maximum for job in state.pending), self.largest), self.largest)
        asked = share(rows_of(job.requested for job in state.pending), self.largest)
        crowd = [float(self.queue[list(kind.nodes)].mean()) + CROWD_OF_NODE for kind in self.kinds]
        dearness = np.log1p(np.array(crowd) * share(self.grid[:, 0], self.largest).max(axis=1, initial=0.0))
        seconds = self._menus[:, :3] - math.log(self.scale_s)
        rows = []
        for position, job in enumerate(state.pending):
            index = self.kind_of.get(position)
            kind = None if index is None else self.kinds[index]
            reached = len(self._reaches[position])
            rows.append(
                (
                    0.0 if index is None else dearness[index],
                    1.0 if kind is None else kind.log_std,
                    kind is not None and kind.known,
                    self.age_s[position] / self.scale_s,
                    (job.time_limit_s or 0.0) / self.scale_s,
                    max(1, reached),
                    reached / max(1, len(state.partitions)),
                    job.managed,
                    job.eligible,
                    job.nodes_wanted,
                    1 if kind is None else len(kind.grid),
                )
            )
        each = np.array(rows, dtype=np.float64).reshape(-1, 11)
        each[:, 0] += seconds[:, 1]
        each[:, 3:5] = np.log1p(each[:, 3:5])
        for column in (5, 9, 10):
            each[:, column] = np.log(each[:, column])
        columns = (least, most, asked, seconds, self._menus[:, 3:], each)
        return np.concatenate(columns, axis=1).astype(np.float32)

    def running_features(self) -> np.ndarray:
        held = share(rows_of(job.amounts for job in self.state.running), self.largest)
        rows = []
        for position, job in enumerate(self.state.running):
            rows.append(
                (
                    *np.minimum(held[position], 4.0),
                    self.log_time(self.remaining_s[position]),
                    self.log_time(self.state.time_s - job.start_time_s),
                    self.log_time((job.end_limit_s or self.state.time_s) - self.state.time_s),
                    job.job_class in self._classes,
                    job.managed,
                    math.log(max(1, len(job.shares))),
                )
            )
        return _table("running", rows)

    def coordinator_features(self) -> np.ndarray:
        state = self.state
        usable = max(1, int(self.available.sum()))
        values = (
            *share(self.free.sum(axis=0), self.total),
            *np.log1p(self.demand),
            math.log(max(1, len(state.partitions))),
            math.log(usable),
            math.log1p(self.waiting),
            math.log1p(len(state.running)),
            math.log1p(self.waiting / usable),
            self.spread,
        )
        return _table("coordinator", [values])

    def edges(self) -> dict[tuple[str, str, str], np.ndarray]:
        holds = _pairs((index, node) for index, nodes in enumerate(self.members) for node in nodes)
        takes = _pairs((index, position) for position, reached in enumerate(self._reaches) for index in reached)
        carries = _pairs(
            (self.node_index[held.node], position)
            for position, job in enumerate(self.state.running)
            for held in job.shares
            if held.node in self.node_index
        )
        reports = _pairs((index, 0) for index in range(len(self.state.partitions)))
        forward = (holds, takes, carries, reports)
        both_ways = [pairs for one_way in forward for pairs in (one_way, one_way[::-1].copy())]
        return dict(zip(EDGES, both_ways, strict=True))


def _table(kind: str, rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, len(COLUMNS[kind]))


def _pairs(pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    return np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T.copy()


def emptied(node: Node) -> Node:
    """The node as if nothing ran on it."""
    return replace(node, free=node.capacity)
