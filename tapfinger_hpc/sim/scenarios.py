"""Scenarios by name. The paper's, and random ones like them: slotted time, one node for each agent, CPUs and GPUs.

Sizes, arrival rates and speeds are those of the authors' published program (nooblyh/TapFinger); arXiv:2302.00571 names
the quantities. A workload is drawn once, from the scenario and a seed, so that every policy meets the same one.
``sites`` draws those of "cluster", in event time.
"""

import csv
import math
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from tapfinger_hpc.errors import ScenarioError

RANDOM, CLUSTER = "random", "cluster"
"""Another cluster, load and set of speed curves for each seed."""
WINDOW = 10
"""Places in an agent's window; further tasks queue behind it."""
DONE = 1.0 - 1e-9
"""Progress at which a task counts as done: sums of slots' progress may fall short of 1 by rounding."""
CONTAINER_START_S = 14.0
"""What starting a container adds to a task of the test-bed table."""
SLOT_S = 5.0
"""Seconds of a slot in the test-bed scenarios."""
_SIZES = ((4, 4), (8, 8), (12, 12), (16, 16), (24, 24), (32, 32), (16, 4), (16, 8), (32, 8), (32, 16), (48, 8), (64, 8))


@dataclass(frozen=True, eq=False)
class TaskType:
    """Tasks that behave alike."""

    name: str
    minimum: tuple[int, int]
    """CPUs and GPUs below which it makes no progress."""
    rate: np.ndarray
    """[CPUs + 1, GPUs + 1] progress in a slot on these amounts; 0 where it cannot run. Its extent is the most that a
    task may be given."""
    curved: bool = False
    """Whether progress slows down as it goes: rate * sqrt(1.2 - progress)."""

    @cached_property
    def slots(self) -> np.ndarray:
        """[CPUs + 1, GPUs + 1] slots from placement to completion on constant amounts; infinite where it cannot run."""
        progress = np.zeros(self.rate.shape)
        slots = np.full(self.rate.shape, np.inf)
        able = self.rate > 0
        count = 0
        while np.isinf(slots[able]).any():
            count += 1
            progress += self.rate * np.sqrt(1.2 - np.minimum(progress, 1.0)) if self.curved else self.rate
            slots[able & np.isinf(slots) & (progress >= DONE)] = count
        return slots

    @cached_property
    def menu(self) -> np.ndarray:
        """int64 [choice, 2] the amounts that are worth having."""
        return worth_having(self.slots)

    @property
    def mem_mb(self) -> np.ndarray:
        """int64 [GPUs + 1] MiB without which it cannot run on so many GPUs."""
        return np.zeros(self.rate.shape[1], np.int64)

    @property
    def log_std(self) -> float:
        """Of the logarithm of the time that its tasks take; 0 where they are all alike."""
        return 0.0


def worth_having(slots: np.ndarray) -> np.ndarray:
    """int64 [choice, 2] the amounts that no lesser amounts are as fast as (to 2 %), from the least upwards.

    Args:
        slots: [CPUs + 1, GPUs + 1] of a task on these amounts; infinite where it cannot run.
    """
    kept: list[tuple[int, int]] = []
    for cpus, gpus in sorted(np.argwhere(np.isfinite(slots)).tolist(), key=lambda pair: (sum(pair), pair)):
        if not any(c <= cpus and g <= gpus and slots[c, g] <= 1.02 * slots[cpus, gpus] for c, g in kept):
            kept.append((cpus, gpus))
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Scenario:
    """What is drawn from: agents with their capacities, tasks of several types, arrivals by Poisson."""

    name: str
    capacities: tuple[tuple[int, int], ...]
    """CPUs and GPUs of each agent's node."""
    arrivals: float
    """Mean number of tasks that arrive in a slot, over all agents."""
    tasks: int
    """Tasks of an episode."""
    types: tuple[TaskType, ...]
    switch_weight: float = 1.0
    """Share of its progress that a running task makes in a slot in which its amounts are changed."""
    window: int = WINDOW

    @property
    def agents(self) -> int:
        return len(self.member)

    @property
    def slot(self) -> float:
        """Length of a slot; 0 in event time."""
        return 1.0

    @property
    def unit(self) -> float:
        """What times are counted in where scenarios are compared: a slot."""
        return self.slot

    @property
    def nodes(self) -> np.ndarray:
        """int64 [node, 3] CPUs, GPUs, MiB."""
        return np.array([(*pair, 0) for pair in self.capacities], dtype=np.int64)

    @property
    def member(self) -> np.ndarray:
        """bool [agent, node] whose nodes they are."""
        return np.eye(len(self.capacities), dtype=np.bool_)

    @property
    def load(self) -> float:
        """Work that arrives in a slot, on each type's thriftiest amounts, over the scarcest resource's capacity."""
        work = np.zeros(2)
        for kind in self.types:
            area = kind.menu * kind.slots[kind.menu[:, 0], kind.menu[:, 1]][:, None]
            shares = area / np.array(self.capacities).sum(axis=0)
            work += area[shares.sum(axis=1).argmin()] / len(self.types)
        return float((self.arrivals * work / np.array(self.capacities).sum(axis=0)).max())


