"""The room that is left while one decision is made: who may take what now, and what each option looks like.

The graph is encoded once; this changes with every placement. An option is offered only if ``fit`` allows it, so no
choice among options can be one that does not fit. Pure numpy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from msgspec.structs import replace

from tapfinger_hpc import fit, graph
from tapfinger_hpc.graph import CROWD_OF_NODE, CROWD_OF_RUNNING, PRICE_LEVELS, RESOURCES, Graph, share
from tapfinger_hpc.state import Node, Resources

_LEVELS = tuple(f"price_{level:g}" for level in PRICE_LEVELS)
AGENT_COLUMNS: tuple[str, ...] = (
    *(f"{name}_free_share" for name in RESOURCES),
    *(f"{name}_free_on_best_node" for name in RESOURCES),
    *(f"{name}_scarcity" for name in RESOURCES),
    "idle_nodes_share",
    "fitting_log",
    "left_log",
    "waiting_log",
    "round_log",
    "placed_log",
)
"""What an agent (partition) knows beyond its embedding: the numbers that change from round to round."""

OPTION_COLUMNS: dict[str, tuple[str, ...]] = {
    "task": (
        *(f"{level}_now_over_ideal" for level in _LEVELS),
        *(f"{level}_best_elsewhere_over_here" for level in _LEVELS),
        *(f"{level}_ideal_here_over_ideal" for level in _LEVELS),
        *(f"{level}_ideal_over_least_waiting" for level in _LEVELS),
        *(f"{level}_now_over_least_here" for level in _LEVELS),
        *(f"{level}_later_over_now" for level in _LEVELS),
        "seconds_ideal_log",
        "cost_ideal_log",
        "age_log",
        "room_log",
        "held_of_free",
        "partitions_log",
    ),
    "node": (
        *(f"{level}_now_over_best" for level in _LEVELS),
        *(f"{name}_free_share" for name in RESOURCES),
        *(f"{name}_free_over_least_log" for name in RESOURCES),
        *(f"{name}_of_largest" for name in RESOURCES),
        *(f"{name}_left_share" for name in RESOURCES),
        "idle",
        "partitions_log",
        "only",
    ),
    **{
        head: (
            *(f"{level}_over_best" for level in _LEVELS),
            "seconds_over_ideal",
            "area_over_least",
            "of_node",
            "of_free",
            "of_cluster",
            "over_asked_log",
            "over_least_log",
            "as_asked",
            "cpus_given_of_node",
            "gpus_given_of_node",
            "seconds_ideal_log",
            "only",
        )
        for head in RESOURCES
    },
}
"""What each number of each option is, by the head that chooses among them."""

AMOUNT_HEADS = ("gpus", "cpus", "mem")
"""The order in which amounts are chosen; each knows those before it."""
_COLUMN_OF = {"cpus": 0, "gpus": 1, "mem": 2}
_FAR = 6.0
"""Where a ratio has no value (nothing fits elsewhere), and the greatest that any is let become."""
RELEASES_AHEAD = 4
"""How many of the next ends on a node are looked at when waiting is weighed against starting now."""


@dataclass(frozen=True)
class Pick:
    """A task that an agent has taken, and what has been chosen for it so far."""

    partition: int
    job: int
    node: int = -1
    given: tuple[tuple[str, int], ...] = ()
    """Resource and amount, in the order of AMOUNT_HEADS."""

    def with_amount(self, head: str, amount: int) -> "Pick":
        return Pick(self.partition, self.job, self.node, (*self.given, (head, amount)))

    @property
    def amounts(self) -> Resources:
        """The amounts, once all three are chosen."""
        given = dict(self.given)
        return Resources(given["cpus"], given["gpus"], given["mem"])


@dataclass(frozen=True)
class Options:
    """Rows of options: each row is one choice to be made, by one agent, among options of its own."""

    head: str
    partitions: np.ndarray  # int64 [row] the agent that chooses
    jobs: np.ndarray  # int64 [row] the task it is about; -1 where the task is what is chosen
    nodes: np.ndarray  # int64 [row] the node it is about; -1 where that is not yet known
    agents: np.ndarray  # float32 [row, AGENT_COLUMNS]
    row_of: np.ndarray  # int64 [option] ascending
    values: np.ndarray  # int64 [option] job, node or amount
    features: np.ndarray  # float32 [option, OPTION_COLUMNS[head]]


class Room:
    """Free amounts as placements take them, and what may be chosen next."""

    def __init__(self, built: Graph) -> None:
        self.graph = built
        state = built.state
        self.nodes: list[Node] = list(state.nodes)
        self.free = graph.rows_of(node.free for node in state.nodes)  # [node, 3]
        self.free[[not node.available for node in state.nodes]] = 0.0
        self.capacity = graph.rows_of(node.capacity for node in state.nodes)
        self.held_by = np.zeros(len(self.nodes), dtype=np.int64)  # [node] jobs running or placed there
        index_of = {node.name: index for index, node in enumerate(self.nodes)}
        for running in state.running:
            for held in running.shares:
                if held.node in index_of:
                    self.held_by[index_of[held.node]] += 1
        self.unplaced = np.ones(len(built.jobs), dtype=bool)
        self.rounds = 0
        self.placed = 0
        self._forbidden: set[tuple[int, int, int]] = set()
        self._agents_at = (-1, -1)  # round and placements for which the agents' features were worked out
        self._agent_rows = np.zeros((0, len(AGENT_COLUMNS)), dtype=np.float32)
        self._prepare_members()
        self._prepare_choices()
        self._prepare_kinds()

    # Before the first round.

    def _prepare_members(self) -> None:
        """Which nodes each partition has, as one list of (partition, node) pairs."""
        index_of = {node.name: index for index, node in enumerate(self.nodes)}
        pairs = [
            (partition, index_of[name])
            for partition, each in enumerate(self.graph.state.partitions)
            for name in sorted(each.nodes)
        ]
        self._member = np.array(pairs, dtype=np.int64).reshape(-1, 2)  # [member, (partition, node)]
        self._with_nodes, self._member_starts = np.unique(self._member[:, 0], return_index=True)
        self._partition_capacity = self._sum_of_members(self.capacity * self._available())
        self._node_partitions = np.bincount(self._member[:, 1], minlength=len(self.nodes))
        self._usable = self._sum_of_members(self._available())[:, 0]
        self._largest = self.capacity.max(axis=0, initial=0.0)

    def _available(self) -> np.ndarray:
        return np.array([[float(node.available)] for node in self.nodes]).reshape(-1, 1)

    def _prepare_choices(self) -> None:
        """The cost of all choices on every node at each price level."""
        kinds, log_seconds = self.graph.kinds, self.graph.log_seconds
        self._grid = self.graph.grid  # [kind, choice, 3]
        amounts = np.where(np.isfinite(log_seconds)[:, :, None], self._grid, 0)
        reached = np.array([1 / max(1, len(kind.nodes)) for kind in kinds])
        self._crowd = np.zeros(len(self.nodes))
        self._cost: list[np.ndarray] = [np.zeros(0)] * len(self.nodes)  # node -> [level, kind, choice]
        for nodes in self._groups():
            running = float(self.held_by[nodes].mean())
            self._crowd[nodes] = self.graph.queue[nodes].mean() + CROWD_OF_RUNNING * running + CROWD_OF_NODE
            parts = share(amounts, self.capacity[nodes[0]])  # [kind, choice, 3]
            held = (parts @ self.graph.scarcity + parts.max(axis=2)) / 2
            others = np.maximum(self._crowd[nodes[0]] - reached, CROWD_OF_NODE)  # [kind] without a job of the kind
            cost = log_seconds + np.log1p(np.array(PRICE_LEVELS)[:, None, None] * (others[:, None] * held))
            for node in nodes:
                self._cost[node] = cost

    def _groups(self) -> list[list[int]]:
        """Nodes that are alike but for what runs on them: they share their prices."""
        groups: dict[tuple, list[int]] = {}
        members = [self._member[self._member[:, 1] == node, 0].tolist() for node in range(len(self.nodes))]
        for index, node in enumerate(self.nodes):
            groups.setdefault((node.capacity, *members[index]), []).append(index)
        return list(groups.values())

    def _prepare_kinds(self) -> None:
        """What every kind could have on empty nodes, and what it can have now."""
        kinds = self.graph.kinds
        shape = (len(PRICE_LEVELS), len(kinds))
        self._open = np.zeros((len(kinds), len(self._member)), dtype=bool)  # [kind, member]
        members = {(int(partition), int(node)): index for index, (partition, node) in enumerate(self._member)}
        self._least = np.array([graph.row(kind.job.minimum) for kind in kinds], dtype=np.float64).reshape(-1, 3)
        self._reach = np.array([len(kind.partitions) for kind in kinds])
        for index, kind in enumerate(kinds):
            self._open[index, [members[place] for place in kind.places]] = True
        bounds: dict[tuple, int] = {}
        of_kind = [(kind.job.minimum, kind.job.maximum, kind.job.tasks, kind.job.gpu_type) for kind in kinds]
        self._bounds_of = [bounds.setdefault(each, len(bounds)) for each in of_kind]  # [kind]
        self._bounded = [kinds[self._bounds_of.index(each)].job for each in range(len(bounds))]
        self._limits = np.full((len(kinds), len(self.nodes), 3), -1, dtype=np.int64)  # [kind, node, 3]
        self._limits_empty = self._limits.copy()  # [kind, node, 3] if nothing ran there
        self._now = np.full((*shape, len(self.nodes)), np.inf)  # [level, kind, node] least cost that fits
        empty = np.full((*shape, len(self.nodes)), np.inf)
        alike: dict[tuple, int] = {}
        for index, node in enumerate(self.nodes):
            emptied = graph.emptied(node)
            same = (id(self._cost[index]), emptied.cpu_step, emptied.gpu_type, emptied.available)
            first = alike.setdefault(same, index)
            if first == index:
                self._limits_empty[:, index] = self._limits_on(emptied)
                empty[:, :, index] = self._least_within(self._limits_empty[:, index], self._cost[index])
            else:
                self._limits_empty[:, index], empty[:, :, index] = self._limits_empty[:, first], empty[:, :, first]
            self._measure(index)
        self._ideal_here = self._least_of_members(empty)  # [level, kind, partition]
        self._ideal = self._ideal_here.min(axis=2, initial=np.inf)  # [level, kind]
        self._now_here = self._least_of_members(self._now)  # [level, kind, partition]
        self._reaches_only = [frozenset(kind.nodes) for kind in kinds]

    # Between rounds.

    def place(self, pick: Pick) -> None:
        """Takes the amounts of a finished pick off its node."""
        node = self.nodes[pick.node]
        self.nodes[pick.node] = replace(node, free=node.free - fit.granted(node, pick.amounts))
        self.free[pick.node] = graph.row(self.nodes[pick.node].free)
        self.held_by[pick.node] += 1
        self.unplaced[pick.job] = False
        self.placed += 1
        self._measure(pick.node)
        self._now_here = self._least_of_members(self._now)

    def forbid(self, pick: Pick) -> None:
        """Never offers this job on this node of this partition again."""
        self._forbidden.add((pick.job, pick.partition, pick.node))

    def next_round(self) -> None:
        self.rounds += 1

    def fits(self, pick: Pick) -> bool:
        """Whether what has been chosen so far is among the job's choices and fits on its node now."""
        return bool(len(self._choices(pick)))

    def expected_s(self, pick: Pick) -> float:
        """How long the job is expected to run on the chosen amounts."""
        choices = self._choices(pick)
        return math.exp(float(self.graph.log_seconds[self.graph.kind_of[pick.job], choices].min()))

    def waits_for_nothing(self, job: int) -> bool:
        """Whether every node that the job could ever use is idle, so that waiting cannot bring it more."""
        return all(self.held_by[node] == 0 for node in self._reaches_only[self.graph.kind_of[job]])

    def headroom(self, partition: int, job: int) -> float:
        """How many times the job's least amounts are free on the partition's roomiest node (the scarcest resource)."""
        nodes = self._member[self._member[:, 0] == partition, 1]
        return float(self._headroom()[self.graph.kind_of[job], nodes].max(initial=0.0))

    # What may be chosen.

    def tasks(self) -> Options | None:
        """For every agent with a job that fits, the jobs that it may take; None where no agent has one."""
        fits = self._fits()
        for job, partition in {(job, partition) for job, partition, _ in self._forbidden}:
            fits[job, partition] = fits[job, partition] and bool(len(self._nodes_for(partition, job)))
        partition_of, jobs = np.nonzero(fits.T)
        if not len(jobs):
            return None
        agents, row_of = np.unique(partition_of, return_inverse=True)
        none = np.full(len(agents), -1, dtype=np.int64)
        return Options(
            head="task",
            partitions=agents,
            jobs=none,
            nodes=none,
            agents=self._agents()[agents],
            row_of=row_of.astype(np.int64),
            values=jobs,
            features=self._task_features(jobs, partition_of, row_of, len(agents)),
        )

    def _fits(self) -> np.ndarray:
        """[job, partition] whether the job waits and some node of the partition has room for it now."""
        return np.isfinite(self._now_here[0])[self.graph.kind_of] & self.unplaced[:, None]

    def nodes_for(self, picks: Sequence[Pick]) -> Options:
        """For every pick, the nodes of its agent that have room for its task."""
        rows = [self._nodes_for(pick.partition, pick.job) for pick in picks]
        features = [self._node_features(pick, nodes) for pick, nodes in zip(picks, rows, strict=True)]
        return self._options("node", picks, rows, features)

    def amounts_for(self, head: str, picks: Sequence[Pick]) -> Options:
        """For every pick, the amounts of one resource that fit beside those already given."""
        values, features = zip(*(self._amount_row(head, pick) for pick in picks), strict=True)
        return self._options(head, picks, values, features)

    def only_amounts(self, head: str, picks: Sequence[Pick]) -> list[int] | None:
        """The amount that each pick can have, where none of them has a choice."""
        amounts = []
        for pick in picks:
            kind = self.graph.kind_of[pick.job]
            fitting = self._grid[kind, self._choices(pick), _COLUMN_OF[head]]
            if fitting.min() != fitting.max():
                return None
            amounts.append(int(fitting[0]))
        return amounts

    def _options(
        self, head: str, picks: Sequence[Pick], values: Sequence[np.ndarray], features: Sequence[np.ndarray]
    ) -> Options:
        partitions = np.array([pick.partition for pick in picks], dtype=np.int64)
        return Options(
            head=head,
            partitions=partitions,
            jobs=np.array([pick.job for pick in picks], dtype=np.int64),
            nodes=np.array([pick.node for pick in picks], dtype=np.int64),
            agents=self._agents()[partitions],
            row_of=np.repeat(np.arange(len(picks)), [len(each) for each in values]),
            values=np.concatenate(values),
            features=np.concatenate(features).astype(np.float32),
        )

    def _agents(self) -> np.ndarray:
        """[partition, AGENT_COLUMNS] worked out once for as long as nothing is placed."""
        if self._agents_at != (self.rounds, self.placed):
            self._agent_rows = self._agent_features(self._fits())
            self._agents_at = (self.rounds, self.placed)
        return self._agent_rows

    # Masks: all from fit.greatest, below which everything that is allowed fits.

    def _limits_on(self, node: Node) -> np.ndarray:
        """[kind, 3] greatest amounts on the node now, -1 where the kind does not fit."""
        found = [graph.limits(job, node) for job in self._bounded]
        return np.array(found, dtype=np.int64).reshape(-1, 3)[self._bounds_of]

    def _least_within(self, limits: np.ndarray, cost: np.ndarray) -> np.ndarray:
        """[level, kind] least cost among the choices within these limits; cost is [level, kind, choice]."""
        fits = (self._grid <= limits[:, None, :]).all(axis=2)  # [kind, choice]
        least: np.ndarray = np.where(fits, cost, np.inf).min(axis=2, initial=np.inf)
        return least

    @cached_property
    def _later(self) -> np.ndarray:
        """[level, kind] least cost, waiting included, once some of what runs on a node has ended. An estimate."""
        later = np.full(self._now.shape, np.inf)
        for index, node in enumerate(self.graph.state.nodes):
            ends = self.graph.releases[index][:RELEASES_AHEAD]
            if not ends or not node.available:
                continue
            released = np.cumsum([graph.row(fit.granted(node, amounts)) for _, amounts in ends], axis=0)
            free = graph.row(node.free) + released  # [end, 3]
            limits = np.minimum(self._limits_empty[:, index], free[:, None])  # [end, kind, 3]
            fits = (self._grid <= limits[:, :, None, :]).all(axis=3)  # [end, kind, choice]
            least = np.where(fits, self._cost[index][:, None], np.inf).min(axis=3, initial=np.inf)
            after_s = np.array([seconds for seconds, _ in ends])[:, None]
            later[:, :, index] = np.logaddexp(least, np.log(after_s + 1.0)).min(axis=1)
        return self._least_of_members(later).min(axis=2, initial=np.inf)

    def _measure(self, node: int) -> None:
        self._limits[:, node] = self._limits_on(self.nodes[node])
        self._now[:, :, node] = self._least_within(self._limits[:, node], self._cost[node])

    def _least_of_members(self, of_node: np.ndarray) -> np.ndarray:
        """[level, kind, partition] from [level, kind, node]: the least among the nodes open to the kind there."""
        levels, kinds, _ = of_node.shape
        least = np.full((levels, kinds, len(self.graph.state.partitions)), np.inf)
        if len(self._member):
            of_member = np.where(self._open, of_node[:, :, self._member[:, 1]], np.inf)
            least[:, :, self._with_nodes] = np.minimum.reduceat(of_member, self._member_starts, axis=2)
        return least

    def _sum_of_members(self, of_node: np.ndarray) -> np.ndarray:
        """[partition, columns] from [node, columns]."""
        total = np.zeros((len(self.graph.state.partitions), of_node.shape[1]))
        np.add.at(total, self._member[:, 0], of_node[self._member[:, 1]])
        return total

    def _nodes_for(self, partition: int, job: int) -> np.ndarray:
        kind = self.graph.kind_of[job]
        here = (self._member[:, 0] == partition) & self._open[kind]
        nodes = self._member[here, 1]
        nodes = nodes[np.isfinite(self._now[0, kind, nodes])]
        if not self._forbidden:
            return nodes
        return np.array([node for node in nodes if (job, partition, int(node)) not in self._forbidden], dtype=np.int64)

    def _choices(self, pick: Pick) -> np.ndarray:
        """Positions of the kind's choices that fit on the pick's node and agree with what is given."""
        kind = self.graph.kind_of[pick.job]
        fits = (self._grid[kind] <= self._limits[kind, pick.node]).all(axis=1)
        for head, amount in pick.given:
            fits &= self._grid[kind, :, _COLUMN_OF[head]] == amount
        return np.flatnonzero(fits)

    # Features; the order of the numbers is that of AGENT_COLUMNS and OPTION_COLUMNS.

    def _agent_features(self, fits: np.ndarray) -> np.ndarray:
        """[partition, AGENT_COLUMNS]; ``fits`` is [job, partition]."""
        built = self.graph
        count = len(built.state.partitions)
        free = share(self._sum_of_members(self.free), self._partition_capacity)
        best = np.zeros((count, 3))
        np.maximum.at(best, self._member[:, 0], share(self.free, self._largest)[self._member[:, 1]])
        idle = self._sum_of_members(((self.held_by == 0)[:, None]) * self._available())[:, 0]
        reaches = np.isfinite(self._ideal_here[0])[built.kind_of] & self.unplaced[:, None]
        same = np.array([math.log1p(self.rounds), math.log1p(self.placed)])
        crowd = share(self._sum_of_members(self._crowd[:, None] * self._available())[:, 0], self._usable)
        columns = (
            free,
            best,
            np.tile(built.scarcity, (count, 1)),
            share(idle, self._usable)[:, None],
            np.log1p(fits.sum(axis=0))[:, None],
            np.log1p(reaches.sum(axis=0))[:, None],
            np.log1p(crowd)[:, None],
            np.tile(same, (count, 1)),
        )
        return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind")

    def _task_features(self, jobs: np.ndarray, partitions: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        built = self.graph
        kinds = built.kind_of[jobs]
        now = self._now_here[:, kinds, partitions]  # [level, option]
        ideal = self._ideal[:, kinds]
        least_here = np.full((len(PRICE_LEVELS), count), np.inf)
        np.minimum.at(least_here.T, rows, now.T)
        elsewhere = self._elsewhere()[:, kinds, partitions]
        still = np.unique(built.kind_of[self.unplaced])
        log_scale = math.log(built.scale_s)
        columns = (
            now - ideal,
            np.clip(elsewhere - now, -_FAR, _FAR),
            self._ideal_here[:, kinds, partitions] - ideal,
            ideal - self._ideal[:, still].min(axis=1)[:, None],
            now - least_here[:, rows],
            np.clip(self._later[:, kinds] - now, -_FAR, _FAR),
            (ideal[0] - log_scale)[None],
            (ideal[2] - log_scale)[None],
            built.age[jobs][None],
            np.log(np.clip(self._headroom_here()[kinds, partitions], 0.05, 400.0))[None],
            self._held_of_free()[kinds, partitions][None],
            np.log(self._reach[kinds])[None],
        )
        return np.clip(np.concatenate(columns).T, -2 * _FAR, 2 * _FAR).astype(np.float32)

    def _elsewhere(self) -> np.ndarray:
        """[level, kind, partition] least cost now in any other partition."""
        now = self._now_here
        if now.shape[2] < 2:
            return np.full(now.shape, np.inf)
        two = np.sort(now, axis=2)[:, :, :2]
        return np.where(now == two[:, :, :1], two[:, :, 1:2], two[:, :, :1])

    def _headroom(self) -> np.ndarray:
        """[kind, node] free over least amounts, of the scarcest resource; 0 where the kind does not fit."""
        over = np.full((len(self._least), len(self.nodes), 3), np.inf)
        np.divide(self.free[None], self._least[:, None], out=over, where=self._least[:, None] > 0)
        return np.where(np.isfinite(self._now[0]), np.minimum(over.min(axis=2), 1e6), 0.0)

    def _headroom_here(self) -> np.ndarray:
        """[kind, partition] the greatest headroom on any node open to the kind there."""
        return -self._least_of_members(-self._headroom()[None])[0]

    def _held_of_free(self) -> np.ndarray:
        """[kind, partition] share of what is free in the partition that the kind's least amounts would take."""
        free = self._sum_of_members(self.free)
        return np.minimum(share(self._least[:, None], free[None]).max(axis=2), 2.0)

    def _node_features(self, pick: Pick, nodes: np.ndarray) -> np.ndarray:
        kind = self.graph.kind_of[pick.job]
        now = self._now[:, kind, nodes]  # [level, option]
        free, capacity = self.free[nodes], self.capacity[nodes]
        fits = (self._grid[kind][None] <= self._limits[kind, nodes][:, None]).all(axis=2)  # [option, choice]
        cost = np.stack([self._cost[node][2, kind] for node in nodes])  # [option, choice]
        cheapest = np.where(fits, cost, np.inf).argmin(axis=1)
        least = np.maximum(self._least[kind], 1e-9)
        columns = (
            (now - now.min(axis=1, keepdims=True)).T,
            share(free, capacity),
            np.where(self._least[kind] > 0, np.log(np.clip(free / least, 0.05, 400.0)), 0.0),
            share(capacity, self._largest),
            share(free - self._grid[kind, cheapest], capacity),
            (self.held_by[nodes] == 0)[:, None],
            np.log(self._node_partitions[nodes])[:, None],
            np.full((len(nodes), 1), float(len(nodes) == 1)),
        )
        return np.clip(np.concatenate(columns, axis=1), -2 * _FAR, 2 * _FAR)

    def _amount_row(self, head: str, pick: Pick) -> tuple[np.ndarray, np.ndarray]:
        """The amounts of one resource that may be given, and their features."""
        built, kind = self.graph, self.graph.kind_of[pick.job]
        resource = _COLUMN_OF[head]
        fitting = self._choices(pick)
        values, which = np.unique(self._grid[kind, fitting, resource], return_inverse=True)
        cost = np.full((len(values), len(PRICE_LEVELS)), np.inf)
        np.minimum.at(cost, which, self._cost[pick.node][:, kind, fitting].T)
        amounts = values.astype(np.float64)
        log_amounts = np.log(np.maximum(amounts, 1e-3))
        area = cost[:, 0] + log_amounts
        job, node = built.jobs[pick.job], self.capacity[pick.node]
        asked, least = graph.row(job.requested)[resource], graph.row(job.minimum)[resource]
        given = dict(pick.given)
        levels = len(PRICE_LEVELS)
        features = np.empty((len(values), len(OPTION_COLUMNS[head])))
        features[:, :levels] = cost - cost.min(axis=0)
        features[:, levels] = cost[:, 0] - self._ideal[0, kind]
        features[:, levels + 1] = area - area.min()
        features[:, levels + 2] = amounts / max(node[resource], 1.0)
        features[:, levels + 3] = amounts / max(self.free[pick.node, resource], 1.0)
        features[:, levels + 4] = amounts / max(built.total[resource], 1.0)
        features[:, levels + 5] = log_amounts - math.log(max(asked, 1e-3))
        features[:, levels + 6] = log_amounts - math.log(max(least, 1e-3))
        features[:, levels + 7] = values == asked
        features[:, levels + 8] = given.get("cpus", 0) / max(node[0], 1.0)
        features[:, levels + 9] = given.get("gpus", 0) / max(node[1], 1.0)
        features[:, levels + 10] = self._ideal[0, kind] - math.log(built.scale_s)
        features[:, levels + 11] = len(values) == 1
        return values, np.clip(features, -2 * _FAR, 2 * _FAR)
