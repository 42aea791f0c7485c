"""What a user would ask for, and where it fits: shared by the baselines that grant fixed requests.

The paper's tasks ask for nothing and a frame holds no request, so one rule stands in for the user, in the simulator as
on a cluster: the fastest amounts that still use the cluster at least 75 % as well as the thriftiest ones do (what the
policy of Australia's National Facility, NCI, calls a reasonable minimum of efficiency), out of those that fit in every
partition that the job names (Slurm's ``EnforcePartLimits=ALL``).
"""

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import compiled, open_to

EFFICIENCY = 0.75
"""Least share-seconds of the menu over those of the request."""


@compiled
def requests(frame: Frame, env: int, efficiency: float) -> np.ndarray:
    """int64 [job] what each waiting job that can be placed now asks for, as a number on its menu; -1: nothing fits."""
    asked = np.full(frame.kind.shape[1], -1, np.int64)
    shares = _share_seconds(frame, env)
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        if in_a_window(frame, env, job):
            asked[job] = _request(frame, env, job, shares, efficiency, True)
            if asked[job] < 0:
                asked[job] = _request(frame, env, job, shares, efficiency, False)
    return asked


@compiled
def in_a_window(frame: Frame, env: int, job: int) -> bool:
    """Whether any agent may take the job now."""
    return bool(frame.seen[env, job, : frame.partitions[env]].any())


@compiled
def holds(room: np.ndarray, amounts: np.ndarray) -> bool:
    """Whether so much room is enough."""
    return amounts[0] <= room[0] and amounts[1] <= room[1] and amounts[2] <= room[2]


@compiled
def seen_on(frame: Frame, env: int, job: int, node: int) -> int:
    """The first partition through which the job may go to the node now; -1 where there is none."""
    if open_to(frame, env, frame.kind[env, job], node):
        for partition in range(frame.partitions[env]):
            if frame.seen[env, job, partition] and frame.member[env, partition, node]:
                return partition
    return -1


@compiled
def slack(frame: Frame, env: int, free: np.ndarray, node: int, amounts: np.ndarray) -> float:
    """Shares of the node that would be left: the least is the tightest fit."""
    left = 0.0
    for resource in range(3):
        if frame.capacity[env, node, resource] > 0:
            left += (free[node, resource] - amounts[resource]) / frame.capacity[env, node, resource]
    return left


@compiled
def write(out: np.ndarray, row: int, job: int, partition: int, node: int, amounts: np.ndarray) -> None:
    """One placement, as ``episodes.place_all`` reads it."""
    out[row, 0], out[row, 1], out[row, 2] = job, partition, node
    for resource in range(3):
        out[row, 3 + resource] = amounts[resource]


@compiled
def _share_seconds(frame: Frame, env: int) -> np.ndarray:
    """float64 [kind, choice] the greatest share of a resource of the cluster, times the time for which it is held."""
    total = np.zeros(3)
    for node in range(frame.nodes[env]):
        if frame.available[env, node]:
            total += frame.capacity[env, node]
    shares = np.full(frame.seconds.shape[1:], np.inf)
    for kind in range(frame.kinds[env]):
        for choice in range(frame.choices[env, kind]):
            greatest = 0.0
            for resource in range(3):
                if total[resource] > 0:
                    greatest = max(greatest, frame.menu[env, kind, choice, resource] / total[resource])
            shares[kind, choice] = greatest * frame.seconds[env, kind, choice]
    return shares


@compiled
def _request(frame: Frame, env: int, job: int, shares: np.ndarray, efficiency: float, everywhere: bool) -> int:
    kind = frame.kind[env, job]
    thriftiest = np.inf
    for choice in range(frame.choices[env, kind]):
        if _could_go(frame, env, job, frame.menu[env, kind, choice], everywhere):
            thriftiest = min(thriftiest, shares[kind, choice])
    best = -1
    for choice in range(frame.choices[env, kind]):
        if not _could_go(frame, env, job, frame.menu[env, kind, choice], everywhere):
            continue
        if shares[kind, choice] * efficiency > thriftiest:
            continue
        if best < 0 or frame.seconds[env, kind, choice] < frame.seconds[env, kind, best]:
            best = choice
    return best


@compiled
def _could_go(frame: Frame, env: int, job: int, amounts: np.ndarray, everywhere: bool) -> bool:
    """Whether each (or at least one) of the job's partitions with nodes for it has one of this size."""
    able = False
    for partition in range(frame.partitions[env]):
        if not frame.reach[env, job, partition]:
            continue
        up, enough = False, False
        for node in range(frame.nodes[env]):
            if frame.member[env, partition, node] and open_to(frame, env, frame.kind[env, job], node):
                up = True
                enough = enough or holds(frame.capacity[env, node], amounts)
        if up and not enough and everywhere:
            return False
        able = able or enough
    return able
