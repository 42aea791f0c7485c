"""Workloads: jobs as they arrive, with the true runtime that no policy ever sees. JSON lines, readable by anyone.

The first line is the header (format, version, source, classes), every other line one job. Files are written whole or
not at all.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Name, PendingJob, Resources

VERSION: Literal[1] = 1


class TraceJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job of a workload: what is submitted, and how long it truly takes."""

    job: PendingJob
    """As submitted; ``submit_time_s`` counts from the start of the trace, ``job_class`` names a class of the header."""
    scale: Annotated[float, Meta(gt=0)] = 1.0
    """True seconds on any amounts = the class's true seconds on them times this."""


class TraceHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file is, and the true speed of its classes."""

    format: Literal["tapfinger-trace"]
    version: Literal[1]
    source: str
    classes: tuple[JobClass, ...]


class Trace(msgspec.Struct, frozen=True):
    """A whole workload."""

    source: str
    classes: tuple[JobClass, ...]
    jobs: tuple[TraceJob, ...]

    def true_duration_s(self, trace_job: TraceJob, amounts: Resources) -> float:
        """How long the job really takes on these amounts; infinity where it cannot run."""
        return trace_job.scale * self._class(trace_job.job.job_class).speed.duration_s(amounts)

    def _class(self, name: Name) -> JobClass:
        for job_class in self.classes:
            if job_class.name == name:
                return job_class
        raise TraceError(f"job class {name!r} is not in the header of trace {self.source!r}")


def write(trace: Trace, path: Path) -> None:
    """Writes the trace as JSON lines, whole or not at all."""
    header = TraceHeader("tapfinger-trace", VERSION, trace.source, trace.classes)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            for line in _lines(header, trace.jobs):
                file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> Trace:
    """Reads a whole trace. TraceError names the line and the field that cannot be used."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TraceError(f"trace {str(path)!r} cannot be read: {error.strerror}") from error
    if not lines:
        raise TraceError(f"trace {str(path)!r} is empty: expected a header line; make one with `tapfinger trace synth`")
    header = _decode(lines[0], TraceHeader, path, 1)
    jobs = tuple(
        _decode(line, TraceJob, path, number) for number, line in enumerate(lines[1:], start=2) if line.strip()
    )
    known = {job_class.name for job_class in header.classes}
    for trace_job in jobs:
        if trace_job.job.job_class not in known:
            raise TraceError(
                f"trace {str(path)!r}: job {trace_job.job.job_id} names class {trace_job.job.job_class!r}, "
                "which the header does not describe"
            )
    return Trace(header.source, header.classes, jobs)


def _lines(header: TraceHeader, jobs: Iterable[TraceJob]) -> Iterator[TraceHeader | TraceJob]:
    yield header
    yield from jobs


def _decode(line: bytes, kind: type, path: Path, number: int):
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise TraceError(f"trace {str(path)!r} line {number}: {error}") from error
