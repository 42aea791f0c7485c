"""What the baselines share that re-allocate running tasks: the authors' sub-steps, and carrying out their result.

As in the authors' program (nooblyh/TapFinger, utils/benchmark.py), at every sub-step each agent takes at most one more
task in and divides its whole node anew among its tasks; the sub-steps of a slot end when no agent takes one in. Only
what they come to is carried out, so that a task which gets back what it had pays no switch weight. For the slotted
scenarios alone, where every agent has one node.
"""

from typing import NamedTuple

import numpy as np

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.frame import RUNNING, WAITING, Frame
from tapfinger_hpc.sim import core
from tapfinger_hpc.sim.core import Truth, compiled


class Shares(NamedTuple):
    """Who holds what while the sub-steps go on."""

    tasks: np.ndarray  # int64 [agent, task] in the order in which they came in
    size: np.ndarray  # int64 [agent] how many
    amounts: np.ndarray  # int64 [task, 2] CPUs and GPUs
    looked_at: np.ndarray  # bool [task] some agent has considered it in this sub-step


def check_one_node_each(frame: Frame, envs: np.ndarray, name: str) -> None:
    """Raises:
    ScenarioError: an agent has no node or several, or shares one.
    """
    for env in envs.tolist():
        member = frame.member[env, : frame.partitions[env], : frame.nodes[env]]
        if not (frame.slot[env] > 0 and (member.sum(axis=0) == 1).all() and (member.sum(axis=1) == 1).all()):
            raise ScenarioError(
                f"policy {name!r} needs slotted time and one node for each partition, but found partitions of "
                f"{member.sum(axis=1).tolist()} nodes; use another policy on this cluster"
            )


@compiled
def begin(frame: Frame, env: int) -> Shares:
    """Running tasks with what they hold."""
    agents, jobs = frame.partitions[env], frame.kind.shape[1]
    shares = Shares(
        np.zeros((agents, jobs), np.int64),
        np.zeros(agents, np.int64),
        np.zeros((jobs, 2), np.int64),
        np.zeros(jobs, np.bool_),
    )
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        agent = frame.partition[env, job]
        shares.tasks[agent, shares.size[agent]] = job
        shares.size[agent] += 1
        shares.amounts[job, 0], shares.amounts[job, 1] = frame.amounts[env, job, 0], frame.amounts[env, job, 1]
    return shares


@compiled
def node_of(frame: Frame, env: int, agent: int) -> int:
    """The agent's one node."""
    node = 0
    while not frame.member[env, agent, node]:
        node += 1
    return node


@compiled
def candidate(frame: Frame, truth: Truth, env: int, agent: int, shares: Shares) -> int:
    """The first task of the agent's window that no other agent has looked at in this sub-step, or -1: none, or no room
    for the least amounts of one more. The places of the window are all that is read of the truth.
    """
    node = node_of(frame, env, agent)
    room = frame.capacity[env, node].copy()
    for position in range(shares.size[agent]):
        room -= frame.menu[env, frame.kind[env, shares.tasks[agent, position]], 0]
    for place in range(truth.window.shape[2]):
        job = truth.window[env, agent, place]
        if job < 0 or shares.looked_at[job] or frame.status[env, job] != WAITING or _taken(shares, job):
            continue
        if not core.open_to(frame, env, frame.kind[env, job], node):
            continue
        least = frame.menu[env, frame.kind[env, job], 0]
        return job if least[0] <= room[0] and least[1] <= room[1] else -1
    return -1


@compiled
def greatest(truth: Truth, env: int, kind: int) -> tuple[int, int]:
    """The most CPUs and GPUs that a task of this kind may be given."""
    cpus, gpus = 0, 0
    for c in range(truth.rate.shape[2]):
        for g in range(truth.rate.shape[3]):
            if truth.rate[env, kind, c, g] > 0:
                cpus, gpus = max(cpus, c), max(gpus, g)
    return cpus, gpus


@compiled
def carry_out(frame: Frame, truth: Truth, env: int, shares: Shares) -> None:
    """Gives every task its share; tasks that change stand aside first, so that there is room whatever the order."""
    for agent in range(frame.partitions[env]):
        node = node_of(frame, env, agent)
        for position in range(shares.size[agent]):
            job = shares.tasks[agent, position]
            if frame.status[env, job] == RUNNING and _changes(frame, env, job, shares):
                core.reallocate(frame, truth, env, job, node, 0, 0)
        for position in range(shares.size[agent]):
            job = shares.tasks[agent, position]
            if frame.status[env, job] == WAITING:
                _take_in(frame, truth, env, job, agent, node, shares)
        for position in range(shares.size[agent]):
            job = shares.tasks[agent, position]
            core.reallocate(frame, truth, env, job, node, shares.amounts[job, 0], shares.amounts[job, 1])


@compiled
def _take_in(frame: Frame, truth: Truth, env: int, job: int, agent: int, node: int, shares: Shares) -> None:
    """Starts a task, also on amounts on which it makes no progress: for that it begins on its least ones."""
    cpus, gpus = shares.amounts[job]
    if core.place(frame, truth, env, job, agent, node, cpus, gpus, 0):
        return
    least = frame.menu[env, frame.kind[env, job], 0]
    if not core.fits(frame, env, job, agent, node, least[0], least[1], 0):
        for position in range(shares.size[agent]):
            other = shares.tasks[agent, position]
            if frame.status[env, other] == RUNNING:
                core.reallocate(frame, truth, env, other, node, 0, 0)
    core.place(frame, truth, env, job, agent, node, least[0], least[1], 0)
    core.reallocate(frame, truth, env, job, node, cpus, gpus)


@compiled
def _changes(frame: Frame, env: int, job: int, shares: Shares) -> bool:
    return frame.amounts[env, job, 0] != shares.amounts[job, 0] or frame.amounts[env, job, 1] != shares.amounts[job, 1]


@compiled
def _taken(shares: Shares, job: int) -> bool:
    for agent in range(len(shares.size)):
        for position in range(shares.size[agent]):
            if shares.tasks[agent, position] == job:
                return True
    return False
