"""The price heuristic, compiled: every waiting job takes the start, node and amounts that cost least in all.

With B jobs wanting a node, a job that holds a share x of it for T seconds delays each of them by about x T: so amounts
cost T (1 + pressure x), and starting later costs the waiting. Jobs are settled one after the other, cheapest, oldest
and least movable first, against a calendar of expected releases; one that had better wait keeps its place in it.
"""

from typing import NamedTuple

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import compiled, lean, open_to


class Prices(NamedTuple):
    """The constants of the heuristic; these, found over random scenarios, serve any cluster."""

    base: float = 0.106
    """Pressure on a node that is idle and for which nothing waits."""
    backlog: float = 1.311
    """Pressure of one waiting job per node; a job that can use n nodes counts 1/n on each."""
    load: float = 0.113
    """Pressure of one running job per node: where many run, more will come before this one ends."""
    local: float = 0.404
    """How much of both is the node's own; the rest is the mean over all nodes that the job can use."""
    cpu: float = 1.253
    mem: float = 0.5
    """Weight of a share of a node's CPUs and memory, where a share of its GPUs weighs 1."""
    adapt: float = 1.957
    """How much more a resource weighs the more of it is held and wanted in the cluster: its share to this power."""
    scarcest: float = 0.409
    """How much of a job's share is that of its scarcest resource alone; the rest is the weighted sum."""
    size: float = 0.243
    """1: a share is one of the node's own capacity; 0: of the mean node's. Between: a weighted geometric mean."""
    age: float = 0.955
    """How fast a waiting job moves ahead: its cost is divided by 1 + age x (time waited / cost)."""
    reach: float = 3.963
    """How far a job moves ahead that can use only one node; 1/n of it with n nodes."""
    length: float = 1.4
    """Power of its cost by which a job is served later: 0 serves by age and reach alone."""
    patience: float = 2.022
    """What a second of waiting for running jobs to end is thought to cost."""
    margin: float = 0.015
    """Share of its cost by which waiting must be cheaper."""
    packing: float = 0.091
    """How far nodes that are left full are preferred."""
    reserve: float = 0.77
    """Share of its amounts that a job that had better wait keeps others from."""
    keepers: float = 47.221
    """How many jobs may keep others from room, for which they wait; those after them take what is left."""
    room: float = 0.489
    """What it costs to leave a newcomer of a kind that is about with less: by how much later it would end there."""
    later: float = 0.613
    """What newcomers count that come a little later."""
    soon: float = 1.754
    """How much later: in usual times of a job."""
    idle: float = 0.208
    """What the share that a job waits for costs while it waits, where holding it costs 1: it may lie idle."""
    retries: float = 2.565
    """How many times more the plan is made, each time with the job first that paid most above its ideal; the cheapest
    plan counts."""

    ease: float = 0.153
    """How fast ``reach`` and ``reserve`` lose weight where many wait: each is divided by 1 + ease x (jobs per node)."""
    crowd: float = 0.33
    """How fast ``room`` gains weight there: it is multiplied by 1 + crowd x (jobs per node)."""
    reveal: float = 0.0
    """How far a job moves ahead for each agent that sees it and has others behind its window: starting it shows the
    agent the first of these."""

    def array(self) -> np.ndarray:
        """As ``decide`` reads them."""
        return np.array(self, dtype=np.float64)


def _at(name: str) -> int:
    return Prices._fields.index(name)


BASE, BACKLOG, LOAD, LOCAL = _at("base"), _at("backlog"), _at("load"), _at("local")
CPU, MEM, ADAPT, SCARCEST, SIZE = _at("cpu"), _at("mem"), _at("adapt"), _at("scarcest"), _at("size")
AGE, REACH, LENGTH = _at("age"), _at("reach"), _at("length")
PATIENCE, MARGIN, PACKING, RESERVE, ROOM = (_at(n) for n in ("patience", "margin", "packing", "reserve", "room"))
KEEPERS = _at("keepers")
EASE, CROWD, REVEAL = _at("ease"), _at("crowd"), _at("reveal")
LATER, SOON, IDLE, RETRIES = _at("later"), _at("soon"), _at("idle"), _at("retries")

DEFAULT = Prices().array()
MOMENTS = 2
"""When newcomers are thought of: in the next slot, and a little later."""
KINDS = 6
"""Kinds of which newcomers are thought of: the commonest among the jobs present."""


