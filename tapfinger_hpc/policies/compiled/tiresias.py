"""Tiresias (Gu et al., NSDI'19), elastic and preemptive, as the authors' program has it (nooblyh/TapFinger,
utils/benchmark.py): discretised two-dimensional least attained service, all GPUs dealt out anew at every sub-step.

GPUs go one by one to the longest-running task of the half with the least attained service (GPU-slots so far, with
those dealt out just now), each up to the most that a task may have; CPUs are then shared evenly among those with GPUs.
A task may be left with no or too few GPUs, and then stands still.
"""

import numpy as np

from tapfinger_hpc.frame import WAITING, Frame
from tapfinger_hpc.policies.compiled import elastic
from tapfinger_hpc.policies.compiled.elastic import Shares
from tapfinger_hpc.sim.core import Truth, compiled


class TiresiasPlayer:
    """Keeps the attained service of every task; knows nothing of speeds."""

    name = "tiresias"
    knowledge = ""

    def __init__(self) -> None:
        self._attained = np.zeros((0, 0), np.int64)  # [environment, task] GPU-slots

    def play_slot(self, frame: Frame, truth: Truth, envs: np.ndarray) -> int:
        """Divides every node of these environments anew."""
        if self._attained.shape != frame.kind.shape:
            self._attained = np.zeros(frame.kind.shape, np.int64)
        begun = envs[frame.now[envs] == 0]
        elastic.check_one_node_each(frame, begun, self.name)
        self._attained[begun] = 0
        for env in envs.tolist():
            divide(frame, truth, env, self._attained[env])
        return len(envs)


@compiled
def divide(frame: Frame, truth: Truth, env: int, attained: np.ndarray) -> None:
    """All sub-steps of a slot; adds what every task will have attained at its end."""
    shares = elastic.begin(frame, env)
    placed = True
    while placed:
        placed = False
        shares.looked_at[:] = False
        for agent in range(frame.partitions[env]):
            count = shares.size[agent]
            job = elastic.candidate(frame, truth, env, agent, shares)
            if job >= 0:
                shares.looked_at[job] = True
                shares.tasks[agent, count] = job
                count += 1
            _deal(frame, truth, env, agent, count, shares, attained)
            if job >= 0 and shares.amounts[job].any():
                shares.size[agent] = count
                placed = True
    elastic.carry_out(frame, truth, env, shares)
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        attained[job] += frame.amounts[env, job, 1]


@compiled
def _deal(frame: Frame, truth: Truth, env: int, agent: int, count: int, shares: Shares, attained: np.ndarray) -> None:
    node = elastic.node_of(frame, env, agent)
    tasks = shares.tasks[agent, :count]
    most = np.zeros((count, 2), np.int64)
    service = np.zeros(count)
    for position in range(count):
        shares.amounts[tasks[position]] = 0
        most[position] = elastic.greatest(truth, env, frame.kind[env, tasks[position]])
        service[position] = attained[tasks[position]]
    for _ in range(frame.capacity[env, node, 1]):
        chosen = _next(frame, env, tasks, service, most, shares)
        if chosen < 0:
            break
        shares.amounts[tasks[chosen], 1] += 1
        service[chosen] += 1
    _share_cpus(frame, env, frame.capacity[env, node, 0], tasks, most, shares)


@compiled
def _next(frame: Frame, env: int, tasks: np.ndarray, service: np.ndarray, most: np.ndarray, shares: Shares) -> int:
    """Whose turn it is: within the half of least service the earliest start, then likewise in the other half."""
    count = len(tasks)
    order = np.zeros(count, np.int64)
    keys = np.zeros(count)
    for position in range(count):  # insertion keeps those with equal service in the order in which they came in
        full = shares.amounts[tasks[position], 1] >= most[position, 1]
        keys[position] = np.inf if full else service[position]
        rank = position
        while rank > 0 and keys[order[rank - 1]] > keys[position]:
            order[rank] = order[rank - 1]
            rank -= 1
        order[rank] = position
    chosen, earliest = -1, np.inf
    for rank in range(count):
        if rank == count // 2 and chosen >= 0:
            break
        position = order[rank]
        job = tasks[position]
        start = frame.now[env] if frame.status[env, job] == WAITING else frame.start[env, job]
        if keys[position] < np.inf and start < earliest:
            chosen, earliest = position, start
    return chosen


@compiled
def _share_cpus(frame: Frame, env: int, cpus: int, tasks: np.ndarray, most: np.ndarray, shares: Shares) -> None:
    """Evenly among the tasks with GPUs, those that came in first getting what does not divide; but each its least.

    The authors' program knows one least number of CPUs for all types, and then that follows. Without it, tasks of a
    type that needs more than an even share may stand still for ever.
    """
    for job in tasks:
        if shares.amounts[job, 1] > 0:
            shares.amounts[job, 0] = frame.menu[env, frame.kind[env, job], 0, 0]
            cpus -= shares.amounts[job, 0]
    for _ in range(cpus):
        poorest = -1
        for position in range(len(tasks)):
            held = shares.amounts[tasks[position]]
            can_take = held[1] > 0 and held[0] < most[position, 0]
            if can_take and (poorest < 0 or held[0] < shares.amounts[tasks[poorest], 0]):
                poorest = position
        if poorest < 0:
            return
        shares.amounts[tasks[poorest], 0] += 1
