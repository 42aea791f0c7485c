"""Lists of jobs that are not Slurm's: archives and the traces of papers, as the columns that sacct has.

Each list is a header to know it by and a function from one of its rows to fields of sacct. What a list does not say is
left empty, and counted as an assumption where a job is made of it.
"""

import ast
import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa

from tapfinger_hpc.errors import TraceError
from trace_tools.assemble import Columns
from trace_tools.blocks import Source
from trace_tools.reasons import Tally

Row = dict[str, str]
_BATCH = 50_000
_GAVEL_FIELDS = 10
_GAVEL_REFERENCE = "v100"
"""The type of GPU on which Gavel states how long a job takes."""
_SWF_FIELDS = 18
_SWF_STATES = {0: "FAILED", 1: "COMPLETED", 2: "REQUEUED", 3: "COMPLETED", 4: "FAILED", 5: "CANCELLED"}
_SWF_START = re.compile(r";\s*UnixStartTime:\s*(\d+)")
_NUMBERS = re.compile(r"\s*-?\d[\d.\s-]*")


@dataclass(frozen=True)
class Listing:
    """One kind of list with a header."""

    name: str
    header: frozenset[str]
    """Columns that it is known by."""
    make: Callable[[Row], Row]
    """Fields of sacct; ValueError or KeyError where the row cannot be read."""
    has_ids: bool = False
    counts_from_zero: bool = False
    """Times are seconds since the list begins."""
    ends_with_list: str = ""
    """Column whose greatest value is the end of the list: a job that ends then may not have ended."""


def known_list(lines: Sequence[str]) -> Listing | None:
    """The kind of list that these lines begin."""
    if not lines:
        return None
    header = frozenset(name.strip().strip('"').lower() for name in lines[0].split(","))
    return next((each for each in LISTS if each.header <= header), None)


def is_swf(lines: Sequence[str]) -> bool:
    """Whether the lines are of the Standard Workload Format."""
    rows = [line for line in lines if line.strip() and not line.lstrip().startswith(";")]
    remarks = any(line.lstrip().startswith(";") for line in lines)
    whole = sum(bool(_NUMBERS.fullmatch(line)) and len(line.split()) == _SWF_FIELDS for line in rows[:20])
    return 2 * whole > len(rows[:20]) if rows else remarks


def is_gavel(lines: Sequence[str]) -> bool:
    """Whether the lines are of a trace of Gavel's."""
    return bool(lines) and all(line.count("\t") >= _GAVEL_FIELDS - 1 and "batch size" in line for line in lines[:5])


def read_list(source: Source, tally: Tally, listing: Listing) -> Iterator[Columns]:
    """The rows of a list with a header."""
    rows = _csv_rows(source, tally)
    if listing.ends_with_list:
        # Published data sets, some megabytes: when one ended is known only when all of it is read.
        held = list(rows)
        last = max((row.get(listing.ends_with_list, "") for row in held), key=_as_number, default="")
        rows = iter([{**row, "ended": "" if row.get(listing.ends_with_list) == last else "yes"} for row in held])
    return _batches((_made(row, listing.make, tally) for row in rows), tally)


def read_swf(source: Source, tally: Tally) -> Iterator[Columns]:
    """The rows of a Standard Workload Format file."""
    return _batches(_swf_rows(source, tally), tally)


def read_gavel(source: Source, tally: Tally, throughputs: Path | None) -> Iterator[Columns]:
    """The jobs of one of Gavel's traces; how long they take is their steps over what the table says of a V100."""
    if throughputs is None:
        raise TraceError(
            f"{source.name!r} is a trace of Gavel's, which says how many steps a job has: "
            "give its table simulation_throughputs.json with --throughputs"
        )
    steps_per_s = _throughputs(throughputs)
    return _batches(
        (_made_of(line, lambda line: _gavel(line, steps_per_s), tally) for line in _lines(source)),
        tally,
    )


# Rows.


def _lines(source: Source) -> Iterator[str]:
    for block in source.line_blocks():
        for line in block.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").splitlines():
            if line.strip():
                yield line


