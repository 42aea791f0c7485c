"""Tetris: packing in several resources that leans to short jobs (Grandl et al., SIGCOMM'14), with requested amounts.

Of all jobs and nodes that go together now, the pair with the highest score comes first: the alignment of what the job
asks for (``asking``) with what the node has free (dot product of shares of the node), less epsilon times its work,
where epsilon makes the means of both weigh alike. Their knob for fairness is left at none.
"""

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.policies.compiled import asking
from tapfinger_hpc.sim.core import compiled


@compiled
def decide(frame: Frame, env: int, parameters: np.ndarray, out: np.ndarray) -> int:
    """Placements in order of their score, older jobs first among equals."""
    free = frame.free[env].copy()
    asked = asking.requests(frame, env, parameters[0])
    work = _work(frame, env, asked)
    epsilon = _epsilon(frame, env, asked, work, free)
    placed = 0
    while True:
        best, best_node, highest = -1, -1, -np.inf
        for position in range(frame.waiting_count[env]):
            job = frame.waiting[env, position]
            if asked[job] < 0:
                continue
            amounts = frame.menu[env, frame.kind[env, job], asked[job]]
            for node in range(frame.nodes[env]):
                if asking.holds(free[node], amounts) and asking.seen_on(frame, env, job, node) >= 0:
                    score = _alignment(frame, env, node, free, amounts) - epsilon * work[job]
                    if score > highest:
                        best, best_node, highest = job, node, score
        if best < 0:
            return placed
        amounts = frame.menu[env, frame.kind[env, best], asked[best]]
        asking.write(out, placed, best, asking.seen_on(frame, env, best, best_node), best_node, amounts)
        free[best_node] -= amounts
        asked[best] = -1
        placed += 1


@compiled
def _alignment(frame: Frame, env: int, node: int, free: np.ndarray, amounts: np.ndarray) -> float:
    total = 0.0
    for resource in range(3):
        capacity = frame.capacity[env, node, resource]
        if capacity > 0:
            total += amounts[resource] / capacity * (free[node, resource] / capacity)
    return total


@compiled
def _work(frame: Frame, env: int, asked: np.ndarray) -> np.ndarray:
    """float64 [job] expected time of each job that asks for something, times its shares of the cluster."""
    total = np.zeros(3)
    for node in range(frame.nodes[env]):
        if frame.available[env, node]:
            total += frame.capacity[env, node]
    work = np.zeros(len(asked))
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        if asked[job] < 0:
            continue
        kind = frame.kind[env, job]
        for resource in range(3):
            if total[resource] > 0:
                share = frame.menu[env, kind, asked[job], resource] / total[resource]
                work[job] += share * frame.seconds[env, kind, asked[job]]
    return work


@compiled
def _epsilon(frame: Frame, env: int, asked: np.ndarray, work: np.ndarray, free: np.ndarray) -> float:
    """Mean alignment of the pairs that go together now, over the mean work of the jobs."""
    alignment, pairs, done, jobs = 0.0, 0, 0.0, 0
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        if asked[job] < 0:
            continue
        done += work[job]
        jobs += 1
        amounts = frame.menu[env, frame.kind[env, job], asked[job]]
        for node in range(frame.nodes[env]):
            if asking.holds(free[node], amounts) and asking.seen_on(frame, env, job, node) >= 0:
                alignment += _alignment(frame, env, node, free, amounts)
                pairs += 1
    if pairs == 0 or done == 0.0:
        return 0.0
    return (alignment / pairs) / (done / jobs)
