"""Figures of a replay, as SVG and PNG, drawn from its report alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tapfinger_hpc.plots import Colours, write
from tapfinger_hpc.whatif.report import KEPT, Row, WhatIf

_ACCOUNTING = {"color": "black", "linewidth": 1.0, "linestyle": "-.", "label": "accounting"}
_HOUR_S, _DAY_S = 3600.0, 86400.0


def draw(report: WhatIf, folder: Path) -> list[Path]:
    """Draws what changed, and the cluster over time; returns the files."""
    return write(_figures(report), folder)


def _figures(report: WhatIf) -> Iterator[tuple[str, Figure]]:
    colours = Colours([row.policy for row in report.rows])
    yield "what-if-completion", _completion(report, colours)
    yield "what-if-over-time", _over_time(report, colours)


def _completion(report: WhatIf, colours: Colours) -> Figure:
    """By how much each policy changes the mean, with its interval; the share of jobs that had started after a time."""
    figure = Figure(figsize=(9, 3.4))
    changes, shares = figure.subplots(1, 2, width_ratios=(1, 1.15))
    rows = [row for row in report.rows if row.completion is not None]
    for place, row in enumerate(rows):
        found = row.completion
        assert found is not None
        sides = [[found.value - found.low], [found.high - found.value]]
        changes.errorbar(found.value, place, xerr=sides, fmt="o", color=colours[row.policy], capsize=3)
    changes.set_yticks(range(len(rows)), [row.name for row in rows])
    changes.invert_yaxis()
    changes.axvline(0, color="black", linewidth=0.8)
    changes.xaxis.set_major_formatter("{x:+.0%}")
    changes.set_xlabel(f"mean completion time against {report.rows[0].policy} (95 %)")
    steps = np.linspace(0, 1, 101)
    if report.fidelity is not None:
        shares.step(np.maximum(1.0, report.fidelity.real_waiting_percentiles), steps, where="post", **_ACCOUNTING)
    for row in report.rows:
        shares.step(np.maximum(1.0, row.waiting_percentiles), steps, where="post", **_line(row, colours))
    shares.set_xscale("log")
    shares.set_xlabel("waiting time, s (from 1 s)")
    shares.set_ylabel("share of jobs")
    shares.legend(fontsize=7)
    figure.suptitle(_title(report))
    return figure


def _over_time(report: WhatIf, colours: Colours) -> Figure:
    """Jobs waiting, and what is held of the cluster."""
    figure = Figure(figsize=(9, 3.2))
    queue, use = figure.subplots(1, 2)
    unit_s, unit = (_DAY_S, "days") if report.window_s > 2 * _DAY_S else (_HOUR_S, "hours")
    times = np.array(report.times_s) / unit_s
    if report.fidelity is not None:
        queue.plot(times, report.fidelity.real_queue_over_time, **_ACCOUNTING)
    for row in report.rows:
        queue.plot(times, row.queue_over_time, linewidth=1.1, **_line(row, colours))
        use.plot(times, row.use_over_time, linewidth=1.1, **_line(row, colours))
    for axes in (queue, use):
        axes.set_xlabel(f"{unit} from the first submission")
    queue.set_title("jobs waiting", fontsize=9)
    use.set_title("GPUs held" if any(row.gpu_use for row in report.rows) else "CPUs held", fontsize=9)
    use.set_ylim(0, 1.02)
    use.yaxis.set_major_formatter("{x:.0%}")
    queue.legend(fontsize=7)
    figure.suptitle(_title(report))
    return figure


def _line(row: Row, colours: Colours) -> dict:
    return {"color": colours[row.policy], "linestyle": "-" if row.amounts == KEPT else "--", "label": row.name}


def _title(report: WhatIf) -> str:
    return f"{Path(report.trace).name}: {report.jobs:,} jobs"