class Calendar(NamedTuple):
    """When amounts are expected to come free on each node: linked lists of changes, in order of time from now."""

    first: np.ndarray  # int64 [node] -1 where nothing changes
    next: np.ndarray  # int64 [change]
    time: np.ndarray  # float64 [change]
    change: np.ndarray  # int64 [change, 3]
    kept: np.ndarray  # int64 [node] how many jobs keep room on it
    used: np.ndarray  # int64 [1]


class Layout(NamedTuple):
    """What becomes of every waiting job that some node could run: a row each, first of those that start now, in the
    order in which they were settled; then of those that wait. Job -1 in rows that are not used.
    """

    rows: np.ndarray  # int64 [row, 6] job, partition, node, CPUs, GPUs, MiB; node -1 where it cannot be foreseen
    start: np.ndarray  # float64 [row] from now; infinite where it cannot be foreseen
    lasts: np.ndarray  # float64 [row]
    cost: np.ndarray  # float64 [row]
    others: np.ndarray  # int64 [row, other, 6] the cheapest of what it could have now, what it gets among them
    other_cost: np.ndarray  # float64 [row, other] infinite beyond the last
    waiting: np.ndarray  # float64 [row] least cost of starting later, infinite where there is none (or others are not
    # asked for)


class Market(NamedTuple):
    """What is worked out once for all jobs of a decision."""

    share: np.ndarray  # float64 [node, 3] what a unit of each resource weighs there, as a share
    members: np.ndarray  # int64 [partition, node] its nodes
    size: np.ndarray  # int64 [partition]
    queue: np.ndarray  # float64 [node] waiting jobs per node
    running: np.ndarray  # float64 [node]
    common: np.ndarray  # int64 [KINDS] commonest kinds
    often: np.ndarray  # float64 [KINDS] their shares of the jobs present
    usual: np.ndarray  # float64 [1] shortest time of a job, mean over those kinds
    newcomer: np.ndarray  # float64 [MOMENTS, KINDS, node] how long after its arrival one would end there
    begins: np.ndarray  # float64 [MOMENTS, KINDS, node] when it would start
    spare: np.ndarray  # int64 [MOMENTS, KINDS, node, 3] what would be free beside it


@compiled
def decide(frame: Frame, env: int, parameters: np.ndarray, out: np.ndarray) -> int:
    """Placements as rows of job, partition, node, CPUs, GPUs, MiB. Deterministic; leaves the frame as it is."""
    return start_now(frame, env, parameters, np.inf, out)


@compiled
def start_now(frame: Frame, env: int, parameters: np.ndarray, patience: float, out: np.ndarray) -> int:
    """``decide``, where jobs are served first that have waited so many times their cost (as for ``lay_out``)."""
    if frame.waiting_count[env] == 0 or not _room_for_any(frame, env, frame.free[env]):
        return 0
    placed, layout = lay_out(frame, env, parameters, patience, 0)
    out[:placed] = layout.rows[:placed]
    return placed


@compiled
def lay_out(frame: Frame, env: int, parameters: np.ndarray, patience: float, others: int) -> tuple[int, Layout]:
    """How many jobs start now, and the whole plan.

    Args:
        patience: a job that has waited this many times its least cost is served before all others, at once if it fits,
            and else keeps what it waits for from all. No constant of the heuristic: a search for the best mean would
            give it up.
        others: how many alternatives are kept of each job.
    """
    count = frame.waiting_count[env]
    best, layout = _empty_layout(count, others), _empty_layout(count, others)
    if count == 0:
        return 0, best
    parameters = _in_this_crowd(frame, env, parameters)
    market = _market(frame, env, parameters)
    nodes = np.zeros(frame.nodes[env], np.int64)
    order, ideal = _order(frame, env, parameters, market, nodes)
    starving = _put_starving_first(frame, env, patience, order, ideal)
    blame = np.zeros(count)
    least = np.inf
    placed = 0
    for attempt in range(1 + int(parameters[RETRIES])):
        cost, made = _plan(frame, env, order, starving, ideal, parameters, market, nodes, layout, blame)
        if cost < least - 1e-9:
            least, placed = cost, made
            best, layout = layout, best
        if attempt < parameters[RETRIES] and not _promote(order, starving, blame):
            break
    return placed, best


