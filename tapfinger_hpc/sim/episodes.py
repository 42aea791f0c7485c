"""Plays workloads with a policy, many side by side, and keeps what it did: every policy is judged through here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim import core, experience
from tapfinger_hpc.sim.core import Truth, compiled
from tapfinger_hpc.sim.scenarios import Workload

MAX_SLOTS = 100_000
"""A policy that never places its last tasks would never come to an end."""


class Player(Protocol):
    """A policy in the slotted scenarios."""

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
    start: np.ndarray  # int64 [task] slot of the placement
    end: np.ndarray  # int64 [task] slot of the completion
    agent: np.ndarray  # int64 [task]
    amounts: np.ndarray  # int64 [task, 2] CPUs and GPUs (the last ones, where they were changed)
    decisions: int
    decision_s: float
    """Time that the policy took for all its decisions."""
    used: np.ndarray  # int64 [slot, 2] CPUs and GPUs held while the slot passed
    present: np.ndarray  # int64 [slot, 2] tasks waiting and running then
    changes: np.ndarray  # int64 [change, 5] task, slot, node, CPUs, GPUs: every placement, and every change thereafter

    @property
    def completion_times(self) -> np.ndarray:
        """float64 [task] slots from arrival to completion."""
        return (self.end - self.workload.arrival).astype(np.float64)

    @property
    def mean_jct(self) -> float:
        """Mean completion time in slots."""
        return float(self.completion_times.mean())


def play(workloads: Sequence[Workload], player: Player, *, batch: int = 32) -> list[Episode]:
    """One episode of each workload.

    Raises:
        RuntimeError: the player leaves tasks unplaced for ever.
    """
    episodes: list[Episode] = []
    for first in range(0, len(workloads), batch):
        episodes += _play_together(list(workloads[first : first + batch]), player)
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


def _play_together(workloads: list[Workload], player: Player) -> list[Episode]:
    told = experience.beliefs(workloads, player.knowledge, getattr(player, "experience", None))
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
        Episode(
            workload=workload,
            policy=player.name,
            knowledge=player.knowledge,
            start=frame.start[env, : len(workload.arrival)].astype(np.int64),
            end=truth.end[env, : len(workload.arrival)].astype(np.int64),
            agent=frame.partition[env, : len(workload.arrival)].copy(),
            amounts=frame.amounts[env, : len(workload.arrival), :2].copy(),
            decisions=int(decisions[env]),
            decision_s=float(seconds[env]),
            used=np.array(used[env]),
            present=np.array(present[env]),
            changes=np.concatenate(changes[env]),
        )
        for env, workload in enumerate(workloads)
    ]


def _changes(frame: Frame, truth: Truth, env: int) -> np.ndarray:
    """int64 [change, 5] what was placed or given other amounts in this slot; of several times the last."""
    running = frame.running[env, : frame.running_count[env]]
    jobs = running[truth.since[env, running] == frame.now[env]]
    slot = np.full(len(jobs), frame.now[env], np.int64)
    return np.column_stack((jobs, slot, frame.node[env, jobs], frame.amounts[env, jobs, :2]))
