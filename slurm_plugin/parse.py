"""Reads what squeue prints of jobs, from Slurm 22.05 to 26.05, into records. Pure: bytes in, values out.

Jobs are read in columns of fixed width and never split at a separator: a job name or comment may hold newlines,
``JobId=7`` or any separator there is, and must not pass for another field, let alone for another job.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from tapfinger_hpc import units
from tapfinger_hpc.errors import SlurmError, UnitError
from tapfinger_hpc.state import Resources

COLUMNS: dict[str, tuple[str, int]] = {
    # our name: (squeue's name, bytes). A value that fills its column may have been cut.
    "number": ("JobID", 12),
    "array_id": ("ArrayJobID", 12),
    "array_tasks": ("ArrayTaskID", 208),
    "het_id": ("HetJobID", 12),
    "user": ("UserName", 64),
    "state": ("StateCompact", 4),
    "reason": ("Reason", 80),
    "batch": ("BatchFlag", 3),
    "partition": ("Partition", 160),
    "submit_s": ("SubmitTime", 14),
    "eligible_s": ("EligibleTime", 14),
    "start_s": ("StartTime", 14),
    "end_s": ("EndTime", 14),
    "time_limit": ("TimeLimit", 16),
    "priority": ("PriorityLong", 14),
    "cpus": ("NumCPUs", 14),
    "tasks": ("NumTasks", 10),
    "tres": ("tres-alloc", 160),
    "tres_per_node": ("tres-per-node", 64),
    "tres_per_job": ("tres-per-job", 64),
    "tres_per_task": ("tres-per-task", 64),
    "tres_per_socket": ("tres-per-socket", 32),
    "dependency": ("Dependency", 24),
    "nodes": ("NodeList", 400),
    "asked_nodes": ("ReqNodes", 120),
    "planned_nodes": ("SchedNodes", 200),
    "features": ("Feature", 32),
    "reservation": ("Reservation", 32),
    "licenses": ("Licenses", 32),
    "sharing": ("OverSubscribe", 8),
    "restarts": ("RestartCnt", 8),
    "comment": ("Comment", 320),
    "admin_comment": ("admin_comment", 320),
}
"""The table of what is asked of squeue: one order, one width each, for every version."""

TASKS_FORMAT = "JobID:12,ArrayJobID:12,ArrayTaskID:24,StateCompact:4"
"""Three numbers and a state, in which nobody can hide anything."""
NAMES_COLUMNS = (("JobID", 12), ("ArrayJobID", 12), ("Account", 64), ("Name", 256))
NAMES_FORMAT = ",".join(f"{name}:{width}" for name, width in NAMES_COLUMNS)
SQUEUE_FORMAT = ",".join(f"{name}:{width}" for name, width in COLUMNS.values())
_RECORD_BYTES = sum(width for _, width in COLUMNS.values()) + 1
_ABSENT = {"", "N/A", "(null)", "NULL", "None", "Unknown", "n/a"}

FREE_TEXT = ("comment", "admin_comment")
"""Columns whose value is text of somebody; "N/A" in them is a word like another."""


class JobRecord(msgspec.Struct, frozen=True):
    """One line of squeue: a job, a task of an array, or the tasks of an array that are still together."""

    number: str
    array_id: str
    array_tasks: str
    """"" for an ordinary job, ``7`` for one task, ``2-20%2`` for tasks that are still together."""
    het_id: str
    user: str
    state: str
    """Slurm's short form: PD, R, CG, and so on."""
    reason: str
    batch: bool
    partitions: tuple[str, ...]
    submit_s: int
    eligible_s: int | None
    start_s: int | None
    end_s: int | None
    time_limit_s: int | None
    priority: int
    tasks: int
    amounts: Resources
    """Requested while it waits, granted while it runs; on all nodes together."""
    cpus_asked: int
    """NumCPUs."""
    node_count: int
    gpu_type: str
    dependent: bool
    nodes: tuple[str, ...]
    """Those that it has; () while it waits, and where the list is too long to be read."""
    asked_nodes: tuple[str, ...]
    planned_nodes: tuple[str, ...]
    constraint: str
    """What it asks for besides amounts, such as ``features a100``; "" if nothing."""
    sharing: str
    """OverSubscribe, in Slurm's words."""
    restarts: int
    comment: str
    admin_comment: str
    cut: tuple[str, ...] = ()
    """Columns that were too narrow."""
    tasks_together: tuple[int, ...] = ()
    """Of a record that stands for several tasks of an array: those that are really still together, ascending. squeue
    also counts waiting tasks among them that have records of their own, and hides those."""

    @property
    def held(self) -> bool:
        """Whether somebody holds it. Slurm also sets priority 0 where no node could ever take it (BadConstraints)."""
        return self.priority == 0 and not self.reason.startswith("BadConstraints")

    @property
    def together(self) -> bool:
        """Whether it stands for several tasks of an array."""
        return self.array_tasks != "" and not self.array_tasks.isdigit()

    @property
    def job_id(self) -> str:
        """As users write it: ``123``, ``123_4``, or ``123`` for tasks of an array that are still together."""
        if not self.array_tasks:
            return self.number
        return self.array_id if self.together else f"{self.array_id}_{self.array_tasks}"


