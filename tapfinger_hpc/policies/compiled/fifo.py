"""First come, first served, with requested amounts (``asking``): Slurm's sched/builtin, which never goes out of order.

A job that has to wait keeps every node on which it could start from those behind it; other nodes go on.
"""

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.policies.compiled import asking
from tapfinger_hpc.sim.core import compiled


@compiled
def decide(frame: Frame, env: int, parameters: np.ndarray, out: np.ndarray) -> int:
    """Placements of the jobs in line, oldest first, each where it fits most tightly."""
    free = frame.free[env].copy()
    kept = np.zeros(frame.nodes[env], np.bool_)
    asked = asking.requests(frame, env, parameters[0])
    placed = 0
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        if asked[job] < 0:
            continue
        amounts = frame.menu[env, frame.kind[env, job], asked[job]]
        best, least = -1, np.inf
        for node in range(frame.nodes[env]):
            if not kept[node] and asking.seen_on(frame, env, job, node) >= 0 and asking.holds(free[node], amounts):
                left = asking.slack(frame, env, free, node, amounts)
                if left < least:
                    best, least = node, left
        if best >= 0:
            asking.write(out, placed, job, asking.seen_on(frame, env, job, best), best, amounts)
            free[best] -= amounts
            placed += 1
            continue
        for node in range(frame.nodes[env]):
            if asking.seen_on(frame, env, job, node) >= 0 and asking.holds(frame.capacity[env, node], amounts):
                kept[node] = True
    return placed
