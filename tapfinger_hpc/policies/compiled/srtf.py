"""Shortest expected time first (Schrage, Operations Research 1968), each job on the fastest amounts that fit now.

Jobs are never interrupted here, so what remains of a waiting job is all of it. Time and again the job that would be
done soonest is placed; of amounts that are as fast the thriftiest count, of nodes the one that they fill most.
"""

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.policies.compiled import asking
from tapfinger_hpc.sim.core import compiled


@compiled
def decide(frame: Frame, env: int, parameters: np.ndarray, out: np.ndarray) -> int:
    """Placements in order of expected time, older jobs first among equals."""
    free = frame.free[env].copy()
    fastest = np.full((frame.kinds[env], frame.nodes[env]), -1, np.int64)
    for node in range(frame.nodes[env]):
        _fastest(frame, env, free, node, fastest)
    done = np.zeros(frame.waiting_count[env], np.bool_)
    placed = 0
    while True:
        best, best_node, shortest, least = -1, -1, np.inf, np.inf
        for position in range(frame.waiting_count[env]):
            if done[position]:
                continue
            job = frame.waiting[env, position]
            kind = frame.kind[env, job]
            for node in range(frame.nodes[env]):
                choice = fastest[kind, node]
                if choice < 0 or frame.seconds[env, kind, choice] > shortest:
                    continue
                if asking.seen_on(frame, env, job, node) < 0:
                    continue
                seconds = frame.seconds[env, kind, choice]
                left = asking.slack(frame, env, free, node, frame.menu[env, kind, choice])
                if seconds < shortest or (best == position and left < least):
                    best, best_node, shortest, least = position, node, seconds, left
        if best < 0:
            return placed
        job = frame.waiting[env, best]
        amounts = frame.menu[env, frame.kind[env, job], fastest[frame.kind[env, job], best_node]]
        asking.write(out, placed, job, asking.seen_on(frame, env, job, best_node), best_node, amounts)
        free[best_node] -= amounts
        _fastest(frame, env, free, best_node, fastest)
        done[best] = True
        placed += 1


@compiled
def _fastest(frame: Frame, env: int, free: np.ndarray, node: int, fastest: np.ndarray) -> None:
    """For each kind, the number on its menu of the fastest amounts that are free on the node; -1: none."""
    for kind in range(frame.kinds[env]):
        fastest[kind, node] = -1
        shortest = np.inf
        for choice in range(frame.choices[env, kind]):  # in ascending order, so that the thriftiest comes first
            if frame.seconds[env, kind, choice] < shortest and asking.holds(free[node], frame.menu[env, kind, choice]):
                shortest = frame.seconds[env, kind, choice]
                fastest[kind, node] = choice
