"""Look-ahead: decisions of the price heuristic held against their alternatives, by playing on into sampled futures.

One job after the other: start it elsewhere, on other amounts, or not now; the heuristic decides the rest of the slot
and all that follows; whatever is cheaper over the futures, clearly enough, is kept. All alternatives meet the same
futures, drawn from the scenario, never read from the workload. Slow: a teacher, and a measure of what is left.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tapfinger_hpc.frame import DONE, FUTURE, RUNNING, WAITING, Frame
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.sim import core, episodes
from tapfinger_hpc.sim.core import Truth, compiled, lean
from tapfinger_hpc.sim.scenarios import Scenario, draw

BASE, CANDIDATE, ROLLOUT = 0, 1, 2
"""Environments of the scratch room: as things stand, after a candidate's placements, and played on."""
JOB, PARTITION, NODE, AMOUNTS, MEAN, ERROR, FUTURES = 0, 1, 2, slice(3, 6), 6, 7, 8
"""Columns of a label; node -1 is not to start the job now."""


@dataclass(frozen=True)
class Effort:
    """How hard to look."""

    futures: int = 256
    """Sampled for every slot; alternatives that look bad on the first of them meet no more."""
    depth: int = 12
    """Slots that each is played on."""
    alternatives: int = 8
    """Of each job, those of least price; not to start it comes on top."""
    first: int = 16
    """Futures on which all are compared; their number doubles as alternatives drop out."""
    surely: float = 2.0
    """Standard errors by which an alternative must be better."""


class Futures(NamedTuple):
    """Sampled arrivals: F futures, A at most in each."""

    size: np.ndarray  # int64 [F]
    arrival: np.ndarray  # float64 [F, A] ascending
    kind: np.ndarray  # int64 [F, A]
    reach: np.ndarray  # bool [F, A, P]


