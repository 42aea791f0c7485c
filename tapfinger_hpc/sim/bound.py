"""What no policy can beat on a given workload: every task alone, and the time-indexed linear programme.

The programme may split tasks, knows all arrivals, and keeps to the capacity of every agent and to reachability. Its
bound holds for every policy that gives a task constant amounts and does not stop it. Columns (who starts where, on
what, when) are made as the prices of capacity ask for them; the value returned is the Lagrangian one of the best
prices seen, computed here and over all columns: a lower bound whatever the solver did and whatever the horizon.
"""

import math
from dataclasses import dataclass

import numpy as np

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.sim import sites
from tapfinger_hpc.sim.scenarios import TaskType, Workload
from tapfinger_hpc.sim.sites import SiteWorkload

_SPREAD = 1.25
"""Delays of the first columns are so many times each other. Twice is faster where load is light, and slow in finding
good prices where tasks wait for a hundred slots (testbed-3)."""
_DELAY = 16
"""The longest delay of the first columns, at least; more where the load is high."""
_FIRST_COLUMNS = 150_000
"""At most, about: 20 agents that all take every amount would have 800,000."""
_KEEP = 30.0
"""Columns that cost so many slots more than the best are left out until prices ask for them again."""


@dataclass(frozen=True)
class Bound:
    """Lower bounds of a workload's mean completion time, in slots."""

    alone: float
    """With every task alone on the cluster, on its best amounts at the best agent that it can reach."""
    programme: float
    """By the linear programme; never below ``alone``."""
    gap: float
    """By how much a better solution of the programme could raise it at most, as a share of it."""
    columns: int
    rounds: int


def alone(workload: Workload) -> np.ndarray:
    """float64 [task] slots from arrival to completion with the cluster to itself, on constant amounts."""
    if isinstance(workload, SiteWorkload):
        return sites.alone(workload)
    programme = _Programme(workload)
    least = np.array([[base[agent, :, 0].min() for agent in range(programme.agents)] for base in programme.idle])
    return np.where(workload.reachable, least[workload.type], np.inf).min(axis=1)


def bound(workload: Workload, *, tolerance: float = 1e-3, rounds: int = 40) -> Bound:
    """The lower bounds of this workload.

    Args:
        tolerance: when the programme is known to be within this share, no more columns are made.
        rounds: nor after so many solutions of the programme.

    Raises:
        ScenarioError: the workload is in event time.
    """
    if workload.scenario.slot == 0:
        raise ScenarioError(
            f"the bound of a workload of scenario {workload.scenario.name!r}: the programme counts slots, and this one "
            "is in event time; leave out the bound"
        )
    programme = _Programme(workload)
    columns = programme.first_columns()
    best, best_prices, gap, solved = -math.inf, None, math.inf, 0
    while solved < rounds and gap > tolerance:
        solved += 1
        value, prices, worth = programme.solve(columns)
        # Prices half-way to the best ones so far: the solver's own jump about from round to round.
        tried = [prices] if best_prices is None else [(prices + best_prices) / 2, prices]
        asked = []
        for candidate in tried:
            lagrangian, new = programme.price(candidate, worth)
            asked.append(new)
            if lagrangian > best:
                best, best_prices = lagrangian, candidate
        gap = max(0.0, value - best) / best if best > 0 else math.inf
        columns = np.unique(np.concatenate([programme.near(columns, prices, worth), *asked]), axis=0)
    tasks = len(workload.arrival)
    least = float(alone(workload).mean())
    return Bound(least, max(least, best / tasks), gap, len(columns), solved)


