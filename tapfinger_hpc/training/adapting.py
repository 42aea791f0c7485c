"""``tapfinger train --trace``: the policy that ships, adapted to a site on its own past jobs.

The course is that of other scenarios, in the folder ``course`` of the output; the adapted weights come into the output
itself only if they do better on the later part of the trace.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from tapfinger_hpc.checkpoint import DEFAULT, DESCRIPTION, describe
from tapfinger_hpc.whatif import cli as whatif
from tapfinger_hpc.whatif.cli import NOT_BETTER, lent, mapping

if TYPE_CHECKING:
    from tapfinger_hpc.whatif.adaptation import Parts, Verdict

COURSE = "course"
"""Folder of the course within the output."""
PRESENT, ADAPTED = "present", "adapted"
OF_SCENARIOS = {
    "scenario": "--scenario",
    "table": "--table",
    "clusters": "--clusters",
    "knowledge": "--knowledge",
    "ablate": "--ablate",
    "from_scratch": "--from-scratch",
}
options = whatif.learning(
    "Adapt the policy to the jobs of this trace instead; the later part says whether it is better."
)


def asked(context: click.Context) -> bool:
    """Whether a trace is adapted to."""
    return whatif.asked(context, OF_SCENARIOS, whatif.OF_LEARNING)


def adapt(
    out: Path,
    start: Path | None,
    minutes: float,
    iterations: int,
    seed: int,
    workers: int,
    resume: bool,
    *,
    trace_file: Path,
    cluster: str,
    mapped: Sequence[str],
    manage: Any,
) -> int:
    """Trains and compares; the exit status."""
    from tapfinger_hpc.training import course, starting
    from tapfinger_hpc.whatif import adaptation, evaluation

    console, present = Console(stderr=True, highlight=False), start or DEFAULT
    with console.status("reading the trace and learning its job classes"):
        loaded = evaluation.load(trace_file, cluster, mapping(mapped), manage, lent())
        parts = adaptation.parts(loaded)
    knowledge = describe(present).training.knowledge
    # The weights know the heuristic already, and begin where they are.
    config = course.CourseConfig(
        parts.name, knowledge=knowledge, minutes=minutes, iterations=iterations, seed=seed, teacher=""
    )
    folder = out / COURSE
    try:
        info = starting.run(
            config, folder, workers=workers, table=None, start=present, resume=resume, drawn=parts.workloads
        )
    except KeyboardInterrupt:
        stopped(folder)
    if info is None:
        return 0  # another process of the team tells it
    verdict = _judged(console, parts, present, folder)
    _show(Console(highlight=False), verdict, present, out)
    if not verdict.better:
        return NOT_BETTER
    shutil.copy2(folder / info.weights, out / info.weights)
    shutil.copy2(folder / DESCRIPTION, out / DESCRIPTION)  # last, as it names the weights
    return 0


def stopped(folder: Path) -> NoReturn:
    """After Ctrl-C."""
    from tapfinger_hpc.training import course

    kept = (folder / course.STATE).exists()
    Console(stderr=True).print(f"Stopped; {'go on with --resume' if kept else 'nothing had been saved yet'}.")
    sys.exit(130)


def _judged(console: Console, parts: "Parts", present: Path, adapted: Path) -> "Verdict":
    from tapfinger_hpc.whatif import adaptation
    from tapfinger_hpc.whatif.playing import Contender

    pair = Contender(PRESENT, "tapfinger", present), Contender(ADAPTED, "tapfinger", adapted)
    with whatif.replaying(console, len(parts.held_out.plan.kept.jobs), 3) as tell:
        return adaptation.judged(parts.held_out, [pair], tell)


def _show(console: Console, verdict: "Verdict", present: Path, out: Path) -> None:
    whatif.show_rows(console, verdict.jobs, "trained", verdict.rows)
    (change,) = verdict.changes
    clear = "" if change.clear else "; the interval holds 0, so it may be chance"
    console.print(f"Adapted against present: {change}{clear}", soft_wrap=True)
    if verdict.better:
        console.print(f"Kept: {out}", soft_wrap=True)
    else:
        console.print(
            f"Not better: {present} stays. What was trained is in {out / COURSE}; --resume and more --minutes go on.",
            soft_wrap=True,
        )
