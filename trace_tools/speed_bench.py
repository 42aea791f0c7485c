"""How well speed models foretell what they have not seen, on measured curves.

A prior is always learned without the task, or the family of models, that is then tested. numpy alone; every draw is
seeded.
"""

import csv
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np

from tapfinger_hpc.errors import TraceError
from trace_tools import prior
from trace_tools.classes import class_of, is_declared
from trace_tools.curves import Curve
from trace_tools.prior import Prior
from trace_tools.records import EndedJob
from trace_tools.seen import Cell, Seen, Sums
from trace_tools.speeds import Belief

Amounts = tuple[int, int]
Table = dict[Amounts, tuple[float, ...]]
"""Seconds of each run of one task, by CPUs and GPUs."""
Chooser = Callable[[random.Random, Sequence[Amounts]], list[Amounts]]

PLENTY = 16
"""CPUs with which the curves over GPUs are taken to have been measured; their sources do not say."""
TABLE_WEIGHT = 2.0
"""A table counts for so many families of curves: it says what CPUs do as well."""
SUBSETS, SUBSET = 10, (4, 30)
"""Of a table the prior learns from so many draws of so many cells, as it will later be asked with few."""
LOOKS = (1, 2, 3, 5, 10, 20, 50, 100)
"""After so many jobs of a class the next one is foretold."""
SIGMAS_90 = 1.6449
RESAMPLES = 1000


class Figures(msgspec.Struct, frozen=True):
    """Errors on what was not seen, over many draws of what was."""

    what: str
    seen: str
    draws: int
    median_error: float
    """Of predicted against true seconds, as a share of the true ones."""
    median_low: float
    """95 % interval of the median, from resampling the draws."""
    median_high: float
    worst_tenth: float
    """Median error of the draw that nine in ten beat."""
    inside_90: float
    """Share of single runs within the 90 % interval."""


