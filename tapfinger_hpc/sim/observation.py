"""What each agent of a slotted scenario sees, as plain arrays for learners from elsewhere, and what it may do.

It is the state of the paper (free amounts, length of the queue, tasks of the window and running ones with their types)
and what the paper leaves out though an agent knows it: capacities, ages, who else may take a task, what fits now.
An action is the place in the window counted from 1 (0: wait), CPUs, GPUs. Our own policies read the frame itself.
"""

from typing import NamedTuple

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import Sizes, Truth, lean, open_to
from tapfinger_hpc.sim.scenarios import Scenario

AGENT_FEATURES = ("free CPUs", "free GPUs", "CPUs", "GPUs", "tasks queued", "tasks in the window", "tasks running")
WINDOW_FEATURES = ("present", "least CPUs", "least GPUs", "most CPUs now", "most GPUs now", "age", "agents that see it")
"""Followed by the type, one-hot. The most that fits now is 0 where nothing does: then the task is masked."""
RUNNING_FEATURES = ("CPUs", "GPUs", "slots run")
"""Followed by the type, one-hot. One row for each running task, in the order of their starts."""


class Observation(NamedTuple):
    """B environments, P agents, W places of the window, R rows of running tasks, C and G greatest amounts + 1."""

    agent: np.ndarray  # float32 [B, P, len(AGENT_FEATURES)]
    window: np.ndarray  # float32 [B, P, W, len(WINDOW_FEATURES) + K]
    running: np.ndarray  # float32 [B, P, R, len(RUNNING_FEATURES) + K]
    place_mask: np.ndarray  # int8 [B, P, 1 + W] 1 where the agent may wait, or take the task at this place
    cpus_mask: np.ndarray  # int8 [B, P, C] 1 where some task that it may take may have so many
    gpus_mask: np.ndarray  # int8 [B, P, G]


def most_running(scenario: Scenario) -> int:
    """Tasks that one agent of the scenario can run at the same time."""
    least = np.min([kind.minimum for kind in scenario.types], axis=0)
    return int((np.array(scenario.capacities) // np.maximum(least, 1)).min(axis=1).max())


def empty(batch: int, sizes: Sizes, rows: int) -> Observation:
    """Arrays to write into.

    Args:
        rows: room for running tasks; see ``most_running``.
    """
    agents = (batch, sizes.agents)
    return Observation(
        agent=np.zeros((*agents, len(AGENT_FEATURES)), np.float32),
        window=np.zeros((*agents, sizes.places, len(WINDOW_FEATURES) + sizes.kinds), np.float32),
        running=np.zeros((*agents, rows, len(RUNNING_FEATURES) + sizes.kinds), np.float32),
        place_mask=np.zeros((*agents, 1 + sizes.places), np.int8),
        cpus_mask=np.zeros((*agents, sizes.cpus + 1), np.int8),
        gpus_mask=np.zeros((*agents, sizes.gpus + 1), np.int8),
    )


@lean
def observe_all(frame: Frame, truth: Truth, out: Observation) -> None:
    """Writes what the agents of every environment see."""
    for env in range(len(frame.now)):
        observe(frame, truth, env, out)


@lean
def observe(frame: Frame, truth: Truth, env: int, out: Observation) -> None:
    """Writes what the agents of one environment see; zeros for agents that it lacks. They are each on one node."""
    out.agent[env] = 0.0
    out.window[env] = 0.0
    out.running[env] = 0.0
    out.place_mask[env] = 0
    out.cpus_mask[env] = 0
    out.gpus_mask[env] = 0
    for agent in range(frame.partitions[env]):
        _observe_agent(frame, truth, env, agent, out)
        may = False
        for place in range(truth.places[env]):
            job = truth.window[env, agent, place]
            if job >= 0:
                may |= _observe_task(frame, truth, env, agent, place, job, out)
        if not may:  # it can but wait, and has to name some amounts nevertheless
            out.cpus_mask[env, agent, 0] = 1
            out.gpus_mask[env, agent, 0] = 1
    _observe_running(frame, env, out)


@lean
def _observe_agent(frame: Frame, truth: Truth, env: int, agent: int, out: Observation) -> None:
    node = _node(frame, env, agent)
    out.agent[env, agent, 0] = frame.free[env, node, 0]
    out.agent[env, agent, 1] = frame.free[env, node, 1]
    out.agent[env, agent, 2] = frame.capacity[env, node, 0]
    out.agent[env, agent, 3] = frame.capacity[env, node, 1]
    out.agent[env, agent, 4] = truth.queued[env, agent]
    out.agent[env, agent, 5] = truth.windowed[env, agent]
    out.agent[env, agent, 6] = truth.held[env, agent]
    out.place_mask[env, agent, 0] = 1


@lean
def _observe_task(frame: Frame, truth: Truth, env: int, agent: int, place: int, job: int, out: Observation) -> bool:
    """Whether the agent may take it now."""
    node, kind = _node(frame, env, agent), frame.kind[env, job]
    least_cpus, least_gpus = truth.minimum[env, kind, 0], truth.minimum[env, kind, 1]
    out.window[env, agent, place, 0] = 1.0
    out.window[env, agent, place, 1] = least_cpus
    out.window[env, agent, place, 2] = least_gpus
    out.window[env, agent, place, 5] = frame.now[env] - frame.arrival[env, job]
    sees = 0
    for other in range(frame.partitions[env]):
        sees += frame.seen[env, job, other]
    out.window[env, agent, place, 6] = sees
    out.window[env, agent, place, len(WINDOW_FEATURES) + kind] = 1.0
    if not something_fits(frame, env, node, kind):
        return False
    most_cpus = min(frame.free[env, node, 0], truth.rate.shape[2] - 1)
    most_gpus = min(frame.free[env, node, 1], truth.rate.shape[3] - 1)
    out.window[env, agent, place, 3] = most_cpus
    out.window[env, agent, place, 4] = most_gpus
    out.place_mask[env, agent, 1 + place] = 1
    out.cpus_mask[env, agent, least_cpus : most_cpus + 1] = 1
    out.gpus_mask[env, agent, least_gpus : most_gpus + 1] = 1
    return True


@lean
def something_fits(frame: Frame, env: int, node: int, kind: int) -> bool:
    """Of any amounts that fit, no greater ones are on the menu."""
    if not open_to(frame, env, kind, node):
        return False
    for choice in range(frame.choices[env, kind]):
        cpus, gpus = frame.menu[env, kind, choice, 0], frame.menu[env, kind, choice, 1]
        if cpus <= frame.free[env, node, 0] and gpus <= frame.free[env, node, 1]:
            return True
    return False


@lean
def _observe_running(frame: Frame, env: int, out: Observation) -> None:
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        agent = frame.partition[env, job]
        row = 0
        while row < out.running.shape[2] and out.running[env, agent, row, 0] > 0:
            row += 1
        if row == out.running.shape[2]:
            continue
        out.running[env, agent, row, 0] = frame.amounts[env, job, 0]
        out.running[env, agent, row, 1] = frame.amounts[env, job, 1]
        out.running[env, agent, row, 2] = frame.now[env] - frame.start[env, job]
        out.running[env, agent, row, len(RUNNING_FEATURES) + frame.kind[env, job]] = 1.0


@lean
def _node(frame: Frame, env: int, agent: int) -> int:
    """The agent's first node: in slotted scenarios it has no other."""
    node = 0
    while not frame.member[env, agent, node]:
        node += 1
    return node
