"""What features are made of: scales, demand, and the least cost of each kind of job on each node, now and later.

Compiled; every function works on one environment of a frame and writes into scratch arrays that the caller keeps.
A choice of amounts costs seconds * (1 + level * crowd * share of the node held), at several price levels: with so many
jobs for each node, one that holds a share x of it for a second delays them by some x seconds in all; level 1 is about
the price at which its gain and the others' loss balance, level 0 the job's own time alone.
"""

from typing import NamedTuple

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import lean, open_to

PRICE_LEVELS = (0.0, 0.3, 1.0, 3.0)
LEVELS = len(PRICE_LEVELS)
_PRICES = np.array(PRICE_LEVELS)
CROWD_OF_RUNNING, CROWD_OF_NODE = 0.5, 0.2
"""A running job and an idle node count as so many waiting jobs: where many run, more will come."""
RELEASES_AHEAD = 6
"""How many of the next ends on a node are looked at when waiting is weighed against starting now."""
HORIZONS = (0.5, 1.0, 2.0, 4.0)
"""In time scales: when a node's expected free amounts are looked at."""
FAR = 6.0
"""Greatest logarithm of a ratio of costs; where nothing fits the ratio counts as so much."""


class Measures(NamedTuple):
    """Scratch arrays for one environment."""

    of: np.ndarray  # int64 [1] the environment that they are of, as long as it stays as it was; -1 of none
    scale: np.ndarray  # float64 [1] geometric mean of the least seconds of the jobs in the system
    total: np.ndarray  # float64 [3] capacity of available nodes
    demand: np.ndarray  # float64 [3] work in the system over total * scale, on each job's thriftiest amounts
    scarcity: np.ndarray  # float64 [3] demand over the greatest of them
    marked: np.ndarray  # int64 [M] scratch: position of the last waiting job that may use the node
    wanted: np.ndarray  # bool [M, K] whether a waiting job of the kind may use the node
    queue: np.ndarray  # float64 [M] waiting jobs for the node; a job counts once over all nodes that it can use
    held_by: np.ndarray  # int64 [M] jobs that run on the node
    releases: np.ndarray  # int64 [M, RELEASES_AHEAD] job that ends next, second, ...; -1 beyond
    seconds: np.ndarray  # float64 [K, O] log seconds
    best: np.ndarray  # float64 [K] log of the least seconds
    thrifty: np.ndarray  # int64 [K] choice of least seconds * share of the cluster
    # Of kinds on nodes where they are wanted; elsewhere the least costs are infinite.
    cost: np.ndarray  # float64 [M, K, O, LEVELS] log cost
    now: np.ndarray  # float64 [M, K, LEVELS] log of the least cost of what fits now
    later: np.ndarray  # float64 [M, K, LEVELS] the same with waiting for one of the next releases
    ideal: np.ndarray  # float64 [M, K, LEVELS] the same on the empty node


def allocate(frame: Frame) -> Measures:
    """Scratch arrays for environments of this frame."""
    nodes, kinds, choices = frame.capacity.shape[1], frame.menu.shape[1], frame.menu.shape[2]
    return Measures(
        of=np.full(1, -1, np.int64),
        scale=np.ones(1),
        total=np.zeros(3),
        demand=np.zeros(3),
        scarcity=np.ones(3),
        marked=np.zeros(nodes, np.int64),
        wanted=np.zeros((nodes, kinds), np.bool_),
        queue=np.zeros(nodes),
        held_by=np.zeros(nodes, np.int64),
        releases=np.full((nodes, RELEASES_AHEAD), -1, np.int64),
        seconds=np.zeros((kinds, choices)),
        best=np.zeros(kinds),
        thrifty=np.zeros(kinds, np.int64),
        cost=np.zeros((nodes, kinds, choices, LEVELS)),
        now=np.zeros((nodes, kinds, LEVELS)),
        later=np.zeros((nodes, kinds, LEVELS)),
        ideal=np.zeros((nodes, kinds, LEVELS)),
    )


