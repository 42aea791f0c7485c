"""States as heterogeneous graphs of numbers, many side by side: what the network sees before anything is placed.

Every number is free of scale (shares of a capacity, logarithms of ratios), or a logarithm of an amount, so one set of
weights serves clusters of any size. Compiled.
"""

from typing import NamedTuple

import numpy as np

from tapfinger_hpc.features import measures
from tapfinger_hpc.features.measures import HORIZONS, Measures, bounded, ratio
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import compiled, lean

SCHEMA_VERSION = 3
RESOURCES = ("cpus", "gpus", "mem")

COLUMNS: dict[str, tuple[str, ...]] = {
    "partition": (
        *(f"{name}_of_cluster" for name in RESOURCES),
        *(f"{name}_free_share" for name in RESOURCES),
        *(f"{name}_free_on_best_node_log" for name in RESOURCES),
        "nodes_log",
        "seen_log",
        "reaching_log",
        "running_log",
        "queue_per_node_log",
    ),
    "node": (
        *(f"{name}_log" for name in RESOURCES),
        *(f"{name}_free_log" for name in RESOURCES),
        *(f"{name}_free_share" for name in RESOURCES),
        *(f"{name}_free_share_after_{horizon:g}" for horizon in HORIZONS for name in RESOURCES),
        "available",
        "running_log",
        "queue_log",
        "next_release_log",
    ),
    "pending": (
        *(f"{name}_least_log" for name in RESOURCES),
        *(f"{name}_fastest_log" for name in RESOURCES),
        "seconds_best_log",
        "seconds_least_log",
        "seconds_thriftiest_log",
        "area_log",
        "age_log",
        "reach_log",
        "seen_log",
        "choices_log",
        "log_std",
    ),
    "running": (
        *(f"{name}_of_node" for name in RESOURCES),
        *(f"{name}_log" for name in RESOURCES),
        "remaining_log",
        "elapsed_log",
    ),
    "coordinator": (
        *(f"{name}_free_share" for name in RESOURCES),
        *(f"{name}_demand_log" for name in RESOURCES),
        "partitions_log",
        "nodes_log",
        "waiting_log",
        "running_log",
        "waiting_per_node_log",
        "slot_log",
    ),
}
"""What each number of each kind of graph node is; a change needs a new SCHEMA_VERSION and a new checkpoint."""
KINDS = tuple(COLUMNS)

EDGES: tuple[tuple[str, str, str], ...] = (
    ("partition", "holds", "node"),
    ("node", "belongs_to", "partition"),
    ("partition", "may_take", "pending"),
    ("pending", "may_enter", "partition"),
    ("running", "occupies", "node"),
    ("partition", "reports_to", "coordinator"),
    ("coordinator", "informs", "partition"),
)
_NO_SLOTS = -3.0
"""What stands for the logarithm of a slot's length in event time."""


class Graphs(NamedTuple):
    """Graphs of several environments as one, without edges between them."""

    partition: np.ndarray  # float32 [partitions of all, columns]
    node: np.ndarray
    pending: np.ndarray
    running: np.ndarray
    coordinator: np.ndarray
    holds: np.ndarray  # int64 [2, edges] partition, node
    may_take: np.ndarray  # int64 [2, edges] partition, pending
    occupies: np.ndarray  # int64 [2, edges] running, node
    reports_to: np.ndarray  # int64 [2, edges] partition, coordinator
    first: np.ndarray  # int64 [graph + 1, 4] position of its first partition, node, pending, running
    pending_of: np.ndarray  # int64 [B, J] position of a waiting job among the pending graph nodes; -1 of no such job

    @property
    def features(self) -> dict[str, np.ndarray]:
        """Kind -> float32 [graph nodes of that kind, columns]."""
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def edges(self) -> dict[tuple[str, str, str], np.ndarray]:
        """Kind of edge -> int64 [2, edges]."""
        pairs = (
            self.holds,
            self.holds[::-1],
            self.may_take,
            self.may_take[::-1],
            self.occupies,
            self.reports_to,
            self.reports_to[::-1],
        )
        return dict(zip(EDGES, pairs, strict=True))


_WIDTHS = tuple(len(columns) for columns in COLUMNS.values())


