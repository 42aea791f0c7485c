"""The price heuristic: resources cost what taking them delays others, and each job takes what is cheapest in all.

With B jobs waiting for a node, a job that holds a share x of it for T seconds delays each of them by about x T. So a
job's cost on an amount is T (1 + pressure x): its own time, and that of the others. Jobs are served in order of least
cost, older ones earlier; each is placed where it is cheapest, unless waiting for running jobs to end is cheaper still.
"""

import math

import msgspec
import numpy as np

from tapfinger_hpc import fit
from tapfinger_hpc.decision import Alternative, Decision, Placement
from tapfinger_hpc.policies import choices
from tapfinger_hpc.policies.board import Board
from tapfinger_hpc.policies.outlook import Outlook, capacity_of, row_of
from tapfinger_hpc.state import ClusterState, Partition, PendingJob

REFUSALS = 3
"""How many placements of a job on one node may be refused for the sake of others' jobs before the node is given up."""
RUNNERS_UP = 4


class Prices(msgspec.Struct, frozen=True):
    """The constants, tuned by random search over random clusters and workloads (``tune``)."""

    backlog: float = 1.27
    """Pressure of one waiting job per node."""
    load: float = 0.29
    """Pressure of one running job per node: where many run, more will come before this one ends."""
    base: float = 0.13
    """Pressure of a node that is idle and for which nothing waits."""
    cpu: float = 0.38
    mem: float = 0.05
    """Weight of a share of a node's CPUs and memory, where a share of its GPUs weighs 1."""
    scarcest: float = 0.3
    """How much of a job's share is that of its scarcest resource alone; the rest is the weighted sum."""
    age: float = 0.13
    """How fast a waiting job moves ahead: its cost is divided by 1 + age x (time waited / cost)."""
    reach: float = 0.09
    """How far a job moves ahead that can use only one node; 1/n of it with n nodes."""
    patience: float = 1.3
    """What a second of waiting for running jobs to end is thought to cost."""
    margin: float = 0.04
    """Share of its cost by which waiting must be cheaper."""
    packing: float = 0.2
    """How far nodes that are left full are preferred."""
    starving: float = 9.0
    """A job that has waited this many times its cost keeps a node from others that would delay it."""


class PricePolicy:
    """Deterministic; knows of a class what the state says of it, and the prior where it says nothing."""

    name = "price"

    def __init__(self, prices: Prices | None = None) -> None:
        self._prices = prices or Prices()

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        board = Board(state)
        jobs, tables = [], []
        for job in board.jobs():
            reach = board.reach(job)
            table = choices.of(state, job, capacity_of([node for _, node in reach])) if reach else None
            if table is None or not len(table):
                board.wait(job, "no node that is up can run it within its range", -math.inf)
            else:
                jobs.append(job)
                tables.append(table)
        if jobs:
            _Market(board, jobs, tables, self._prices).clear()
        return board.decisions()


