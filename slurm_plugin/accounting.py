"""Asks sacct for the jobs that have ended, the way that can be read back whatever users write into their jobs.

Times are seconds since the epoch, amounts are not rounded, the delimiter is one that nobody writes, runs of requeued
jobs are all told, and only fields are asked for that the installed sacct knows: it ends at the first that it does not.
The time is asked for in pieces, so that neither slurmdbd nor sacct has to hold months of jobs at once.
"""

import gzip
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import click

from slurm_plugin import versions
from slurm_plugin.commands import CommandError, Runner, SlurmCommands
from tapfinger_hpc import config as configuration
from tapfinger_hpc.errors import SlurmError, TraceError
from tapfinger_hpc.files import whole_or_not_at_all
from trace_tools import fields
from trace_tools.since import moment_s

PIECE_S = 86_400
TIMEOUT_S = 600.0
"""Of one sacct: a busy slurmdbd takes minutes for a busy day."""


@click.command()
@click.option(
    "--since", default="30d", show_default=True, help="Jobs that ended from then on: 30d, 2025-01-31, seconds."
)
@click.option("--until", default="", help="Jobs that ended before then; now, if not given.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write what sacct prints; gzip where the name ends in .gz.",
)
@click.option("--partition", "partitions", multiple=True, help="Only jobs of this partition; may be repeated.")
@click.option("--user", "users", multiple=True, help="Only jobs of this user; may be repeated. Otherwise those of all.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"TOML file that says where Slurm is; {configuration.DEFAULT_PATH} by default.",
)
def collect(
    since: str, until: str, output: Path, partitions: tuple[str, ...], users: tuple[str, ...], config_file: Path | None
) -> None:
    """Ask sacct for the jobs that have ended, for `trace convert` to read.

    Needs an accounting database. Whose jobs are shown is up to Slurm's PrivateData. Ends with 1 where sacct refuses;
    then nothing is written.
    """
    slurm = configuration.load(config_file).slurm
    run = SlurmCommands(conf=slurm.conf, bin_dir=slurm.bin_dir, timeout_s=TIMEOUT_S)
    now_s = time.time()
    since_s = moment_s(since, UTC, now_s)
    until_s = moment_s(until, UTC, now_s) or int(now_s) + 1
    assert since_s is not None
    options = [f"--partition={','.join(partitions)}"] if partitions else []
    options += [f"--user={','.join(users)}"] if users else ["--allusers"]
    rows = save(run, output, since_s, until_s, options, told=lambda moment: click.echo(f"... {moment}", err=True))
    click.echo(f"{output}: {rows} rows of jobs that ended from {_spelled(since_s)} to {_spelled(until_s)} (UTC)")


def save(
    run: Runner,
    output: Path,
    since_s: int,
    until_s: int,
    options: list[str],
    told: Callable[[str], None] = lambda _: None,
) -> int:
    """Writes the rows with a header, whole or not at all, and returns how many lines they are.

    Raises:
        SlurmError: sacct cannot be run, or refuses.
    """
    asked = fields.fields_to_ask(
        fields.known_fields(run(["sacct", "--helpformat"]).checked().decode("utf-8", "replace"))
    )
    version = versions.read(run(["sacct", "--version"]).checked().decode("utf-8", "replace"))
    command = [
        "sacct", "--noheader", "--duplicates", "--parsable2", "--noconvert", f"--delimiter={fields.DELIMITER}",
        f"--format={','.join(asked)}", f"--state={versions.ended_states(version)}", *options,
    ]  # fmt: skip
    rows = 0
    with whole_or_not_at_all(output, TraceError) as partial, _writable(partial, output) as file:
        file.write(fields.DELIMITER.join(asked).encode() + b"\n")
        for begin_s, end_s in _pieces(since_s, until_s):
            told(_spelled(begin_s))
            text = _asked(run, [*command, f"--starttime={_spelled(begin_s)}", f"--endtime={_spelled(end_s)}"])
            rows += text.count(b"\n")
            file.write(text)
    return rows


def _asked(run: Runner, argv: list[str]) -> bytes:
    try:
        text = run(argv).checked()
    except CommandError as error:
        if "accounting storage is disabled" in error.stderr.lower():
            raise SlurmError(
                "sacct has nothing to read: Slurm's accounting storage is disabled; it needs slurmdbd"
            ) from error
        raise
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _pieces(since_s: int, until_s: int) -> Iterator[tuple[int, int]]:
    """The time cut at the midnights of UTC; a job that ends on one is in both pieces, and is one job again later."""
    begin_s = since_s
    while begin_s < until_s:
        end_s = min(until_s, (begin_s // PIECE_S + 1) * PIECE_S)
        yield begin_s, end_s
        begin_s = end_s


def _spelled(moment_s: int) -> str:
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _writable(partial: Path, output: Path) -> IO[bytes]:
    return gzip.open(partial, "wb") if output.suffix == ".gz" else partial.open("wb")  # type: ignore[return-value]
