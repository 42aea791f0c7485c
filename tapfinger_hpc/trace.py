"""Workloads: jobs as they arrive, with the true runtime that no policy ever sees. docs/trace-format.md describes them.

JSON lines, readable by anyone, or the same columns as Parquet: a header (source, filters, counts, hash, classes), then
the jobs. Files are written whole or not at all.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.speed import JobClass, prior
from tapfinger_hpc.state import Name, PendingJob, Resources

VERSION: Literal[2] = 2
PARQUET_HEADER = b"tapfinger-trace"
"""The key of a Parquet file's metadata that holds the header."""
_PARQUET_MAGIC = b"PAR1"


class Ran(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What accounting says of a job that has ended."""

    state: str
    """COMPLETED, FAILED, TIMEOUT and so on. Only a completed job has done all of its work."""
    elapsed_s: Annotated[float, Meta(gt=0)]
    amounts: Resources
    """What it held, on all nodes together; ``mem_mb`` is 0 where accounting does not say."""
    nodes: Annotated[int, Meta(ge=1)] = 1
    start_time_s: int | None = None
    """On the clock of ``submit_time_s``."""
    max_rss_mb: int | None = None
    """The most memory that one of its tasks held; None where nothing was measured."""
    account: str = ""
    name: str = ""


class TraceJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One job of a workload: what is submitted, and how long it truly takes."""

    job: PendingJob
    """As submitted; ``submit_time_s`` counts from the start of the trace, ``job_class`` names a class of the header."""
    scale: Annotated[float, Meta(gt=0)] = 1.0
    """True seconds on any amounts = the class's true seconds on them times this."""
    ran: Ran | None = None
    """What really happened, for a job that comes from accounting. Its class need not be in the header."""


class TraceHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file is, and the true speed of its classes."""

    format: Literal["tapfinger-trace"]
    version: Literal[1, 2]
    source: str
    classes: tuple[JobClass, ...] = ()
    zero_s: int = 0
    """The time of the jobs counts from this second since the epoch; 0: their times are such seconds themselves."""
    filters: dict[str, str] = {}
    """What was asked of the converter: which jobs, and how the source was to be read."""
    counts: dict[str, int] = {}
    """Rows of the source by what became of them."""
    jobs: int | None = None
    """How many lines follow; None in version 1."""
    sha256: str = ""
    """Of those lines as JSON lines; empty in version 1."""


class Trace(msgspec.Struct, frozen=True):
    """A whole workload, in order of submission."""

    source: str
    classes: tuple[JobClass, ...]
    jobs: tuple[TraceJob, ...]
    zero_s: int = 0
    """Seconds since the epoch at which the trace begins; 0 where it is made up."""

    def true_duration_s(self, trace_job: TraceJob, amounts: Resources) -> float:
        """How long the job really takes on these amounts; infinity where it cannot run.

        Of a job from accounting whose class nobody has learned yet, that one point is known which was seen; elsewhere
        the prior says how much faster or slower it is.
        """
        job_class = self._class(trace_job.job.job_class)
        if job_class is not None:
            return trace_job.scale * job_class.speed.duration_s(amounts)
        if trace_job.ran is not None:
            return _as_it_ran_s(trace_job.job, trace_job.ran, amounts)
        raise TraceError(f"job class {trace_job.job.job_class!r} is not in the header of trace {self.source!r}")

    def _class(self, name: Name) -> JobClass | None:
        return next((job_class for job_class in self.classes if job_class.name == name), None)


def _as_it_ran_s(job: PendingJob, ran: Ran, amounts: Resources) -> float:
    if amounts == ran.amounts or job.nodes_wanted > 1:
        return ran.elapsed_s
    shape = prior(ran.amounts, job.time_limit_s)
    return ran.elapsed_s * shape.duration_s(amounts) / shape.duration_s(ran.amounts)


def write(trace: Trace, path: Path) -> None:
    """Writes the trace as JSON lines, whole or not at all."""
    lines = [msgspec.json.encode(item) + b"\n" for item in trace.jobs]
    header = TraceHeader(
        "tapfinger-trace",
        VERSION,
        trace.source,
        trace.classes,
        zero_s=trace.zero_s,
        counts={"jobs": len(lines)},
        jobs=len(lines),
        sha256=hashlib.sha256(b"".join(lines)).hexdigest(),
    )
    with whole_or_not_at_all(path, TraceError) as partial, partial.open("wb") as file:
        file.write(msgspec.json.encode(header) + b"\n")
        file.writelines(lines)


def read(path: Path) -> Trace:
    """Reads a whole trace, JSON lines or Parquet. TraceError names the line and the field that cannot be used."""
    with _opened(path) as file:
        header = _header(file, path)
        jobs = tuple(_jobs(file, path, header))
    if header.version == 1 or header.zero_s or not any(item.ran for item in jobs):
        return Trace(header.source, header.classes, jobs, header.zero_s)
    return _from_its_first_job(header, jobs)


def read_header(path: Path) -> TraceHeader:
    """The header alone."""
    with _opened(path) as file:
        return _header(file, path)


def read_jobs(path: Path) -> Iterator[TraceJob]:
    """The jobs one by one, as the file has them: times are those of the file, and a large file needs little memory."""
    with _opened(path) as file:
        header = _header(file, path)
        yield from _jobs(file, path, header)


def is_trace(path: Path) -> bool:
    """Whether the file begins as a trace does."""
    with _opened(path) as file:
        start = file.read(256)
    return start.startswith(_PARQUET_MAGIC) or (start.startswith(b"{") and b'"tapfinger-trace"' in start)


def _from_its_first_job(header: TraceHeader, jobs: tuple[TraceJob, ...]) -> Trace:
    zero_s = min(item.job.submit_time_s for item in jobs)
    moved = (_earlier(item, zero_s) for item in jobs)
    ordered = tuple(sorted(moved, key=lambda item: (item.job.submit_time_s, len(item.job.job_id), item.job.job_id)))
    return Trace(header.source, header.classes, ordered, zero_s)


def _earlier(item: TraceJob, by_s: int) -> TraceJob:
    ran = item.ran
    if ran is not None and ran.start_time_s is not None:
        ran = replace(ran, start_time_s=ran.start_time_s - by_s)
    return TraceJob(replace(item.job, submit_time_s=item.job.submit_time_s - by_s), item.scale, ran)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise TraceError(f"trace {str(path)!r} cannot be read: {error.strerror}") from error


def _header(file: IO[bytes], path: Path) -> TraceHeader:
    if file.read(4) == _PARQUET_MAGIC:
        return _parquet_header(path)
    file.seek(0)
    line = file.readline()
    if not line.strip():
        raise TraceError(f"trace {str(path)!r} is empty: expected a header line; make one with `tapfinger trace synth`")
    return _decode(line, TraceHeader, path, 1)


def _jobs(file: IO[bytes], path: Path, header: TraceHeader) -> Iterator[TraceJob]:
    """The jobs that follow the header; says so where they are not those that were written."""
    file_start = file.tell()
    file.seek(0)
    if file.read(4) == _PARQUET_MAGIC:
        yield from _parquet_jobs(path)
        return
    file.seek(file_start)
    digest, count = hashlib.sha256(), 0
    known = {job_class.name for job_class in header.classes}
    for number, line in enumerate(file, start=2):
        digest.update(line)
        if line.strip():
            count += 1
            item = _decode(line, TraceJob, path, number)
            if item.ran is None and item.job.job_class not in known:
                raise TraceError(
                    f"trace {str(path)!r}: job {item.job.job_id} names class {item.job.job_class!r}, "
                    "which the header does not describe"
                )
            yield item
    if header.jobs is not None and header.jobs != count:
        raise TraceError(f"trace {str(path)!r}: {count} jobs, where the header says {header.jobs}; make it anew")
    if header.sha256 and header.sha256 != digest.hexdigest():
        raise TraceError(f"trace {str(path)!r}: the jobs are not those that were written (sha256); make it anew")


def _parquet_header(path: Path) -> TraceHeader:
    parquet = _parquet(path)
    try:
        metadata: Mapping[bytes, bytes] = parquet.read_metadata(path).metadata or {}
    except (ValueError, OSError) as error:
        raise TraceError(f"trace {str(path)!r}: not whole as Parquet: {error}") from error
    if PARQUET_HEADER not in metadata:
        raise TraceError(f"trace {str(path)!r}: Parquet, but not made by `tapfinger trace convert`")
    return _decode(metadata[PARQUET_HEADER], TraceHeader, path, 1)


def _parquet_jobs(path: Path) -> Iterator[TraceJob]:
    with _parquet(path).ParquetFile(path) as file:
        count = 0
        for batch in file.iter_batches(16384):
            for row in batch.to_pylist():
                count += 1
                try:
                    yield msgspec.convert(row, TraceJob)
                except msgspec.ValidationError as error:
                    raise TraceError(f"trace {str(path)!r} job {count}: {error}") from error


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise TraceError(
            f"trace {str(path)!r} is Parquet, which needs pyarrow: pip install 'tapfinger-hpc[traces]'"
        ) from error
    return parquet


def _decode(line: bytes, kind: type, path: Path, number: int):
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise TraceError(f"trace {str(path)!r} line {number}: {error}") from error