def _csv_rows(source: Source, tally: Tally) -> Iterator[Row]:
    lines = _lines(source)
    header = [name.strip().strip('"').lower() for name in next(lines).split(",")]
    for line in lines:
        cells = next(csv.reader([line.replace("\0", " ")]), [])
        if len(cells) != len(header):
            tally.rows += 1
            tally.add("broken-line", 1, [line])
            continue
        yield dict(zip(header, (cell.strip() for cell in cells), strict=True))


def _made(row: Row, make: Callable[[Row], Row], tally: Tally) -> Row | None:
    return _made_of(row, make, tally)


def _made_of(given, make, tally: Tally) -> Row | None:
    try:
        return make(given)
    except (ValueError, KeyError, OverflowError, IndexError):
        tally.rows += 1
        shown = given if isinstance(given, str) else ",".join(given.values())
        tally.add("broken-line", 1, [shown])
        return None


def _batches(rows: Iterator[Row | None], tally: Tally) -> Iterator[Columns]:
    batch: list[Row] = []
    for row in rows:
        if row is None:
            continue
        if not row.get("State"):
            tally.add("state-assumed", 1, [" ".join(f"{name}={text}" for name, text in row.items())])
            row["State"] = "COMPLETED"
        batch.append(row)
        if len(batch) >= _BATCH:
            yield _columns(batch)
            batch = []
    if batch:
        yield _columns(batch)


def _columns(rows: Sequence[Row]) -> Columns:
    names = {name: None for row in rows for name in row}
    return {name: pa.array([row.get(name, "") for row in rows], pa.string()) for name in names}


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -math.inf


def _amount(text: str) -> str:
    """A whole number, rounded up; empty where there is none."""
    return "" if not text or text.lower() in ("none", "nan", "null") else str(math.ceil(float(text)))


def _ms(text: str) -> str:
    return f"{float(text) / 1000:.3f}"


# Kinds.


def _philly(row: Row) -> Row:
    return {
        "Submit": row["timestamp"],
        "ElapsedRaw": str(float(row["duration"])),
        "GPUs": _amount(row["num_gpus"]),
        "Partition": row.get("cluster", "") or row.get("vc", ""),
        "User": row.get("user", ""),
        "State": row.get("status", "") or row.get("state", ""),
    }


def _helios(row: Row) -> Row:
    return {
        "JobID": row["job_id"],
        "User": row.get("user", ""),
        "Account": row.get("vc", ""),
        "Partition": row.get("vc", ""),
        "JobName": row.get("jobname", "") or row.get("job_name", ""),
        "State": row.get("state", ""),
        "Submit": row["submit_time"],
        "Start": row.get("start_time", ""),
        "End": row.get("end_time", ""),
        "ElapsedRaw": row["duration"],
        "GPUs": _amount(row["gpu_num"]),
        "NCPUS": _amount(row.get("cpu_num", "")),
        "NNodes": _amount(row.get("node_num", "")),
    }


def _muri(row: Row) -> Row:
    return {
        "JobID": row["job_id"],
        "JobName": f"{row['model_name']} (batch size {row.get('batch_size', '')})",
        "GPUs": _amount(row["num_gpu"]),
        "Submit": _ms(row["submit_time"]),
        "ElapsedRaw": _ms(row["duration"]),
    }


def _alibaba(row: Row) -> Row:
    gpus, kinds = int(_amount(row["num_gpu"]) or 0), row.get("gpu_spec", "").split("|")
    going_on = row["pod_phase"] == "Pending" or (row["pod_phase"] == "Running" and not row.get("ended", ""))
    state = {"Running": "CANCELLED", "Succeeded": "COMPLETED", "Failed": "FAILED"}.get(row["pod_phase"], "")
    return {
        "JobID": row["name"],
        "State": "RUNNING" if going_on else state,
        "Submit": row["creation_time"],
        "Start": _amount(row.get("scheduled_time", "")),
        "End": _amount(row["deletion_time"]),
        "NCPUS": str(max(1, math.ceil(float(row["cpu_milli"]) / 1000))),
        "ReqMem": f"{_amount(row['memory_mib'])}M",
        "GPUs": f"gpu:{kinds[0]}:{gpus}" if len(kinds) == 1 and kinds[0] else str(gpus),
        "Partition": row.get("qos", ""),
        "NNodes": "1",
        "GPUShare": "yes" if gpus == 1 and 0 < float(row.get("gpu_milli") or 0) < 1000 else "",
    }


