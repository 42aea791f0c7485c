"""How good policies are: the same workloads for all, in figures whose intervals are over seeds and whose differences
are paired by seed.

Pure but for ``play_task``, which plays: episodes in, a ``Report`` out. A report holds all that tables and plots need,
so that they can be made from its JSON. docs/evaluation.md defines every figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.sim import scenarios
from tapfinger_hpc.sim.bound import Bound, alone, bound
from tapfinger_hpc.sim.episodes import Episode, Player, play
from tapfinger_hpc.sim.scenarios import Scenario, Workload
from tapfinger_hpc.speed import JobClass

WARM_UP_TASKS = 5
"""Tasks of an episode before those that count: it compiles and loads what the first decision needs."""


class Interval(msgspec.Struct, frozen=True):
    """A mean over seeds with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width: it is symmetric."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


class Figures(msgspec.Struct, frozen=True):
    """One policy in one contest. Times are in slots (in event time: in units of ``Scenario.unit``)."""

    policy: str
    knowledge: str
    mean_jct: Interval
    median_jct: float
    p95_jct: float
    p99_jct: float
    max_jct: float
    waiting: Interval
    p95_waiting: float
    gpu_efficiency: float
    """Work done per GPU held: the GPU slots that the tasks need at least, over those that were held for them."""
    cpu_efficiency: float
    gpu_use: float
    """Share of the GPUs that were held, over the slots in which tasks still arrived."""
    cpu_use: float
    decisions_per_s: float
    passes_per_task: float
    """Times that a network encoded the state, for each task that was placed; 0 for policies without one."""
    elastic: bool
    """Whether it changed the amounts of running tasks."""
    jct_of_seeds: tuple[float, ...]
    jct_percentiles: tuple[float, ...]
    """Completion time at 0, 1, ... 100 % of all tasks."""
    tasks_over_time: tuple[float, ...]
    """Tasks waiting or running in each slot, mean over the seeds."""
    gpu_use_over_time: tuple[float, ...]
    cpu_use_over_time: tuple[float, ...]


class Difference(msgspec.Struct, frozen=True):
    """Mean completion time of a policy less that of another, paired by seed: below 0 the policy is better."""

    policy: str
    against: str
    slots: Interval
    relative: Interval
    """The same as a share of the other's mean."""
    ratio: Interval
    """Geometric mean over the seeds of (ours / theirs), less 1: every workload counts alike, long or short."""
    worst: float
    """The greatest (ours / theirs) of a seed, less 1."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.slots.low > 0 or self.slots.high < 0


class BoundFigures(msgspec.Struct, frozen=True):
    """What no policy can beat, on the first of the seeds."""

    seeds: int
    alone: Interval
    """As ``Contest.alone``, on these."""
    programme: Interval
    greatest_gap: float
    """By how much the programme's own value may lie above the bound at most, as a share of it."""
    above: dict[str, float]
    """By how much each policy's mean on these seeds lies above the programme's bound, as a share of it; without
    policies that change the amounts of running tasks, as it does not bind them."""


class Contest(msgspec.Struct, frozen=True):
    """All policies on the same workloads of one scenario."""

    scenario: str
    load: float
    """Mean over the workloads; docs/evaluation.md says of what."""
    first_seed: int
    seeds: int
    alone: Interval
    """Mean completion time if every task had the cluster to itself, on constant amounts."""
    policies: tuple[Figures, ...]
    differences: tuple[Difference, ...]
    """All pairs."""
    bound: BoundFigures | None = None

    def figures(self, policy: str) -> Figures:
        return next(row for row in self.policies if row.policy == policy)

    def against(self, policy: str, reference: str) -> Interval:
        """By how much it is above the reference, as a share: of the mean, or where every seed has a cluster of its own
        by the ratio of each.
        """
        found = self.difference(policy, reference)
        return found.ratio if self.scenario in scenarios.DRAWN else found.relative

    def difference(self, policy: str, against: str) -> Difference:
        return next(row for row in self.differences if (row.policy, row.against) == (policy, against))


class Report(msgspec.Struct, frozen=True):
    """Everything that an evaluation found."""

    version: str
    reference: str
    contests: tuple[Contest, ...]


@dataclass(frozen=True)
class Contender:
    """A policy as a contest names it."""

    name: str
    policy: str
    """Its name in ``players``."""
    checkpoint: Path | None = None
    knowledge: str | None = None
    single_task: bool = False
    """A learned policy places at most one task per agent, then looks at the state anew."""
    settles: bool = True
    """One that was trained for any cluster settles in on the scenario first."""
    classes: tuple[JobClass, ...] = ()
    """What it is told where its knowledge is "curves"; without any, estimates that are drawn."""

    def player(self, scenario: Scenario, seed: int) -> Player:
        from tapfinger_hpc.sim import players

        needs: dict[str, Any] = {"scenario": scenario}
        if self.checkpoint is not None:
            needs["checkpoint"] = self.checkpoint
        if self.knowledge is not None:
            needs["knowledge"] = self.knowledge
        if self.single_task:
            needs["single_task"] = True
        if not self.settles:
            needs["settles"] = False
        if self.classes:
            needs["classes"] = self.classes
        return players.make(self.policy, seed=seed, **needs)


