"""Jobs through pyslurm, where a site has one that fits its Slurm: a look then costs no process.

A build of pyslurm fits one release of Slurm alone, so which one is installed is asked before it is imported: one that
does not fit may end the whole process. What it says is put into the columns that squeue prints, and read as those are
(parse.py), so that both backends see the same. Nodes, partitions, the look after a change and all changes stay with
the commands: pyslurm's states of nodes lack what 22.05 itself says of them (reserved, in maintenance).
"""

import contextlib
import importlib
import importlib.metadata
import logging
import os
import pwd
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from msgspec.structs import replace

from slurm_plugin import parse, versions
from slurm_plugin.parse import JobRecord
from tapfinger_hpc import log
from tapfinger_hpc.config import Backend
from tapfinger_hpc.errors import SlurmError

logger = logging.getLogger(__name__)

LISTED = frozenset({"PD", "R", "CG", "CF", "S", "ST", "SI", "SO", "RS", "RH", "RF", "RQ", "SE"})
"""States of jobs that wait or hold nodes, as squeue shortens them."""

_SHORT = {
    "PENDING": "PD", "RUNNING": "R", "COMPLETING": "CG", "CONFIGURING": "CF", "SUSPENDED": "S", "STOPPED": "ST",
    "SIGNALING": "SI", "STAGE_OUT": "SO", "RESIZING": "RS", "REQUEUE_HOLD": "RH", "REQUEUE_FED": "RF",
    "REQUEUED": "RQ", "SPECIAL_EXIT": "SE",
}  # fmt: skip
_SHARING = {"0": "NO", "1": "YES"}
_NUMBERS = ("num_cpus", "num_tasks", "priority", "restart_cnt", "batch_flag")
_TASKS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_conf_in_use: str | None = None
"""Of the process: Slurm's library reads slurm.conf once."""


class JobSource(Protocol):
    """The jobs of the cluster that wait or hold nodes."""

    def __call__(self) -> list[JobRecord]:
        """SlurmError where slurmctld does not answer."""
        ...


def why_not(running: versions.Version, installed: Callable[[str], str] = importlib.metadata.version) -> str:
    """Why pyslurm cannot serve a Slurm of this version; "" where it can."""
    try:
        version = installed("pyslurm")
    except importlib.metadata.PackageNotFoundError:
        return "pyslurm is not installed"
    if versions.read(version) != running:
        return (
            f"pyslurm {version} does not fit Slurm {running[0]}.{running[1]:02}: its first two numbers must be Slurm's"
        )
    if running > versions.PYSLURM_NEWEST:
        year, month = versions.PYSLURM_NEWEST
        return f"pyslurm {version} has no jobs in the form that is read here, which those up to {year}.{month:02} have"
    return ""


def chosen(backend: Backend, conf: str, running: versions.Version) -> JobSource | None:
    """Where jobs are to be read from on a Slurm of this version; None for its commands.

    Raises:
        SlurmError: pyslurm was asked for by name, and cannot serve.
    """
    if backend == "scontrol":
        return None
    try:
        if why := why_not(running):
            raise SlurmError(why)
        found = source(conf)
    except SlurmError as error:
        if backend == "pyslurm":
            raise SlurmError(f"slurm.backend is pyslurm, but {error}; set it to auto or scontrol") from error
        log.event(logger, logging.INFO, "backend", jobs="squeue", why=error)
        return None
    log.event(logger, logging.INFO, "backend", jobs="pyslurm")
    return found


def source(conf: str) -> JobSource:
    """Jobs through the installed pyslurm, of the cluster of this slurm.conf; "" is that of SLURM_CONF or the default.

    Raises:
        SlurmError: it cannot be imported, or serves another cluster: one process sees one cluster through it.
    """
    global _conf_in_use
    conf = conf or os.environ.get("SLURM_CONF", "")
    if _conf_in_use not in (None, conf):
        raise SlurmError(f"pyslurm serves {_conf_in_use or 'the default slurm.conf'} in this process already")
    try:
        with _slurm_conf(conf):
            pyslurm: Any = importlib.import_module("pyslurm")
        loaded = pyslurm.job()
    except (ImportError, AttributeError) as error:
        raise SlurmError(f"pyslurm cannot be imported: {error}") from error
    _conf_in_use = conf
    # The numbers of an array's waiting tasks in full.
    os.environ["SLURM_BITSTR_LEN"] = "0"

    def jobs() -> list[JobRecord]:
        try:
            return records(loaded.get().values())
        except ValueError as error:  # pyslurm's word for whatever Slurm refuses
            raise SlurmError(f"pyslurm: loading jobs: {error.args[0] if error.args else error}") from error

    return jobs