@compiled
def _empty_layout(jobs: int, others: int) -> Layout:
    return Layout(
        np.full((jobs, 6), -1, np.int64),
        np.full(jobs, np.inf),
        np.full(jobs, np.inf),
        np.full(jobs, np.inf),
        np.full((jobs, others, 6), -1, np.int64),
        np.full((jobs, others), np.inf),
        np.full(jobs, np.inf),
    )


@compiled
def _in_this_crowd(frame: Frame, env: int, parameters: np.ndarray) -> np.ndarray:
    """The constants as they hold for so many waiting jobs."""
    nodes = 0
    for node in range(frame.nodes[env]):
        nodes += frame.available[env, node]
    waiting = frame.waiting_count[env] / max(1, nodes)
    adapted = parameters.copy()
    adapted[REACH] /= 1.0 + parameters[EASE] * waiting
    adapted[RESERVE] /= 1.0 + parameters[EASE] * waiting
    adapted[ROOM] *= 1.0 + parameters[CROWD] * waiting
    return adapted


@compiled
def _plan(
    frame: Frame,
    env: int,
    order: np.ndarray,
    starving: int,
    ideal: np.ndarray,
    parameters: np.ndarray,
    market: Market,
    nodes: np.ndarray,
    layout: Layout,
    blame: np.ndarray,
) -> tuple[float, int]:
    """Settles the jobs in this order, of which the first starve: what all cost together, and how many start now."""
    calendar = _calendar(frame, env)
    free = frame.free[env].copy()
    _count_running(frame, env, market)
    if parameters[ROOM] > 0.0:
        for node in range(frame.nodes[env]):
            if frame.available[env, node]:
                _expect(frame, env, node, parameters, market, calendar, free)
    left = np.zeros(3, np.int64)
    placed, kept = 0, 0
    behind = len(order) - 1
    total = 0.0
    full = False
    for turn in range(len(order)):
        position, starves = order[turn], turn < starving
        if full and parameters[RETRIES] < 1.0 and layout.other_cost.shape[1] == 0:
            break  # what comes later can neither start nor keep anything from what does
        job = frame.waiting[env, position]
        row = layout.rows[placed]
        margin = np.inf if starves else parameters[MARGIN]
        start, lasts, cost = _settle(
            frame, env, job, parameters, margin, market, calendar, free, nodes, left, layout, placed
        )
        if start != 0.0:
            _move(layout, placed, behind)
            row = layout.rows[behind]
            behind -= 1
        if start < 0.0:
            blame[position] = 0.0
            total += 1e6
            continue
        blame[position] = cost - ideal[position]
        total += cost
        node = row[2]
        if start == 0.0:
            for resource in range(3):
                free[node, resource] -= row[3 + resource]
            _enter(calendar, node, lasts, row[3], row[4], row[5])
            market.running[node] += 1.0
            placed += 1
            full = not _room_for_any(frame, env, free)
        elif starves or (kept < int(parameters[KEEPERS]) and parameters[RESERVE] > 0.0):
            share = 1.0 if starves else parameters[RESERVE]
            cpus, gpus, mem = round(row[3] * share), round(row[4] * share), round(row[5] * share)
            _enter(calendar, node, start, -cpus, -gpus, -mem)
            _enter(calendar, node, start + lasts, cpus, gpus, mem)
            calendar.kept[node] += 1
            kept += not starves
        if parameters[ROOM] > 0.0:
            _expect(frame, env, node, parameters, market, calendar, free)
    return total, placed


@lean
def _move(layout: Layout, source: int, target: int) -> None:
    """Jobs that wait stand behind, the one settled last in front."""
    if source == target:
        return
    layout.start[target], layout.lasts[target] = layout.start[source], layout.lasts[source]
    layout.cost[target], layout.waiting[target] = layout.cost[source], layout.waiting[source]
    for column in range(6):
        layout.rows[target, column] = layout.rows[source, column]
    for other in range(layout.other_cost.shape[1]):
        layout.other_cost[target, other] = layout.other_cost[source, other]
        for column in range(6):
            layout.others[target, other, column] = layout.others[source, other, column]


@lean
def _promote(order: np.ndarray, starving: int, blame: np.ndarray) -> bool:
    """Moves the job that pays most above its ideal before all others but those that starve; False where none pays more
    or it is the first of them.
    """
    worst, at = 1e-9, starving
    for place in range(starving, len(order)):
        if blame[order[place]] > worst:
            worst, at = blame[order[place]], place
    if at == starving:
        return False
    job = order[at]
    for place in range(at, starving, -1):
        order[place] = order[place - 1]
    order[starving] = job
    return True


