"""What tasks of each type take, learned from tasks that ran: all that ``types`` knows beyond the least amounts.

Exploratory episodes of the scenario are played on amounts drawn at random (the baseline ``random``), on workloads that
no evaluation uses; what each task took is noted, and a table of times is fitted to it. Deterministic: the same scenario
has the same experience in every process.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import msgspec
import numpy as np

from tapfinger_hpc import gaussian
from tapfinger_hpc.frame import DONE, Frame
from tapfinger_hpc.policies.compiled import random_
from tapfinger_hpc.sim import core, knowledge, scenarios
from tapfinger_hpc.sim.core import Truth, compiled
from tapfinger_hpc.sim.knowledge import Belief
from tapfinger_hpc.sim.levels import CURVES, TYPES
from tapfinger_hpc.sim.scenarios import Scenario, TaskType, Workload, draw
from tapfinger_hpc.speed import JobClass

EXPLORING_SEED = 3_500_000
"""Of the first exploratory workload; evaluations use seeds below 3,000,000."""
EPISODES = 8
CALM = 0.1
"""Share of the scenario's arrivals in exploratory episodes: where many tasks run, large amounts are never free."""
LENGTHS = (0.3, 1.0, 3.0, 10.0, 100.0)
"""Distances, in logarithms of CPUs or GPUs, over which times are alike; what was seen says which, for each axis."""
UNKNOWN = 1.0
"""Standard deviation of log times of a type of which nothing was seen."""
NOISE = 0.01
"""Standard deviation of log times below which what was seen is not believed: times are counted in slots."""


class LearnedType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is believed of one type."""

    name: str
    tasks: int
    """That were seen."""
    slots: tuple[tuple[float | None, ...], ...]
    """[CPUs][GPUs]; None where it cannot run."""
    log_std: float


class Experience(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was learned of a scenario's types."""

    scenario: str
    episodes: int
    types: tuple[LearnedType, ...]

    def belief(self) -> Belief:
        """As the core loads it."""
        return Belief(
            tuple(
                np.array([[np.inf if slots is None else slots for slots in row] for row in kind.slots])
                for kind in self.types
            ),
            tuple(kind.log_std for kind in self.types),
        )

    def is_of(self, scenario: Scenario) -> bool:
        """Whether it was learned in this scenario; of ``DRAWN`` never, as those have other types each time."""
        here = [(kind.name, *kind.rate.shape) for kind in scenario.types]
        learned = [(kind.name, len(kind.slots), len(kind.slots[0])) for kind in self.types]
        return self.scenario == scenario.name not in scenarios.DRAWN and learned == here


def beliefs(
    workloads: Sequence[Workload],
    level: str,
    experience: Experience | None = None,
    classes: Sequence[JobClass] = (),
) -> list[Belief | None]:
    """What a policy with this knowledge is told of each workload's tasks; None is the truth.

    Args:
        level: one of ``levels.LEVELS``, or "" of a policy that asks nothing.
        experience: what ``types`` knows already; of scenarios of other types it is learned here.
        classes: what ``curves`` is told; without any, the truth with an error.
    """
    if level == CURVES and classes:
        return [knowledge.of_classes(workload.scenario, classes) for workload in workloads]
    if level == CURVES:
        return [knowledge.estimated(workload) for workload in workloads]
    if level == TYPES:
        return [_learned_belief(workload.scenario, experience) for workload in workloads]
    return [None] * len(workloads)


def learn(scenario: Scenario, episodes: int = EPISODES) -> Experience:
    """Plays exploratory episodes, and fits a table to what tasks took."""
    calm = replace(scenario, arrivals=scenario.arrivals * CALM)
    workloads = [draw(calm, EXPLORING_SEED + number) for number in range(episodes)]
    frame, truth = core.environments(workloads)
    most = np.max([kind.rate.shape for kind in scenario.types], axis=0) - 1
    if scenario.slot == 0:
        most[:] = 0  # amounts of the menu
    seen = [
        explore(frame, truth, env, np.array([workload.seed, *most], np.float64))
        for env, workload in enumerate(workloads)
    ]
    rows = np.concatenate(seen)
    return Experience(
        scenario.name,
        episodes,
        tuple(_learned(kind, rows[rows[:, 0] == number, 1:]) for number, kind in enumerate(scenario.types)),
    )


