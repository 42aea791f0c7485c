"""``tapfinger trace``: make workloads and look into them."""

import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tapfinger_hpc import trace as traces
from trace_tools import speed_cli
from trace_tools.check import TraceReport, report


@click.group()
def trace() -> None:
    """Make and check workload traces."""


trace.add_command(speed_cli.fit)
trace.add_command(speed_cli.curves)
trace.add_command(speed_cli.prior)


@trace.command()
@click.option("--jobs", default=48, show_default=True, type=click.IntRange(min=1), help="How many jobs.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same trace.")
@click.option(
    "--load",
    default=0.8,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="GPU-seconds that the jobs request, as a share of what 6 nodes with 4 GPUs have while jobs arrive.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Where to write it."
)
def synth(jobs: int, seed: int, load: float, output: Path) -> None:
    """Draw a workload of machine-learning jobs, as in the demo, and write it as JSON lines."""
    from tapfinger_hpc.workload import demo_trace

    made = demo_trace(seed, jobs, load=load)
    traces.write(made, output)
    click.echo(f"{output}: {jobs} jobs over {made.jobs[-1].job.submit_time_s} s")


@trace.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(file: Path, as_json: bool) -> None:
    """Say what is in a trace file, and what is wrong with it; exits with 1 where something is."""
    found = report(traces.read(file))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        _show(found)
    if found.wrong_count:
        sys.exit(1)


def _show(found: TraceReport) -> None:
    console = Console(highlight=False)
    console.print(f"{found.source}: {found.jobs} jobs over {found.last_submit_s - found.first_submit_s} s")
    console.print(
        f"{found.managed} managed, {found.with_ranges} with ranges; {found.mean_running_s:g} s each as requested"
    )
    console.print(f"GPUs requested: {_counts(found.gpus_requested)}; partitions: {_counts(found.partitions)}")
    console.print(f"The requests keep {found.gpus_busy:g} GPUs and {found.cpus_busy:g} CPUs busy while jobs arrive")
    table = Table("class", "jobs", "mean s as requested", "runs it was learned from")
    for row in found.classes:
        table.add_row(row.name, str(row.jobs), f"{row.mean_running_s:g}", str(row.observations))
    console.print(table)
    for finding in found.wrong:
        console.print(f"wrong: {finding}")
    if found.wrong_count > len(found.wrong):
        console.print(f"... and {found.wrong_count - len(found.wrong)} more")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
