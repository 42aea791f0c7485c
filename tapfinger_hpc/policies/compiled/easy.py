"""EASY backfill (Lifka, JSSPP'95; Mu'alem and Feitelson, TPDS 2001) with requested amounts (``asking``).

Oldest first. The first job that has to wait for a node reserves it from the time at which enough is expected to be
free; a job behind it may start there if it is expected to end by then, or if it leaves enough for the reservation.
"""

from typing import NamedTuple

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.policies.compiled import asking
from tapfinger_hpc.sim.core import compiled


class Plan(NamedTuple):
    """What has been decided so far."""

    free: np.ndarray  # int64 [node, 3]
    reserved_from: np.ndarray  # float64 [node] infinite where no job has reserved the node
    spare: np.ndarray  # int64 [node, 3] what the reservation leaves, from its start on
    out: np.ndarray  # int64 [placement, 6]
    lasts: np.ndarray  # float64 [placement]


@compiled
def decide(frame: Frame, env: int, parameters: np.ndarray, out: np.ndarray) -> int:
    """Placements of the jobs in line and of those that may go ahead, each where it fits most tightly."""
    nodes = frame.nodes[env]
    spare = np.zeros((nodes, 3), np.int64)
    plan = Plan(frame.free[env].copy(), np.full(nodes, np.inf), spare, out, np.zeros(out.shape[0]))
    asked = asking.requests(frame, env, parameters[0])
    placed = 0
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        if asked[job] < 0:
            continue
        kind = frame.kind[env, job]
        amounts, seconds = frame.menu[env, kind, asked[job]], frame.seconds[env, kind, asked[job]]
        node = _tightest(frame, env, job, amounts, seconds, plan)
        if node < 0:
            _reserve(frame, env, job, amounts, plan, placed)
            continue
        if frame.now[env] + seconds > plan.reserved_from[node]:
            plan.spare[node] -= amounts
        plan.free[node] -= amounts
        plan.lasts[placed] = seconds
        asking.write(out, placed, job, asking.seen_on(frame, env, job, node), node, amounts)
        placed += 1
    return placed


@compiled
def _tightest(frame: Frame, env: int, job: int, amounts: np.ndarray, seconds: float, plan: Plan) -> int:
    """The node that the job fills most of those on which it may start now; -1 where there is none."""
    best, least = -1, np.inf
    for node in range(frame.nodes[env]):
        if asking.seen_on(frame, env, job, node) < 0 or not asking.holds(plan.free[node], amounts):
            continue
        delays = frame.now[env] + seconds > plan.reserved_from[node] and not asking.holds(plan.spare[node], amounts)
        left = asking.slack(frame, env, plan.free, node, amounts)
        if not delays and left < least:
            best, least = node, left
    return best


@compiled
def _reserve(frame: Frame, env: int, job: int, amounts: np.ndarray, plan: Plan, placed: int) -> None:
    """Reserves the node on which the job can start first, unless an older job has reserved that one."""
    best, earliest = -1, np.inf
    room, left = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for node in range(frame.nodes[env]):
        if asking.seen_on(frame, env, job, node) >= 0 and asking.holds(frame.capacity[env, node], amounts):
            start = _start(frame, env, node, amounts, plan, placed, room)
            if start < earliest:
                best, earliest = node, start
                left[:] = room - amounts
    if best >= 0 and plan.reserved_from[best] == np.inf:
        plan.reserved_from[best] = earliest
        plan.spare[best] = left


@compiled
def _start(frame: Frame, env: int, node: int, amounts: np.ndarray, plan: Plan, placed: int, room: np.ndarray) -> float:
    """When so much is expected to be free on the node; ``room`` becomes all that is free there then."""
    moment = frame.now[env]
    room[:] = plan.free[node]
    while not asking.holds(room, amounts):
        following = np.inf
        for position in range(frame.running_count[env]):
            job = frame.running[env, position]
            if frame.node[env, job] == node and _end(frame, env, job) > moment:
                following = min(following, _end(frame, env, job))
        for row in range(placed):
            end = frame.now[env] + plan.lasts[row]
            if plan.out[row, 2] == node and end > moment:
                following = min(following, end)
        if following == np.inf:
            return np.inf
        for position in range(frame.running_count[env]):
            job = frame.running[env, position]
            if frame.node[env, job] == node and _end(frame, env, job) == following:
                room += frame.amounts[env, job]
        for row in range(placed):
            if plan.out[row, 2] == node and frame.now[env] + plan.lasts[row] == following:
                room += plan.out[row, 3:6]
        moment = following
    return moment


@compiled
def _end(frame: Frame, env: int, job: int) -> float:
    """A job that is overdue is expected to end at any moment."""
    return max(frame.expected_end[env, job], np.nextafter(frame.now[env], np.inf))