@compiled
def build(frame: Frame, envs: np.ndarray, scratch: Measures) -> Graphs:
    """The graphs of these environments, in their order."""
    first = np.zeros((len(envs) + 1, 4), np.int64)
    edges = np.zeros(3, np.int64)
    for position, env in enumerate(envs):
        first[position + 1, 0] = first[position, 0] + frame.partitions[env]
        first[position + 1, 1] = first[position, 1] + frame.nodes[env]
        first[position + 1, 2] = first[position, 2] + frame.waiting_count[env]
        first[position + 1, 3] = first[position, 3] + frame.running_count[env]
        edges[0] += frame.member[env].sum()
        for place in range(frame.waiting_count[env]):
            job = frame.waiting[env, place]
            for partition in range(frame.partitions[env]):
                edges[1] += frame.reach[env, job, partition]
        edges[2] += frame.running_count[env]
    last = first[len(envs)]
    graphs = Graphs(
        np.zeros((last[0], _WIDTHS[0]), np.float32),
        np.zeros((last[1], _WIDTHS[1]), np.float32),
        np.zeros((last[2], _WIDTHS[2]), np.float32),
        np.zeros((last[3], _WIDTHS[3]), np.float32),
        np.zeros((len(envs), _WIDTHS[4]), np.float32),
        np.zeros((2, edges[0]), np.int64),
        np.zeros((2, edges[1]), np.int64),
        np.zeros((2, edges[2]), np.int64),
        np.zeros((2, last[0]), np.int64),
        first,
        np.full(frame.kind.shape, -1, np.int64),
    )
    edges[:] = 0
    for position, env in enumerate(envs):
        measures.measure(frame, env, scratch)
        _partitions(frame, env, scratch, graphs, position, edges)
        _nodes(frame, env, scratch, graphs, position)
        _pending(frame, env, scratch, graphs, position, edges)
        _running(frame, env, scratch, graphs, position, edges)
        _coordinator(frame, env, scratch, graphs, position)
    return graphs


@lean
def log_amount(amount: float) -> float:
    """An amount on a scale on which 16 is about 1; memory is counted in GiB before."""
    return np.log1p(max(0.0, amount)) / 3


@lean
def _unit(resource: int) -> float:
    return 1.0 if resource < 2 else 1.0 / 1024


@lean
def _partitions(frame: Frame, env: int, seen: Measures, graphs: Graphs, position: int, edges: np.ndarray) -> None:
    for partition in range(frame.partitions[env]):
        at = graphs.first[position, 0] + partition
        row = graphs.partition[at]
        nodes, running, queue = 0, 0, 0.0
        for resource in range(3):
            capacity, free, best = 0.0, 0.0, 0.0
            for node in range(frame.nodes[env]):
                if frame.member[env, partition, node] and frame.available[env, node]:
                    capacity += frame.capacity[env, node, resource]
                    free += frame.free[env, node, resource]
                    best = max(best, frame.free[env, node, resource] * _unit(resource))
            row[resource] = ratio(capacity, seen.total[resource])
            row[3 + resource] = ratio(free, capacity)
            row[6 + resource] = log_amount(best)
        for node in range(frame.nodes[env]):
            if frame.member[env, partition, node]:
                graphs.holds[0, edges[0]] = at
                graphs.holds[1, edges[0]] = graphs.first[position, 1] + node
                edges[0] += 1
                nodes += 1
                running += seen.held_by[node]
                queue += seen.queue[node]
        here, reaching = 0, 0
        for place in range(frame.waiting_count[env]):
            job = frame.waiting[env, place]
            here += frame.seen[env, job, partition]
            reaching += frame.reach[env, job, partition]
        row[9] = np.log(max(1, nodes))
        row[10] = np.log1p(here)
        row[11] = np.log1p(reaching)
        row[12] = np.log1p(running)
        row[13] = np.log1p(queue / max(1, nodes))
        graphs.reports_to[0, at] = at
        graphs.reports_to[1, at] = position


@lean
def _nodes(frame: Frame, env: int, seen: Measures, graphs: Graphs, position: int) -> None:
    for node in range(frame.nodes[env]):
        row = graphs.node[graphs.first[position, 1] + node]
        for resource in range(3):
            row[resource] = log_amount(frame.capacity[env, node, resource] * _unit(resource))
            row[3 + resource] = log_amount(frame.free[env, node, resource] * _unit(resource))
            row[6 + resource] = ratio(frame.free[env, node, resource], frame.capacity[env, node, resource])
            for number in range(len(HORIZONS)):
                row[9 + 3 * number + resource] = row[6 + resource]
        row[21] = frame.available[env, node]
        row[22] = np.log1p(seen.held_by[node])
        row[23] = np.log1p(seen.queue[node])
        following = seen.releases[node, 0]
        if following >= 0:
            row[24] = _log_time(frame.expected_end[env, following] - frame.now[env], seen)
    for place in range(frame.running_count[env]):
        job = frame.running[env, place]
        node = frame.node[env, job]
        if node < 0:
            continue
        row = graphs.node[graphs.first[position, 1] + node]
        left = frame.expected_end[env, job] - frame.now[env]
        for number, horizon in enumerate(HORIZONS):
            if left <= horizon * seen.scale[0]:
                for resource in range(3):
                    row[9 + 3 * number + resource] += ratio(
                        frame.amounts[env, job, resource], frame.capacity[env, node, resource]
                    )