@lean
def _room_for_any(frame: Frame, env: int, free: np.ndarray) -> bool:
    """Whether some node that is up has room for some waiting job's kind."""
    for kind in range(frame.kinds[env]):
        if frame.choices[env, kind] == 0:
            continue
        wanted = False
        for position in range(frame.waiting_count[env]):
            if frame.kind[env, frame.waiting[env, position]] == kind:
                wanted = True
                break
        if not wanted:
            continue
        for node in range(frame.nodes[env]):
            if not open_to(frame, env, kind, node):
                continue
            for choice in range(frame.choices[env, kind]):
                if _within(frame.menu[env, kind, choice], free[node]):
                    return True
    return False


@lean
def _within(amounts: np.ndarray, room: np.ndarray) -> bool:
    return amounts[0] <= room[0] and amounts[1] <= room[1] and amounts[2] <= room[2]


# -- the calendar --------------------------------------------------------------------------------------------------


@compiled
def _calendar(frame: Frame, env: int) -> Calendar:
    room = frame.running_count[env] + 2 * frame.waiting_count[env] + 1
    calendar = Calendar(
        first=np.full(frame.nodes[env], -1, np.int64),
        next=np.full(room, -1, np.int64),
        time=np.zeros(room),
        change=np.zeros((room, 3), np.int64),
        kept=np.zeros(frame.nodes[env], np.int64),
        used=np.zeros(1, np.int64),
    )
    now = frame.now[env]
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        # Of a job that should have ended long since, a little of what it took so far is still to come.
        rest = max(frame.expected_end[env, job] - now, 0.02 * (now - frame.start[env, job]), 1e-6)
        amounts = frame.amounts[env, job]
        _enter(calendar, frame.node[env, job], rest, amounts[0], amounts[1], amounts[2])
    return calendar


@lean
def _enter(calendar: Calendar, node: int, time: float, cpus: int, gpus: int, mem: int) -> None:
    """Notes a change; one of the same time is merged with it."""
    before, at = -1, calendar.first[node]
    while at >= 0 and calendar.time[at] < time:
        before, at = at, calendar.next[at]
    if at < 0 or calendar.time[at] > time:
        new = calendar.used[0]
        calendar.used[0] += 1
        calendar.time[new] = time
        calendar.next[new] = at
        if before < 0:
            calendar.first[node] = new
        else:
            calendar.next[before] = new
        at = new
    calendar.change[at, 0] += cpus
    calendar.change[at, 1] += gpus
    calendar.change[at, 2] += mem


@lean
def _soonest(
    calendar: Calendar, free: np.ndarray, node: int, amounts: np.ndarray, lasts: float, left: np.ndarray
) -> float:
    """When these amounts are first expected free for so long, from now; infinity where never. ``left`` is what then
    remains of the node.
    """
    cpus, gpus, mem = free[node, 0] - amounts[0], free[node, 1] - amounts[1], free[node, 2] - amounts[2]
    start = np.inf
    if cpus >= 0 and gpus >= 0 and mem >= 0:
        start = 0.0
        left[0], left[1], left[2] = cpus, gpus, mem
        if calendar.kept[node] == 0:
            return start
    at = calendar.first[node]
    while at >= 0:
        if start + lasts <= calendar.time[at]:
            return start
        cpus += calendar.change[at, 0]
        gpus += calendar.change[at, 1]
        mem += calendar.change[at, 2]
        if cpus < 0 or gpus < 0 or mem < 0:
            start = np.inf
        elif start == np.inf:
            start = calendar.time[at]
            left[0], left[1], left[2] = cpus, gpus, mem
            if calendar.kept[node] == 0:
                return start
        at = calendar.next[at]
    return start


# -- the market ----------------------------------------------------------------------------------------------------