class Lookahead:
    """A player. Deterministic: the same state and slot, the same futures and so the same decision."""

    name = "lookahead"
    knowledge = "oracle"

    def __init__(
        self,
        scenario: Scenario,
        prices: np.ndarray | None = None,
        effort: Effort | None = None,
        *,
        rollout: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            prices: constants of the heuristic that is improved upon.
            rollout: constants of the heuristic that plays on, where they are not the same.
        """
        self._scenario, self._effort, self._seed = scenario, effort or Effort(), seed
        self._prices = price.DEFAULT if prices is None else prices
        self._rollout = self._prices if rollout is None else rollout
        self._room: tuple[Frame, Truth] | None = None
        self.rollouts = 0
        """How many were played so far."""
        self.labels = np.zeros((0, 9))
        """float64 [alternative, 9] of the last decision: job, partition, node, amounts, by how many task-slots it is
        dearer than what was kept, the standard error of that, and over how many futures."""

    def play_slot(self, frame: Frame, truth: Truth, envs: np.ndarray) -> int:
        """As ``Player`` says."""
        out = np.zeros((frame.waiting.shape[1], 6), np.int64)
        for env in envs.tolist():
            count = self.decide(frame, env, out)
            episodes.place_all(frame, truth, env, out, count)
        return len(envs)

    def decide(self, frame: Frame, env: int, out: np.ndarray) -> int:
        """Placements as rows of job, partition, node, CPUs, GPUs, MiB."""
        self.labels = self.labels[:0]
        if frame.waiting_count[env] == 0:
            return 0
        effort = self._effort
        futures = sample(self._scenario, frame.now[env], effort.futures, effort.depth, self._seed)
        room = self._scratch(frame.waiting_count[env] + frame.running_count[env] + futures.arrival.shape[1])
        labels = np.zeros((frame.waiting_count[env] * (effort.alternatives + 1), 9))
        settings = np.array([effort.depth, effort.alternatives, effort.first, effort.surely], np.float64)
        count, labelled, rollouts = search(
            frame, env, *room, self._prices, self._rollout, settings, futures, out, labels
        )
        self.rollouts += rollouts
        self.labels = labels[:labelled]
        return count

    def _scratch(self, jobs: int) -> tuple[Frame, Truth]:
        if self._room is None or self._room[0].kind.shape[1] < jobs:
            self._room = core.environments([draw(replace(self._scenario, tasks=2 * jobs), 0)] * 3)
        return self._room


def sample(scenario: Scenario, now: float, futures: int, depth: int, seed: int) -> Futures:
    """Arrivals of the slots to come, as the scenario draws them. The slot alone says which: not what its past was."""
    source = np.random.default_rng((seed, int(now)))
    counts = source.poisson(scenario.arrivals, size=(futures, depth))
    most = max(1, int(counts.sum(axis=1).max()))
    arrival = np.full((futures, most), np.inf)
    for future, each in enumerate(counts):
        arrival[future, : each.sum()] = now + 1 + np.repeat(np.arange(depth), each)
    agents = scenario.agents
    ranks = source.random((futures, most, agents)).argsort(axis=2).argsort(axis=2)
    return Futures(
        size=counts.sum(axis=1),
        arrival=arrival,
        kind=source.integers(len(scenario.types), size=(futures, most)),
        reach=ranks < source.integers(1, agents + 1, size=(futures, most, 1)),
    )


@compiled
def search(
    frame: Frame,
    env: int,
    room: Frame,
    truth: Truth,
    prices: np.ndarray,
    rollout: np.ndarray,
    settings: np.ndarray,
    futures: Futures,
    out: np.ndarray,
    labels: np.ndarray,
) -> tuple[int, int, int]:
    """The improved placements of one environment.

    Args:
        room: scratch environments of the same scenario, and their ``truth``, in which futures are played.
        out: int64 [job, 6], written: job, partition, node, CPUs, GPUs, MiB.
        labels: float64 [alternative, 9], written: what was compared.

    Returns:
        How many placements, how many labels, how many rollouts it took.
    """
    most, surely = int(settings[1]), settings[3]
    total = len(futures.size)
    names = _enter_state(frame, env, room, truth)
    jobs = len(names)
    plan = np.zeros((jobs, 6), np.int64)
    trial = np.zeros((jobs, 6), np.int64)
    scratch = np.zeros((room.kind.shape[1], 6), np.int64)
    forced = np.zeros((jobs, 6), np.int64)  # what was decided otherwise; node -1: not now
    forced_count = 0
    kept = np.zeros(total)  # what the plan as it is costs in each future
    count = _candidate(room, truth, forced, 0, jobs, prices, plan)
    known = 0  # of how many futures
    rollouts, labelled = 0, 0
    order = _jobs_in_order(room, jobs, prices)
    options = np.zeros((most + 1, 6), np.int64)
    costs = np.zeros((most + 1, total))
    plans = np.zeros((most + 1, jobs, 6), np.int64)
    counts = np.zeros(most + 1, np.int64)
    alive = np.zeros(most + 1, np.bool_)
    means, errors = np.zeros(most + 1), np.zeros(most + 1)
    seen = np.zeros(most + 1, np.int64)
    for job in order:
        found = _alternatives(room, truth, forced, forced_count, job, jobs, prices, plan, count, options, most)
        if found == 0:
            continue
        alive[:found] = True
        seen[:found] = 0
        upto = min(total, int(settings[2]))
        while True:
            if known < upto:
                _candidate(room, truth, forced, forced_count, jobs, prices, trial)
                for future in range(known, upto):
                    kept[future] = _play_on(room, truth, jobs, futures, future, int(settings[0]), rollout, scratch)
                    rollouts += 1
                known = upto
            left = 0
            for option in range(found):
                if not alive[option]:
                    continue
                forced[forced_count] = options[option]
                counts[option] = _candidate(room, truth, forced, forced_count + 1, jobs, prices, trial)
                plans[option, : counts[option]] = trial[: counts[option]]
                if _same(plan, count, trial, counts[option]):
                    alive[option] = False
                    continue
                for future in range(seen[option], upto):
                    costs[option, future] = _play_on(
                        room, truth, jobs, futures, future, int(settings[0]), rollout, scratch
                    )
                    rollouts += 1
                seen[option] = upto
                means[option], errors[option] = _compared(costs[option], kept, upto)
                alive[option] = means[option] < 0.5 * errors[option]
                left += alive[option]
            if left == 0 or upto == total:
                break
            upto = min(total, 2 * upto)
        best = -1
        for option in range(found):
            if seen[option] == 0:
                continue
            labels[labelled, 0] = names[job]
            for column in range(1, 6):
                labels[labelled, column] = options[option, column]
            labels[labelled, 6], labels[labelled, 7] = means[option], errors[option]
            labels[labelled, 8] = seen[option]
            labelled += 1
            good = alive[option] and seen[option] == total and means[option] < -surely * errors[option]
            if good and (best < 0 or means[option] < means[best]):
                best = option
        if best >= 0:
            forced[forced_count] = options[best]
            forced_count += 1
            kept[:] = costs[best]
            count = counts[best]
            plan[:count] = plans[best, :count]
    for row in range(count):
        out[row] = plan[row]
        out[row, 0] = names[plan[row, 0]]
    return count, labelled, rollouts


@lean
def _compared(costs: np.ndarray, kept: np.ndarray, upto: int) -> tuple[float, float]:
    """Mean and standard error of what an alternative costs more than what is kept."""
    mean, square = 0.0, 0.0
    for future in range(upto):
        mean += (costs[future] - kept[future]) / upto
    for future in range(upto):
        square += (costs[future] - kept[future] - mean) ** 2
    return mean, np.sqrt(square / max(1, upto - 1) / upto)


@lean
def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    equal = True
    for column in range(len(one)):
        equal = equal and one[column] == other[column]
    return equal


@lean
def _same(plan: np.ndarray, count: int, other: np.ndarray, other_count: int) -> bool:
    """Whether two plans place the same jobs in the same way, in whatever order."""
    if count != other_count:
        return False
    for row in range(count):
        found = False
        for other_row in range(count):
            if _equal(plan[row], other[other_row]):
                found = True
                break
        if not found:
            return False
    return True


# -- the scratch room ----------------------------------------------------------------------------------------------


@compiled
def _enter_state(frame: Frame, env: int, room: Frame, truth: Truth) -> np.ndarray:
    """Copies the jobs present, renumbered without gaps, into the base environment; [number there] their numbers."""
    present = np.zeros(frame.waiting_count[env] + frame.running_count[env], np.int64)
    present[: frame.waiting_count[env]] = frame.waiting[env, : frame.waiting_count[env]]
    present[frame.waiting_count[env] :] = frame.running[env, : frame.running_count[env]]
    present = np.sort(present)
    partitions = frame.partitions[env]
    room.now[BASE] = frame.now[env]
    room.free[BASE, : frame.nodes[env]] = frame.free[env, : frame.nodes[env]]
    room.available[BASE, : frame.nodes[env]] = frame.available[env, : frame.nodes[env]]
    kinds, nodes = frame.kinds[env], frame.nodes[env]
    for target in (BASE, CANDIDATE, ROLLOUT):
        room.usable[target, :kinds, :nodes] = frame.usable[env, :kinds, :nodes]
    truth.jobs[BASE] = truth.next[BASE] = len(present)
    truth.finished[BASE] = 0
    truth.window[BASE] = -1
    truth.windowed[BASE] = 0
    truth.held[BASE] = 0
    truth.queue_first[BASE] = 0
    truth.queue_last[BASE] = 0
    truth.queued[BASE] = 0
    truth.next_end[BASE] = np.inf
    waiting = 0
    for number in range(len(present)):
        job = present[number]
        room.kind[BASE, number] = frame.kind[env, job]
        room.arrival[BASE, number] = frame.arrival[env, job]
        room.status[BASE, number] = frame.status[env, job]
        room.node[BASE, number] = frame.node[env, job]
        room.partition[BASE, number] = frame.partition[env, job]
        room.amounts[BASE, number] = frame.amounts[env, job]
        room.start[BASE, number] = frame.start[env, job]
        room.expected_end[BASE, number] = frame.expected_end[env, job]
        truth.progress[BASE, number] = 0.0
        truth.switched[BASE, number] = False
        truth.since[BASE, number] = frame.start[env, job]
        truth.end[BASE, number] = frame.expected_end[env, job]
        running = frame.status[env, job] == RUNNING
        if running:
            truth.next_end[BASE] = min(truth.next_end[BASE], frame.expected_end[env, job])
            truth.held[BASE, frame.partition[env, job]] += 1
        else:
            room.waiting[BASE, waiting] = number
            waiting += 1
        for agent in range(partitions):
            room.reach[BASE, number, agent] = frame.reach[env, job, agent]
            room.seen[BASE, number, agent] = frame.seen[env, job, agent]
            if running or not frame.reach[env, job, agent]:
                continue
            if frame.seen[env, job, agent]:
                truth.window[BASE, agent, truth.windowed[BASE, agent]] = number
                truth.windowed[BASE, agent] += 1
            else:
                truth.queue[BASE, agent, truth.queue_last[BASE, agent]] = number
                truth.queue_last[BASE, agent] += 1
                truth.queued[BASE, agent] += 1
    room.waiting_count[BASE] = waiting
    room.running_count[BASE] = frame.running_count[env]
    for position in range(frame.running_count[env]):
        room.running[BASE, position] = np.searchsorted(present, frame.running[env, position])
    return present


@lean
def _copy(room: Frame, truth: Truth, source: int, target: int, jobs: int) -> None:
    """Makes one scratch environment like another, as far as these jobs go."""
    room.now[target] = room.now[source]
    room.waiting_count[target] = room.waiting_count[source]
    room.running_count[target] = room.running_count[source]
    truth.jobs[target], truth.next[target] = truth.jobs[source], truth.next[source]
    truth.finished[target] = truth.finished[source]
    truth.next_end[target] = truth.next_end[source]
    for node in range(room.nodes[source]):
        room.available[target, node] = room.available[source, node]
        for resource in range(3):
            room.free[target, node, resource] = room.free[source, node, resource]
    agents = room.partitions[source]
    for agent in range(agents):
        truth.windowed[target, agent] = truth.windowed[source, agent]
        truth.held[target, agent] = truth.held[source, agent]
        truth.queue_first[target, agent] = truth.queue_first[source, agent]
        truth.queue_last[target, agent] = truth.queue_last[source, agent]
        truth.queued[target, agent] = truth.queued[source, agent]
        for place in range(truth.window.shape[2]):
            truth.window[target, agent, place] = truth.window[source, agent, place]
        for place in range(truth.queue_last[source, agent]):
            truth.queue[target, agent, place] = truth.queue[source, agent, place]
    for position in range(room.waiting_count[source]):
        room.waiting[target, position] = room.waiting[source, position]
    for position in range(room.running_count[source]):
        room.running[target, position] = room.running[source, position]
    for job in range(jobs):
        room.kind[target, job] = room.kind[source, job]
        room.arrival[target, job] = room.arrival[source, job]
        room.status[target, job] = room.status[source, job]
        room.node[target, job] = room.node[source, job]
        room.partition[target, job] = room.partition[source, job]
        room.start[target, job] = room.start[source, job]
        room.expected_end[target, job] = room.expected_end[source, job]
        truth.progress[target, job] = truth.progress[source, job]
        truth.since[target, job] = truth.since[source, job]
        truth.switched[target, job] = truth.switched[source, job]
        truth.end[target, job] = truth.end[source, job]
        for resource in range(3):
            room.amounts[target, job, resource] = room.amounts[source, job, resource]
        for agent in range(agents):
            room.reach[target, job, agent] = room.reach[source, job, agent]
            room.seen[target, job, agent] = room.seen[source, job, agent]


# -- candidates ----------------------------------------------------------------------------------------------------


@compiled
def _candidate(
    room: Frame, truth: Truth, forced: np.ndarray, count: int, jobs: int, prices: np.ndarray, plan: np.ndarray
) -> int:
    """Carries out what is forced and what the heuristic then decides for this slot; the whole plan, and its length."""
    _copy(room, truth, BASE, CANDIDATE, jobs)
    placed = 0
    for row in range(count):
        if forced[row, 2] < 0:
            for agent in range(room.partitions[BASE]):
                room.seen[CANDIDATE, forced[row, 0], agent] = False
        else:
            plan[placed] = forced[row]
            placed += 1
    episodes.place_all(room, truth, CANDIDATE, plan, placed)
    more = price.decide(room, CANDIDATE, prices, plan[placed:])
    episodes.place_all(room, truth, CANDIDATE, plan[placed:], more)
    for row in range(count):
        if forced[row, 2] < 0:
            for agent in range(room.partitions[BASE]):
                room.seen[CANDIDATE, forced[row, 0], agent] = room.seen[BASE, forced[row, 0], agent]
    return placed + more


@compiled
def _jobs_in_order(room: Frame, jobs: int, prices: np.ndarray) -> np.ndarray:
    """Waiting jobs that some agent may take, in the order in which the heuristic settles them."""
    market = price._market(room, BASE, prices)
    nodes = np.zeros(room.nodes[BASE], np.int64)
    positions, _ = price._order(room, BASE, prices, market, nodes)
    order = np.zeros(len(positions), np.int64)
    count = 0
    for position in positions:
        job = room.waiting[BASE, position]
        for agent in range(room.partitions[BASE]):
            if room.seen[BASE, job, agent]:
                order[count] = job
                count += 1
                break
    return order[:count]


@compiled
def _alternatives(
    room: Frame,
    truth: Truth,
    forced: np.ndarray,
    forced_count: int,
    job: int,
    jobs: int,
    prices: np.ndarray,
    plan: np.ndarray,
    count: int,
    options: np.ndarray,
    most: int,
) -> int:
    """Other ways to settle the job than the plan's, the least price first; how many."""
    _copy(room, truth, BASE, CANDIDATE, jobs)
    placed = 0
    for row in range(forced_count):
        if forced[row, 0] == job:
            return 0
        if forced[row, 2] >= 0:
            core.place(
                room,
                truth,
                CANDIDATE,
                forced[row, 0],
                forced[row, 1],
                forced[row, 2],
                forced[row, 3],
                forced[row, 4],
                forced[row, 5],
            )
    planned = -1
    for row in range(count):
        if plan[row, 0] == job:
            planned = row
    if planned >= 0:
        options[0] = -1
        options[0, 0] = job
        placed = 1
    first = placed
    market = price._market(room, CANDIDATE, prices)
    nodes = np.zeros(room.nodes[CANDIDATE], np.int64)
    price._order(room, CANDIDATE, prices, market, nodes)
    found = price._nodes_of(room, CANDIDATE, job, market, nodes, True)
    wide, own = price._pressures(market, nodes, found, prices)
    kind = room.kind[CANDIDATE, job]
    worth = np.full(most + 1, np.inf)
    for at in range(found):
        node = nodes[at]
        pressure = price._pressure(market, node, wide, own, prices)
        partition = price._partition(room, CANDIDATE, job, node)
        for choice in range(room.choices[CANDIDATE, kind]):
            amounts = room.menu[CANDIDATE, kind, choice]
            if not price._within(amounts, room.free[CANDIDATE, node]):
                continue
            if planned >= 0 and plan[planned, 2] == node and _equal(plan[planned, 3:], amounts):
                continue
            cost = room.seconds[CANDIDATE, kind, choice] * (
                1.0 + pressure * price._share(market, node, amounts, prices)
            )
            at_place = placed
            while at_place > first and worth[at_place - 1] > cost:
                if at_place <= most:
                    worth[at_place] = worth[at_place - 1]
                    options[at_place] = options[at_place - 1]
                at_place -= 1
            if at_place <= most:
                worth[at_place] = cost
                options[at_place, 0], options[at_place, 1], options[at_place, 2] = job, partition, node
                for resource in range(3):
                    options[at_place, 3 + resource] = amounts[resource]
                placed = min(placed + 1, most + 1)
    return placed


# -- playing on ----------------------------------------------------------------------------------------------------


@compiled
def _play_on(
    room: Frame,
    truth: Truth,
    jobs: int,
    futures: Futures,
    future: int,
    depth: int,
    prices: np.ndarray,
    out: np.ndarray,
) -> float:
    """Task-slots from now on of the jobs present and those that come, after the candidate, in one future."""
    _copy(room, truth, CANDIDATE, ROLLOUT, jobs)
    _add_arrivals(room, truth, jobs, futures, future)
    now = room.now[ROLLOUT]
    for _ in range(depth):
        core.advance(room, truth, ROLLOUT)
        episodes.place_all(room, truth, ROLLOUT, out, price.decide(room, ROLLOUT, prices, out))
    return _cost(room, truth, now)


@lean
def _add_arrivals(room: Frame, truth: Truth, jobs: int, futures: Futures, future: int) -> None:
    count = futures.size[future]
    for arrival in range(count):
        job = jobs + arrival
        room.kind[ROLLOUT, job] = futures.kind[future, arrival]
        room.arrival[ROLLOUT, job] = futures.arrival[future, arrival]
        room.status[ROLLOUT, job] = FUTURE
        truth.progress[ROLLOUT, job] = 0.0
        truth.switched[ROLLOUT, job] = False
        for agent in range(room.partitions[ROLLOUT]):
            room.reach[ROLLOUT, job, agent] = futures.reach[future, arrival, agent]
            room.seen[ROLLOUT, job, agent] = False
    truth.jobs[ROLLOUT] = jobs + count


@lean
def _cost(room: Frame, truth: Truth, since: float) -> float:
    """Slots that all tasks spend in the system from ``since`` on; of one that still waits, at least."""
    total = 0.0
    for job in range(truth.next[ROLLOUT]):
        begin = max(since, room.arrival[ROLLOUT, job])
        status = room.status[ROLLOUT, job]
        if status in (RUNNING, DONE):
            total += truth.end[ROLLOUT, job] - begin
        elif status == WAITING:
            kind = room.kind[ROLLOUT, job]
            least = np.inf
            for choice in range(room.choices[ROLLOUT, kind]):
                least = min(least, room.seconds[ROLLOUT, kind, choice])
            total += room.now[ROLLOUT] - begin + least + 1.0
    return total