@lean
def measure(frame: Frame, env: int, into: Measures) -> None:
    """Works out all measures of an environment."""
    _find_totals(frame, env, into)
    _find_kinds(frame, env, into)
    _find_demand(frame, env, into)
    _find_releases(frame, env, into)
    for node in range(frame.nodes[env]):
        _find_costs(frame, env, into, node)
    into.of[0] = env


@lean
def keep(frame: Frame, env: int, into: Measures) -> None:
    """Works them out where they are not known. Who changes a frame after that says ``forget``."""
    if into.of[0] != env:
        measure(frame, env, into)


@lean
def forget(into: Measures) -> None:
    """The environment is not what it was."""
    into.of[0] = -1


@lean
def choice_fits(frame: Frame, env: int, kind: int, choice: int, node: int) -> bool:
    """Whether such a job may have the amounts on the node now."""
    return (
        open_to(frame, env, kind, node)
        and frame.menu[env, kind, choice, 0] <= frame.free[env, node, 0]
        and frame.menu[env, kind, choice, 1] <= frame.free[env, node, 1]
        and frame.menu[env, kind, choice, 2] <= frame.free[env, node, 2]
    )


@lean
def within(frame: Frame, env: int, kind: int, choice: int, node: int) -> bool:
    """Whether such a job may have the amounts on the node when it is empty."""
    return (
        open_to(frame, env, kind, node)
        and frame.menu[env, kind, choice, 0] <= frame.capacity[env, node, 0]
        and frame.menu[env, kind, choice, 1] <= frame.capacity[env, node, 1]
        and frame.menu[env, kind, choice, 2] <= frame.capacity[env, node, 2]
    )


@lean
def ratio(amount: float, of: float) -> float:
    """A share; 0 where there is nothing to share."""
    return amount / of if of > 0 else 0.0


@lean
def bounded(value: float) -> float:
    """A logarithm of a ratio, kept from infinity."""
    return min(FAR, max(-FAR, value))


@lean
def _find_totals(frame: Frame, env: int, into: Measures) -> None:
    into.total[:] = 0.0
    into.held_by[:] = 0
    for node in range(frame.nodes[env]):
        if frame.available[env, node]:
            for resource in range(3):
                into.total[resource] += frame.capacity[env, node, resource]
    for position in range(frame.running_count[env]):
        node = frame.node[env, frame.running[env, position]]
        if node >= 0:
            into.held_by[node] += 1


@lean
def _find_kinds(frame: Frame, env: int, into: Measures) -> None:
    for kind in range(frame.kinds[env]):
        least, thriftiest = np.inf, np.inf
        into.thrifty[kind] = 0
        for choice in range(frame.choices[env, kind]):
            seconds = frame.seconds[env, kind, choice]
            into.seconds[kind, choice] = np.log(seconds)
            least = min(least, seconds)
            area = 0.0
            for resource in range(3):
                area += ratio(frame.menu[env, kind, choice, resource], into.total[resource])
            if seconds * area < thriftiest:
                thriftiest = seconds * area
                into.thrifty[kind] = choice
        into.best[kind] = np.log(max(least, 1e-9))


@lean
def _find_demand(frame: Frame, env: int, into: Measures) -> None:
    log_scale, count = 0.0, 0
    into.queue[:] = 0.0
    into.demand[:] = 0.0
    into.wanted[:] = False
    into.marked[:] = -1
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        kind = frame.kind[env, job]
        log_scale += into.best[kind]
        count += 1
        choice = into.thrifty[kind]
        for resource in range(3):
            into.demand[resource] += frame.menu[env, kind, choice, resource] * frame.seconds[env, kind, choice]
        nodes = 0
        for partition in range(frame.partitions[env]):
            if frame.reach[env, job, partition]:
                for node in range(frame.nodes[env]):
                    if (
                        frame.member[env, partition, node]
                        and into.marked[node] != position
                        and open_to(frame, env, kind, node)
                    ):
                        into.marked[node] = position
                        into.wanted[node, kind] = True
                        nodes += 1
        for node in range(frame.nodes[env]):
            if into.marked[node] == position:
                into.queue[node] += 1.0 / nodes
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        kind = frame.kind[env, job]
        if kind >= 0:
            log_scale += into.best[kind]
            count += 1
        left = max(0.0, frame.expected_end[env, job] - frame.now[env])
        if left < np.inf:
            for resource in range(3):
                into.demand[resource] += frame.amounts[env, job, resource] * left
    if count == 0:
        for kind in range(frame.kinds[env]):
            log_scale += into.best[kind]
        count = max(1, frame.kinds[env])
    into.scale[0] = np.exp(log_scale / count)
    greatest = 0.0
    for resource in range(3):
        into.demand[resource] = ratio(into.demand[resource], into.total[resource] * into.scale[0])
        greatest = max(greatest, into.demand[resource])
    for resource in range(3):
        into.scarcity[resource] = into.demand[resource] / greatest if greatest > 0 else 1.0