@compiled
def explore(frame: Frame, truth: Truth, env: int, parameters: np.ndarray) -> np.ndarray:
    """float64 [task, 4] type, CPUs, GPUs and slots of each task of an episode that is played at random.

    Args:
        parameters: of the baseline ``random``.
    """
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    while not core.over(truth, env):
        for row in range(random_.decide(frame, env, parameters, out)):
            job, agent, node = out[row, 0], out[row, 1], out[row, 2]
            core.place(frame, truth, env, job, agent, node, out[row, 3], out[row, 4], out[row, 5])
        core.advance(frame, truth, env)
    seen = np.zeros((truth.jobs[env], 4))
    count, actual = 0, truth.look[env].actual
    for job in range(truth.jobs[env]):
        if frame.status[actual, job] == DONE:
            seen[count, 0] = frame.kind[env, job]
            seen[count, 1], seen[count, 2] = frame.amounts[actual, job, 0], frame.amounts[actual, job, 1]
            seen[count, 3] = truth.end[actual, job] - frame.start[actual, job]
            count += 1
    return seen[:count]


def fit(seen: np.ndarray, able: np.ndarray) -> tuple[np.ndarray, float]:
    """Times on all amounts, and the standard deviation of their logarithm.

    A Gaussian process over the logarithms of CPUs and GPUs, around a power law: where tasks ran, their mean time, the
    nearer the more ran; elsewhere between what ran nearby and the law. Exponential covariances, as steps are common;
    how far times are alike along each axis is what makes the tasks that were seen most likely. No direction is forced
    on it: on the test-bed more GPUs make some tasks slower.

    Args:
        seen: float64 [task, 3] CPUs, GPUs and slots.
        able: bool [CPUs + 1, GPUs + 1] amounts on which a task may run.
    """
    if not len(seen):
        return np.where(able, 1.0, np.inf), UNKNOWN
    everywhere = np.log(np.maximum(1, np.argwhere(able)))
    cells, cell_of, counts = np.unique(seen[:, :2], axis=0, return_inverse=True, return_counts=True)
    logs = np.log(seen[:, 2])
    means = np.bincount(cell_of.ravel(), logs) / counts
    within = ((logs - means[cell_of.ravel()]) ** 2).sum() / max(1, len(logs) - len(cells))
    noise = max(NOISE**2, within)
    points = np.log(np.maximum(1, cells))
    law = _power_law(points, means)
    rest = means - law(points)
    amplitude = max(float(rest.var()), NOISE**2)
    pairs = [(cpus, gpus) for cpus in LENGTHS for gpus in LENGTHS]
    candidates = [
        gaussian.known(amplitude * _alike(points, points, lengths) + np.diag(noise / counts), rest) for lengths in pairs
    ]
    likeliest = int(np.argmax([gaussian.log_evidence(one) for one in candidates]))
    across = amplitude * _alike(points, everywhere, pairs[likeliest])
    beyond, unsure = gaussian.predicted(candidates[likeliest], across, np.full(len(everywhere), amplitude))
    slots = np.full(able.shape, np.inf)
    slots[able] = np.exp(law(everywhere) + beyond + within / 2)  # the mean of a log-normal time
    return slots, float(np.sqrt(unsure.mean() + within))


def _power_law(points: np.ndarray, values: np.ndarray):
    """Least squares, a little towards no slope."""
    columns = np.column_stack((np.ones(len(points)), points))
    factors = np.linalg.solve(columns.T @ columns + np.diag([1e-9, 0.1, 0.1]), columns.T @ values)
    return lambda at: factors[0] + at @ factors[1:]


def _alike(one: np.ndarray, other: np.ndarray, lengths: tuple[float, float]) -> np.ndarray:
    by_cpus, by_gpus = (gaussian.alike(one[:, axis], other[:, axis], length) for axis, length in enumerate(lengths))
    return by_cpus * by_gpus


def _learned(kind: TaskType, seen: np.ndarray) -> LearnedType:
    slots, log_std = fit(seen, np.isfinite(kind.slots))
    rows = [[round(value, 4) if np.isfinite(value) else None for value in row] for row in slots.tolist()]
    return LearnedType(kind.name, len(seen), tuple(tuple(row) for row in rows), round(log_std, 4))


def _learned_belief(scenario: Scenario, experience: Experience | None) -> Belief:
    if experience is not None and experience.is_of(scenario):
        return _as_belief(experience)
    speeds = tuple(
        (kind.name, kind.minimum, kind.curved, kind.rate.shape, kind.rate.tobytes()) for kind in scenario.types
    )
    key = (scenario.name, scenario.capacities, scenario.arrivals, scenario.tasks, scenario.window, speeds)
    if key not in _LEARNED:
        if len(_LEARNED) >= KEPT:
            _LEARNED.pop(next(iter(_LEARNED)))
        _LEARNED[key] = learn(scenario).belief()
    return _LEARNED[key]


@lru_cache(maxsize=16)
def _as_belief(experience: Experience) -> Belief:
    return experience.belief()


KEPT = 64
_LEARNED: dict[tuple, Belief] = {}
"""By what a scenario is, whatever object holds it; of the last so many."""