def jobs(text: bytes, known: Mapping[bytes, JobRecord] | None = None) -> dict[bytes, JobRecord]:
    """The records of ``squeue --noheader --noconvert --Format=SQUEUE_FORMAT``, by their text.

    Args:
        known: the records of an earlier snapshot; most jobs are as they were, and need not be read again.

    Raises:
        SlurmError: the text is not made of such records.
    """
    if len(text) % _RECORD_BYTES:
        raise SlurmError(f"squeue: {len(text)} bytes are no whole number of records of {_RECORD_BYTES}")
    lines = [text[start : start + _RECORD_BYTES] for start in range(0, len(text), _RECORD_BYTES)]
    before = known or {}
    return {line: before.get(line) or _job(line) for line in lines}


def host_list(text: str) -> tuple[str, ...]:
    """The names in a folded host list such as ``n[1-3,07],login``, in its order."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        names.extend(_unfolded(part))
    return tuple(names)


class Task(NamedTuple):
    """A task of an array: the number of its record, its array, its own number there, and its state in short."""

    number: str
    array_id: str
    task: int
    state: str

    @property
    def together(self) -> bool:
        """Whether it waits in the one record of its array, whose number is the array's."""
        return self.number == self.array_id and self.state == "PD"


def tasks(text: bytes) -> list[Task]:
    """The tasks that ``squeue --array --Format=TASKS_FORMAT`` prints.

    Raises:
        SlurmError: the text is not made of such lines.
    """
    found = []
    for line in text.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) != 4 or not all(word.isdigit() for word in (words[0], words[1])):
            raise SlurmError(f"squeue: expected job, array, task and state, found {line[:80]!r}")
        if words[2].isdigit():  # N/A for a job that is no array
            found.append(Task(words[0], words[1], int(words[2]), words[3]))
    return found


def names(text: bytes) -> dict[str, tuple[str, str]]:
    """Account and job name, by the number of the job or of its array, of ``squeue --Format=NAMES_FORMAT``.

    Raises:
        SlurmError: the text is not made of such records.
    """
    each = sum(width for _, width in NAMES_COLUMNS) + 1
    if len(text) % each:
        raise SlurmError(f"squeue: {len(text)} bytes are no whole number of records of {each}")
    found = {}
    for start in range(0, len(text), each):
        values, position = [], start
        for _, width in NAMES_COLUMNS:
            values.append(text[position : position + width].decode("utf-8", "replace").rstrip(" "))
            position += width
        number, array_id, account, name = values
        found[array_id if array_id.isdigit() and array_id != "0" else number] = (given(account), name)
    return found


def array_limit(expression: str) -> int | None:
    """How many tasks may run at a time, after the % of ``2-20%4``; None without a limit."""
    limit = expression.rpartition("%")[2]
    return int(limit) if "%" in expression and limit.isdigit() else None


