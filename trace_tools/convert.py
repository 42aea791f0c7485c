"""Any source of finished jobs into one trace: opened, read, assembled, filtered, made anonymous, written.

Memory does not grow with the source. Reading runs ahead of assembling in a thread of its own.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.trace import VERSION, TraceHeader
from trace_tools import anonymous, formats
from trace_tools.assemble import Columns, Jobs, Reading, assemble
from trace_tools.blocks import open_source
from trace_tools.formats import How
from trace_tools.output import Nowhere, Sink, opened
from trace_tools.reasons import Tally

Progress = Callable[[str, int, Tally], None]
"""Told now and then: which source, how many of its bytes are read, and the counts so far."""


@dataclass(frozen=True)
class Wanted:
    """Which jobs, and how their text is meant."""

    zone: str = "UTC"
    how: How = field(default_factory=How)
    since_s: int | None = None
    until_s: int | None = None
    """Of the submission: from the first second on, and before the second."""
    partitions: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    salt: bytes = b""
    """Identities are replaced by hashes with this salt; empty: they are kept."""

    def filters(self) -> dict[str, str]:
        """For the header of the trace."""
        told = {
            "timezone": self.zone,
            "since": "" if self.since_s is None else str(self.since_s),
            "until": "" if self.until_s is None else str(self.until_s),
            "partition": ",".join(self.partitions),
            "user": "" if self.salt else ",".join(self.users),
            "anonymized": "yes" if self.salt else "",
        }
        return {name: text for name, text in told.items() if text}


def convert(sources: Sequence[str], output: Path, wanted: Wanted, progress: Progress | None = None) -> TraceHeader:
    """Writes the trace of these sources, whole or not at all, and returns its header.

    Raises:
        TraceError: a source cannot be read, is of no known kind, or nothing in them is a job that ended.
    """
    for name in sources:
        if Path(name).exists() and output.exists() and Path(name).samefile(output):
            raise TraceError(f"{name!r} is the source and would be written over: give another name with -o")
    tally = Tally()
    made: list[TraceHeader] = []

    def header(sha256: str) -> TraceHeader:
        shown = ", ".join(Path(name).name if name != "-" else "standard input" for name in sources)
        made.append(
            TraceHeader(
                "tapfinger-trace",
                VERSION,
                shown,
                filters=wanted.filters(),
                counts=tally.as_counts(),
                jobs=tally.jobs,
                sha256=sha256,
            )
        )
        return made[0]

    with opened(output) as sink:
        _into(sink, sources, wanted, tally, progress)
        if not tally.jobs:
            raise TraceError(
                f"no job that ended in {', '.join(sources)}: {_told(tally)}; `tapfinger trace check` shows examples"
            )
        sink.finish(header)
    return made[0]


def look(sources: Sequence[str], wanted: Wanted, progress: Progress | None = None) -> Tally:
    """What ``convert`` would count, without writing anything."""
    tally = Tally()
    _into(Nowhere(), sources, wanted, tally, progress)
    return tally


def zone_of(name: str) -> tzinfo:
    """The time zone of this name; TraceError if this machine knows none."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise TraceError(f"time zone {name!r} is not known here; expected a name such as Europe/Helsinki") from error


def _told(tally: Tally) -> str:
    counts = [f"{name} {count}" for name, count in sorted(tally.counts.items(), key=lambda item: -item[1])]
    return ", ".join(counts[:4]) or "no rows"


def _into(sink: Sink, sources: Sequence[str], wanted: Wanted, tally: Tally, progress: Progress | None) -> None:
    zone = zone_of(wanted.zone)
    seen = _Recent()
    for name in sources:
        source = open_source(name, tally)
        kind, batches = formats.batches(source, tally, wanted.how)
        reading = Reading(
            wanted.zone if kind.local_times else "UTC",
            zone if kind.local_times else UTC,
            kind.has_steps,
            kind.counts_from_zero,
        )
        told_s = time.monotonic()
        for columns in _ahead(batches):
            jobs = assemble(columns, reading, tally)
            jobs = _filtered(jobs, wanted, tally)
            if kind.has_ids:
                jobs = seen.new_of(jobs, tally)
            if wanted.salt:
                jobs = anonymous.without_identities(jobs, wanted.salt)
            sink.add(jobs)
            if progress and time.monotonic() - told_s > 0.2:
                told_s = time.monotonic()
                progress(source.name, source.read_bytes, tally)
        if progress:
            progress(source.name, source.read_bytes, tally)


def _filtered(jobs: Jobs, wanted: Wanted, tally: Tally) -> Jobs:
    keep = np.ones(len(jobs), bool)
    if wanted.since_s is not None:
        keep &= jobs.submit_s >= wanted.since_s
    if wanted.until_s is not None:
        keep &= jobs.submit_s < wanted.until_s
    if wanted.partitions:
        keep &= jobs.partition.rows_where(lambda name: name in wanted.partitions)
    if wanted.users:
        keep &= jobs.user.rows_where(lambda name: name in wanted.users)
    return _kept(jobs, keep, "filtered", tally)


def _kept(jobs: Jobs, keep: np.ndarray, reason: str, tally: Tally) -> Jobs:
    gone = int((~keep).sum())
    if not gone:
        return jobs
    tally.jobs -= gone
    tally.add(reason, gone, (jobs.job_id[int(row)].as_py() for row in np.flatnonzero(~keep)[:3]))
    return jobs.take(np.flatnonzero(keep))


class _Recent:
    """Jobs that were seen before, in a table of fixed size: sources overlap, but not by more than some millions."""

    SLOTS = 1 << 22

    def __init__(self) -> None:
        self._table: np.ndarray | None = None

    def new_of(self, jobs: Jobs, tally: Tally) -> Jobs:
        """The jobs that are not among those seen of late; the others are counted."""
        if self._table is None:
            self._table = np.zeros(self.SLOTS, np.uint64)
        ids = np.fromiter(map(hash, jobs.job_id.to_pylist()), np.int64, len(jobs)).view(np.uint64)
        marks = ids * np.uint64(0x9E3779B97F4A7C15) ^ jobs.submit_s.view(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        marks ^= (jobs.start_s.view(np.uint64) + np.uint64(1)) * np.uint64(0x165667B19E3779F9)
        marks ^= jobs.elapsed_s.view(np.uint64) * np.uint64(0x27D4EB2F165667C5)
        marks ^= marks >> np.uint64(29)
        slots = (marks % np.uint64(self.SLOTS)).astype(np.int64)
        old = self._table[slots] == marks
        self._table[slots] = marks
        return _kept(jobs, ~old, "duplicate", tally)


def _ahead(batches: Iterator[Columns]) -> Iterator[Columns]:
    """The same batches; the next one is made while one is in use."""
    made: queue.Queue[Columns | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: Columns | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                made.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for columns in batches:
                if not put(columns):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - handed on to the reader of the batches
            put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
