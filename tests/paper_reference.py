"""The paper's environment once more, slow and plain, after the words of its specification and not after our core.

Lists and small objects, one slot of progress at a time; what it and the compiled core disagree on is a bug in one of
them. Tasks are numbered in the order of their arrival; an action is (place in the window, CPUs, GPUs), or None.
"""

import math
from dataclasses import dataclass, field

from tapfinger_hpc.sim.scenarios import TaskType, Workload

ALMOST_DONE = 1.0 - 1e-9
"""Twenty steps of 0.05 need not be 1.0 in floating point."""


@dataclass(eq=False)
class Task:
    number: int
    kind: TaskType
    arrival: int
    reachable: list[int]
    age: int = 0
    progress: float = 0.0
    agent: int | None = None
    node: int | None = None
    amounts: tuple[int, int] = (0, 0)
    waited: int = 0
    changed: bool = False
    completion_time: int | None = None


@dataclass(eq=False)
class PaperEnvironment:
    """One episode; ``rewards`` are read after each ``step``."""

    workload: Workload
    slot: int = 0
    rewards: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        scenario = self.workload.scenario
        self.agents = range(len(scenario.capacities))
        self.free = [list(capacity) for capacity in scenario.capacities]
        self.windows: list[list[Task | None]] = [[None] * scenario.window for _ in self.agents]
        self.queues: list[list[Task]] = [[] for _ in self.agents]
        self.running: list[Task] = []
        self.done: list[Task] = []
        self.to_come = [
            Task(number, scenario.types[kind], int(arrival), [agent for agent in self.agents if reachable[agent]])
            for number, (arrival, kind, reachable) in enumerate(
                zip(self.workload.arrival, self.workload.type, self.workload.reachable, strict=True)
            )
        ]
        self._arrive()

    @property
    def over(self) -> bool:
        return len(self.done) == len(self.workload.arrival)

    @property
    def waiting(self) -> list[Task]:
        """Each once, oldest first."""
        standing = {task for places in (*self.windows, *self.queues) for task in places if task}
        return sorted(standing, key=lambda task: task.number)

    def step(self, actions: list[tuple[int, int, int] | None]) -> int:
        """A sub-step; returns how many tasks were placed."""
        wanted = {}
        for agent, action in enumerate(actions):
            task = self._wanted(agent, action)
            if task:
                wanted[agent] = task
        winners = {}
        for agent, task in wanted.items():
            rivals = [other for other in wanted if wanted[other] is task]
            if agent == self._winner(task, rivals):
                winners[agent] = task
        for agent, task in winners.items():
            _, cpus, gpus = actions[agent] or (0, 0, 0)
            self._start(agent, task, cpus, gpus)
        if winners:
            self.rewards = [0.0 for _ in self.agents]
        else:
            self.rewards = [-float(self._present(agent)) for agent in self.agents]
            self._pass_slot()
        return len(winners)

    def change(self, task: Task, node: int, cpus: int, gpus: int) -> bool:
        """Other amounts for a running task: what the elastic baselines do."""
        if task not in self.running or cpus < 0 or gpus < 0 or node not in self.agents:
            return False
        if (node, cpus, gpus) == (task.node, *task.amounts):
            return True
        free = [list(amounts) for amounts in self.free]
        _move(free[task.node], task.amounts, +1)
        _move(free[node], (cpus, gpus), -1)
        if min(free[node]) < 0:
            return False
        self.free = free
        task.node, task.amounts = node, (cpus, gpus)
        task.changed = self.slot > task.arrival + task.waited
        return True

    def _wanted(self, agent: int, action: tuple[int, int, int] | None) -> Task | None:
        """The task of a valid action: it stands at that place, these amounts are free and it can run on them."""
        if action is None:
            return None
        place, cpus, gpus = action
        task = self.windows[agent][place] if 0 <= place < len(self.windows[agent]) else None
        if task is None or not (0 <= cpus <= self.free[agent][0] and 0 <= gpus <= self.free[agent][1]):
            return None
        return task if _speed(task.kind, cpus, gpus, 0.0) > 0 else None

    def _winner(self, task: Task, rivals: list[int]) -> int:
        """Bayes with equal probabilities: the greatest softmax of the room that each has for the task."""
        room = [min(f / m for f, m in zip(self.free[n], task.kind.minimum, strict=True) if m > 0) for n in rivals]
        weights = [math.exp(value - max(room)) for value in room]
        scores = [weight / sum(weights) for weight in weights]
        return rivals[scores.index(max(scores))]

    def _start(self, agent: int, task: Task, cpus: int, gpus: int) -> None:
        task.agent, task.node, task.amounts, task.waited = agent, agent, (cpus, gpus), self.slot - task.arrival
        _move(self.free[agent], task.amounts, -1)
        for window in self.windows:
            if task in window:
                window[window.index(task)] = None
        self.queues = [[other for other in queue if other is not task] for queue in self.queues]
        self.running.append(task)

    def _present(self, agent: int) -> int:
        running = sum(task.agent == agent for task in self.running)
        return running + len(self.queues[agent]) + sum(task is not None for task in self.windows[agent])

    def _pass_slot(self) -> None:
        for task in self.running + self.waiting:
            task.age += 1
        for task in self.running:
            weight = self.workload.scenario.switch_weight if task.changed else 1.0
            task.progress += weight * _speed(task.kind, *task.amounts, task.progress)
            task.changed = False
        for task in [task for task in self.running if task.progress >= ALMOST_DONE]:
            task.completion_time = task.age
            _move(self.free[task.node], task.amounts, +1)
            self.running.remove(task)
            self.done.append(task)
        self.slot += 1
        self._arrive()
        for window, queue in zip(self.windows, self.queues, strict=True):
            while queue and None in window:
                window[window.index(None)] = queue.pop(0)

    def _arrive(self) -> None:
        while self.to_come and self.to_come[0].arrival <= self.slot:
            task = self.to_come.pop(0)
            for agent in task.reachable:
                window = self.windows[agent]
                if None in window:
                    window[window.index(None)] = task
                else:
                    self.queues[agent].append(task)


def _move(free: list[int], amounts: tuple[int, int], sign: int) -> None:
    for resource, amount in enumerate(amounts):
        free[resource] += sign * amount


def _speed(kind: TaskType, cpus: int, gpus: int, progress: float) -> float:
    """Progress in the coming slot."""
    if not (0 <= cpus < len(kind.rate) and 0 <= gpus < len(kind.rate[0])):
        return 0.0
    rate = float(kind.rate[cpus][gpus])
    return rate * math.sqrt(max(0.0, 1.2 - progress)) if kind.curved else rate