@lean
def _pending(frame: Frame, env: int, seen: Measures, graphs: Graphs, position: int, edges: np.ndarray) -> None:
    log_scale = np.log(seen.scale[0])
    for place in range(frame.waiting_count[env]):
        job = frame.waiting[env, place]
        kind = frame.kind[env, job]
        at = graphs.first[position, 2] + place
        graphs.pending_of[env, job] = at
        row = graphs.pending[at]
        thrifty, fastest, area = seen.thrifty[kind], 0, 0.0
        for choice in range(frame.choices[env, kind]):
            if frame.seconds[env, kind, choice] < frame.seconds[env, kind, fastest]:
                fastest = choice
        for resource in range(3):
            row[resource] = log_amount(frame.menu[env, kind, 0, resource] * _unit(resource))
            row[3 + resource] = log_amount(frame.menu[env, kind, fastest, resource] * _unit(resource))
            area += ratio(frame.menu[env, kind, thrifty, resource], seen.total[resource])
        row[6] = bounded(seen.best[kind] - log_scale)
        row[7] = bounded(np.log(frame.seconds[env, kind, 0]) - log_scale)
        row[8] = bounded(np.log(frame.seconds[env, kind, thrifty]) - log_scale)
        row[9] = bounded(np.log(max(1e-6, area * frame.nodes[env])) + row[8])
        row[10] = _log_time(frame.now[env] - frame.arrival[env, job], seen)
        reach, visible = 0, 0
        for partition in range(frame.partitions[env]):
            if frame.reach[env, job, partition]:
                reach += 1
                visible += frame.seen[env, job, partition]
                graphs.may_take[0, edges[1]] = graphs.first[position, 0] + partition
                graphs.may_take[1, edges[1]] = at
                edges[1] += 1
        row[11] = np.log(max(1, reach))
        row[12] = np.log1p(visible)
        row[13] = np.log(max(1, frame.choices[env, kind]))
        row[14] = frame.log_std[env, kind]


@lean
def _running(frame: Frame, env: int, seen: Measures, graphs: Graphs, position: int, edges: np.ndarray) -> None:
    for place in range(frame.running_count[env]):
        job = frame.running[env, place]
        node = frame.node[env, job]
        at = graphs.first[position, 3] + place
        row = graphs.running[at]
        for resource in range(3):
            row[resource] = ratio(frame.amounts[env, job, resource], frame.capacity[env, node, resource])
            row[3 + resource] = log_amount(frame.amounts[env, job, resource] * _unit(resource))
        row[6] = _log_time(frame.expected_end[env, job] - frame.now[env], seen)
        row[7] = _log_time(frame.now[env] - frame.start[env, job], seen)
        graphs.occupies[0, edges[2]] = at
        graphs.occupies[1, edges[2]] = graphs.first[position, 1] + node
        edges[2] += 1


@lean
def _coordinator(frame: Frame, env: int, seen: Measures, graphs: Graphs, position: int) -> None:
    row = graphs.coordinator[position]
    nodes = 0
    for resource in range(3):
        free = 0.0
        for node in range(frame.nodes[env]):
            if frame.available[env, node]:
                free += frame.free[env, node, resource]
        row[resource] = ratio(free, seen.total[resource])
        row[3 + resource] = np.log1p(seen.demand[resource])
    for node in range(frame.nodes[env]):
        nodes += frame.available[env, node]
    row[6] = np.log(max(1, frame.partitions[env]))
    row[7] = np.log(max(1, nodes))
    row[8] = np.log1p(frame.waiting_count[env])
    row[9] = np.log1p(frame.running_count[env])
    row[10] = np.log1p(frame.waiting_count[env] / max(1, nodes))
    row[11] = np.log(frame.slot[env] / seen.scale[0]) if frame.slot[env] > 0 else _NO_SLOTS


@lean
def _log_time(seconds: float, seen: Measures) -> float:
    return min(4.0, np.log1p(max(0.0, seconds) / seen.scale[0]))