@compiled
def _market(frame: Frame, env: int, parameters: np.ndarray) -> Market:
    nodes, partitions = frame.nodes[env], frame.partitions[env]
    market = Market(
        share=np.zeros((nodes, 3)),
        members=np.zeros((partitions, nodes), np.int64),
        size=np.zeros(partitions, np.int64),
        queue=np.zeros(nodes),
        running=np.zeros(nodes),
        common=np.full(KINDS, -1, np.int64),
        often=np.zeros(KINDS),
        usual=np.zeros(1),
        newcomer=np.full((MOMENTS, KINDS, nodes), np.inf),
        begins=np.zeros((MOMENTS, KINDS, nodes)),
        spare=np.zeros((MOMENTS, KINDS, nodes, 3), np.int64),
    )
    for partition in range(partitions):
        for node in range(nodes):
            if frame.member[env, partition, node] and frame.available[env, node]:
                market.members[partition, market.size[partition]] = node
                market.size[partition] += 1
    _weigh(frame, env, parameters, market)
    if parameters[ROOM] > 0.0:
        _count_kinds(frame, env, market)
    return market


@compiled
def _weigh(frame: Frame, env: int, parameters: np.ndarray, market: Market) -> None:
    """What a unit of each resource weighs on each node."""
    nodes = frame.nodes[env]
    total, held, mean = np.zeros(3), np.zeros(3), np.zeros(3)
    for node in range(nodes):
        for resource in range(3):
            total[resource] += frame.capacity[env, node, resource]
            held[resource] += frame.capacity[env, node, resource] - frame.free[env, node, resource]
    for position in range(frame.waiting_count[env]):
        kind = frame.kind[env, frame.waiting[env, position]]
        if frame.choices[env, kind] > 0:
            for resource in range(3):
                held[resource] += frame.menu[env, kind, 0, resource]
    most = 0.0
    for resource in range(3):
        mean[resource] = total[resource] / nodes
        held[resource] = held[resource] / total[resource] if total[resource] > 0.0 else 0.0
        most = max(most, held[resource])
    for resource in range(3):
        weight = (parameters[CPU], 1.0, parameters[MEM])[resource]
        if most > 0.0 and total[resource] > 0.0:
            weight *= max(held[resource] / most, 0.05) ** parameters[ADAPT]
        for node in range(nodes):
            capacity = frame.capacity[env, node, resource]
            if capacity > 0:
                own = weight
                if resource == 0 and frame.capacity[env, node, 1] == 0:
                    own = 1.0  # without GPUs, CPUs are what is scarce
                market.share[node, resource] = own / mean[resource] * (mean[resource] / capacity) ** parameters[SIZE]


@lean
def _count_running(frame: Frame, env: int, market: Market) -> None:
    market.running[:] = 0.0
    for position in range(frame.running_count[env]):
        market.running[frame.node[env, frame.running[env, position]]] += 1.0


@compiled
def _count_kinds(frame: Frame, env: int, market: Market) -> None:
    """The commonest kinds among the jobs present, and how common they are."""
    seen = np.zeros(frame.kinds[env])
    for position in range(frame.waiting_count[env]):
        seen[frame.kind[env, frame.waiting[env, position]]] += 1.0
    for position in range(frame.running_count[env]):
        kind = frame.kind[env, frame.running[env, position]]
        if kind >= 0:
            seen[kind] += 1.0
    present = max(1.0, seen.sum())
    for rank in range(min(KINDS, frame.kinds[env])):
        kind = int(np.argmax(seen))
        if seen[kind] <= 0.0:
            break
        market.common[rank] = kind
        market.often[rank] = seen[kind] / present
        market.usual[0] += market.often[rank] * frame.seconds[env, kind, : frame.choices[env, kind]].min()
        seen[kind] = 0.0


@lean
def _nodes_of(frame: Frame, env: int, job: int, market: Market, nodes: np.ndarray, seen: bool) -> int:
    """Writes the nodes that the job can ever use (``seen``: now) into ``nodes``; how many."""
    count = 0
    for partition in range(frame.partitions[env]):
        open_ = frame.seen[env, job, partition] if seen else frame.reach[env, job, partition]
        if not open_:
            continue
        for member in range(market.size[partition]):
            node = market.members[partition, member]
            if not frame.usable[env, frame.kind[env, job], node]:
                continue
            known = False
            for earlier in range(count):
                if nodes[earlier] == node:
                    known = True
                    break
            if not known:
                nodes[count] = node
                count += 1
    return count


# -- costs ---------------------------------------------------------------------------------------------------------


@lean
def _share(market: Market, node: int, amounts: np.ndarray, parameters: np.ndarray) -> float:
    total, most = 0.0, 0.0
    for resource in range(3):
        part = amounts[resource] * market.share[node, resource]
        total += part
        most = max(most, part)
    return total + parameters[SCARCEST] * (most - total)


