"""Ended jobs as the lines of a trace, and the files that hold them: JSON lines or Parquet, whole or not at all.

The lines are put together by arrow, column by column, and are those that ``TraceJob`` reads. Their sha256 is in the
header of both kinds of file, so one trace has one hash.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.state import Resources
from tapfinger_hpc.trace import PARQUET_HEADER, TraceHeader
from tapfinger_hpc.units import Mark
from trace_tools.assemble import NONE, Jobs
from trace_tools.coded import Coded

_AMOUNTS = pa.struct([("cpus", pa.int64()), ("gpus", pa.int64()), ("mem_mb", pa.int64())])
_JOB = pa.struct(
    [
        ("job_id", pa.string()),
        ("submit_time_s", pa.int64()),
        ("partitions", pa.list_(pa.string())),
        ("requested", _AMOUNTS),
        ("minimum", _AMOUNTS),
        ("maximum", _AMOUNTS),
        ("nodes_wanted", pa.int64()),
        ("user", pa.string()),
        ("job_class", pa.string()),
        ("gpu_type", pa.string()),
        ("time_limit_s", pa.int64()),
        ("priority", pa.int64()),
        ("managed", pa.bool_()),
    ]
)
_RAN = pa.struct(
    [
        ("state", pa.string()),
        ("elapsed_s", pa.float64()),
        ("amounts", _AMOUNTS),
        ("nodes", pa.int64()),
        ("start_time_s", pa.int64()),
        ("max_rss_mb", pa.int64()),
        ("account", pa.string()),
        ("name", pa.string()),
    ]
)
SCHEMA = pa.schema([("job", _JOB), ("ran", _RAN)])


class Sink(Protocol):
    """Takes jobs, batch by batch, and at last what there is to say of them all."""

    def add(self, jobs: Jobs) -> None: ...

    def finish(self, header: Callable[[str], TraceHeader]) -> None:
        """Ends the file; the header is asked for with the sha256 of the lines."""
        ...


class Nowhere:
    """For a look at the counts only."""

    def add(self, jobs: Jobs) -> None:
        pass

    def finish(self, header: Callable[[str], TraceHeader]) -> None:
        pass


@contextmanager
def opened(path: Path) -> Iterator[Sink]:
    """A sink for this file: Parquet where its name says so, else JSON lines. Nothing is left of a file unfinished."""
    if path.suffix.lower() in (".parquet", ".pq"):
        with whole_or_not_at_all(path, TraceError) as partial:
            sink = _Parquet(partial)
            try:
                yield sink
            finally:
                sink.close()
        return
    with whole_or_not_at_all(path, TraceError) as partial:
        body = partial.with_suffix(".body")
        try:
            with body.open("w+b") as lines:
                yield _JsonLines(lines, partial)
        finally:
            body.unlink(missing_ok=True)


class _JsonLines:
    """The jobs go to a file of their own, as the header that stands before them is known last."""

    def __init__(self, lines: IO[bytes], path: Path) -> None:
        self._lines = lines
        self._path = path
        self._digest = hashlib.sha256()

    def add(self, jobs: Jobs) -> None:
        text = json_lines(jobs)
        self._digest.update(text)
        self._lines.write(text)

    def finish(self, header: Callable[[str], TraceHeader]) -> None:
        self._lines.flush()
        self._lines.seek(0)
        with self._path.open("wb") as file:
            file.write(msgspec.json.encode(header(self._digest.hexdigest())) + b"\n")
            shutil.copyfileobj(self._lines, file, 1 << 20)


class _Parquet:
    """One row group for each batch; the header is a key of the file's metadata."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1)
        self._digest = hashlib.sha256()

    def add(self, jobs: Jobs) -> None:
        self._digest.update(json_lines(jobs))
        if len(jobs):
            self._writer.write_table(arrow_table(jobs))

    def finish(self, header: Callable[[str], TraceHeader]) -> None:
        text = msgspec.json.encode(header(self._digest.hexdigest()))
        self._writer.add_key_value_metadata({PARQUET_HEADER: text})

    def close(self) -> None:
        self._writer.close()


def json_lines(jobs: Jobs) -> memoryview:
    """The jobs, one line each."""
    if not len(jobs):
        return memoryview(b"")
    least, most = _bounds(jobs)
    mine = _managed(jobs)
    asked, held = (jobs.asked_cpus, jobs.asked_gpus, jobs.asked_mem_mb), (jobs.cpus, jobs.gpus, jobs.mem_mb)
    one_node = jobs.nodes == 1
    requested = _amounts(*asked)
    parts: list[pa.Array | str] = [
        '{"job":{"job_id":',
        _quoted_ids(jobs.job_id),
        ',"submit_time_s":',
        _digits(jobs.submit_s),
        ',"partitions":[',
        _quoted(jobs.partition),
        '],"requested":',
        *requested,
        ',"minimum":',
        *(requested if least[0] is asked[0] else _amounts(*least)),
        ',"maximum":',
        *(requested if most[0] is asked[0] else _amounts(*most)),
        _unless(one_node, _joined(',"nodes_wanted":', _digits(jobs.nodes))),
        _named(',"user":', jobs.user),
        _named(',"job_class":', _classes(jobs)),
        _named(',"gpu_type":', jobs.gpu_type),
        _known(',"time_limit_s":', jobs.limit_s),
        _unless(jobs.priority == 0, _joined(',"priority":', _digits(jobs.priority))),
        _unless(~mine, pa.array([',"managed":true'] * len(jobs), pa.string())) if mine.any() else "",
        '},"ran":{"state":',
        _quoted(jobs.state),
        ',"elapsed_s":',
        _seconds(jobs.elapsed_s),
        ',"amounts":',
        *(requested if all(map(np.array_equal, asked, held)) else _amounts(*held)),
        _unless(one_node, _joined(',"nodes":', _digits(jobs.nodes))),
        _known(',"start_time_s":', jobs.start_s),
        _known(',"max_rss_mb":', jobs.rss_mb),
        _named(',"account":', jobs.account),
        _named(',"name":', jobs.name),
        "}}\n",
    ]
    lines = _joined(*parts)
    offsets = np.frombuffer(lines.buffers()[1], np.int32 if pa.types.is_string(lines.type) else np.int64)
    return memoryview(lines.buffers()[2])[int(offsets[lines.offset]) : int(offsets[lines.offset + len(lines)])]