@dataclass(frozen=True)
class PlayTask:
    """Some episodes of one policy: what a worker does at a time."""

    scenario: str
    load: float | None
    table: Path | None
    seeds: tuple[int, ...]
    contender: Contender

    def workloads(self) -> list[Workload]:
        return [scenarios.workload(self.scenario, seed, table=self.table, load=self.load) for seed in self.seeds]


@dataclass(frozen=True, eq=False)
class Run:
    """What figures need of one episode."""

    seed: int
    knowledge: str
    load: float
    alone: float
    """Mean completion time if every task had the cluster to itself."""
    completion: np.ndarray  # float32 [task] slots
    waiting: np.ndarray  # float32 [task] slots from arrival to the first placement
    present: np.ndarray  # float32 [slot] tasks in the system
    use: np.ndarray  # float32 [slot, 2] share of the CPUs and GPUs held
    arriving: int
    """Slots in which tasks still arrived."""
    needed: tuple[float, float]
    """CPU slots and GPU slots that its tasks need at least."""
    held: tuple[float, float]
    decisions: int
    decision_s: float
    passes: float
    elastic: bool


def play_task(task: PlayTask) -> list[Run]:
    """Plays, after a short episode that does not count."""
    workloads = task.workloads()
    first = workloads[0]
    play([first.begin(WARM_UP_TASKS)], task.contender.player(first.scenario, task.seeds[0]))
    runs = []
    # Where each seed has a scenario of its own, a policy that is made for a scenario is made for each of them.
    for together in [[one] for one in workloads] if task.scenario in scenarios.DRAWN else [workloads]:
        player = task.contender.player(together[0].scenario, together[0].seed)
        episodes = play(together, player, classes=task.contender.classes)
        passes = getattr(player, "passes", 0) / len(episodes)
        runs += [run(episode, player.knowledge, passes) for episode in episodes]
    return runs


def bound_task(scenario: str, load: float | None, table: Path | None, seed: int) -> Bound:
    """The lower bounds of one workload."""
    return bound(scenarios.workload(scenario, seed, table=table, load=load))


def run(episode: Episode, knowledge: str, passes: float = 0.0) -> Run:
    """The part of an episode that figures need.

    Args:
        passes: of a network.
    """
    workload = episode.workload
    scenario = workload.scenario
    ours, unit = workload.ours, scenario.unit
    capacity = np.array(scenario.capacities).sum(axis=0)
    held = episode.used.sum(axis=0)
    least = np.array([_least_slots(kind.slots) for kind in scenario.types])[workload.type] * workload.work[:, None]
    least = least[ours].sum(axis=0) / unit
    return Run(
        seed=workload.seed,
        knowledge=knowledge,
        load=scenario.load,
        alone=float(alone(workload)[ours].mean() / unit),
        completion=(episode.completion_times / unit).astype(np.float32),
        waiting=((episode.start - workload.arrival)[ours] / unit).astype(np.float32),
        present=episode.present.sum(axis=1).astype(np.float32),
        use=(episode.used / capacity).astype(np.float32),
        arriving=int(workload.arrival[-1] / unit) + 1,
        needed=(float(least[0]), float(least[1])),
        held=(float(held[0]), float(held[1])),
        decisions=episode.decisions,
        decision_s=episode.decision_s,
        passes=passes,
        elastic=len(episode.changes) > len(workload.arrival),
    )


def contest(scenario: str, runs: dict[str, list[Run]], bounds: Sequence[Bound] = (), *, first_seed: int = 0) -> Contest:
    """The figures of policies, each with its runs in the order of the same seeds.

    Args:
        bounds: of the first of these workloads.
    """
    policies = tuple(figures(name, own) for name, own in runs.items())
    some = next(iter(runs.values()))
    return Contest(
        scenario=scenario,
        load=_rounded(np.mean([one.load for one in some])),
        first_seed=first_seed,
        seeds=len(some),
        alone=interval([one.alone for one in some]),
        policies=policies,
        differences=tuple(
            difference(one, other) for one in policies for other in policies if one.policy != other.policy
        ),
        bound=bound_figures(policies, bounds) if bounds else None,
    )