@compiled
def _order(
    frame: Frame, env: int, parameters: np.ndarray, market: Market, nodes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the waiting jobs in the order in which they are settled; [position] the least that each can cost."""
    count = frame.waiting_count[env]
    for position in range(count):
        job = frame.waiting[env, position]
        found = _nodes_of(frame, env, job, market, nodes, False)
        for at in range(found):
            market.queue[nodes[at]] += 1.0 / found
    _count_running(frame, env, market)
    hiding = _hiding(frame, env, parameters)
    keys = np.full(count, np.inf)
    ideal = np.zeros(count)
    for position in range(count):
        job = frame.waiting[env, position]
        found = _nodes_of(frame, env, job, market, nodes, False)
        if found == 0:
            continue
        cost = _ideal(frame, env, job, parameters, market, nodes, found)
        ideal[position] = cost
        age = frame.now[env] - frame.arrival[env, job]
        ahead = (1.0 + parameters[AGE] * age / cost) * (1.0 + parameters[REACH] / found)
        ahead *= 1.0 + parameters[REVEAL] * (frame.seen[env, job] & hiding).sum()
        keys[position] = cost ** parameters[LENGTH] / ahead
    order = np.argsort(keys, kind="mergesort")
    last = count
    while last > 0 and keys[order[last - 1]] == np.inf:
        last -= 1
    return order[:last], ideal


@compiled
def _hiding(frame: Frame, env: int, parameters: np.ndarray) -> np.ndarray:
    """bool [partition] its agent does not see all jobs that it may take; not looked for where it does not count."""
    hiding = np.zeros(frame.seen.shape[2], np.bool_)
    if parameters[REVEAL] == 0.0:
        return hiding
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        for partition in range(frame.partitions[env]):
            if frame.reach[env, job, partition] and not frame.seen[env, job, partition]:
                hiding[partition] = True
    return hiding


@lean
def _put_starving_first(frame: Frame, env: int, patience: float, order: np.ndarray, ideal: np.ndarray) -> int:
    """Moves jobs that have waited very long before the others; how many."""
    starving = 0
    for place in range(len(order)):
        position = order[place]
        age = frame.now[env] - frame.arrival[env, frame.waiting[env, position]]
        if age > patience * ideal[position]:
            for behind in range(place, starving, -1):
                order[behind] = order[behind - 1]
            order[starving] = position
            starving += 1
    return starving


@lean
def _pressures(market: Market, nodes: np.ndarray, found: int, parameters: np.ndarray) -> tuple[float, float]:
    """Pressure on all nodes that the job can use, and what it adds itself to the backlog of each."""
    queue, running = 0.0, 0.0
    for at in range(found):
        queue += market.queue[nodes[at]]
        running += market.running[nodes[at]]
    own = 1.0 / found
    mean = parameters[BACKLOG] * max(queue / found - own, 0.0) + parameters[LOAD] * running / found
    return parameters[BASE] + (1.0 - parameters[LOCAL]) * mean, own


@lean
def _pressure(market: Market, node: int, wide: float, own: float, parameters: np.ndarray) -> float:
    here = parameters[BACKLOG] * max(market.queue[node] - own, 0.0) + parameters[LOAD] * market.running[node]
    return wide + parameters[LOCAL] * here


@lean
def _ideal(
    frame: Frame, env: int, job: int, parameters: np.ndarray, market: Market, nodes: np.ndarray, found: int
) -> float:
    """The least that the job would cost if all nodes that it can use were empty; infinity where it cannot run."""
    kind = frame.kind[env, job]
    wide, own = _pressures(market, nodes, found, parameters)
    least = np.inf
    for at in range(found):
        node = nodes[at]
        pressure = _pressure(market, node, wide, own, parameters)
        for choice in range(frame.choices[env, kind]):
            amounts = frame.menu[env, kind, choice]
            if _within(amounts, frame.capacity[env, node]):
                share = _share(market, node, amounts, parameters)
                least = min(least, frame.seconds[env, kind, choice] * (1.0 + pressure * share))
    return least


@lean
def _settle(
    frame: Frame,
    env: int,
    job: int,
    parameters: np.ndarray,
    margin: float,
    market: Market,
    calendar: Calendar,
    free: np.ndarray,
    nodes: np.ndarray,
    left: np.ndarray,
    layout: Layout,
    at_row: int,
) -> tuple[float, float, float]:
    """The cheapest start of the job, written to this row: when it starts (below 0: never), how long it lasts and what
    it costs.
    """
    kind = frame.kind[env, job]
    row = layout.rows[at_row]
    row[0], row[2] = job, -1
    layout.start[at_row] = np.inf
    noting = layout.other_cost.shape[1] > 0
    if noting:
        layout.waiting[at_row] = np.inf
        layout.other_cost[at_row] = np.inf
    found = _nodes_of(frame, env, job, market, nodes, False)
    wide, own = _pressures(market, nodes, found, parameters)
    least, least_now = np.inf, np.inf
    best, best_now = (-1, -1), (-1, -1)
    best_start = 0.0
    for at in range(found):
        node = nodes[at]
        pressure = _pressure(market, node, wide, own, parameters)
        partition = _partition(frame, env, job, node)
        for choice in range(frame.choices[env, kind]):
            amounts = frame.menu[env, kind, choice]
            if not _within(amounts, frame.capacity[env, node]):
                continue
            lasts = frame.seconds[env, kind, choice]
            burden = pressure * _share(market, node, amounts, parameters)
            cost = lasts * (1.0 + burden)
            if cost >= least and cost >= least_now and parameters[PACKING] >= 0.0 and not noting:
                continue
            start = _soonest(calendar, free, node, amounts, lasts, left)
            if start == np.inf or (start == 0.0 and partition < 0):
                continue
            if parameters[PACKING] != 0.0:
                cost *= 1.0 + parameters[PACKING] * _left_share(frame, env, node, left)
            wait = start * (parameters[PATIENCE] + parameters[IDLE] * burden)
            if parameters[ROOM] > 0.0 and (start == 0.0 or cost + wait < least):
                cost += parameters[ROOM] * _crowding(
                    frame, env, node, amounts, start, lasts, parameters, market, calendar, free, left
                )
            if start == 0.0:
                if cost < least_now:
                    least_now, best_now = cost, (node, choice)
                if noting:
                    _note(layout, at_row, cost, job, partition, node, amounts)
            cost += wait
            if noting and start > 0.0:
                layout.waiting[at_row] = min(layout.waiting[at_row], cost)
            if cost < least:
                least, best, best_start = cost, (node, choice), start
    if best[0] < 0:
        return -1.0, 0.0, 0.0
    if best_now[0] >= 0 and least_now <= least * (1.0 + margin):
        best, best_start = best_now, 0.0
    node, choice = best
    row[0] = job
    row[1] = _partition(frame, env, job, node)
    row[2] = node
    for resource in range(3):
        row[3 + resource] = frame.menu[env, kind, choice, resource]
    lasts, cost = frame.seconds[env, kind, choice], least_now if best_start == 0.0 else least
    layout.start[at_row], layout.lasts[at_row], layout.cost[at_row] = best_start, lasts, cost
    return best_start, lasts, cost


@lean
def _note(layout: Layout, at_row: int, cost: float, job: int, partition: int, node: int, amounts: np.ndarray) -> None:
    """Keeps the cheapest of what the job could have now."""
    most = layout.other_cost.shape[1]
    if cost >= layout.other_cost[at_row, most - 1]:
        return
    place = most - 1
    while place > 0 and layout.other_cost[at_row, place - 1] > cost:
        layout.other_cost[at_row, place] = layout.other_cost[at_row, place - 1]
        for column in range(6):
            layout.others[at_row, place, column] = layout.others[at_row, place - 1, column]
        place -= 1
    layout.other_cost[at_row, place] = cost
    row = layout.others[at_row, place]
    row[0], row[1], row[2] = job, partition, node
    for resource in range(3):
        row[3 + resource] = amounts[resource]


@lean
def _partition(frame: Frame, env: int, job: int, node: int) -> int:
    """The first partition whose agent may start the job on the node now; -1 where none may."""
    for partition in range(frame.partitions[env]):
        if frame.seen[env, job, partition] and frame.member[env, partition, node]:
            return partition
    return -1


@lean
def _left_share(frame: Frame, env: int, node: int, left: np.ndarray) -> float:
    """Mean share of the node's CPUs and GPUs that is left free."""
    share = 0.5 * left[0] / max(1, frame.capacity[env, node, 0])
    return share + 0.5 * left[1] / max(1, frame.capacity[env, node, 1])


@lean
def _crowding(
    frame: Frame,
    env: int,
    node: int,
    amounts: np.ndarray,
    start: float,
    lasts: float,
    parameters: np.ndarray,
    market: Market,
    calendar: Calendar,
    free: np.ndarray,
    left: np.ndarray,
) -> float:
    """By how much later newcomers would end for the job there: mean over the kinds that are about."""
    worse = 0.0
    for moment in range(MOMENTS):
        weight = 1.0 if moment == 0 else parameters[LATER]
        if weight <= 0.0:
            continue
        time = frame.slot[env] + moment * parameters[SOON] * market.usual[0]
        if start + lasts <= time:
            continue
        for rank in range(KINDS):
            kind = market.common[rank]
            if kind < 0:
                break
            before = market.newcomer[moment, rank, node]
            begins = market.begins[moment, rank, node]
            if before == np.inf or not start <= begins < start + lasts:
                continue
            if _within(amounts, market.spare[moment, rank, node]):
                continue
            most = 2.0 * before + lasts
            after, _ = _newcomer(
                frame, env, node, kind, calendar, free, amounts, start, start + lasts, time, most, left
            )
            worse += weight * market.often[rank] * (after - before)
    return worse


@lean
def _expect(
    frame: Frame, env: int, node: int, parameters: np.ndarray, market: Market, calendar: Calendar, free: np.ndarray
) -> None:
    """Works out when newcomers of each kind would end on this node as things stand."""
    for moment in range(MOMENTS):
        if moment > 0 and parameters[LATER] <= 0.0:
            break
        time = frame.slot[env] + moment * parameters[SOON] * market.usual[0]
        for rank in range(KINDS):
            kind = market.common[rank]
            if kind < 0:
                break
            market.newcomer[moment, rank, node], market.begins[moment, rank, node] = _newcomer(
                frame,
                env,
                node,
                kind,
                calendar,
                free,
                frame.menu[env, kind, 0],
                np.inf,
                np.inf,
                time,
                np.inf,
                market.spare[moment, rank, node],
            )


@lean
def _newcomer(
    frame: Frame,
    env: int,
    node: int,
    kind: int,
    calendar: Calendar,
    free: np.ndarray,
    held: np.ndarray,
    begin: float,
    end: float,
    arrival: float,
    most: float,
    spare: np.ndarray,
) -> tuple[float, float]:
    """How long after its arrival a newcomer of this kind would end on the node, while ``held`` is taken from ``begin``
    to ``end``; and when it would start. ``spare`` is what would then be free beside it.
    """
    if not frame.usable[env, kind, node]:
        return most, np.inf
    cpus_then, gpus_then, mem_then = free[node, 0], free[node, 1], free[node, 2]
    first = calendar.first[node]
    while first >= 0 and calendar.time[first] <= arrival:
        cpus_then += calendar.change[first, 0]
        gpus_then += calendar.change[first, 1]
        mem_then += calendar.change[first, 2]
        first = calendar.next[first]
    least, starts = most, np.inf
    for choice in range(frame.choices[env, kind]):
        amounts = frame.menu[env, kind, choice]
        lasts = frame.seconds[env, kind, choice]
        if lasts >= least or not _within(amounts, frame.capacity[env, node]):
            continue
        cpus, gpus, mem = cpus_then - amounts[0], gpus_then - amounts[1], mem_then - amounts[2]
        at = first
        time = arrival
        while True:
            taken = 1 if begin <= time < end else 0
            if cpus >= taken * held[0] and gpus >= taken * held[1] and mem >= taken * held[2]:
                if time - arrival + lasts < least:
                    least, starts = time - arrival + lasts, time
                    spare[0] = cpus - taken * held[0]
                    spare[1] = gpus - taken * held[1]
                    spare[2] = mem - taken * held[2]
                break
            following = calendar.time[at] if at >= 0 else np.inf
            if taken == 1 and end <= following:
                time = end
                if end < following:
                    continue
            if at < 0:
                break
            time = following
            cpus += calendar.change[at, 0]
            gpus += calendar.change[at, 1]
            mem += calendar.change[at, 2]
            at = calendar.next[at]
            if time - arrival + lasts >= least:
                break
    return least, starts
