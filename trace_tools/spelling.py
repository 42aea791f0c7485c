"""One value of accounting at a time: every spelling that a Slurm release, or another source, has for it. Pure.

These functions are called once for each distinct spelling of a file, not once for each row. None says that the field
holds no value; ValueError that it holds one which cannot be read.
"""

import re
from datetime import UTC, datetime, tzinfo

from tapfinger_hpc import units
from trace_tools.records import ENDED, SHORT

_EMPTY = frozenset({"", "unknown", "none", "n/a", "na", "nan", "null", "(null)", "invalid", "-", "none assigned"})
_GOING_ON = frozenset(
    {
        "COMPLETING",
        "CONFIGURING",
        "EXPEDITING",
        "PENDING",
        "POWER_UP_NODE",
        "RESIZING",
        "RESV_DEL_HOLD",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RUNNING",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
        "UPDATE_DB",
    }
)
REQUEUED = "REQUEUED"
_SHORT = {
    **SHORT,
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "PD": "PENDING",
    "R": "RUNNING",
    "RQ": REQUEUED,
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    # Other schedulers, in lists that are not Slurm's.
    "PASS": "COMPLETED",
    "SUCCEEDED": "COMPLETED",
    "SUCCESS": "COMPLETED",
    "KILLED": "CANCELLED",
    "CANCELED": "CANCELLED",
}
_KNOWN = sorted(ENDED | _GOING_ON | {REQUEUED})
_PER_CPU_FLAG_MB = 2**31
"""Slurm 17 and before show ``--mem-per-cpu=2900`` as 2147486548Mn: the flag that marks it has leaked into it."""
_PER_CPU_FLAG_64 = 2**63
_MEMORY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGTPE]?)i?B?", re.IGNORECASE | re.ASCII)
_MEMORY_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_CLOCK = re.compile(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)(\.\d+)?", re.ASCII)
_ZONED = re.compile(r"(Z|[+-]\d\d:?\d\d)$")
_GPU_OPTION = re.compile(
    r"(?:^|\s)--?(gres|gpus|G|gpus-per-node|gpus-per-task|gpus-per-socket)(?:[=\s]\s*|(?=[a-z\d]))(\S+)"
)
_TASKS_OPTION = re.compile(r"(?:^|\s)(?:--ntasks[=\s]|-n\s?)(\d+)")


def is_empty(text: str) -> bool:
    """Whether a field says that it has no value."""
    return text.strip().lower() in _EMPTY


def state(text: str) -> str:
    """The state as one word of the present Slurm: ``CANCELLED by 1300204``, ``OUT_OF_ME+`` and ``CD`` too.

    Raises:
        ValueError: no release knows such a state.
    """
    word = text.strip().upper().split(" ")[0].split("|")[0].split(",")[0]
    cut = word.rstrip("+")
    if cut in ENDED or cut in _GOING_ON or cut == REQUEUED:
        return cut
    if cut in _SHORT:
        return _SHORT[cut]
    if word != cut and len(cut) >= 3:
        matching = [known for known in _KNOWN if known.startswith(cut)]
        if matching:
            return matching[0]
    raise ValueError(text)


def going_on(word: str) -> bool:
    """Whether a job in this state has not ended."""
    return word in _GOING_ON


def clock_s(text: str) -> float | None:
    """Seconds of an elapsed time, ``[days-][[hours:]minutes:]seconds[.fraction]``; also a plain number of seconds."""
    if is_empty(text):
        return None
    match = _CLOCK.fullmatch(text.strip())
    if not match:
        raise ValueError(text)
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + float(match[5] or 0)


def limit_s(text: str) -> int | None:
    """Seconds of a time limit, a plain number being minutes; None without one, or where only the partition knows."""
    if is_empty(text):
        return None
    try:
        return units.duration_s(text)
    except units.UnitError as error:
        raise ValueError(text) from error


