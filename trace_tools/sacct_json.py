"""``sacct --json`` of Slurm 22.05 to 26.05 into the columns that the text has. Reads job by job: memory does not grow.

What differs between releases is met here: states as text or as a list, numbers plain or as {set, infinite, number},
step ids as text or as an object, memory with its per-CPU flag in the number.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa

from tapfinger_hpc.errors import TraceError
from trace_tools.assemble import Columns
from trace_tools.blocks import Source
from trace_tools.reasons import Tally

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]|"', re.DOTALL)
_CHUNK = 1 << 20
_LARGEST_JOB = 1 << 24
_BATCH = 20_000
_FLAG_64 = 2**63
_NAMES = (
    "JobID", "Cluster", "User", "Account", "Partition", "State", "Submit", "Eligible", "Start", "End", "ElapsedRaw",
    "LimitS", "NNodes", "NCPUS", "ReqCPUS", "ReqMem", "ReqTRES", "AllocTRES", "MaxRSS", "NodeList", "Priority",
    "Comment", "SubmitLine", "JobName",
)  # fmt: skip


def read_json(source: Source, tally: Tally) -> Iterator[Columns]:
    """The jobs of a document ``{"jobs": [...]}``, of a list of jobs, or of one job after the other."""
    rows: list[dict[str, str]] = []
    for text in _objects(source, tally):
        row = _row(text, tally)
        if row is not None:
            rows.append(row)
        if len(rows) >= _BATCH:
            yield _columns(rows)
            rows = []
    if rows:
        yield _columns(rows)


def _columns(rows: list[dict[str, str]]) -> Columns:
    return {name: pa.array([row.get(name, "") for row in rows], pa.string()) for name in _NAMES}


# Finding the jobs.


def _objects(source: Source, tally: Tally) -> Iterator[bytes]:
    """The text of each job: an object within a list "jobs", within a list, or at the top."""
    buffer = b""
    position = 0
    closers: list[bytes] = []
    begin = -1
    jobs_depth = -1
    key = b""
    while True:
        chunk = source.read(_CHUNK)
        if len(buffer) > _LARGEST_JOB:
            raise TraceError(
                f"{source.name!r}: a job of more than {_LARGEST_JOB >> 20} MiB; this is no output of sacct"
            )
        buffer += chunk
        waiting = False
        for token in _TOKEN.finditer(buffer, position):
            text = token[0]
            if text == b'"':
                position, waiting = token.start(), True
                break
            position = token.end()
            if text[:1] == b'"':
                if len(closers) == 1:
                    key = text
                continue
            if text in b"{[":
                is_job = len(closers) == jobs_depth and begin < 0
                if text == b"{" and (is_job or not closers):
                    begin = token.start()
                elif not closers:
                    jobs_depth = 1
                elif len(closers) == 1 and text == b"[" and key == b'"jobs"':
                    begin, jobs_depth = -1, 2
                closers.append(text)
                continue
            if closers:
                closers.pop()
            depth = len(closers)
            if text == b"}" and begin >= 0 and depth == max(0, jobs_depth):
                yield buffer[begin : token.end()]
                begin = -1
            if depth < jobs_depth:
                jobs_depth = -2 if depth else -1
        if not waiting:
            position = len(buffer)
        if not chunk:
            break
        used = begin if begin >= 0 else position
        buffer, position, begin = buffer[used:], position - used, 0 if begin >= 0 else -1
    if closers or buffer[position:].strip():
        tally.add("cut-short", 1, [buffer[max(begin, 0) :][:200]])


# One job.


def _row(text: bytes, tally: Tally) -> dict[str, str] | None:
    try:
        text.decode()
    except UnicodeDecodeError:
        tally.add("not-utf8", 1, [text[:200]])
        text = text.decode("utf-8", "replace").encode()
    try:
        job = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        tally.rows += 1
        tally.add("bad-json", 1, [text[:200]])
        return None
    if not isinstance(job, dict) or "job_id" not in job:
        if isinstance(job, dict) and {"meta", "errors", "warnings"} & job.keys():
            return None
        tally.rows += 1
        tally.add("bad-json", 1, [text[:200]])
        return None
    row = _fields(job)
    steps = _list(job.get("steps"))
    tally.steps += len(steps)
    tally.rows += len(steps)
    held = max((_peak(step) for step in steps), default=0)
    return {**row, "MaxRSS": str(held)} if held else row


def _fields(job: dict[str, Any]) -> dict[str, str]:
    times = _dict(job.get("time"))
    required = _dict(job.get("required"))
    tres = _dict(job.get("tres"))
    limit = _number(times.get("limit"))
    comment = job.get("comment")
    state = job.get("state")
    found = {
        "JobID": _job_id(job),
        "Cluster": _text(job.get("cluster")),
        "User": _text(job.get("user")) or _text(_dict(job.get("association")).get("user")),
        "Account": _text(job.get("account")),
        "Partition": _text(job.get("partition")),
        "State": _state(state.get("current") if isinstance(state, dict) else state),
        "Submit": _moment(times.get("submission")),
        "Eligible": _moment(times.get("eligible")),
        "Start": _moment(times.get("start")),
        "End": _moment(times.get("end")),
        "ElapsedRaw": _whole(_number(times.get("elapsed"))),
        "LimitS": _whole(None if limit is None else limit * 60),
        "NNodes": _whole(_number(job.get("allocation_nodes"))),
        "ReqCPUS": _whole(_number(required.get("CPUs"))),
        "ReqMem": _asked_memory(required),
        "ReqTRES": _tres(tres.get("requested")),
        "AllocTRES": _tres(tres.get("allocated")),
        "NodeList": _text(job.get("nodes")),
        "Priority": _whole(_number(job.get("priority"))),
        "Comment": _text(comment.get("job") if isinstance(comment, dict) else comment),
        "SubmitLine": _text(job.get("submit_line")),
        "JobName": _text(job.get("name")),
    }
    return {name: text for name, text in found.items() if text}


def _job_id(job: dict[str, Any]) -> str:
    array = _dict(job.get("array"))
    het = _dict(job.get("het"))
    root = _number(array.get("job_id"))
    task = _number(array.get("task_id"))
    if root and task is not None:
        return f"{root:.0f}_{task:.0f}"
    if root and _text(array.get("task")):
        return f"{root:.0f}_[{_text(array.get('task'))}]"
    head, offset = _number(het.get("job_id")), _number(het.get("job_offset"))
    if head:
        return f"{head:.0f}+{offset or 0:.0f}"
    return _whole(_number(job.get("job_id"))) or _text(job.get("job_id"))


def _state(current: Any) -> str:
    """The first of a list is the state itself, the others say more of it."""
    if isinstance(current, list):
        return _text(current[0]) if current else ""
    return _text(current)


def _asked_memory(required: dict[str, Any]) -> str:
    per_cpu, per_node = _number(required.get("memory_per_cpu")), _number(required.get("memory_per_node"))
    if per_cpu:
        return f"{per_cpu:.0f}Mc"
    if per_node:
        return f"{per_node:.0f}Mn"
    both = required.get("memory")
    if isinstance(both, int) and both:
        flagged = both % 2**64
        return f"{flagged - _FLAG_64}Mc" if flagged >= _FLAG_64 else f"{flagged}Mn"
    return ""


def _tres(items: Any) -> str:
    found = []
    for item in _list(items):
        one = _dict(item)
        count = _number(one.get("count"))
        if count is None or count < 0 or count >= 2**62:
            continue
        kind, name = _text(one.get("type")), _text(one.get("name"))
        unit = "M" if kind == "mem" else ""
        found.append(f"{kind}/{name}={count:.0f}{unit}" if name else f"{kind}={count:.0f}{unit}")
    return ",".join(found)


def _peak(step: Any) -> int:
    """Bytes that one task of a step held at most."""
    most = _list(_dict(_dict(_dict(step).get("tres")).get("requested")).get("max"))
    held = [_number(item.get("count")) for item in map(_dict, most) if item.get("type") == "mem"]
    return int(max((count for count in held if count and 0 < count < 2**53), default=0))


def _moment(value: Any) -> str:
    seconds = _number(value)
    return _whole(seconds) if seconds and 0 < seconds < 2**32 - 2 else ""


def _number(value: Any) -> float | None:
    """A number, plain or as {set, infinite, number}; None where it is not set or without limit."""
    if isinstance(value, dict):
        if not value.get("set", True) or value.get("infinite"):
            return None
        value = value.get("number")
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return value if abs(value) < 2.0**70 else None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    return None


def _whole(value: float | None) -> str:
    return "" if value is None or value < 0 or value >= 2**53 else f"{value:.0f}"


def _text(value: Any) -> str:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
