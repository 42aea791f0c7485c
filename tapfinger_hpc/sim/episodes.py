"""Plays workloads with a policy, many side by side, and keeps what it did: every policy is judged through here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tapfinger_hpc.frame import RUNNING, Frame
from tapfinger_hpc.sim import core, experience
from tapfinger_hpc.sim.core import Truth, compiled
from tapfinger_hpc.sim.scenarios import Workload
from tapfinger_hpc.speed import JobClass

MAX_SLOTS = 100_000
"""A policy that never places its last tasks would never come to an end."""


class Player(Protocol):
    """A policy in the simulator."""

    name: str
    knowledge: str
    """What it knows of a task's speed, one of ``levels.LEVELS``; "" where it asks nothing. Frames that it is shown
    say no more; a player of "types" may have an attribute ``experience`` with what it knows already."""

    def play_slot(self, frame: Frame, truth: Truth, envs: np.ndarray) -> int:
        """Makes all placements of the present slot in these environments, and returns how many decisions that took.

        Args:
            truth: for ``core.place`` and ``core.reallocate``; true speeds and progress may be read from it by policies
                alone that are of ``knowledge`` "oracle" always, and what is yet to come by none.
            envs: int64, the environments that are not over.
        """
        ...


class CompiledPlayer:
    """A player of a compiled function ``decide(frame, env, parameters, out) -> count``.

    The function is pure. It writes one row of ``out`` for each placement, in the order in which they are to be carried
    out: job, partition, node, CPUs, GPUs, MiB.
    """

    def __init__(self, name: str, decide, parameters: np.ndarray | None = None, knowledge: str = "") -> None:
        self.name, self.knowledge = name, knowledge
        self._decide = decide
        self._parameters = np.zeros(0) if parameters is None else np.asarray(parameters, dtype=np.float64)

    def play_slot(self, frame: Frame, truth: Truth, envs: np.ndarray) -> int:
        out = np.zeros((frame.waiting.shape[1], 6), np.int64)
        for env in envs.tolist():
            count = self._decide(frame, env, self._parameters, out)
            place_all(frame, truth, env, out, count)
        return len(envs)


@dataclass(frozen=True, eq=False)
class Episode:
    """What came of one workload."""

    workload: Workload
    policy: str
    knowledge: str
    start: np.ndarray  # int64 [task] slot of the placement; float64 seconds in event time
    end: np.ndarray  # int64 [task] slot of the completion; in event time infinite of what was not at its end
    agent: np.ndarray  # int64 [task]
    node: np.ndarray  # int64 [task] its last one
    amounts: np.ndarray  # int64 [task, 2] CPUs and GPUs (the last ones, where they were changed)
    mem_mb: np.ndarray  # int64 [task]
    decisions: int
    decision_s: float
    """Time that the policy took for all its decisions."""
    used: np.ndarray  # [slot, 2] CPUs and GPUs that our tasks held while the slot passed; in event time its unit
    present: np.ndarray  # [slot, 2] our tasks waiting and running then
    changes: np.ndarray  # int64 [change, 5] task, slot, node, CPUs, GPUs: every placement, and every change thereafter

    @property
    def completion_times(self) -> np.ndarray:
        """float64 [task] slots (or seconds) from arrival to completion, of our tasks."""
        return (self.end - self.workload.arrival).astype(np.float64)[self.workload.ours]

    @property
    def mean_jct(self) -> float:
        """Mean completion time in slots, or in seconds."""
        return float(self.completion_times.mean())


def play(
    workloads: Sequence[Workload], player: Player, *, batch: int = 32, classes: Sequence[JobClass] = ()
) -> list[Episode]:
    """One episode of each workload.

    Args:
        classes: what a player of ``knowledge`` "curves" is told of the types, by their names.

    Raises:
        RuntimeError: the player leaves tasks unplaced for ever.
    """
    episodes: list[Episode] = []
    for first in range(0, len(workloads), batch):
        episodes += _play_together(list(workloads[first : first + batch]), player, classes)
    return episodes


def pass_slot(frame: Frame, truth: Truth, envs: np.ndarray) -> np.ndarray:
    """Lets a slot pass in these environments; those that are not over then."""
    for env in envs.tolist():
        core.advance(frame, truth, env)
    return envs[[not core.over(truth, env) for env in envs.tolist()]]


@compiled
def place_all(frame: Frame, truth: Truth, env: int, rows: np.ndarray, count: int) -> int:
    """Carries out placements (rows of job, partition, node, CPUs, GPUs, MiB); how many fitted."""
    placed = 0
    for row in range(count):
        placed += core.place(
            frame,
            truth,
            env,
            rows[row, 0],
            rows[row, 1],
            rows[row, 2],
            rows[row, 3],
            rows[row, 4],
            rows[row, 5],
        )
    return placed


def _play_together(workloads: list[Workload], player: Player, classes: Sequence[JobClass]) -> list[Episode]:
    told = experience.beliefs(workloads, player.knowledge, getattr(player, "experience", None), classes)
    frame, truth = core.environments(workloads, beliefs=told)
    count = len(workloads)
    used: list[list[np.ndarray]] = [[] for _ in range(count)]
    present: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    changes: list[list[np.ndarray]] = [[] for _ in range(count)]
    decisions, seconds = np.zeros(count, np.int64), np.zeros(count)
    envs = np.arange(count)
    for _ in range(MAX_SLOTS):
        started = time.perf_counter()
        made = player.play_slot(frame, truth, envs)
        seconds[envs] += (time.perf_counter() - started) / len(envs)
        decisions[envs] += max(1, made // len(envs))
        for env in envs.tolist():
            if frame.slot[env] > 0:
                nodes = frame.nodes[env]
                used[env].append((frame.capacity[env, :nodes, :2] - frame.free[env, :nodes, :2]).sum(axis=0))
                changes[env].append(_changes(frame, truth, env))
                present[env].append((int(frame.waiting_count[env]), int(frame.running_count[env])))
            core.advance(frame, truth, env)
        envs = envs[[not core.over(truth, env) for env in envs.tolist()]]
        if not len(envs):
            break
    else:
        raise RuntimeError(f"{player.name} left tasks of {workloads[0].scenario.name} waiting for {MAX_SLOTS} slots")
    return [
        _episode(workload, player, frame, truth, env, int(decisions[env]), float(seconds[env]))
        if workload.scenario.slot == 0
        else Episode(
            workload=workload,
            policy=player.name,
            knowledge=player.knowledge,
            start=frame.start[env, : len(workload.arrival)].astype(np.int64),
            end=truth.end[env, : len(workload.arrival)].astype(np.int64),
            agent=frame.partition[env, : len(workload.arrival)].copy(),
            node=frame.node[env, : len(workload.arrival)].copy(),
            amounts=frame.amounts[env, : len(workload.arrival), :2].copy(),
            mem_mb=frame.amounts[env, : len(workload.arrival), 2].copy(),
            decisions=int(decisions[env]),
            decision_s=float(seconds[env]),
            used=np.array(used[env]),
            present=np.array(present[env]),
            changes=np.concatenate(changes[env]),
        )
        for env, workload in enumerate(workloads)
    ]


def _episode(
    workload: Workload, player: Player, frame: Frame, truth: Truth, env: int, decisions: int, decision_s: float
) -> Episode:
    """What came of a workload in event time: everything follows from when tasks started and ended."""
    count, actual = len(workload.arrival), int(truth.look["actual"][env])
    begun = frame.status[actual, :count] >= RUNNING
    start = np.where(begun, frame.start[actual, :count], np.inf)
    end = np.where(begun, truth.end[actual, :count], np.inf)
    amounts = frame.amounts[actual, :count].copy()
    ours, unit = workload.ours, workload.scenario.unit
    edges = np.arange(int(np.ceil(end[ours].max() / unit)) + 1) * unit
    held = _in_cells(edges, start[ours], end[ours]).T @ amounts[ours, :2]
    present = np.stack([_in_cells(edges, workload.arrival, start), _in_cells(edges, start, end)])[:, ours].sum(axis=1)
    started = np.argsort(start, kind="stable")[: begun.sum()]
    return Episode(
        workload=workload,
        policy=player.name,
        knowledge=player.knowledge,
        start=start,
        end=end,
        agent=frame.partition[actual, :count].copy(),
        node=frame.node[actual, :count].copy(),
        amounts=amounts[:, :2],
        mem_mb=amounts[:, 2],
        decisions=decisions,
        decision_s=decision_s,
        used=held,
        present=present.T,
        changes=np.column_stack((started, start[started], frame.node[actual, started], amounts[started, :2])),
    )


def _in_cells(edges: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """float64 [task, cell] share of each cell of time that lies between begin and end."""
    last = edges[-1]  # of infinite times too
    before = np.clip(edges[None], np.minimum(begin, last)[:, None], np.minimum(end, last)[:, None])
    return np.diff(before, axis=1) / np.diff(edges)


def _changes(frame: Frame, truth: Truth, env: int) -> np.ndarray:
    """int64 [change, 5] what was placed or given other amounts in this slot; of several times the last."""
    running = frame.running[env, : frame.running_count[env]]
    jobs = running[truth.since[env, running] == frame.now[env]]
    slot = np.full(len(jobs), frame.now[env], np.int64)
    return np.column_stack((jobs, slot, frame.node[env, jobs], frame.amounts[env, jobs, :2]))
