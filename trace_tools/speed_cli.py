"""``tapfinger trace fit``, the commands that make its prior anew, and ``tapfinger bench speeds``."""

import heapq
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Column, Table

from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.speed import JobClass

_FILE = click.Path(path_type=Path, dir_okay=False)
_TABLES = click.option(
    "--table",
    "table_files",
    multiple=True,
    type=_FILE,
    help="Measured seconds over CPUs and GPUs: lines task,cpus,gpus,seconds. May be given several times.",
)
_DEFAULT_DRAWS = 200


@click.command()
@click.argument("file", type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, help="The classes, as agent.classes_file reads them.")
@click.option("--add", is_flag=True, help="Go on from what an earlier run has seen, kept beside the output (.seen).")
@click.option("--first", type=click.IntRange(min=1), help="Learn from the jobs alone that ended first, so many.")
@click.option("--json", "as_json", is_flag=True, help="Print the classes as JSON.")
def fit(file: Path, output: Path, add: bool, first: int | None, as_json: bool) -> None:
    """Learn job classes and their speed from the jobs of a trace."""
    from trace_tools import learning

    with learning.locked(output):
        learner = learning.opened(output) if add else learning.Learner()
        jobs = learning.ended_jobs(file)
        learner.take_in(jobs if first is None else heapq.nsmallest(first, jobs, key=learning.ended_s))
        if not learner.jobs:
            raise TraceError(
                f"trace {str(file)!r}: nothing to learn from; {learner.nameless} jobs have neither user nor name, "
                "the others did not run"
            )
        classes = learning.write(learner, output)
    if learner.nameless:
        click.echo(f"{learner.nameless} jobs were passed over: they have neither user, account nor name", err=True)
    shown(classes, output, learner.jobs, as_json)


def shown(classes: tuple[JobClass, ...], output: Path, jobs: int, as_json: bool) -> None:
    """Says what was learned."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(classes), indent=2))
        return
    console = Console(highlight=False)
    console.print(f"{output}: {len(classes)} classes, {jobs} jobs more", soft_wrap=True)
    table = Table(
        Column("class", overflow="fold"),
        "jobs that finished",
        "seconds on 1 GPU, or none",
        "on all",
        "unsure by",
        "MiB needed",
    )
    for one in classes:
        speed = one.speed
        middle = len(speed.cpus) // 2 * len(speed.gpus) * len(speed.mem_mb)
        gpu = min(speed.gpus.index(1) if 1 in speed.gpus else 0, len(speed.gpus) - 1)
        few = middle + gpu * len(speed.mem_mb) + len(speed.mem_mb) - 1
        many = middle + len(speed.gpus) * len(speed.mem_mb) - 1
        table.add_row(
            one.name,
            str(one.observations),
            f"{speed.seconds[few] or 0:.4g}",
            f"{speed.seconds[many] or 0:.4g}",
            f"{speed.log_std[few if len(speed.log_std) > 1 else 0]:.0%}",
            str(speed.mem_mb[0]),
        )
    console.print(table)


@click.command()
@click.option("--gavel", type=_FILE, help="simulation_throughputs.json of Gavel.")
@click.option("--pollux", type=click.Path(path_type=Path, file_okay=False), help="Folder of Pollux's step times.")
@click.option("-o", "--output", required=True, type=_FILE)
def curves(gavel: Path | None, pollux: Path | None, output: Path) -> None:
    """Read measured curves over GPUs from where they were published."""
    from trace_tools import curves as measured

    found = [*(measured.of_gavel(gavel) if gavel else ()), *(measured.of_pollux(pollux) if pollux else ())]
    if not found:
        raise click.UsageError("Give --gavel or --pollux: without them there is nothing to read.")
    output.write_text(measured.written(found), encoding="utf-8")
    click.echo(f"{output}: {len(found)} curves")


@click.command()
@_TABLES
@click.option("-o", "--output", required=True, type=_FILE)
def prior(table_files: tuple[Path, ...], output: Path) -> None:
    """Learn the prior of speed models from the measured curves that ship, and from tables of your own."""
    from trace_tools import curves as measured
    from trace_tools import speed_bench

    learned = speed_bench.learned_prior(measured.shipped(), _tables(table_files))
    output.write_bytes(msgspec.json.format(msgspec.json.encode(learned), indent=0).replace(b"\n", b"") + b"\n")
    click.echo(f"{output}: {len(learned.shapes)} shapes, learned from {', '.join(learned.learned_from)}")


@click.command()
@_TABLES
@click.option(
    "--trace",
    "traces",
    multiple=True,
    type=_FILE,
    help="Foretell each job of a trace (of `trace convert`) from those of its class before it, and nothing else.",
)
@click.option("--draws", default=_DEFAULT_DRAWS, show_default=True, type=click.IntRange(min=2))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def speeds(table_files: tuple[Path, ...], traces: tuple[Path, ...], draws: int, as_json: bool) -> None:
    """How well speed models foretell what they have not seen.

    The prior is learned without the task, or the family of models, that is tested.
    """
    from trace_tools import curves as measured
    from trace_tools import learning, speed_bench

    measuring: Iterator[Any] = speed_bench.measure(measured.shipped(), _tables(table_files), draws)
    if traces:
        jobs = sorted((job for file in traces for job in learning.ended_jobs(file)), key=learning.ended_s)
        measuring = speed_bench.of_jobs(jobs, ", ".join(file.name for file in traces))
    figures = list(_with_progress(measuring))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2))
        return
    table = Table("what", "seen", "draws", "median error", "95 % interval", "9 of 10 draws below", "within 90 %")
    for one in figures:
        interval = f"{one.median_low:.1%} to {one.median_high:.1%}"
        table.add_row(
            one.what,
            one.seen,
            str(one.draws),
            f"{one.median_error:.1%}",
            interval,
            f"{one.worst_tenth:.1%}",
            f"{one.inside_90:.1%}",
        )
    Console(highlight=False, width=140).print(table)


def _tables(files: tuple[Path, ...]) -> dict[str, Any]:
    from trace_tools import speed_bench

    found: dict[str, Any] = {}
    for file in files:
        found.update(speed_bench.table(file))
    return found


def _with_progress(figures: Iterator[Any]) -> Iterator[Any]:
    for one in figures:
        if sys.stderr.isatty():
            click.echo(f"{one.what}: {one.seen}", err=True)
        yield one