def time_s(text: str, zone: tzinfo = UTC) -> int | None:
    """Seconds since the epoch of a date and time in this zone, or of such seconds."""
    spelling = text.strip()
    if is_empty(spelling):
        return None
    if re.fullmatch(r"\d{1,12}(\.\d*)?", spelling, re.ASCII):
        return int(float(spelling))
    moment = datetime.fromisoformat(_ZONED.sub(lambda found: "+00:00" if found[1] == "Z" else found[1], spelling))
    try:
        return int((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp())
    except OverflowError as error:
        raise ValueError(text) from error


def bytes_of(text: str, plain: str = "") -> float | None:
    """Bytes of an amount of memory; a plain number is of the unit ``plain``."""
    if is_empty(text):
        return None
    match = _MEMORY.fullmatch(text.strip())
    if not match:
        raise ValueError(text)
    return float(match[1]) * 1024.0 ** _MEMORY_UNITS[match[2].upper() or plain]


def asked_memory_mb(text: str) -> tuple[float, str] | None:
    """MiB of a ReqMem, and of what it is one: ``n`` node, ``c`` CPU, or "" the whole job (Slurm 21.08 and later)."""
    spelling = text.strip()
    if is_empty(spelling):
        return None
    per = spelling[-1].lower() if spelling[-1:].lower() in ("n", "c") else ""
    amount = bytes_of(spelling[: -len(per)] if per else spelling, plain="M")
    if amount is None:
        return None
    mem_mb = amount / 1024**2
    if mem_mb >= _PER_CPU_FLAG_64:
        return mem_mb - _PER_CPU_FLAG_64, "c"
    if mem_mb >= _PER_CPU_FLAG_MB and per != "c":
        return mem_mb - _PER_CPU_FLAG_MB, "c"
    return (mem_mb, per) if mem_mb else None


def tres(text: str) -> tuple[int, int, str, float, int]:
    """CPUs, GPUs, their type, MiB and nodes of a TRES list; 0 for what it does not name."""
    found = units.tres(text)
    gpus, gpu_type = units.gpus(text)
    mem = bytes_of(found.get("mem", ""), plain="M") or 0.0
    return _whole(found.get("cpu", "")), gpus, gpu_type, mem / 1024**2, _whole(found.get("node", ""))


def gres(text: str) -> tuple[int, str]:
    """GPUs and their type of a GRES list."""
    return (0, "") if is_empty(text) else units.gpus(text)


def gpus_of_command(line: str) -> tuple[int, str, bool]:
    """GPUs and their type that a command line asks for, and whether so many on each node; 0 without one."""
    best = (0, "", False)
    tasks = _TASKS_OPTION.search(line)
    for match in _GPU_OPTION.finditer(line):
        option, value = match[1], match[2].strip("'\"")
        parts = [part for part in value.split(",") if re.fullmatch(r"([\w.-]+:)?\d{1,6}", part, re.ASCII)]
        listed = value if option == "gres" else ",".join(f"gpu:{part}" for part in parts)
        count, gpu_type = units.gpus(listed)
        per_task = option == "gpus-per-task"
        if per_task and tasks:
            count *= int(tasks[1][:6])
        a_node = option in ("gres", "gpus-per-node", "gpus-per-socket") or (per_task and not tasks)
        best = max(best, (count, gpu_type, a_node))
    return best


def count(text: str) -> int | None:
    """A whole number, also as ``16.0``, ``0.00K`` or ``2K``."""
    if is_empty(text):
        return None
    match = re.fullmatch(r"(\d+)(?:\.0*)?", text.strip(), re.ASCII)
    if match:
        return int(match[1]) if len(match[1]) < 16 else None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG])", text.strip(), re.ASCII)
    if not found:
        raise ValueError(text)
    return int(float(found[1]) * 1000.0 ** (" KMG".index(found[2])))


def _whole(text: str) -> int:
    return count(text) or 0