def arrow_table(jobs: Jobs) -> pa.Table:
    """The jobs as columns that are named as in the lines."""
    least, most = _bounds(jobs)
    partitions = jobs.partition.arrow()
    job = {
        "job_id": jobs.job_id,
        "submit_time_s": pa.array(jobs.submit_s),
        "partitions": pa.ListArray.from_arrays(pa.array(np.arange(len(jobs) + 1, dtype=np.int32)), partitions),
        "requested": _struct(jobs.asked_cpus, jobs.asked_gpus, jobs.asked_mem_mb),
        "minimum": _struct(*least),
        "maximum": _struct(*most),
        "nodes_wanted": pa.array(jobs.nodes),
        "user": jobs.user.arrow(),
        "job_class": _classes(jobs).arrow(),
        "gpu_type": jobs.gpu_type.arrow(),
        "time_limit_s": _nullable(jobs.limit_s),
        "priority": pa.array(jobs.priority),
        "managed": pa.array(_managed(jobs)),
    }
    ran = {
        "state": jobs.state.arrow(),
        "elapsed_s": pa.array(jobs.elapsed_s),
        "amounts": _struct(jobs.cpus, jobs.gpus, jobs.mem_mb),
        "nodes": pa.array(jobs.nodes),
        "start_time_s": _nullable(jobs.start_s),
        "max_rss_mb": _nullable(jobs.rss_mb),
        "account": jobs.account.arrow(),
        "name": jobs.name.arrow(),
    }
    return pa.Table.from_arrays(
        [
            pa.StructArray.from_arrays(list(job.values()), fields=list(_JOB)),
            pa.StructArray.from_arrays(list(ran.values()), fields=list(_RAN)),
        ],
        schema=SCHEMA,
    )


def _managed(jobs: Jobs) -> np.ndarray:
    """Ours to place are one-node jobs that carry the mark."""
    marked = np.fromiter((mark is not None for mark in jobs.marks), bool, len(jobs.marks))
    return marked[jobs.comment.codes] & (jobs.nodes == 1)


def _classes(jobs: Jobs) -> Coded:
    return Coded(jobs.comment.codes, [mark.job_class if mark else "" for mark in jobs.marks])


def _bounds(jobs: Jobs) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Least and greatest amounts: as requested, except where a mark declares a range."""
    least: tuple[np.ndarray, ...] = (jobs.asked_cpus, jobs.asked_gpus, jobs.asked_mem_mb)
    mine = _managed(jobs)
    if not mine.any():
        return least, least
    most = tuple(column.copy() for column in least)
    least = tuple(column.copy() for column in least)
    for row in np.flatnonzero(mine).tolist():
        mark = jobs.marks[jobs.comment.codes[row]]
        assert isinstance(mark, Mark)
        requested = Resources(*(int(column[row]) for column in (jobs.asked_cpus, jobs.asked_gpus, jobs.asked_mem_mb)))
        for columns, amounts in zip((least, most), mark.bounds(requested), strict=True):
            for column, amount in zip(columns, (amounts.cpus, amounts.gpus, amounts.mem_mb), strict=True):
                column[row] = amount
    return least, most


# Text, column by column.


def _joined(*parts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _digits(values: np.ndarray) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _seconds(values: np.ndarray) -> pa.Array:
    """Whole seconds without a fraction: JSON has one kind of number."""
    whole = np.floor(values)
    if (whole == values).all():
        return _digits(whole.astype(np.int64))
    return pa.array([repr(value) for value in values.tolist()], pa.string())


def _amounts(cpus: np.ndarray, gpus: np.ndarray, mem_mb: np.ndarray) -> list[pa.Array | str]:
    return ['{"cpus":', _digits(cpus), ',"gpus":', _digits(gpus), ',"mem_mb":', _digits(mem_mb), "}"]


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _quoted(column: Coded) -> pa.Array:
    return column.each(_json).arrow()


def _quoted_ids(ids: pa.Array) -> pa.Array:
    if pc.any(pc.match_substring_regex(ids, r'["\\\x00-\x1f]')).as_py():
        return Coded.of(ids).each(_json).arrow()
    return _joined('"', ids, '"')


def _named(key: str, column: Coded) -> pa.Array:
    return column.each(lambda text: f"{key}{_json(text)}" if text else "").arrow()


def _known(key: str, values: np.ndarray) -> pa.Array:
    return _unless(values == NONE, _joined(key, _digits(values)))


def _unless(without: np.ndarray, text: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(without), "", text) if without.any() else text


# Columns.


def _struct(cpus: np.ndarray, gpus: np.ndarray, mem_mb: np.ndarray) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(cpus), pa.array(gpus), pa.array(mem_mb)], fields=list(_AMOUNTS))


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, mask=values == NONE)
