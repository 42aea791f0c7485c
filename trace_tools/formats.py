"""Which kind of source this is, and its rows. One line each for the kinds; their own modules read them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tapfinger_hpc.errors import TraceError
from trace_tools import lists
from trace_tools.assemble import Columns
from trace_tools.blocks import Source
from trace_tools.reasons import Tally
from trace_tools.sacct_json import read_json
from trace_tools.tables import read_text


@dataclass(frozen=True)
class How:
    """What the user says of a source that it does not say itself."""

    delimiter: str = ""
    fields: tuple[str, ...] = ()
    throughputs: Path | None = None
    """Gavel's table, which its traces need."""


@dataclass(frozen=True)
class Kind:
    """What the rows of a kind of source are like."""

    name: str
    has_steps: bool = False
    """Rows with a dot in their id are steps of others."""
    has_ids: bool = True
    """Job ids are those of the source, so that the same one twice is the same job."""
    local_times: bool = False
    """Dates without a zone are those of the site."""
    counts_from_zero: bool = False
    """Times are seconds since the list begins, which may be 0."""


TEXT = Kind("sacct", has_steps=True, local_times=True)
JSON = Kind("sacct --json", has_steps=True)
SWF = Kind("Standard Workload Format", counts_from_zero=True)
GAVEL = Kind("Gavel", has_ids=False, counts_from_zero=True)


def batches(source: Source, tally: Tally, how: How) -> tuple[Kind, Iterator[Columns]]:
    """The kind of the source and its rows. TraceError where it is none that is known."""
    start = source.beginning(1 << 16)
    if not start and tally.counts.get("cut-short"):
        raise TraceError(f"{source.name!r} cannot be unpacked: {tally.examples['cut-short'][-1]}")
    if not start:
        raise TraceError(f"{source.name!r} is empty: expected rows of sacct; `tapfinger trace collect` writes them")
    if start.startswith(b"PAR1") or b'"tapfinger-trace"' in start[:256]:
        raise TraceError(f"{source.name!r} is a trace already, or Parquet: `tapfinger trace check` looks into it")
    if start.lstrip()[:1] in (b"{", b"["):
        return JSON, read_json(source, tally)
    lines = _whole_lines(start)
    if lists.is_swf(lines):
        return SWF, lists.read_swf(source, tally)
    if lists.is_gavel(lines):
        return GAVEL, lists.read_gavel(source, tally, how.throughputs)
    if (listing := lists.known_list(lines)) and not how.fields:
        kind = Kind(listing.name, False, listing.has_ids, not listing.counts_from_zero, listing.counts_from_zero)
        return kind, lists.read_list(source, tally, listing)
    return TEXT, read_text(source, tally, how.delimiter, how.fields)


def _whole_lines(start: bytes) -> list[str]:
    text = start.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines = text.splitlines() if len(start) < 1 << 16 else text.splitlines()[:-1]
    return [line for line in lines if line.strip()][:100]