def folded(numbers: Iterable[int]) -> str:
    """Task numbers as Slurm takes them: ``1-3,7``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _job(record: bytes) -> JobRecord:
    columns, cut = _columns(record)
    if not columns["number"].isdigit() or not record.endswith(b"\n"):
        raise SlurmError(f"squeue: expected a job id, found {record[:12]!r}: is this Slurm older than 22.05?")
    return record_of(columns, cut)


def record_of(columns: Mapping[str, str], cut: tuple[str, ...] = ()) -> JobRecord:
    """The record that these columns are.

    Raises:
        SlurmError: one of them cannot be read.
    """
    values = {name: columns[name] if name in FREE_TEXT else given(columns[name]) for name in COLUMNS}
    number = values["number"]
    try:
        amounts, gpu_type = _amounts(values)
        return JobRecord(
            number=number,
            array_id=values["array_id"],
            array_tasks=values["array_tasks"],
            het_id=values["het_id"] if values["het_id"] != "0" else "",
            user=values["user"],
            state=values["state"],
            # Some versions print the words of a reason with underscores.
            reason=columns["reason"].replace("_", " "),
            batch=values["batch"] == "1",
            partitions=tuple(filter(None, values["partition"].split(","))),
            submit_s=_seconds(values["submit_s"]) or 0,
            eligible_s=_seconds(values["eligible_s"]),
            start_s=_seconds(values["start_s"]),
            end_s=_seconds(values["end_s"]),
            time_limit_s=_time_limit_s(columns["time_limit"]),
            priority=int(values["priority"] or 0),
            tasks=max(1, _count(values["tasks"])),
            amounts=amounts,
            cpus_asked=_count(values["cpus"]),
            node_count=_node_count(values),
            gpu_type=gpu_type,
            dependent=values["dependency"] != "",
            nodes=() if "nodes" in cut else host_list(values["nodes"]),
            asked_nodes=host_list(values["asked_nodes"]),
            planned_nodes=() if "planned_nodes" in cut else host_list(values["planned_nodes"]),
            constraint=_constraint(values),
            sharing=values["sharing"],
            restarts=int(values["restarts"] or 0),
            comment=_text(columns["comment"]),
            admin_comment=_text(columns["admin_comment"]),
            cut=cut,
        )
    except (UnitError, ValueError) as error:
        raise SlurmError(f"squeue: job {number}: {error}") from error


def _columns(record: bytes) -> tuple[dict[str, str], tuple[str, ...]]:
    columns, cut, position = {}, [], 0
    for name, (_, width) in COLUMNS.items():
        value = record[position : position + width]
        position += width
        if not value.endswith(b" "):
            cut.append(name)
        columns[name] = value.decode("utf-8", "replace").rstrip(" ")
    return columns, tuple(cut)


def given(value: str) -> str:
    """A value of Slurm's, "" where it says in one of its many ways that there is none."""
    value = value.strip()
    return "" if value in _ABSENT else value


def _text(value: str) -> str:
    """A comment; squeue prints ``(null)`` where there is none."""
    return "" if value == "(null)" else value


def _seconds(value: str) -> int | None:
    return int(value) if value.isdigit() else None


def _time_limit_s(value: str) -> int | None:
    # NOT_SET: the partition's default applies, and that is put in place before the job is listed as a rule.
    return None if value in {"NOT_SET", "INVALID"} else units.duration_s(value or "UNLIMITED")


def _count(value: str) -> int:
    """``4``, or the least of ``4-8``."""
    return int(value.partition("-")[0] or 0)


def _node_count(values: dict[str, str]) -> int:
    return max(1, _count(units.tres(values["tres"]).get("node", "1")))


def _amounts(values: dict[str, str]) -> tuple[Resources, str]:
    tres = units.tres(values["tres"])
    gpus, gpu_type = _gpus(values, tres)
    cpus = _count(tres.get("cpu", "")) or _count(values["cpus"])
    return Resources(cpus, gpus, units.memory_mb(tres.get("mem", "0"))), gpu_type


def _gpus(values: dict[str, str], tres: dict[str, str]) -> tuple[int, str]:
    """GPUs of a job, from its request where TRES does not tell (GPUs are not in AccountingStorageTRES).

    A waiting job whose request was cleared keeps its old TRES until it starts (22.05), so without a request it has
    none, whatever TRES says.
    """
    scale = {
        "tres_per_job": 1,
        "tres_per_node": _node_count(values),
        "tres_per_task": max(1, _count(values["tasks"])),
        "tres_per_socket": 1,
    }
    asked = {name: units.gpus(values[name]) for name in scale if values[name]}
    total, gpu_type = max(
        ((count * scale[name], kind) for name, (count, kind) in asked.items()), default=(0, ""), key=lambda one: one[0]
    )
    counted, _ = units.gpus(values["tres"])
    waits = values["state"] == "PD"
    if waits and not any(count for count, _ in asked.values()):
        return 0, ""
    return counted or total, gpu_type


def _constraint(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in ("features", "reservation", "licenses") if values[name])


def _unfolded(part: str) -> Sequence[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if not match:
        return [part.strip()]
    before, inside, after = match.groups()
    middles: list[str] = []
    for item in inside.split(","):
        first, dash, last = item.partition("-")
        if dash and first.isdigit() and last.isdigit():
            middles.extend(str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        else:
            middles.append(item)
    return [before + middle + rest for middle in middles for rest in _unfolded(after)]