@dataclass(frozen=True, eq=False)
class Workload:
    """The tasks of one episode, in order of arrival."""

    scenario: Scenario
    seed: int
    arrival: np.ndarray  # int64 [task] slot
    type: np.ndarray  # int64 [task] position in scenario.types
    reachable: np.ndarray  # bool [task, agent]

    @property
    def ours(self) -> np.ndarray:
        """bool [task] those that policies place, and whose completion times count."""
        return np.ones(len(self.arrival), np.bool_)

    @property
    def work(self) -> np.ndarray:
        """float64 [task] its time over that of its type."""
        return np.ones(len(self.arrival))

    def begin(self, tasks: int) -> "Workload":
        """Its first so many tasks alone."""
        return replace(self, arrival=self.arrival[:tasks], type=self.type[:tasks], reachable=self.reachable[:tasks])


def draw(scenario: Scenario, seed: int) -> Workload:
    """The workload of this seed: the same for every policy."""
    if scenario.slot == 0:
        from tapfinger_hpc.sim import sites

        return sites.draw(cast(sites.Site, scenario), seed)
    source = np.random.default_rng((seed, zlib.crc32(scenario.name.encode())))
    arrival: list[int] = []
    slot = 0
    while len(arrival) < scenario.tasks:
        count = min(int(source.poisson(scenario.arrivals)), scenario.tasks - len(arrival))
        arrival += [slot] * count
        slot += 1
    kinds = source.integers(len(scenario.types), size=scenario.tasks)
    reachable = np.zeros((scenario.tasks, scenario.agents), dtype=bool)
    for row in reachable:
        row[source.permutation(scenario.agents)[: source.integers(1, scenario.agents + 1)]] = True
    return Workload(scenario, seed, np.array(arrival, dtype=np.int64), kinds, reachable)


def scenario(name: str, table: Path | None = None) -> Scenario:
    """The scenario of this name.

    Args:
        table: the test-bed measurements (rows ``task,CPUs,GPUs,seconds,...``), for the scenarios that replay them.

    Raises:
        ScenarioError: no scenario has this name, or its table is missing or cannot be read.
    """
    if name in _SYNTHETIC:
        return _SYNTHETIC[name]
    if name not in _TESTBED:
        raise ScenarioError(f"scenario {name!r} is not known; known: {', '.join(NAMES)}")
    if table is None:
        raise ScenarioError(
            f"scenario {name!r} replays measurements of the authors' test-bed, which do not ship with this package; "
            "give their file with --table (trace_container.csv of nooblyh/TapFinger)"
        )
    capacities, arrivals, tasks, minimum, most_gpus = _TESTBED[name]
    types = tuple(_measured(kind, table, minimum, most_gpus) for kind in ("mnist", "lm", "audio"))
    return Scenario(name, capacities, arrivals, tasks, types, switch_weight=0.5)


def random_scenario(source: np.random.Generator, *, tasks: int | None = None) -> Scenario:
    """Another cluster, load and set of speed curves each time: 2 to 24 agents, load 0.4 to 1.1; one of ten is
    overloaded, up to 1.5, as the authors' test-bed is.
    """
    agents = int(source.choice((2, 3, 3, 4, 5, 6, 6, 8, 10, 12, 16, 20, 24)))
    if source.random() < 0.4:
        capacities = (_SIZES[source.integers(len(_SIZES))],) * agents
    elif source.random() < 0.5:
        pool = [_SIZES[index] for index in source.integers(len(_SIZES), size=2)]
        capacities = tuple(pool[index] for index in source.integers(2, size=agents))
    else:
        capacities = tuple(_SIZES[index] for index in source.integers(len(_SIZES), size=agents))
    kinds = tuple(_random_type(source, f"type{number}", capacities) for number in range(source.integers(1, 6)))
    load = source.uniform(1.1, 1.5) if source.random() < 0.1 else source.uniform(0.4, 1.1)
    tasks = tasks or int(min(384, max(96, 64 * agents)))
    trial = Scenario(RANDOM, capacities, 1.0, tasks, kinds)
    return Scenario(RANDOM, capacities, load / trial.load, tasks, kinds)


def workload(name: str, seed: int, *, table: Path | None = None, load: float | None = None) -> Workload:
    """The workload of this seed in the scenario of this name; in those of ``DRAWN`` each seed has its own cluster.

    Args:
        table: as for ``scenario``.
        load: scales the rate of arrivals so that the scenario's load is this.
    """
    if name == CLUSTER:
        from tapfinger_hpc.sim import sites

        return sites.workload(seed, load=load)
    if name == RANDOM:
        chosen = random_scenario(np.random.default_rng((seed, zlib.crc32(b"cluster"))))
    else:
        chosen = scenario(name, table)
    if load is not None:
        chosen = replace(chosen, arrivals=chosen.arrivals * load / chosen.load)
    return draw(chosen, seed)