def table(path: Path) -> dict[str, Table]:
    """Tasks of a file with lines ``task,cpus,gpus,seconds,...``, as TapFinger's authors published theirs."""
    tasks: dict[str, dict[Amounts, list[float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                tasks.setdefault(row[0], {}).setdefault((int(row[1]), int(row[2])), []).append(float(row[3]))
    except (OSError, ValueError, IndexError) as error:
        raise TraceError(f"table {str(path)!r}: expected lines task,cpus,gpus,seconds: {error}") from error
    return {task: {at: tuple(runs) for at, runs in cells.items()} for task, cells in tasks.items()}


def learned_prior(curves: Iterable[Curve], tables: dict[str, Table], without: str = "") -> Prior:
    """The prior of all that was measured but for one task or family."""
    draw = random.Random(0)
    measured = [
        (family_of(curve), 1.0, _amounts((PLENTY, gpus) for gpus, _ in curve.seconds), _logs(dict(curve.seconds)))
        for curve in curves
        if family_of(curve) != without
    ]
    for task, cells in sorted(tables.items()):
        for _ in range(0 if task == without else SUBSETS):
            chosen = draw.sample(sorted(cells), min(len(cells), draw.randint(*SUBSET)))
            logs = np.log([draw.choice(cells[at]) for at in chosen])
            measured.append((task, TABLE_WEIGHT, _amounts(chosen), logs))
    return prior.learned(measured)


def family_of(curve: Curve) -> str:
    return f"{curve.source} {curve.family}"


def measure(curves: Sequence[Curve], tables: dict[str, Table], draws: int) -> Iterator[Figures]:
    """All figures, one after the other."""
    for task, cells in sorted(tables.items()):
        believed = learned_prior(curves, tables, task)
        for seen, choose in CHOICES.items():
            yield _of_table(task, seen, cells, choose, believed, draws)
    for source, spread in sorted({(curve.source, curve.spread) for curve in curves}):
        tested = [curve for curve in curves if (curve.source, curve.spread) == (source, spread)]
        yield _of_curves(f"{source}{', several nodes' if spread else ''}", tested, curves, tables)


def of_jobs(jobs: Iterable[EndedJob], what: str) -> Iterator[Figures]:
    """How well each job is foretold from those of its class that ended before it, by how many there were.

    Jobs that ended while this one ran are taken to be known; that matters for the first of a class alone.
    """
    believed = {declared: prior.of_jobs(prior.shipped(), noises) for declared, noises in prior.NOISES_BEFORE.items()}
    classes: dict[str, Seen] = {}
    errors: dict[int, list[float]] = {}
    inside: dict[int, list[bool]] = {}
    for job in jobs:
        name = class_of(job)
        if not name or job.nodes > 1:
            continue
        seen = classes.setdefault(name, Seen(name))
        if job.finished and seen.finished and seen.finished in LOOKS:
            had = job.granted
            means, _, deviations = Belief(seen, believed[is_declared(name)]).predicted(
                [(had.cpus, had.gpus, had.mem_mb)]
            )
            away = float(means[0]) - float(np.log(job.elapsed_s))
            errors.setdefault(seen.finished, []).append(abs(float(np.exp(away)) - 1))
            inside.setdefault(seen.finished, []).append(bool(abs(away) <= SIGMAS_90 * deviations[0]))
        seen.add(job)
    for count in sorted(errors):
        yield _figures(what, f"{count} jobs of the class", errors[count], errors[count], inside[count])


def a_fifth(draw: random.Random, cells: Sequence[Amounts]) -> list[Amounts]:
    return draw.sample(cells, round(len(cells) / 5))


def three(draw: random.Random, cells: Sequence[Amounts]) -> list[Amounts]:
    return draw.sample(cells, 3)


def three_alike(draw: random.Random, cells: Sequence[Amounts]) -> list[Amounts]:
    """As users ask: the same GPUs, and CPUs next to one another."""
    cpus, gpus = draw.choice(cells)
    near = sorted((at for at in cells if at[1] == gpus), key=lambda at: (abs(at[0] - cpus), at[0]))
    return near[:3]


CHOICES: dict[str, Chooser] = {
    "a fifth of the cells": a_fifth,
    "three cells": three,
    "three cells side by side": three_alike,
}


def _of_table(task: str, seen: str, cells: Table, choose: Chooser, believed: Prior, draws: int) -> Figures:
    draw = random.Random(f"{task} {seen}")
    everywhere = sorted(cells)
    medians, inside = [], []
    for _ in range(draws):
        chosen = choose(draw, everywhere)
        rest = [at for at in everywhere if at not in set(chosen)]
        belief = Belief(_seen({at: draw.choice(cells[at]) for at in chosen}), believed)
        means, _, deviations = belief.predicted(_amounts(rest))
        truth = np.array([np.exp(np.mean(np.log(cells[at]))) for at in rest])
        single = np.log([draw.choice(cells[at]) for at in rest])
        medians.append(float(np.median(np.abs(np.exp(means) / truth - 1))))
        inside.append(float((np.abs(single - means) <= SIGMAS_90 * deviations).mean()))
    return _figures(task, seen, medians, medians, inside)


def _of_curves(source: str, tested: Sequence[Curve], curves: Sequence[Curve], tables: dict[str, Table]) -> Figures:
    """From every two points of every curve, the others."""
    errors, inside = [], []
    for family in sorted({family_of(curve) for curve in tested}):
        believed = learned_prior(curves, tables, family)
        for curve in tested:
            points = {(PLENTY, gpus): seconds for gpus, seconds in curve.seconds}
            for chosen in combinations(points, 2) if family_of(curve) == family else ():
                belief = Belief(_seen({at: points[at] for at in chosen}), believed)
                rest = {at: seconds for at, seconds in points.items() if at not in chosen}
                means, _, deviations = belief.predicted(_amounts(rest))
                away = means - _logs(rest)
                errors.extend(np.abs(np.exp(away) - 1).tolist())
                inside.extend((np.abs(away) <= SIGMAS_90 * deviations).tolist())
    return _figures(source, "two points of a curve over GPUs", errors, errors, inside)


def _figures(what: str, seen: str, medians: list[float], draws: list[float], inside: Sequence[float]) -> Figures:
    again = np.random.default_rng(0).choice(np.array(medians), (RESAMPLES, len(medians)))
    low, high = np.quantile(np.median(again, axis=1), (0.025, 0.975))
    worst = np.quantile(medians, 0.9)
    rounded = [round(float(value), 4) for value in (np.median(medians), low, high, worst, np.mean(inside))]
    return Figures(what, seen, len(draws), *rounded)


def _seen(runs: dict[Amounts, float]) -> Seen:
    cells = [Cell(cpus, gpus, 0, "", Sums(1.0, float(np.log(seconds)))) for (cpus, gpus), seconds in runs.items()]
    return Seen("tested", finished=len(cells), cells=cells)


def _amounts(cells: Iterable[Amounts]) -> np.ndarray:
    return np.array([[cpus, gpus, 0] for cpus, gpus in cells], float)


def _logs(seconds: dict) -> np.ndarray:
    return np.log(list(seconds.values()))
