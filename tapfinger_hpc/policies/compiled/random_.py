"""Any task on any feasible amounts: "Random" as the authors' program (nooblyh/TapFinger, utils/benchmark.py) has it.

Round after round every agent draws one task of its window, and then one of the amounts that it may have there, all
alike, "none" being one of them; a task that an agent with a lower number has drawn in this round is out of its reach.
The slot ends with the first round in which nothing was placed. In event time no next slot comes, so there "none" is not
drawn, nor a task that cannot start.
"""

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.policies.compiled import asking, draws
from tapfinger_hpc.sim.core import compiled, open_to

SEED, MOST_CPUS, MOST_GPUS = 0, 1, 2
"""Places in ``parameters``: with a greatest number of CPUs, all amounts from the least of the menu up to these are
drawn from, as in the paper; with 0, those of the menu."""
ANY = -1
"""Tasks are drawn whether they could start or not: so an agent without room keeps what it draws from the others."""


@compiled
def decide(frame: Frame, env: int, parameters: np.ndarray, out: np.ndarray) -> int:
    """Placements in the order of the rounds."""
    state = draws.source(frame, env, parameters[SEED])
    free = frame.free[env].copy()
    choices = 1 if parameters[MOST_CPUS] > 0 else frame.menu.shape[2]
    if frame.slot[env] > 0:
        choices = ANY
    drawn = np.full(frame.kind.shape[1], -1, np.int64)  # -2 once a task was placed in an earlier round
    placed = 0
    while True:
        before = placed  # also the number of the round
        for agent in range(frame.partitions[env]):
            job = draw_from_window(frame, env, agent, drawn, free, choices, state)
            if job < 0 or drawn[job] == before:
                continue
            drawn[job] = before
            if _draw_amounts(frame, env, job, agent, parameters, free, state, out[placed]):
                free[out[placed, 2]] -= out[placed, 3:6]
                placed += 1
        if placed == before:
            return placed
        for row in range(before, placed):
            drawn[out[row, 0]] = -2


@compiled
def draw_from_window(
    frame: Frame, env: int, agent: int, drawn: np.ndarray, free: np.ndarray, choices: int, state: np.ndarray
) -> int:
    """One of the tasks in the agent's window that no earlier round has placed and that could start with one of the
    first so many choices of their menu (``ANY``: or could not); -1 where there is none.
    """
    able = np.zeros(frame.waiting_count[env], np.int64)
    count = 0
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        if not frame.seen[env, job, agent] or drawn[job] == -2:
            continue
        if choices == ANY or _could_start(frame, env, job, agent, free, choices):
            able[count] = job
            count += 1
    return able[draws.below(state, count)] if count else -1


@compiled
def _could_start(frame: Frame, env: int, job: int, agent: int, free: np.ndarray, choices: int) -> bool:
    kind = frame.kind[env, job]
    for node in range(frame.nodes[env]):
        if frame.member[env, agent, node] and open_to(frame, env, kind, node):
            for choice in range(min(choices, frame.choices[env, kind])):
                if asking.holds(free[node], frame.menu[env, kind, choice]):
                    return True
    return False


@compiled
def _draw_amounts(
    frame: Frame,
    env: int,
    job: int,
    agent: int,
    parameters: np.ndarray,
    free: np.ndarray,
    state: np.ndarray,
    row: np.ndarray,
) -> bool:
    """One of the agent's nodes with amounts that are free there into ``row``, or False for "none"."""
    kind = frame.kind[env, job]
    none = 1 if frame.slot[env] > 0 else 0
    options = none
    for node in range(frame.nodes[env]):
        if frame.member[env, agent, node] and open_to(frame, env, kind, node):
            options += _options(frame, env, kind, parameters, free[node])
    left = draws.below(state, options) - none if options else -1
    if left < 0:
        return False
    row[0], row[1] = job, agent
    for node in range(frame.nodes[env]):
        if frame.member[env, agent, node] and open_to(frame, env, kind, node):
            here = _options(frame, env, kind, parameters, free[node])
            if left < here:
                row[2] = node
                _write_option(frame, env, kind, parameters, free[node], left, row)
                return True
            left -= here
    return False


@compiled
def _options(frame: Frame, env: int, kind: int, parameters: np.ndarray, room: np.ndarray) -> int:
    least = frame.menu[env, kind, 0]
    if frame.choices[env, kind] == 0:
        return 0
    if parameters[MOST_CPUS] > 0:
        cpus = min(np.int64(parameters[MOST_CPUS]), room[0]) - least[0] + 1
        gpus = min(np.int64(parameters[MOST_GPUS]), room[1]) - least[1] + 1
        return max(0, cpus) * max(0, gpus) if least[2] <= room[2] else 0
    count = 0
    for choice in range(frame.choices[env, kind]):
        count += asking.holds(room, frame.menu[env, kind, choice])
    return count


@compiled
def _write_option(
    frame: Frame, env: int, kind: int, parameters: np.ndarray, room: np.ndarray, number: int, row: np.ndarray
) -> None:
    """The amounts of this number among those that ``_options`` counts."""
    if parameters[MOST_CPUS] > 0:
        least = frame.menu[env, kind, 0]
        gpus = min(np.int64(parameters[MOST_GPUS]), room[1]) - least[1] + 1
        row[3], row[4], row[5] = least[0] + number // gpus, least[1] + number % gpus, least[2]
        return
    for choice in range(frame.choices[env, kind]):
        if asking.holds(room, frame.menu[env, kind, choice]):
            if number == 0:
                row[3:6] = frame.menu[env, kind, choice]
                return
            number -= 1
