"""``tapfinger bench accounting``: how long `trace convert` takes, and how much memory, on made-up accounting.

Speed is measured here only; no test asserts a time. Each conversion is a process of its own, so that its CPU time and
its peak memory are its own.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tapfinger_hpc.errors import TraceError

LARGE = 10_000_000


class Figure(msgspec.Struct, frozen=True):
    """One conversion."""

    output: str
    wall_s: float
    cpu_s: float
    peak_mb: int
    jobs_per_cpu_s: float
    large_cpu_s: float
    """CPU seconds for ten million jobs, in proportion: measured only where that many were converted."""
    output_mb: float


class Measured(msgspec.Struct, frozen=True):
    """What was converted, and how."""

    jobs: int
    rows: int
    input_mb: float
    cores: int
    figures: tuple[Figure, ...]


@click.command()
@click.option("--jobs", default=1_000_000, show_default=True, type=click.IntRange(min=1), help="Of three rows each.")
@click.option("--seed", default=0, show_default=True, help="Of the made-up accounting.")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Where there is room."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def accounting(jobs: int, seed: int, directory: Path | None, as_json: bool) -> None:
    """How long it takes to read accounting: 0.6 GB for a million jobs, made up and removed again."""
    found = measure(jobs, seed, directory)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    console = Console(highlight=False)
    console.print(f"{found.jobs} jobs, {found.rows} rows, {found.input_mb:.0f} MB; {found.cores} cores may be used")
    table = Table("output", "s", "CPU s", "peak MB", "jobs / CPU s", "CPU s for 10 million", "output MB")
    for one in found.figures:
        table.add_row(
            one.output, f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", str(one.peak_mb), f"{one.jobs_per_cpu_s:.0f}",
            f"{one.large_cpu_s:.0f}{'' if jobs == LARGE else ' (in proportion)'}", f"{one.output_mb:.0f}",
        )  # fmt: skip
    console.print(table)


def measure(jobs: int, seed: int, directory: Path | None = None) -> Measured:
    """Makes accounting, converts it to either kind of file, and says what that took."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        source = Path(folder) / "sacct.txt"
        # In a process of its own too: a child's peak memory begins with that of the process that starts it.
        _run("synth", "--as-sacct", "--jobs", str(jobs), "--seed", str(seed), "-o", str(source))
        figures = tuple(_converted(source, Path(folder) / name, jobs) for name in ("trace.parquet", "trace.jsonl"))
        return Measured(jobs, 3 * jobs, round(source.stat().st_size / 1e6, 1), len(os.sched_getaffinity(0)), figures)


def _converted(source: Path, output: Path, jobs: int) -> Figure:
    wall_s, used = _run("convert", str(source), "-o", str(output))
    cpu_s = used.ru_utime + used.ru_stime
    size_mb = output.stat().st_size / 1e6
    output.unlink()
    return Figure(
        output.suffix.lstrip("."), round(wall_s, 2), round(cpu_s, 2), used.ru_maxrss // 1024,
        round(jobs / cpu_s), round(cpu_s * LARGE / jobs, 1), round(size_mb, 1),
    )  # fmt: skip


def _run(*arguments: str) -> tuple[float, resource.struct_rusage]:
    """Elapsed seconds of a command of ours, and what it used."""
    begun = time.monotonic()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    command = [sys.executable, "-m", "tapfinger_hpc.cli", "trace", *arguments]
    child = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet)
    _, status, used = os.wait4(child, 0)
    if status:
        raise TraceError(f"`trace {arguments[0]}` ended with {os.waitstatus_to_exitcode(status)}; see above")
    return time.monotonic() - begun, used