LISTS = (
    Listing("Alibaba pods", frozenset({"cpu_milli", "gpu_milli", "num_gpu", "creation_time", "deletion_time"}),
            _alibaba, has_ids=True, counts_from_zero=True, ends_with_list="deletion_time"),
    Listing("Muri", frozenset({"job_id", "num_gpu", "submit_time", "duration", "iterations", "model_name"}), _muri,
            has_ids=True, counts_from_zero=True),
    Listing("Helios", frozenset({"job_id", "gpu_num", "submit_time", "duration"}), _helios, has_ids=True),
    Listing("Philly", frozenset({"timestamp", "duration", "num_gpus"}), _philly),
)  # fmt: skip


def _swf_rows(source: Source, tally: Tally) -> Iterator[Row | None]:
    zero_s = 0
    for line in _lines(source):
        if line.lstrip().startswith(";"):
            if found := _SWF_START.match(line.lstrip()):
                zero_s = int(found[1][:11])
            continue
        yield _made_of(line, lambda line, zero_s=zero_s: _swf(line, zero_s), tally)


def _swf(line: str, zero_s: int) -> Row:
    cells = [float(cell) for cell in line.split()]
    if len(cells) != _SWF_FIELDS or not all(map(math.isfinite, cells)):
        raise ValueError(line)
    number, submit, wait, run, processors, _, used_kib, asked = cells[:8]
    limit, asked_kib, status, user, group, app, queue = cells[8:15]
    if submit < 0:
        raise ValueError(line)
    return {
        "JobID": f"{number:.0f}",
        "Submit": f"{submit + zero_s:.0f}",
        "State": _SWF_STATES.get(int(status), ""),
        "Start": f"{submit + zero_s + wait:.0f}" if wait >= 0 else "",
        "ElapsedRaw": f"{run:.0f}" if run >= 0 else "",
        "NCPUS": f"{max(processors, asked):.0f}" if processors <= 0 < asked else _positive(processors),
        "ReqCPUS": _positive(asked),
        "LimitS": _positive(limit),
        "MaxRSS": f"{used_kib:.0f}K" if used_kib > 0 else "",
        "ReqMem": f"{asked_kib:.0f}Kc" if asked_kib > 0 else "",
        "User": f"user{user:.0f}" if user >= 0 else "",
        "Account": f"group{group:.0f}" if group >= 0 else "",
        "JobName": f"app{app:.0f}" if app >= 0 else "",
        "Partition": f"queue{queue:.0f}" if queue >= 0 else "",
    }


def _positive(value: float) -> str:
    return f"{value:.0f}" if value > 0 else ""


def _throughputs(path: Path) -> dict[tuple[str, int], float]:
    """Steps a second on the reference GPU, by type of job and number of GPUs."""
    try:
        table = msgspec.json.decode(path.read_bytes())[_GAVEL_REFERENCE]
        found = {ast.literal_eval(key): float(alone["null"]) for key, alone in table.items() if key.startswith("(")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError, msgspec.DecodeError) as error:
        raise TraceError(f"throughputs {str(path)!r}: not the table of Gavel's simulation_throughputs.json") from error
    return {key: rate for key, rate in found.items() if rate > 0}


def _gavel(line: str, steps_per_s: dict[tuple[str, int], float]) -> Row:
    cells = line.rstrip("\r\n").split("\t")
    gpus = int(cells[6])
    seconds = float(cells[5]) / steps_per_s[cells[0], gpus]
    return {
        "JobName": cells[0],
        "GPUs": str(gpus),
        "Submit": f"{float(cells[-1]):.3f}",
        "ElapsedRaw": f"{seconds:.3f}",
    }
