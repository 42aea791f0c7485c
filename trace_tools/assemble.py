"""Rows of accounting, as columns of text, into jobs that have ended: steps joined, runs told apart, amounts settled.

Pure: columns in, columns and a tally out. A row that makes no job is counted under its reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import tzinfo
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapfinger_hpc.errors import UnitError
from tapfinger_hpc.state import MAX_AMOUNT
from tapfinger_hpc.units import Mark, parse_mark
from trace_tools import spelling
from trace_tools.coded import Coded, examples, numbers, times
from trace_tools.reasons import Tally

NONE = -1
"""In a column of whole numbers: no value."""
Columns = dict[str, pa.Array]
"""Text by the name that sacct gives the field; all of one length."""


@dataclass
class Jobs:
    """Jobs that have ended, column by column."""

    job_id: pa.Array
    state: Coded
    submit_s: np.ndarray
    start_s: np.ndarray
    elapsed_s: np.ndarray
    cpus: np.ndarray
    gpus: np.ndarray
    mem_mb: np.ndarray
    nodes: np.ndarray
    asked_cpus: np.ndarray
    asked_gpus: np.ndarray
    asked_mem_mb: np.ndarray
    limit_s: np.ndarray
    rss_mb: np.ndarray
    priority: np.ndarray
    gpu_type: Coded
    partition: Coded
    user: Coded
    account: Coded
    name: Coded
    comment: Coded
    marks: list[Mark | None]
    """Of each spelling of ``comment``."""

    def __len__(self) -> int:
        return len(self.job_id)

    def take(self, rows: np.ndarray) -> "Jobs":
        """Those rows, in that order."""
        taken: dict[str, Any] = {each.name: _taken(getattr(self, each.name), rows) for each in fields(self)}
        return Jobs(**taken)


@dataclass(frozen=True)
class Reading:
    """How the text of a source is meant."""

    zone_name: str
    zone: tzinfo
    has_steps: bool = True
    """Whether a row with a dot in its id is a step of the job before."""
    counts_from_zero: bool = False
    """Whether 0 is a time as any other."""


def assemble(columns: Columns, reading: Reading, tally: Tally) -> Jobs:
    """The ended jobs among these rows."""
    rows = _Rows(columns, reading, tally)
    return rows.jobs()


def _taken(value: Any, rows: np.ndarray) -> Any:
    if isinstance(value, Coded):
        return value.take(rows)
    if isinstance(value, np.ndarray):
        return value[rows]
    return value.take(pa.array(rows)) if isinstance(value, pa.Array) else value


class _Rows:
    """One batch on its way; every method settles one matter."""

    def __init__(self, columns: Columns, reading: Reading, tally: Tally) -> None:
        tally.rows += len(next(iter(columns.values())))
        self._tally = tally
        self._reading = reading
        self._rss_mb = np.zeros(0)
        self._columns = columns
        if reading.has_steps and "JobID" in columns:
            self._join_steps()
        self._count = len(next(iter(self._columns.values())))
        self._keep = np.ones(self._count, bool)
        if not len(self._rss_mb):
            self._rss_mb = self._rss(self._columns.get("MaxRSS"), self._count)

    def jobs(self) -> Jobs:
        tally = self._tally
        state, going_on = self._states()
        submit, eligible, start, end = (self._times(name) for name in ("Submit", "Eligible", "Start", "End"))
        self._leave_earlier_runs(state, submit, start, end)
        self._leave("not-ended", going_on)
        self._leave("requeued", state.rows_where(lambda word: word == spelling.REQUEUED))
        elapsed = self._elapsed(start, end, state)
        alloc = self._tres("AllocTRES")
        asked = self._tres("ReqTRES")
        nodes = _first(alloc.nodes, self._counts("NNodes"), asked.nodes)
        self._note("nodes-unknown", nodes == 0)
        nodes = np.maximum(nodes, 1)
        cpus = _first(alloc.cpus, self._counts("NCPUS"), asked.cpus, self._counts("ReqCPUS"))
        self._note("cpus-unknown", cpus == 0)
        cpus = np.maximum(cpus, 1)
        gpus, gpu_type = self._gpus(alloc, asked, nodes)
        gpus = _first(gpus)
        asked_mem = _first(asked.mem_mb, self._asked_memory(nodes, cpus))
        submit = self._submits(submit, eligible, start)
        comment = self._coded("Comment")
        marks = comment.read(_mark, "mark-unreadable", tally)
        partition = self._coded("Partition").each(lambda name: name.strip() or "unknown")
        self._note("partition-unknown", partition.rows_where(lambda name: name == "unknown"))
        made = Jobs(
            job_id=self._job_ids(),
            state=state,
            submit_s=submit,
            start_s=_whole(start),
            elapsed_s=elapsed,
            cpus=cpus,
            gpus=gpus,
            mem_mb=_first(alloc.mem_mb, asked_mem),
            nodes=nodes,
            asked_cpus=_first(asked.cpus, self._counts("ReqCPUS"), cpus),
            asked_gpus=_first(asked.gpus, gpus),
            asked_mem_mb=_first(asked_mem, alloc.mem_mb),
            limit_s=self._limits(),
            rss_mb=_whole(self._rss_mb),
            priority=np.maximum(self._counts("Priority"), 0),
            gpu_type=gpu_type,
            partition=partition,
            user=self._coded("User"),
            account=self._coded("Account"),
            name=self._coded("JobName"),
            comment=comment,
            marks=marks,
        )
        kept = made.take(np.flatnonzero(self._keep))
        joined = _het_jobs(kept, tally) if self._reading.has_steps else kept
        tally.jobs += len(joined)
        return joined

    # Steps.

    def _join_steps(self) -> None:
        """Takes steps out of the rows, and gives the most memory that one of them held to its job."""
        ids = pc.utf8_trim_whitespace(self._columns["JobID"])
        is_step = pc.greater_equal(pc.find_substring(ids, "."), 0)
        where = is_step.to_numpy(zero_copy_only=False)
        self._columns = {**self._columns, "JobID": ids}
        if not where.any():
            return
        is_job = pc.invert(is_step)
        all_rss = self._columns.get("MaxRSS")
        step_ids = ids.filter(is_step)
        job_of = (np.cumsum(~where) - 1)[where]
        self._columns = {name: column.filter(is_job) for name, column in self._columns.items()}
        job_ids = self._columns["JobID"]
        owner = self._owners(step_ids, job_ids, job_of)
        lost = owner < 0
        self._tally.steps += int((~lost).sum())
        self._tally.add("step-without-job", int(lost.sum()), examples(lost, lambda row: step_ids[row].as_py()))
        held = self._rss(self._columns.get("MaxRSS"), len(job_ids))
        if all_rss is not None:
            step_rss = self._rss(all_rss.filter(is_step), len(step_ids))
            known = ~np.isnan(step_rss) & ~lost
            most = np.where(np.isnan(held), -1.0, held)
            np.maximum.at(most, owner[known], step_rss[known])
            held = np.where(most < 0, np.nan, most)
        self._rss_mb = held

    @staticmethod
    def _owners(step_ids: pa.Array, job_ids: pa.Array, job_of: np.ndarray) -> np.ndarray:
        """The row of each step's job: the last job before it where that is its own, else the one of its id, else -1."""
        base = pc.list_element(pc.split_pattern(step_ids, ".", max_splits=1), 0)
        if not len(job_ids):
            return np.full(len(step_ids), -1)
        before = job_ids.take(pa.array(np.maximum(job_of, 0)))
        own = pc.equal(base, before).to_numpy(zero_copy_only=False) & (job_of >= 0)
        if own.all():
            return job_of
        found = pc.index_in(base.filter(pa.array(~own)), value_set=job_ids)
        owner = job_of.copy()
        owner[~own] = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
        return owner

    def _rss(self, column: pa.Array | None, count: int) -> np.ndarray:
        """MiB, rounded up, NaN where nothing was measured."""
        if column is None:
            return np.full(count, np.nan)
        kib = pc.and_(pc.ends_with(column, "K"), pc.ascii_is_decimal(pc.utf8_slice_codeunits(column, 0, -1)))
        where = kib.to_numpy(zero_copy_only=False)
        held = np.full(count, np.nan)
        if where.any():
            plain = pc.utf8_slice_codeunits(column.filter(kib), 0, -1)
            held[where] = numbers(plain, spelling.bytes_of, "memory-unreadable", self._tally) * 1024.0
        if not where.all():
            rest = column.filter(pc.invert(kib))
            held[~where] = numbers(rest, spelling.bytes_of, "memory-unreadable", self._tally)
        held[held <= 0] = np.nan
        return np.ceil(held / 1024**2)

    # One matter each.

    def _states(self) -> tuple[Coded, np.ndarray]:
        column = self._coded("State")
        self._leave("no-state", column.rows_where(spelling.is_empty))
        known: list[str] = []
        unknown: list[bool] = []
        for text in column.spellings:
            try:
                known.append(spelling.state(text))
                unknown.append(False)
            except ValueError:
                known.append("")
                unknown.append(True)
        words = Coded(column.codes, known)
        self._leave("unknown-state", np.array(unknown, bool)[column.codes] if unknown else np.zeros(0, bool))
        return words, words.rows_where(spelling.going_on)

    def _leave_earlier_runs(self, state: Coded, submit: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
        """Of the runs of one job the last counts: sacct -D lists them all, one after the other.

        Rows of one id, user and name that overlap are not runs of one job: some sites list the tasks of an array so.
        """
        if "JobID" not in self._columns or pc.count_distinct(self._columns["JobID"]).as_py() == self._count:
            return
        ids = Coded.of(self._columns["JobID"])
        twice = np.bincount(ids.codes, minlength=len(ids.spellings))[ids.codes] > 1
        others = [Coded.of(self._columns[name]) for name in ("Cluster", "User", "JobName") if name in self._columns]
        groups: dict[tuple, list[int]] = {}
        for row in np.flatnonzero(twice & self._keep).tolist():
            if ids.spellings[ids.codes[row]]:
                groups.setdefault((ids.codes[row], *(other.codes[row] for other in others)), []).append(row)
        earlier, same = np.zeros(self._count, bool), np.zeros(self._count, bool)
        submit, start, end = (np.nan_to_num(times, nan=-1.0) for times in (submit, start, end))
        for rows in groups.values():
            if len(rows) == 1:
                continue
            rows.sort(key=lambda row: (submit[row], start[row], end[row], -row))
            alike = [
                state.codes[row] == state.codes[after]
                and submit[row] == submit[after]
                and start[row] == start[after]
                and end[row] == end[after]
                for row, after in pairwise(rows)
            ]
            apart = all(
                is_alike or end[row] <= max(start[after], submit[after])
                for is_alike, (row, after) in zip(alike, pairwise(rows), strict=True)
            )
            if not apart:
                continue
            for is_alike, row in zip(alike, rows, strict=False):
                (same if is_alike else earlier)[row] = True
        self._leave("duplicate", same)
        self._leave("earlier-run", earlier)

    def _elapsed(self, start: np.ndarray, end: np.ndarray, state: Coded) -> np.ndarray:
        """Seconds of the run; leaves out the rows that do not say or did not run."""
        elapsed = self._numbers("ElapsedRaw", spelling.clock_s, "time-unreadable")
        spelled = self._columns.get("Elapsed")
        if spelled is not None:
            missing = np.isnan(elapsed)
            if missing.any():
                told = self._numbers("Elapsed", spelling.clock_s, "time-unreadable")
                elapsed = np.where(missing, told, elapsed)
        missing = np.isnan(elapsed)
        between = end - start
        self._leave("end-before-start", missing & (between < 0))
        usable = missing & (between >= 0)
        self._note("elapsed-from-times", usable)
        elapsed = np.where(usable, between, elapsed)
        unread = np.isnan(elapsed)
        cancelled = state.rows_where(lambda word: word == "CANCELLED")
        self._leave("never-ran", (unread | (elapsed == 0)) & self._had_nothing(start, cancelled))
        self._leave("no-duration", unread)
        brief = elapsed == 0
        self._note("under-a-second", brief)
        return np.where(brief, 0.5, elapsed)

    def _had_nothing(self, start: np.ndarray, cancelled: np.ndarray) -> np.ndarray:
        """Rows of jobs that no node was given to."""
        if "NodeList" in self._columns:
            return self._coded("NodeList").rows_where(spelling.is_empty) | (cancelled & np.isnan(start))
        if "NCPUS" in self._columns and "AllocTRES" not in self._columns:
            return (self._counts("NCPUS") == 0) | cancelled
        return cancelled

    def _gpus(self, alloc: "_Tres", asked: "_Tres", nodes: np.ndarray) -> tuple[np.ndarray, Coded]:
        """GPUs held, typed and untyped counted once; those of the request where accounting tracks none."""
        count, kind = alloc.gpus, alloc.gpu_type
        for column, per_node in (("GPUs", False), ("AllocGRES", True)):
            told, told_type = self._gres(column)
            told = told * nodes if per_node else told
            kind = _either(count > 0, kind, told_type)
            count = np.where(count > 0, count, told)
        held = count > 0
        for told, told_type in ((asked.gpus, asked.gpu_type), self._gres_of_request(nodes)):
            kind = _either(count > 0, kind, told_type)
            count = np.where(count > 0, count, told)
        told, told_type = self._command(nodes, count == 0)
        kind = _either(count > 0, kind, told_type)
        count = np.where(count > 0, count, told)
        self._note("gpus-from-request", (count > 0) & ~held)
        self._note("gpu-share", self._coded("GPUShare").rows_where(bool))
        return count, _either(count > 0, kind, Coded.constant("", len(count)))

    def _gres_of_request(self, nodes: np.ndarray) -> tuple[np.ndarray, Coded]:
        told, told_type = self._gres("ReqGRES")
        return told * nodes, told_type

    def _gres(self, name: str) -> tuple[np.ndarray, Coded]:
        column = self._coded(name)
        read = column.read(_counted_gpus, "tres-unreadable", self._tally, (0, ""))
        return _spread([one[0] for one in read], column), Coded(column.codes, [one[1] for one in read])

    def _command(self, nodes: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, Coded]:
        """GPUs that the command line asks for, of those jobs of which nothing else says how many they are."""
        count, nothing = np.zeros(self._count, np.int64), Coded.constant("", self._count)
        line = self._columns.get("SubmitLine")
        if line is None or not unknown.any():
            return count, nothing
        about_gpus = pc.match_substring_regex(line, r"(?:^|\s)-(?:-gpus|-gres|G)").to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(about_gpus & unknown & self._keep)
        if not len(rows):
            return count, nothing
        lines = Coded.of(line.take(pa.array(rows)))
        told = [spelling.gpus_of_command(text) for text in lines.spellings]
        a_node = np.array([per_node for _, _, per_node in told])[lines.codes]
        count[rows] = _spread([gpus for gpus, _, _ in told], lines) * np.where(a_node, nodes[rows], 1)
        kinds = np.zeros(self._count, np.int32)
        kinds[rows] = lines.codes + 1
        return count, Coded(kinds, ["", *(gpu_type for _, gpu_type, _ in told)])

    def _asked_memory(self, nodes: np.ndarray, cpus: np.ndarray) -> np.ndarray:
        column = self._coded("ReqMem")
        read = column.read(spelling.asked_memory_mb, "memory-unreadable", self._tally, (0.0, ""))
        amount = (
            np.array([min(one[0], float(MAX_AMOUNT)) for one in read], float)[column.codes] if read else np.zeros(0)
        )
        per = np.array([" nc".index(one[1] or " ") for one in read], int)[column.codes] if read else np.zeros(0, int)
        asked = np.ceil(amount * np.choose(per, (np.ones_like(nodes), nodes, cpus)))
        return np.where(asked <= MAX_AMOUNT, asked, 0).astype(np.int64)

    def _submits(self, submit: np.ndarray, eligible: np.ndarray, start: np.ndarray) -> np.ndarray:
        missing = np.isnan(submit)
        told = np.where(missing, np.where(np.isnan(eligible), start, eligible), submit)
        self._note("no-submit-time", missing)
        self._note("start-before-submit", start < told)
        return np.nan_to_num(told, nan=0.0).astype(np.int64)

    def _limits(self) -> np.ndarray:
        seconds = self._numbers("LimitS", spelling.clock_s, "limit-unreadable")
        for name in ("TimelimitRaw", "Timelimit"):
            if name in self._columns and np.isnan(seconds).any():
                told = self._coded(name).numbers(spelling.limit_s, "limit-unreadable", self._tally)
                seconds = np.where(np.isnan(seconds), told, seconds)
        seconds[~((seconds > 0) & (seconds <= MAX_AMOUNT))] = np.nan
        return _whole(seconds)

    def _job_ids(self) -> pa.Array:
        ids = self._columns.get("JobID")
        if ids is not None and pc.min(pc.binary_length(ids)).as_py() and pc.max(pc.binary_length(ids)).as_py() <= 256:
            return ids
        before = self._tally.rows - self._count
        made = pa.array([f"row{before + row + 1}" for row in range(self._count)], pa.string())
        if ids is None:
            return made
        empty = pc.equal(pc.binary_length(ids), 0)
        self._leave("no-job-id", empty.to_numpy(zero_copy_only=False))
        return pc.if_else(empty, made, pc.utf8_slice_codeunits(ids, 0, 256))

    # Columns.

    def _coded(self, name: str) -> Coded:
        column = self._columns.get(name)
        return Coded.constant("", self._count) if column is None else Coded.of(column)

    def _numbers(self, name: str, parse: Callable[[str], float | None], note: str) -> np.ndarray:
        column = self._columns.get(name)
        return np.full(self._count, np.nan) if column is None else numbers(column, parse, note, self._tally)

    def _counts(self, name: str) -> np.ndarray:
        told = self._numbers(name, spelling.count, "tres-unreadable")
        return np.minimum(np.nan_to_num(told, nan=0.0), float(MAX_AMOUNT)).astype(np.int64)

    def _times(self, name: str) -> np.ndarray:
        column = self._columns.get(name)
        if column is None:
            return np.full(self._count, np.nan)
        parse = partial(spelling.time_s, zone=self._reading.zone)
        found = times(column, parse, self._reading.zone_name, "time-unreadable", self._tally)
        found[(found < (0 if self._reading.counts_from_zero else 1)) | (found > MAX_AMOUNT)] = np.nan
        return found

    def _tres(self, name: str) -> "_Tres":
        column = self._coded(name)
        read = column.read(spelling.tres, "tres-unreadable", self._tally, (0, 0, "", 0.0, 0))
        return _Tres(
            cpus=_spread([one[0] for one in read], column),
            gpus=_spread([one[1] for one in read], column),
            gpu_type=Coded(column.codes, [one[2] for one in read]),
            mem_mb=_spread([-(-one[3] // 1) for one in read], column),
            nodes=_spread([one[4] for one in read], column),
        )

    # Counting.

    def _leave(self, name: str, rows: np.ndarray) -> None:
        rows = rows & self._keep
        if rows.any():
            self._tally.add(name, int(rows.sum()), examples(rows, self._shown))
            self._keep &= ~rows

    def _note(self, name: str, rows: np.ndarray) -> None:
        rows = rows & self._keep
        if rows.any():
            self._tally.add(name, int(rows.sum()), examples(rows, self._shown))

    def _shown(self, row: int) -> str:
        shown = ("JobID", "State", "Submit", "Start", "End", "Elapsed", "ElapsedRaw", "AllocTRES", "NodeList")
        return " ".join(f"{name}={self._columns[name][row].as_py()}" for name in shown if name in self._columns)


@dataclass
class _Tres:
    """What a column of TRES lists says."""

    cpus: np.ndarray
    gpus: np.ndarray
    gpu_type: Coded
    mem_mb: np.ndarray
    nodes: np.ndarray


def _het_jobs(jobs: Jobs, tally: Tally) -> Jobs:
    """Joins the parts ``1853+0``, ``1853+1`` to one job that holds what they hold together."""
    parted = pc.match_substring(jobs.job_id, "+").to_numpy(zero_copy_only=False)
    if not parted.any():
        return jobs
    ids = jobs.job_id.to_pylist()
    heads: dict[str, int] = {}
    gone = np.zeros(len(jobs), bool)
    for row in np.flatnonzero(parted).tolist():
        head = heads.setdefault(ids[row].partition("+")[0], row)
        if head == row:
            continue
        gone[row] = True
        for column in ("cpus", "gpus", "mem_mb", "nodes", "asked_cpus", "asked_gpus", "asked_mem_mb"):
            values = getattr(jobs, column)
            values[head] = min(int(values[head] + values[row]), MAX_AMOUNT)
        for column in ("elapsed_s", "rss_mb"):
            values = getattr(jobs, column)
            values[head] = max(values[head], values[row])
    tally.add("het-job", int(gone.sum()), examples(gone, ids.__getitem__))
    return jobs.take(np.flatnonzero(~gone))


def _mark(comment: str) -> Mark | None:
    try:
        return parse_mark(comment)
    except UnitError as error:
        raise ValueError(comment) from error


def _counted_gpus(text: str) -> tuple[int, str]:
    stripped = text.strip()
    return (int(stripped), "") if stripped.isascii() and stripped.isdecimal() else spelling.gres(stripped)


def _spread(values: list, column: Coded) -> np.ndarray:
    """One whole number for each row from one for each spelling; what cannot be meant counts as nothing."""
    sane = [int(value) if value <= MAX_AMOUNT else 0 for value in values]
    return np.array(sane, np.int64)[column.codes] if sane else np.zeros(0, np.int64)


def _first(*columns: np.ndarray) -> np.ndarray:
    """Row by row, the first of these that is an amount: above 0, and not beyond what can be meant."""
    found = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        found = np.where((found <= 0) & (column > 0) & (column <= MAX_AMOUNT), column, found)
    return found


def _either(use_first: np.ndarray, first: Coded, second: Coded) -> Coded:
    if use_first.all() or (second.spellings == [""] and first.spellings == [""]):
        return first
    codes = np.where(use_first, first.codes, second.codes + len(first.spellings))
    return Coded(codes, [*first.spellings, *second.spellings])


def _whole(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), NONE, np.minimum(np.nan_to_num(values), 2.0**53)).astype(np.int64)
