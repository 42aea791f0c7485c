"""The live view of the demo: both clusters beside each other, once a second."""

from collections.abc import Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


class Progress(msgspec.Struct, frozen=True):
    """How far one side is."""

    title: str
    jobs: int
    submitted: int
    waiting: int
    running: int
    done: int
    gpus_held: int
    gpus: int
    mean_completion_s: float | None
    """Of the jobs that are done; None before the first."""


def render(sides: Sequence[Progress], elapsed_s: float, hint: str) -> RenderableType:
    """Both sides as one table."""
    made = Table(title=f"{elapsed_s:.0f} s", expand=False)
    for column in ("", "submitted", "waiting", "running", "done", "GPUs held", "", "mean completion"):
        made.add_column(column, justify="left" if not column else "right")
    for side in sides:
        mean = "-" if side.mean_completion_s is None else f"{side.mean_completion_s:.1f} s"
        made.add_row(
            side.title,
            f"{side.submitted}/{side.jobs}",
            str(side.waiting),
            str(side.running),
            str(side.done),
            f"{side.gpus_held}/{side.gpus}",
            ProgressBar(total=max(1, side.gpus), completed=side.gpus_held, width=24),
            mean,
        )
    return Group(made, Text(hint, style="dim"))


def line(side: Progress) -> str:
    """One side in one line, for output that is no terminal."""
    return (
        f"{side.title}: {side.done}/{side.jobs} done, {side.running} running, {side.waiting} waiting, "
        f"{side.gpus_held}/{side.gpus} GPUs"
    )