class _Programme:
    """Groups of tasks that are the same (arrival, type, reach), choices of amounts, and slots up to a horizon.

    Beyond the horizon capacity is unlimited, which can only lower the bound; so no start after it need be considered.
    Columns are rows of int64 [column, 4]: group, agent, choice, slot of the start.
    """

    def __init__(self, workload: Workload) -> None:
        scenario = workload.scenario
        self.agents = scenario.agents
        self.capacity = np.array(scenario.capacities, dtype=np.float64)  # [agent, 2]
        self.amounts = [_amounts(kind) for kind in scenario.types]  # of each type [choice, 2]
        self.slots = [
            kind.slots[pairs[:, 0], pairs[:, 1]].astype(np.int64)
            for kind, pairs in zip(scenario.types, self.amounts, strict=True)
        ]  # of each type [choice]
        key = np.column_stack((workload.arrival, workload.type, workload.reachable))
        groups, self.count = np.unique(key, axis=0, return_counts=True)
        self.arrival, self.kind, self.reach = groups[:, 0], groups[:, 1], groups[:, 2:] > 0
        last, drain = int(workload.arrival.max()), 1.25 * _drain(self, workload)
        longest = max(int(slots.max()) for slots in self.slots)
        # Guesses: with a longer horizon the bound is tighter, and later starts are found when prices ask for them.
        self.horizon = int(max(last, drain)) + 2 * longest + 1
        self.latest = max(_DELAY, int(drain) - last + longest)
        self.idle = self._costs(np.zeros((self.agents, self.horizon, 2)))

    def first_columns(self) -> np.ndarray:
        """Every choice, started at once, or later by slots that grow geometrically."""
        delays = np.unique(np.floor(_SPREAD ** np.arange(np.log(self.latest) / np.log(_SPREAD) + 1) - 1))
        delays = delays.astype(np.int64)
        able = [np.isfinite(idle[:, :, 0]).sum(axis=1) for idle in self.idle]  # of each type [agent]
        pairs = sum(int((self.reach[group] * able[kind]).sum()) for group, kind in enumerate(self.kind))
        if pairs * len(delays) > _FIRST_COLUMNS:  # large clusters: the others come when prices ask for them
            kept = max(3, _FIRST_COLUMNS // pairs)
            delays = delays[np.unique(np.linspace(0, len(delays) - 1, kept).astype(np.int64))]
        made = []
        for group, kind in enumerate(self.kind):
            fits = np.isfinite(self.idle[kind][:, :, 0]) & self.reach[group][:, None]
            agent, choice = np.nonzero(fits)
            starts = self.arrival[group] + delays
            starts = starts[starts < self.horizon]
            made.append(_columns(group, np.repeat([agent, choice], len(starts), axis=1), np.tile(starts, len(agent))))
        return np.concatenate(made)

    def price(self, prices: np.ndarray, worth: np.ndarray) -> tuple[float, np.ndarray]:
        """The bound that these prices [agent, slot, 2] prove, and for each group, agent and choice the start that is
        cheapest, where it is cheaper than the group is worth [group].
        """
        costs = self._costs(prices)
        # [agent, choice, slot] the cheapest start from a slot on, and which that is.
        cheapest, when = zip(*(_from_each_slot_on(cost) for cost in costs), strict=True)
        value = -float((prices * self.capacity[:, None, :]).sum())
        asked = []
        for group, (kind, arrival) in enumerate(zip(self.kind, self.arrival, strict=True)):
            cost = cheapest[kind][:, :, arrival] - arrival
            cost = np.where(self.reach[group][:, None], cost, np.inf)
            value += int(self.count[group]) * float(cost.min())
            pair = np.array(np.nonzero(cost < worth[group] - 1e-6))
            asked.append(_columns(group, pair, when[kind][pair[0], pair[1], arrival]))
        return value, np.concatenate(asked)

    def near(self, columns: np.ndarray, prices: np.ndarray, worth: np.ndarray) -> np.ndarray:
        """The columns that do not cost much more than their group is worth."""
        costs = self._costs(prices)
        group = columns[:, 0]
        excess = np.empty(len(columns))
        for kind, cost in enumerate(costs):
            chosen = self.kind[group] == kind
            excess[chosen] = cost[tuple(columns[chosen, 1:].T)]
        return columns[excess - self.arrival[group] - worth[group] < _KEEP]

    def solve(self, columns: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The programme with these columns: its value, the prices of capacity [agent, slot, 2] and of groups [group].

        What agents hold in a slot is a variable of its own, bounded by the capacity; a start adds to it and an end
        takes away. That is far sparser than a row in which every start appears as long as it lasts.
        """
        from scipy.optimize import linprog
        from scipy.sparse import csc_array

        groups, starts, horizon = len(self.count), len(columns), self.horizon
        group, agent, choice, start = columns.T
        kinds = self.kind[group]
        lasts, amounts = np.empty(starts, np.int64), np.empty((starts, 2))
        for kind in range(len(self.slots)):
            chosen = kinds == kind
            lasts[chosen] = self.slots[kind][choice[chosen]]
            amounts[chosen] = self.amounts[kind][choice[chosen]]
        held = self.agents * horizon * 2
        rows, places, values = [], [], []
        for slot, sign in ((start, -1.0), (start + lasts, 1.0)):
            within = slot < horizon
            for resource in range(2):
                rows.append(((agent * horizon + slot) * 2 + resource)[within])
                places.append(np.flatnonzero(within))
                values.append(sign * amounts[within, resource])
        number = np.arange(held)
        later = number[(number // 2) % horizon > 0]
        # Columns: the starts, then tasks left out (at more than any start costs), then what is held.
        rows += [held + group, held + np.arange(groups), number, later]
        places += [np.arange(starts), starts + np.arange(groups), starts + groups + number, starts + groups + later - 2]
        values += [np.ones(starts), np.ones(groups), np.ones(held), -np.ones(len(later))]
        matrix = csc_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(places))),
            shape=(held + groups, starts + groups + held),
        )
        longest = max(int(slots.max()) for slots in self.slots)
        upper = np.concatenate(
            (np.full(starts + groups, np.inf), np.repeat(self.capacity[:, None], horizon, 1).ravel())
        )
        found = linprog(
            np.concatenate((start + lasts - self.arrival[group], horizon - self.arrival + longest, np.zeros(held))),
            A_eq=matrix,
            b_eq=np.concatenate((np.zeros(held), self.count)),
            bounds=np.column_stack((np.zeros(len(upper)), upper)),
            method="highs-ipm",
        )
        if found.status != 0:
            raise RuntimeError(f"the linear programme of {len(columns)} columns was not solved: {found.message}")
        prices = np.maximum(0.0, -found.upper.marginals[starts + groups :]).reshape(self.agents, horizon, 2)
        return float(found.fun), prices, found.eqlin.marginals[held:]

    def _costs(self, prices: np.ndarray) -> list[np.ndarray]:
        """Of each type [agent, choice, start] its end, plus what it pays; infinite where an agent is too small."""
        paid = np.zeros((self.agents, self.horizon + 1, 2))
        np.cumsum(prices, axis=1, out=paid[:, 1:])
        start = np.arange(self.horizon + 1)
        costs = []
        for amounts, slots in zip(self.amounts, self.slots, strict=True):
            end = start + slots[:, None]  # [choice, start]
            pays = paid[:, np.minimum(end, self.horizon)] - paid[:, None]
            cost = end + np.einsum("acsr,cr->acs", pays, amounts.astype(np.float64))
            too_small = (amounts > self.capacity[:, None]).any(axis=2)
            cost[too_small] = np.inf
            costs.append(cost)
        return costs


def _amounts(kind: TaskType) -> np.ndarray:
    """int64 [choice, 2] the amounts that no lesser ones are as fast as: unlike the menu, without any tolerance."""
    kept: list[tuple[int, int]] = []
    for cpus, gpus in sorted(np.argwhere(np.isfinite(kind.slots)).tolist(), key=lambda pair: (sum(pair), pair)):
        if not any(c <= cpus and g <= gpus and kind.slots[c, g] <= kind.slots[cpus, gpus] for c, g in kept):
            kept.append((cpus, gpus))
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _drain(programme: _Programme, workload: Workload) -> float:
    """Slots in which all work could be done, at least: of the whole cluster, or of one agent that tasks depend on."""
    area = np.array(
        [
            (amounts * slots[:, None]).min(axis=0)
            for amounts, slots in zip(programme.amounts, programme.slots, strict=True)
        ]
    )[workload.type]
    only = workload.reachable & (workload.reachable.sum(axis=1) == 1)[:, None]
    by_agent = (only.T.astype(np.float64) @ area) / programme.capacity
    return float(max((area.sum(axis=0) / programme.capacity.sum(axis=0)).max(), by_agent.max()))


def _columns(group: int, pairs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.column_stack((np.full(len(starts), group), *pairs, starts))


def _from_each_slot_on(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least of each slot and all later ones, and the first slot that has it."""
    least = np.minimum.accumulate(cost[..., ::-1], axis=-1)[..., ::-1]
    slot = np.where(cost == least, np.arange(cost.shape[-1]), cost.shape[-1])
    return least, np.minimum.accumulate(slot[..., ::-1], axis=-1)[..., ::-1]
