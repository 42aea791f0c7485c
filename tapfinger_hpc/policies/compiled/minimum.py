"""Any task, on its least amounts: "Min" as the authors' program (nooblyh/TapFinger, utils/benchmark.py) has it.

Round after round every agent draws one task of its window for which the least amounts of its menu are free, and places
it on these; a task that an agent with a lower number has placed in this round is out of its reach. The slot ends with
the first round in which nothing was placed.
"""

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.policies.compiled import asking, draws
from tapfinger_hpc.policies.compiled.random_ import draw_from_window
from tapfinger_hpc.sim.core import compiled, open_to


@compiled
def decide(frame: Frame, env: int, parameters: np.ndarray, out: np.ndarray) -> int:
    """Placements in the order of the rounds. ``parameters`` holds the seed."""
    state = draws.source(frame, env, parameters[0])
    free = frame.free[env].copy()
    drawn = np.full(frame.kind.shape[1], -1, np.int64)  # -2 once a task was placed in an earlier round
    placed = 0
    while True:
        before = placed  # also the number of the round
        for agent in range(frame.partitions[env]):
            job = draw_from_window(frame, env, agent, drawn, free, 1, state)
            if job < 0 or drawn[job] == before:
                continue
            node = _tightest(frame, env, job, agent, free)
            amounts = frame.menu[env, frame.kind[env, job], 0]
            asking.write(out, placed, job, agent, node, amounts)
            free[node] -= amounts
            drawn[job] = before
            placed += 1
        if placed == before:
            return placed
        for row in range(before, placed):
            drawn[out[row, 0]] = -2


@compiled
def _tightest(frame: Frame, env: int, job: int, agent: int, free: np.ndarray) -> int:
    """The agent's node that the least amounts fill most; there is one on which they are free."""
    kind = frame.kind[env, job]
    amounts = frame.menu[env, kind, 0]
    best, least = -1, np.inf
    for node in range(frame.nodes[env]):
        if frame.member[env, agent, node] and open_to(frame, env, kind, node) and asking.holds(free[node], amounts):
            left = asking.slack(frame, env, free, node, amounts)
            if left < least:
                best, least = node, left
    return best