def records(jobs: Iterable[Mapping[str, Any]], user_name: Callable[[int], str] | None = None) -> list[JobRecord]:
    """The records of those of pyslurm's jobs that wait or hold nodes."""
    names: dict[int, str] = {}
    found = []
    for job in jobs:
        if _SHORT.get(job["job_state"], "") not in LISTED:
            continue
        uid = job["user_id"]
        if uid not in names:
            names[uid] = (user_name or _user_name)(uid)
        record = parse.record_of(_columns(job, names[uid]))
        together = _numbers(record.array_tasks) if record.together else ()
        found.append(replace(record, tasks_together=together) if together else record)
    return found


def _columns(job: Mapping[str, Any], user: str) -> dict[str, str]:
    """A job as squeue prints it."""
    numbers = {name: str(job[name] or 0) for name in _NUMBERS}
    task = job["array_task_id"] if job["array_task_id"] is not None else job["array_task_str"]
    return {
        "number": str(job["job_id"]),
        "array_id": str(job["array_job_id"] or job["job_id"]),
        "array_tasks": "" if job["array_job_id"] is None or task is None else str(task),
        "het_id": str(job["het_job_id"] or ""),
        "user": user,
        "state": _SHORT[job["job_state"]],
        "reason": job["state_reason"] or "None",
        "batch": numbers["batch_flag"],
        "partition": job["partition"] or "",
        **{f"{moment}_s": _moment(job[f"{moment}_time"]) for moment in ("submit", "eligible", "start", "end")},
        "time_limit": "NOT_SET" if job["time_limit_str"] == "Partition_Limit" else job["time_limit_str"],
        "priority": numbers["priority"],
        "cpus": numbers["num_cpus"],
        "tasks": numbers["num_tasks"],
        "tres": job["tres_alloc_str"] or job["tres_req_str"] or "",
        **{name: job[name] or "" for name in ("tres_per_node", "tres_per_job", "tres_per_task", "tres_per_socket")},
        "dependency": job["dependency"] or "",
        "nodes": job["nodes"] or "",
        "asked_nodes": ",".join(job["req_nodes"] or ()),
        "planned_nodes": job["sched_nodes"] or "",
        "features": ",".join(job["features"] or ()),
        "reservation": job["resv_name"] or "",
        "licenses": ",".join(str(name) for name in job["licenses"] or ()),
        "sharing": _SHARING.get(job["shared"], job["shared"]),
        "restarts": numbers["restart_cnt"],
        "comment": job["comment"] or "",
        "admin_comment": job["admin_comment"] or "",
    }


def _moment(epoch_s: int) -> str:
    return str(epoch_s) if epoch_s else "N/A"


def _numbers(expression: str) -> tuple[int, ...]:
    """Of ``1-3,7,10-20:5%2``: 1, 2, 3, 7, 10, 15, 20."""
    numbers: set[int] = set()
    for part in expression.partition("%")[0].split(","):
        match = _TASKS.fullmatch(part)
        if match is None:
            raise SlurmError(f"pyslurm: tasks of an array: expected numbers, found {expression[:80]!r}")
        first, last, step = match[1], match[2] or match[1], match[3] or "1"
        numbers.update(range(int(first), int(last) + 1, int(step)))
    return tuple(sorted(numbers))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextlib.contextmanager
def _slurm_conf(conf: str) -> Iterator[None]:
    before = os.environ.get("SLURM_CONF")
    if conf:
        os.environ["SLURM_CONF"] = conf
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before