@lean
def _find_releases(frame: Frame, env: int, into: Measures) -> None:
    """The next ends on every node, by insertion."""
    into.releases[:] = -1
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        node = frame.node[env, job]
        if node < 0:
            continue
        place = RELEASES_AHEAD
        while place > 0:
            other = into.releases[node, place - 1]
            if other >= 0 and frame.expected_end[env, other] <= frame.expected_end[env, job]:
                break
            place -= 1
        if place < RELEASES_AHEAD:
            for later in range(RELEASES_AHEAD - 1, place, -1):
                into.releases[node, later] = into.releases[node, later - 1]
            into.releases[node, place] = job


@lean
def _find_costs(frame: Frame, env: int, into: Measures, node: int) -> None:
    crowd = into.queue[node] + CROWD_OF_RUNNING * into.held_by[node] + CROWD_OF_NODE
    for kind in range(frame.kinds[env]):
        for level in range(LEVELS):
            into.now[node, kind, level] = np.inf
            into.later[node, kind, level] = np.inf
            into.ideal[node, kind, level] = np.inf
        if not into.wanted[node, kind]:
            continue
        for choice in range(frame.choices[env, kind]):
            weighted, largest = 0.0, 0.0
            for resource in range(3):
                share = ratio(frame.menu[env, kind, choice, resource], frame.capacity[env, node, resource])
                weighted += into.scarcity[resource] * share
                largest = max(largest, share)
            held = (weighted + largest) / 2
            could = within(frame, env, kind, choice, node)
            fits = could and choice_fits(frame, env, kind, choice, node)
            for level in range(LEVELS):
                price = _PRICES[level] * crowd * held
                cost = into.seconds[kind, choice] + (np.log1p(price) if price > 0.0 else 0.0)
                into.cost[node, kind, choice, level] = cost
                if could:
                    into.ideal[node, kind, level] = min(into.ideal[node, kind, level], cost)
                if fits:
                    into.now[node, kind, level] = min(into.now[node, kind, level], cost)
    if not frame.available[env, node]:
        return
    cpus, gpus, mem_mb = frame.free[env, node, 0], frame.free[env, node, 1], frame.free[env, node, 2]
    for place in range(RELEASES_AHEAD):
        job = into.releases[node, place]
        if job < 0:
            break
        cpus += frame.amounts[env, job, 0]
        gpus += frame.amounts[env, job, 1]
        mem_mb += frame.amounts[env, job, 2]
        if place + 1 < RELEASES_AHEAD:
            following = into.releases[node, place + 1]
            if following >= 0 and frame.expected_end[env, following] <= frame.expected_end[env, job]:
                continue
        wait = max(0.0, frame.expected_end[env, job] - frame.now[env])
        for kind in range(frame.kinds[env]):
            if not into.wanted[node, kind]:
                continue
            for level in range(LEVELS):
                least = np.inf
                for choice in range(frame.choices[env, kind]):
                    if (
                        frame.menu[env, kind, choice, 0] <= cpus
                        and frame.menu[env, kind, choice, 1] <= gpus
                        and frame.menu[env, kind, choice, 2] <= mem_mb
                    ):
                        least = min(least, into.cost[node, kind, choice, level])
                if least < np.inf:
                    later = np.log(wait + np.exp(least))
                    into.later[node, kind, level] = min(into.later[node, kind, level], later)