class _Market:
    """All jobs with their choices against all nodes, as arrays; one job is settled at a time.

    Rows are the choices of all jobs, one job after the other; columns are nodes.
    """

    def __init__(self, board: Board, jobs: list[PendingJob], tables: list[choices.Choices], prices: Prices) -> None:
        state = board.state
        self._board, self._jobs, self._prices = board, jobs, prices
        self._nodes = state.nodes
        self._outlook = Outlook(state)
        column = {node.name: position for position, node in enumerate(self._nodes)}
        self._ways: list[dict[int, Partition]] = [
            {column[node.name]: partition for partition, node in board.reach(job)} for job in jobs
        ]
        sizes = [len(table) for table in tables]
        self._first = np.concatenate([[0], np.cumsum(sizes)])  # [jobs + 1] first row of each job
        self._owner = np.repeat(np.arange(len(jobs)), sizes)  # [row] job
        self._grid = np.concatenate([table.grid for table in tables])  # [row, 3]
        self._seconds = np.concatenate([table.seconds for table in tables])  # [row]
        # The three resources come first in these arrays: numpy compares and adds up along the first axis fastest.
        self._capacity = np.array([row_of(node.capacity) for node in self._nodes]).T  # [3, node]
        self._free = np.array([row_of(node.free) for node in self._nodes]).T  # [3, node]
        self._reach = np.zeros((len(jobs), len(self._nodes)), dtype=bool)  # [job, node]
        for position, way in enumerate(self._ways):
            self._reach[position, list(way)] = True
        # Slurm hands out whole cores.
        step = np.array([node.cpu_step for node in self._nodes])
        self._taken = np.repeat(self._grid.T[:, :, None], len(self._nodes), axis=2)  # [3, row, node]
        self._taken[0] = -(-self._taken[0] // step) * step
        self._could = self._reach[self._owner] & (self._taken <= self._capacity[:, None, :]).all(axis=0)  # [row, node]
        self._share = self._shares()  # [row, node]
        self._half = np.array([[0.5], [0.5], [0.0]]) / np.maximum(self._capacity, 1)  # [3, node]
        self._taken_half = (self._taken * self._half[:, None, :]).sum(axis=0)  # [row, node]
        self._queued = np.ones(len(jobs), dtype=bool)  # not placed
        self._settled = np.zeros(len(jobs), dtype=bool)  # placed, or better off waiting
        self._refused: dict[tuple[int, int], int] = {}
        self._why = [""] * len(jobs)
        limits = np.array([math.inf if job.time_limit_s is None else job.time_limit_s for job in jobs])
        priorities = np.array([job.priority for job in jobs])
        # [job, other] others that run at least as long and that Slurm would not serve earlier
        self._no_better = (limits >= limits[:, None]) & (priorities <= priorities[:, None])
        self._ages = np.array([max(0.0, state.time_s - job.submit_time_s) for job in jobs])
        self._running = np.zeros(len(self._nodes))
        for running in state.running:
            for share in running.shares:
                if share.node in column:
                    self._running[column[share.node]] += 1
        self._kept_for = np.full(len(self._nodes), math.inf)  # [node] a starving job needs it in so many seconds

    def clear(self) -> None:
        """Settles every job."""
        self._keep_nodes_for_the_starving()
        while (job := self._next()) is not None:
            self._settle(job)
        for position, job_waits in enumerate(self._queued):
            if job_waits:
                self._wait(position)

    # -- costs -------------------------------------------------------------------------------------------------------

    def _shares(self) -> np.ndarray:
        """How much of each node each choice takes, [row, node]: weighted over the resources."""
        parts = self._taken / np.maximum(self._capacity, 1)[:, None, :]
        weights = np.tile([[self._prices.cpu], [1.0], [self._prices.mem]], len(self._nodes))  # [3, node]
        weights[0, self._capacity[1] == 0] = 1.0  # without GPUs, CPUs are what is scarce
        scarcest = self._prices.scarcest
        return np.asarray((1 - scarcest) * (parts * weights[:, None, :]).sum(axis=0) + scarcest * parts.max(axis=0))

    def _costs(self) -> np.ndarray:
        """What each choice costs, [row, node]: the job's own time and what it delays others."""
        each = self._queued / self._reach.sum(axis=1)  # [job] a waiting job counts once, over all nodes it can use
        queue = each @ self._reach  # [node]
        others = np.maximum(queue - each[:, None], 0.0)  # [job, node] without the job itself
        # Running jobs count over all nodes that a job can use: else it would shun the node that it would fill up.
        running = (self._reach @ self._running / self._reach.sum(axis=1))[:, None]  # [job, 1]
        pressure = self._prices.backlog * others + self._prices.load * running + self._prices.base
        return np.asarray(self._seconds[:, None] * (1 + pressure[self._owner] * self._share))

    def _least(self, values: np.ndarray) -> np.ndarray:
        """The least of each job's values, [job]."""
        return np.asarray(np.minimum.reduceat(values.min(axis=1), self._first[:-1]))

    # -- order -------------------------------------------------------------------------------------------------------

    def _next(self) -> int | None:
        """The job to settle next: of those that fit somewhere now, the one of least cost, for its age."""
        if self._settled.all():
            return None
        self._cost = self._costs()
        left = (self._free * self._half).sum(axis=0) - self._taken_half  # [row, node] mean share of CPUs and GPUs
        fits = self._could & (self._taken <= self._free[:, None, :]).all(axis=0)
        fits &= self._seconds[:, None] <= self._kept_for
        self._now = np.where(fits, self._cost * (1 + self._prices.packing * left), math.inf)
        cost = np.where(self._settled, math.inf, self._least(self._now))
        finite = np.isfinite(cost)
        if not finite.any():
            return None
        cost = np.where(finite, cost, 1.0)
        ahead = (1 + self._prices.age * self._ages / cost) * (1 + self._prices.reach / self._reach.sum(axis=1))
        return int(np.argmin(np.where(finite, cost / ahead, math.inf)))

    def _settle(self, job: int) -> None:
        """Places the job, or finds that it is better off waiting, or that others' jobs leave no room for it there."""
        rows = slice(self._first[job], self._first[job + 1])
        now = self._now[rows]
        row, column = np.unravel_index(int(np.argmin(now)), now.shape)
        node, amounts = self._nodes[column], choices.resources(self._grid[rows][row])
        later = self._later(rows)
        if later.min() * (1 + self._prices.margin) < self._cost[rows][row, column] and not self._starves(job):
            self._settled[job] = True
            return
        refusal = self._board.delays(self._jobs[job], node, amounts)
        if refusal is not None:
            self._refuse(job, rows, int(row), int(column), refusal)
            return
        placement = Placement(self._ways[job][int(column)].name, node.name, amounts)
        seconds, cost = float(self._seconds[rows][row]), float(now[row, column])
        self._board.place(
            self._jobs[job],
            placement,
            self._reason(job, seconds),
            -cost,
            self._runners_up(job, (int(row), int(column)), later),
        )
        self._free[:, column] = np.maximum(self._free[:, column] - self._taken[:, rows][:, row, column], 0)
        self._outlook.place(int(column), seconds, fit.granted(node, amounts))
        self._running[column] += 1
        self._queued[job], self._settled[job] = False, True

    def _later(self, rows: slice) -> np.ndarray:
        """What each choice costs if the job waits for it, [row, node]; infinity where it need not or cannot."""
        soonest = self._outlook.soonest(self._taken[:, rows], self._could[rows])
        return np.where(soonest > 0, self._cost[rows] + self._prices.patience * soonest, math.inf)

    def _refuse(self, job: int, rows: slice, row: int, column: int, why: str) -> None:
        """What takes as much for as long is refused as well, of every job: it would delay others no less."""
        count = self._refused[job, column] = self._refused.get((job, column), 0) + 1
        refused, least = self._grid[rows][row], self._grid[rows].min(axis=0)
        if self._board.delays(self._jobs[job], self._nodes[column], choices.resources(least)) is not None:
            refused = least
        no_less = (self._grid >= refused).all(axis=1) & self._no_better[job][self._owner]
        no_less[rows] |= count >= REFUSALS
        self._could[no_less, column] = False
        for other in np.unique(self._owner[no_less]):
            self._why[other] = why

    # -- the starving ------------------------------------------------------------------------------------------------

    def _starves(self, job: int) -> bool:
        rows = slice(self._first[job], self._first[job + 1])
        return bool(self._ages[job] > self._prices.starving * self._seconds[rows].min())

    def _keep_nodes_for_the_starving(self) -> None:
        """A job that has waited very long and has no room now gets a node that nobody may keep from it."""
        for job in np.argsort(-self._ages, kind="stable"):
            if not self._starves(int(job)):
                continue
            rows = slice(self._first[job], self._first[job + 1])
            soonest = self._outlook.soonest(self._taken[:, rows], self._could[rows])
            soonest[:, np.isfinite(self._kept_for)] = math.inf
            if not 0 < soonest.min() < math.inf:
                continue
            column = int(np.argmin(soonest.min(axis=0)))
            self._kept_for[column] = soonest[:, column].min()

    # -- words -------------------------------------------------------------------------------------------------------

    def _reason(self, job: int, seconds: float) -> str:
        waiting = int(self._queued.sum()) - 1
        others = f"with {waiting} other jobs waiting" if waiting else "with no other job waiting"
        return f"expected to take {_span(seconds)} so; {others} this costs least of what is free"

    def _wait(self, job: int) -> None:
        rows = slice(self._first[job], self._first[job + 1])
        later, now = self._later(rows), self._now[rows] if self._settled[job] else np.full((1, 1), math.inf)
        score = -float(later.min()) if np.isfinite(later.min()) else 0.0
        reason = self._why[job] or "no room on any node that it may use"
        if np.isfinite(later.min()):
            row, column = np.unravel_index(int(np.argmin(later)), later.shape)
            soonest = self._outlook.soonest(self._taken[:, rows], self._could[rows])[row, column]
            amounts = choices.resources(self._grid[rows][row])
            expected = f"{amounts} are expected on {self._nodes[column].name} in {_span(float(soonest))}"
            better = f" (then {_span(float(self._seconds[rows][row]))} to run)"
            reason = f"worth waiting: {expected}{better}" if np.isfinite(now.min()) else f"{reason}; {expected}"
        self._board.wait(self._jobs[job], reason, score, self._runners_up(job, None, later))

    def _runners_up(self, job: int, chosen: tuple[int, int] | None, later: np.ndarray) -> list[Alternative]:
        """The best other places and amounts, and waiting."""
        rows = slice(self._first[job], self._first[job + 1])
        now = self._now[rows]
        found = []
        for position in np.argsort(now, axis=None, kind="stable")[: RUNNERS_UP + 1]:
            row, column = (int(index) for index in np.unravel_index(position, now.shape))
            if (row, column) == chosen or not np.isfinite(now[row, column]):
                continue
            amounts = choices.resources(self._grid[rows][row])
            placement = Placement(self._ways[job][column].name, self._nodes[column].name, amounts)
            found.append(Alternative(placement, -float(now[row, column])))
        if chosen is not None and np.isfinite(later.min()):
            found.append(Alternative(None, -float(later.min())))
        return sorted(found[:RUNNERS_UP], key=lambda alternative: -alternative.score)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
