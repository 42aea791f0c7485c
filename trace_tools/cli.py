"""``tapfinger trace``: make workloads and look into them."""

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tapfinger_hpc import trace as traces
from tapfinger_hpc.errors import TraceError
from trace_tools import since, speed_cli
from trace_tools.check import TraceReport, report_of_file
from trace_tools.reasons import LEFT_OUT, NOTES, WRONG

if TYPE_CHECKING:
    from trace_tools.convert import Wanted


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
@click.option("--as-sacct", is_flag=True, help="Write accounting, as `trace collect` does, instead of a trace.")
def synth(jobs: int, seed: int, load: float, output: Path, as_sacct: bool) -> None:
    """Draw a workload of machine-learning jobs, as in the demo, and write it as JSON lines.

    With --as-sacct: accounting of three rows a job (the job and two steps), to try and to measure `convert` with;
    its load is that of docs/trace-format.md, whatever --load says.
    """
    if as_sacct:
        from trace_tools import synth_sacct

        synth_sacct.write_sacct(output, jobs, seed)
        click.echo(f"{output}: {jobs} jobs, {3 * jobs} rows")
        return
    from tapfinger_hpc.workload import demo_trace

    made = demo_trace(seed, jobs, load=load)
    traces.write(made, output)
    click.echo(f"{output}: {jobs} jobs over {made.jobs[-1].job.submit_time_s} s")


_sources = click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(allow_dash=True))


def _reading_options(command: Callable) -> Callable:
    """How the text of a source is meant; the same for every command that reads sources."""
    options = (
        click.option(
            "--timezone",
            default="UTC",
            show_default=True,
            help="Zone of dates without one, such as Europe/Helsinki. `trace collect` writes epochs, which need none.",
        ),
        click.option("--delimiter", default="", help="What stands between fields, where it is not found out."),
        click.option("--fields", default="", help="Names of the fields of a file without header: JobID,State,..."),
        click.option(
            "--throughputs",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="Gavel's table of throughputs: its traces say how many steps a job has, not how long it takes.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@trace.command()
@_sources
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write: Parquet where the name ends so, else JSON lines.",
)
@_reading_options
@click.option("--since", default="", help="Only jobs submitted from then on: 30d, 2025-01-31, or seconds.")
@click.option("--until", default="", help="Only jobs submitted before then.")
@click.option("--partition", "partitions", multiple=True, help="Only jobs of this partition; may be repeated.")
@click.option("--user", "users", multiple=True, help="Only jobs of this user; may be repeated.")
@click.option("--anonymize", is_flag=True, help="Replace users, accounts, names and classes by salted hashes.")
@click.option(
    "--salt-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Salt of --anonymize, so that several traces agree; without it one is drawn and forgotten.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the header of what was written as JSON.")
def convert(files: Sequence[str], output: Path, as_json: bool, **given: Any) -> None:
    """Make a trace of what accounting knows: files of sacct in any form, or lists of jobs from elsewhere.

    FILE is what sacct prints (-P, -p, any delimiter, with or without a header, of fixed width, --json), a list of jobs
    of another kind (docs/trace-format.md names them), packed with gzip, bzip2, xz or zstd, or - for standard input.
    The trace is written whole or not at all. Ends with 1 where nothing could be written.
    """
    from trace_tools import convert as converting

    with _progress() as told:
        header = converting.convert(files, output, _wanted(given), told)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(header), indent=2))
        return
    click.echo(f"{output}: {header.jobs} jobs of {header.counts['rows']} rows, {header.counts['steps']} of them steps")
    _show_counts(header.counts, {})


@trace.command()
@_sources
@_reading_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(files: Sequence[str], as_json: bool, **given: Any) -> None:
    """Say what is in a trace, or what would become of accounting: counts and examples of every reason.

    Ends with 1 where something is wrong: a trace that cannot be played, rows that should have made a job and could not.
    """
    if len(files) == 1 and files[0] != "-" and traces.is_trace(Path(files[0])):
        found = report_of_file(Path(files[0]))
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        else:
            _show(found)
        sys.exit(1 if found.wrong_count else 0)
    from trace_tools import convert as converting

    with _progress() as told:
        tally = converting.look(files, _wanted(given), told)
    if as_json:
        click.echo(
            json.dumps({"counts": tally.as_counts(), "examples": tally.examples, "wrong": tally.wrong}, indent=2)
        )
    else:
        click.echo(
            f"{tally.rows} rows, {tally.steps} of them steps; {tally.jobs} jobs that ended, "
            f"{100 * tally.share_used:.2f} % of the rows that should make one"
        )
        _show_counts(tally.as_counts(), tally.examples)
    sys.exit(1 if tally.wrong or not tally.jobs else 0)


def _wanted(given: dict[str, Any]) -> "Wanted":
    from trace_tools import convert as converting
    from trace_tools.formats import How

    salt_file = given.get("salt_file")
    salt = b""
    if given.get("anonymize"):
        salt = salt_file.read_bytes() if salt_file else secrets.token_bytes(32)
        if not salt:
            raise TraceError(f"salt file {str(salt_file)!r} is empty: expected some random bytes")
    zone = converting.zone_of(given["timezone"])
    return converting.Wanted(
        zone=given["timezone"],
        how=How(
            given["delimiter"].encode().decode("unicode_escape")
            if given["delimiter"].isascii()
            else given["delimiter"],
            tuple(filter(None, given["fields"].split(","))),
            given["throughputs"],
        ),
        since_s=since.moment_s(given.get("since", ""), zone, time.time()),
        until_s=since.moment_s(given.get("until", ""), zone, time.time()),
        partitions=tuple(given.get("partitions", ())),
        users=tuple(given.get("users", ())),
        salt=salt,
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, Any], None] | None]:
    """A line on the terminal that follows the reading; none where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    begun = time.monotonic()

    def told(name: str, read_bytes: int, tally: Any) -> None:
        passed_s = time.monotonic() - begun
        click.echo(
            f"\r\x1b[K{name}: {read_bytes / 1e6:.0f} MB read, {tally.jobs} jobs, {passed_s:.0f} s", nl=False, err=True
        )

    try:
        yield told
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


def _show_counts(counts: dict[str, int], examples: dict[str, list[str]]) -> None:
    for title, table in (("unusable", WRONG), ("left out", LEFT_OUT), ("assumed", NOTES)):
        for name, count in sorted(counts.items(), key=lambda item: -item[1]):
            if name in table:
                click.echo(f"{title}: {count} {name}: {table[name]}")
                for example in examples.get(name, ()):
                    click.echo(f"    {example}")


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
    if found.classes:
        console.print(table)
    _show_counts(found.counts, {})
    for finding in found.wrong:
        console.print(f"wrong: {finding}")
    if found.wrong_count > len(found.wrong):
        console.print(f"... and {found.wrong_count - len(found.wrong)} more")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