def _random_type(source: np.random.Generator, name: str, capacities: tuple[tuple[int, int], ...]) -> TaskType:
    """One of: no gain from more, a gain that falls with progress, GPUs fed by CPUs, CPUs alone."""
    most = 16
    cpus, gpus = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
    smallest = (min(c for c, _ in capacities), min(g for _, g in capacities))
    minimum = (int(source.integers(1, min(4, smallest[0]) + 1)), int(source.integers(1, min(3, smallest[1]) + 1)))
    able = (cpus >= minimum[0]) & (gpus >= minimum[1])
    family = source.choice(("flat", "curved", "fed", "fed", "cpus"))
    length = float(np.exp(source.uniform(np.log(3), np.log(40))))
    if family == "flat":
        rate = np.full(cpus.shape, 1.0 / math.ceil(length / 3))
    elif family == "curved":
        rate = np.tanh(gpus / source.uniform(6, 24)) * source.uniform(0.7, 1.5)
    elif family == "fed":
        scaling, serial = source.uniform(0.5, 1.0), source.uniform(0.0, 0.2)
        feed, strength = source.uniform(0.3, 4.0), source.uniform(0.2, 1.0)
        hunger = np.maximum(1.0, feed * gpus / np.maximum(cpus, 1)) ** strength
        rate = 1.0 / (length * (serial + (1 - serial) * hunger / np.maximum(gpus, 1) ** scaling))
    else:
        rate = np.maximum(cpus, 1) ** source.uniform(0.3, 0.9) / length
    return TaskType(name, minimum, np.where(able, rate, 0.0), curved=bool(family == "curved"))


def _flat(name: str, minimum: tuple[int, int], slots: int) -> TaskType:
    """More than the minimum brings nothing."""
    rate = np.zeros((17, 17))
    rate[minimum[0] :, minimum[1] :] = 1.0 / slots
    return TaskType(name, minimum, rate)


def _language_model(minimum: tuple[int, int]) -> TaskType:
    """Of more CPUs than the minimum it makes nothing; of GPUs ever less."""
    rate = np.zeros((17, 17))
    rate[minimum[0] :, minimum[1] :] = np.tanh(np.arange(minimum[1], 17) / 16)
    return TaskType("LM", minimum, rate, curved=True)


def _measured(name: str, table: Path, minimum: tuple[int, int], most_gpus: int) -> TaskType:
    """A task of the test-bed table: the mean of its repeats, where the authors keep the later one."""
    seconds: dict[tuple[int, int], list[float]] = {}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for line in csv.reader(file):
                if line and line[0] == name:
                    seconds.setdefault((int(line[1]), int(line[2])), []).append(float(line[3]))
    except (OSError, ValueError, IndexError) as error:
        raise ScenarioError(
            f"reading the test-bed table {table}: {error}; expected rows of task,CPUs,GPUs,seconds"
        ) from error
    if not seconds:
        raise ScenarioError(f"reading the test-bed table {table}: no row of task {name!r}")
    rate = np.zeros((17, most_gpus + 1))
    for (cpus, gpus), repeats in seconds.items():
        if minimum[0] <= cpus <= 16 and minimum[1] <= gpus <= most_gpus:
            rate[cpus, gpus] = SLOT_S / (sum(repeats) / len(repeats) + CONTAINER_START_S)
    return TaskType(name, minimum, rate)


_USUAL = (_flat("IMG", (2, 1), 4), _language_model((2, 1)))
_THREE, _SIX = ((16, 16),) * 3, ((16, 16),) * 6
_SYNTHETIC = {
    scenario.name: scenario
    for scenario in (
        Scenario("hetero-6", ((4, 4), (8, 8), (12, 12), (16, 16), (24, 24), (32, 32)), 6, 384, _USUAL),
        Scenario("uniform-3", _THREE, 3, 192, _USUAL),
        Scenario("order-3", _THREE, 3, 192, (_flat("IMG", (3, 3), 1), _flat("LM", (3, 3), 11))),
        Scenario("synthetic-3", _THREE, 2, 192, _USUAL, switch_weight=0.5),
        Scenario("synthetic-6-l2", _SIX, 2, 384, _USUAL, switch_weight=0.5),
        Scenario("synthetic-6-l3", _SIX, 3, 384, _USUAL, switch_weight=0.5),
        Scenario("synthetic-6-l4", _SIX, 4, 384, _USUAL, switch_weight=0.5),
    )
}
_TESTBED: dict[str, tuple[tuple[tuple[int, int], ...], float, int, tuple[int, int], int]] = {
    "testbed-3": (((16, 4), (16, 4), (16, 8)), 1, 200, (1, 1), 8),
    **{f"trace-3-{tasks}": (((32, 16),) * 3, 1.5, tasks, (2, 1), 8) for tasks in (500, 1000, 2000, 4000)},
    **{f"trace-6-{tasks}": (((32, 16),) * 6, 3, tasks, (2, 1), 8) for tasks in (2000, 4000, 8000)},
}
DRAWN = (RANDOM, CLUSTER)
"""Those of which every seed has a cluster of its own."""
NAMES = (*_SYNTHETIC, *_TESTBED, *DRAWN)