def figures(policy: str, runs: Sequence[Run]) -> Figures:
    """One policy's figures over its runs; quantiles are over the tasks of all of them."""
    completion = np.concatenate([one.completion for one in runs]).astype(np.float64)
    waiting = np.concatenate([one.waiting for one in runs]).astype(np.float64)
    means = [float(one.completion.mean(dtype=np.float64)) for one in runs]
    needed, held = (np.sum([getattr(one, part) for one in runs], axis=0) for part in ("needed", "held"))
    use = np.mean([one.use[: one.arriving].mean(axis=0, dtype=np.float64) for one in runs], axis=0)
    seconds = sum(one.decision_s for one in runs)
    over_time = _mean_over_runs([one.use for one in runs])
    return Figures(
        policy=policy,
        knowledge=runs[0].knowledge,
        mean_jct=interval(means),
        median_jct=float(np.median(completion)),
        p95_jct=_rounded(np.percentile(completion, 95)),
        p99_jct=_rounded(np.percentile(completion, 99)),
        max_jct=float(completion.max()),
        waiting=interval([float(one.waiting.mean(dtype=np.float64)) for one in runs]),
        p95_waiting=_rounded(np.percentile(waiting, 95)),
        gpu_efficiency=_rounded(needed[1] / held[1]),
        cpu_efficiency=_rounded(needed[0] / held[0]),
        gpu_use=_rounded(use[1]),
        cpu_use=_rounded(use[0]),
        decisions_per_s=_rounded(sum(one.decisions for one in runs) / max(seconds, 1e-9)),
        passes_per_task=_rounded(sum(one.passes for one in runs) / len(completion)),
        elastic=any(one.elastic for one in runs),
        jct_of_seeds=tuple(_rounded(mean) for mean in means),
        jct_percentiles=_series(np.percentile(completion, np.arange(101))),
        tasks_over_time=_series(_mean_over_runs([one.present[:, None] for one in runs])[:, 0]),
        gpu_use_over_time=_series(over_time[:, 1]),
        cpu_use_over_time=_series(over_time[:, 0]),
    )


def difference(one: Figures, other: Figures) -> Difference:
    """By how much the first is above the second, paired by seed."""
    ours, theirs = np.array(one.jct_of_seeds), np.array(other.jct_of_seeds)
    logarithms = interval(np.log(ours / theirs))
    return Difference(
        policy=one.policy,
        against=other.policy,
        slots=interval(ours - theirs),
        relative=interval((ours - theirs) / float(theirs.mean())),
        ratio=Interval(*(_rounded(np.expm1(value)) for value in msgspec.structs.astuple(logarithms))),
        worst=_rounded((ours / theirs).max() - 1),
    )


def bound_figures(policies: Sequence[Figures], bounds: Sequence[Bound]) -> BoundFigures:
    """The bounds of the first workloads, and how far above them each policy is."""
    count = len(bounds)
    programme = interval([one.programme for one in bounds])
    return BoundFigures(
        seeds=count,
        alone=interval([one.alone for one in bounds]),
        programme=programme,
        greatest_gap=_rounded(max(one.gap for one in bounds)),
        above={
            row.policy: _rounded(np.mean(row.jct_of_seeds[:count]) / programme.mean - 1)
            for row in policies
            if not row.elastic
        },
    )


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean with its 95 % interval; of a single value, that value."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(_rounded(mean), _rounded(mean), _rounded(mean))
    from scipy.special import stdtrit

    half = float(stdtrit(len(found) - 1, 0.975) * found.std(ddof=1) / np.sqrt(len(found)))
    return Interval(_rounded(mean), _rounded(mean - half), _rounded(mean + half))


def loads(text: str) -> tuple[float, ...]:
    """Loads as the command line says them: ``0.8``, ``0.5,0.9`` or ``0.3:1.1:0.1`` (first, last, step).

    Raises:
        ConfigError: it is none of these.
    """
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            found = tuple(_rounded(first + step * number) for number in range(int((last - first) / step + 1e-9) + 1))
        else:
            found = tuple(float(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        found = ()
    if not found or min(found) <= 0:
        raise ConfigError(f"loads {text!r}: expected numbers above 0 such as 0.8, 0.5,0.9 or 0.3:1.1:0.1")
    return found


def _least_slots(slots: np.ndarray) -> np.ndarray:
    """float64 [2] CPU slots and GPU slots that a task takes where it takes the fewest of each."""
    amounts = np.argwhere(np.isfinite(slots))
    return (amounts * slots[tuple(amounts.T)][:, None]).min(axis=0)


def _mean_over_runs(series: Sequence[np.ndarray]) -> np.ndarray:
    """The mean in each slot; a run that is over counts as 0."""
    total = np.zeros((max(len(one) for one in series), series[0].shape[1]))
    for one in series:
        total[: len(one)] += one
    return total / len(series)


def _series(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(values, 4).tolist())


def _rounded(value: Any) -> float:
    """Floats in the JSON without the noise of their last digits."""
    return float(f"{float(value):.9g}")
