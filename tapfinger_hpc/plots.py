"""Figures of an evaluation, as SVG and PNG, drawn from its report alone: the same report, the same files.

A policy has the same colour in all of them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.evaluate import Contest, Figures, Interval, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart, and three more.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#000000", "#8C564B", "#7F7F7F", "#BCBD22"),
)
_LINES = ("-", "--", ":")
_FAR = 1.0
"""Policies that are so much worse than the reference would hide the others in a drawing of the differences."""
_STYLE: Any = {
    "svg.hashsalt": "tapfinger",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Curve:
    """What a training told of itself while it went on."""

    name: str
    minutes: np.ndarray  # float64 [point]
    mean_jct: np.ndarray  # float64 [point]


def read_curve(name: str, path: Path) -> Curve:
    """Reads the log of a training: JSON lines with at least ``seconds`` and ``mean_jct``, others are passed over.

    Raises:
        ConfigError: it cannot be read, or no line has both.
    """
    points: list[tuple[float, float]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"reading the learning curve {str(path)!r}: {error}") from error
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == len(lines):  # a run that is being written, or was killed
                continue
            raise ConfigError(f"reading the learning curve {str(path)!r}, line {number}: {error}") from error
        if isinstance(line, dict) and all(isinstance(line.get(key), int | float) for key in ("seconds", "mean_jct")):
            points.append((line["seconds"] / 60, line["mean_jct"]))
    if not points:
        raise ConfigError(f"reading the learning curve {str(path)!r}: no line has 'seconds' and 'mean_jct'")
    minutes, means = np.array(points, dtype=np.float64).T
    return Curve(name, minutes, means)


def draw(report: Report, folder: Path, curves: Sequence[Curve] = ()) -> list[Path]:
    """Draws all figures that the report has the numbers for; returns the files."""
    return write(_figures(report, curves), folder)


def write(figures: Iterator[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Writes figures, drawn as they are asked for, under their names; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(_STYLE):
        for stem, figure in figures:
            for suffix in ("svg", "png"):
                path = folder / f"{stem}.{suffix}"
                # No date, or the same report would not make the same file.
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                files.append(path)
    return files


def _figures(report: Report, curves: Sequence[Curve]) -> Iterator[tuple[str, Figure]]:
    colours = Colours([row.policy for contest in report.contests for row in contest.policies])
    names = [contest.scenario for contest in report.contests]
    for scenario in dict.fromkeys(names):
        contests = [contest for contest in report.contests if contest.scenario == scenario]
        for contest in contests:
            stem = scenario if len(contests) == 1 else f"{scenario}-load-{contest.load:.2f}"
            yield f"{stem}-completion", _completion(contest, colours)
            yield f"{stem}-over-time", _over_time(contest, colours)
        if len(contests) > 1:
            yield f"{scenario}-load-sweep", _load_sweep(contests, report.reference, colours)
    if curves:
        yield "learning-curve", _learning(curves)


class Colours:
    """A colour and a line for every policy, in the order of their first appearance."""

    def __init__(self, policies: Sequence[str]) -> None:
        self._place = {name: place for place, name in enumerate(dict.fromkeys(policies))}

    def __getitem__(self, policy: str) -> str:
        return _COLOURS[self._place[policy] % len(_COLOURS)]

    def line(self, policy: str) -> str:
        return _LINES[self._place[policy] // len(_COLOURS) % len(_LINES)]


def _completion(contest: Contest, colours: Colours) -> Figure:
    """Bars of the means with their intervals; the share of tasks that are done within a time."""
    figure = Figure(figsize=(9, 3.4))
    bars, shares = figure.subplots(1, 2, width_ratios=(1, 1.15))
    rows = contest.policies
    means = [row.mean_jct.mean for row in rows]
    spread = [
        [row.mean_jct.mean - row.mean_jct.low for row in rows],
        [row.mean_jct.high - row.mean_jct.mean for row in rows],
    ]
    bars.barh([row.policy for row in rows], means, xerr=spread, color=[colours[row.policy] for row in rows], capsize=3)
    for place, row in enumerate(rows):
        text = f"{row.mean_jct.mean:.3f}"
        bars.annotate(text, (row.mean_jct.high, place), xytext=(4, 0), textcoords="offset points", va="center", size=8)
    bars.set_xlim(0, 1.15 * max(row.mean_jct.high for row in rows))
    bars.invert_yaxis()
    bars.grid(axis="y", visible=False)
    bars.set_xlabel("mean completion time, slots (95 % over seeds)")
    lowest = _bound_of_all(contest)
    if lowest is not None:
        bars.axvline(lowest, color="black", linestyle="--", linewidth=1)
        bars.set_title(f"dashed: lower bound {lowest:.3f}", fontsize=8)
    for row in rows:
        # A logarithmic axis has no 0, and no task is done in less than a slot.
        times = np.maximum(1.0, row.jct_percentiles)
        shares.step(times, np.linspace(0, 1, 101), where="post", **_line(row, colours))
    shares.set_xscale("log")
    shares.set_xlabel("completion time, slots")
    shares.set_ylabel("share of tasks")
    shares.legend(fontsize=7)
    figure.suptitle(_title(contest))
    return figure


def _over_time(contest: Contest, colours: Colours) -> Figure:
    """Tasks in the system, and the GPUs and CPUs held, in each slot."""
    figure = Figure(figsize=(9, 3.2))
    tasks, gpus, cpus = figure.subplots(1, 3)
    # A few policies drag on for long: the time in which most are done is what shows a difference.
    last = int(np.median([len(row.tasks_over_time) for row in contest.policies]) * 1.5)
    for axes, series, label in (
        (tasks, "tasks_over_time", "tasks in the system"),
        (gpus, "gpu_use_over_time", "GPUs held"),
        (cpus, "cpu_use_over_time", "CPUs held"),
    ):
        for row in contest.policies:
            axes.plot(getattr(row, series)[:last], linewidth=1.2, **_line(row, colours))
        axes.set_xlabel("slot")
        axes.set_title(label, fontsize=9)
    for axes in (gpus, cpus):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter("{x:.0%}")
    tasks.legend(fontsize=7)
    figure.suptitle(f"{_title(contest)}, means over workloads")
    return figure


def _load_sweep(contests: Sequence[Contest], reference: str, colours: Colours) -> Figure:
    """Mean completion time by load, and the difference to the reference."""
    figure = Figure(figsize=(9, 3.4))
    means, gains = figure.subplots(1, 2)
    contests = sorted(contests, key=lambda contest: contest.load)
    loads = [contest.load for contest in contests]
    for policy in [row.policy for row in contests[0].policies]:
        rows = [contest.figures(policy) for contest in contests]
        _band(means, loads, [row.mean_jct for row in rows], _line(rows[0], colours))
        if policy != reference:
            found = [contest.against(policy, reference) for contest in contests]
            _band(gains, loads, found, _line(rows[0], colours))
    lowest = [_bound_of_all(contest) for contest in contests]
    if None not in lowest:
        means.plot(loads, lowest, color="black", linestyle="--", linewidth=1, label="lower bound")
    means.set_yscale("log")
    means.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    means.yaxis.set_major_formatter("{x:g}")
    means.yaxis.set_minor_formatter(NullFormatter())
    means.set_ylabel("mean completion time, slots")
    gains.axhline(0, color=colours[reference], linewidth=1, label=reference)
    gains.yaxis.set_major_formatter("{x:+.0%}")
    gains.set_ylabel(f"against {reference} (below 0: better)")
    shown = [found for contest in contests for found in _relative(contest, reference) if found.mean < _FAR]
    gains.set_ylim(min([-0.05, *(one.low for one in shown)]), max([0.05, *(one.high for one in shown)]))
    for axes in (means, gains):
        axes.set_xlabel("load")
    means.legend(fontsize=7)
    figure.suptitle(f"{contests[0].scenario}, {contests[0].seeds} workloads for each load, 95 % intervals")
    return figure


def _relative(contest: Contest, reference: str) -> list[Interval]:
    return [contest.against(row.policy, reference) for row in contest.policies if row.policy != reference]


def _bound_of_all(contest: Contest) -> float | None:
    """Of some of the workloads it could lie above the means of all."""
    if contest.bound is None or contest.bound.seeds < contest.seeds:
        return None
    return contest.bound.programme.mean


def _learning(curves: Sequence[Curve]) -> Figure:
    figure = Figure(figsize=(6, 3.4))
    axes = figure.subplots()
    for curve, colour in zip(curves, _COLOURS * len(curves), strict=False):
        axes.plot(curve.minutes, curve.mean_jct, color=colour, alpha=0.25, linewidth=0.8)
        width = max(1, len(curve.mean_jct) // 25)
        smooth = np.convolve(curve.mean_jct, np.ones(width) / width, mode="valid")
        axes.plot(curve.minutes[width - 1 :], smooth, color=colour, label=curve.name)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("mean completion time, slots")
    axes.legend(fontsize=8)
    return figure


def _band(axes: "Axes", x: Sequence[float], intervals: Sequence, line: dict) -> None:
    axes.plot(x, [found.mean for found in intervals], marker="o", markersize=3, **line)
    low, high = [found.low for found in intervals], [found.high for found in intervals]
    axes.fill_between(x, low, high, color=line["color"], alpha=0.15, linewidth=0)


def _line(row: Figures, colours: Colours) -> dict:
    return {"color": colours[row.policy], "linestyle": colours.line(row.policy), "label": row.policy}


def _title(contest: Contest) -> str:
    return f"{contest.scenario}, load {contest.load:.2f}, {contest.seeds} workloads"
