"""A real Slurm behind the seam: three commands make a state, one command changes a job, and what it did is read back.

``scontrol update`` is not atomic and can lie (rc 0 without effect, rc 1 with effect; measured on 22.05), so nothing it
says is believed. A job number is used again after a crash of slurmctld, so the submit time is compared before every
update.
"""

import errno
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from slurm_plugin import parse, parse_nodes, pyslurm_jobs, versions
from slurm_plugin.commands import Answer, Runner, SlurmCommands
from slurm_plugin.jobs import HOLDING, Site, pending_jobs, running_jobs
from slurm_plugin.parse import JobRecord
from slurm_plugin.pyslurm_jobs import JobSource
from tapfinger_hpc.config import Config
from tapfinger_hpc.decision import TOP_PRIORITY, JobUpdate, Outcome
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import ClusterState, JobKey, Node, Partition, Resources

_STATES = "--states=PD,R,CG,CF,S,ST,SI,SO,RS,RH,RF,RQ,SE"
_JOBS_PER_RENEWAL = 400
"""Keeps the command line well under the system's limit; 300 jobs in one call took 0.8 s."""
_ATTEMPTS = 4
_ATTEMPTS_WITH_STALE_ERRNO = 12
_PAUSE_S = 0.05
_ERRNO_TEXTS = tuple(f"{os.strerror(code)} for job" for code in errno.errorcode)
"""Slurm without accounting says such a thing at random for an update of Partition, out of a stale errno; nothing was
wrong, and nothing was changed (24.11: up to nine in twenty)."""
_NO_ARRAY_LIMIT = 1 << 31
_HELD_NOW = "Job is in held state"
_STARTED_OR_ENDED = ("Job is no longer pending execution", "Job has already finished", "Invalid job id specified")


class SlurmCluster:
    """Observes and changes a Slurm cluster through its commands."""

    def __init__(
        self,
        commands: Runner,
        config: Config,
        *,
        now_s: Callable[[], float] = time.time,
        job_source: Callable[[versions.Version], JobSource | None] = lambda version: None,
    ) -> None:
        """``job_source`` says of a Slurm of this version where jobs are read from; None is squeue."""
        self._run = commands
        self._partitions = config.partitions
        self._needs_lease = config.agent.mode == "enforce"
        self._now_s = now_s
        self._together: dict[str, tuple[int, ...]] = {}
        """Of each array the waiting tasks that are still one record: one update names them all, or it splits them."""
        self._read_before: dict[bytes, JobRecord] = {}
        self._array_limits: dict[str, int] = {}
        """Kept here because neither a task on its own nor a list with such tasks merged in shows it."""
        self._settings: dict[str, str] | None = None
        self._job_source = job_source
        self._read_jobs: Callable[[], list[JobRecord]] | None = None

    @classmethod
    def from_config(cls, config: Config) -> "SlurmCluster":
        choose = functools.partial(pyslurm_jobs.chosen, config.slurm.backend, config.slurm.conf)
        return cls(SlurmCommands.from_config(config.slurm), config, job_source=choose)

    # The seam.

    def observe(self) -> ClusterState:
        """One snapshot.

        Jobs are read before nodes: one that starts in between is seen waiting with its room already taken, never with
        room that is gone.

        Raises:
            SlurmError: a command failed, or said something that cannot be read.
        """
        now_s = self._now_s()
        records = self._records()
        self._note_limits(records)
        nodes = parse_nodes.nodes(self._text("scontrol", "--oneliner", "--details", "show", "node"))
        partitions = parse_nodes.partitions(
            self._text("scontrol", "--oneliner", "show", "partition"), (node.name for node in nodes)
        )
        site = self._site(nodes, partitions)
        self._together = {record.array_id: record.tasks_together for record in records if record.tasks_together}
        return ClusterState(
            time_s=now_s,
            nodes=tuple(nodes),
            partitions=tuple(partitions),
            pending=tuple(pending_jobs(records, site, now_s)),
            running=tuple(running_jobs(records, site)),
        )

    def apply(self, update: JobUpdate) -> Outcome:
        """One ``scontrol update``, then a look at what it did."""
        try:
            for _ in range(_ATTEMPTS):
                found = self.job(update.job_id)
                if found is None or (why := _why_untouchable(update, found)):
                    return Outcome(False, why if found else f"job {update.job_id} is not there any more")
                before = found
                if update.amounts is not None and (why := self._why_not_amounts(update.amounts, before)):
                    return Outcome(False, why)
                said = self._update(update, before)
                # It came to be held between the look and the update: look again, and leave its priority alone.
                if not (said.rc and _HELD_NOW in said.stderr):
                    break
            after = self.job(update.job_id)
        except SlurmError as error:
            return Outcome(False, str(error))
        sent = _sendable(update, before)
        if sent.amounts is not None and after is not None and not self._memory_counts():
            # Where memory is not handed out Slurm may keep any amount with the job.
            sent = replace(sent, amounts=replace(sent.amounts, mem_mb=after.amounts.mem_mb))
        why = _difference(sent, after, keeps_priority=not self._restores_priority(sent, before))
        if not why:
            return Outcome(True)
        return Outcome(False, f"{why}; scontrol said {said.stderr!r}" if said.rc else why)

    def renew(self, jobs: Sequence[JobKey], until_s: int) -> Outcome:
        """Moves StartTime of these jobs, several hundred with one command; tasks that are still together as one."""
        names = sorted({self._name_to_renew(job_id) for job_id, _ in jobs})
        complaints = []
        for start in range(0, len(names), _JOBS_PER_RENEWAL):
            part = ",".join(names[start : start + _JOBS_PER_RENEWAL])
            try:
                said = self._run(["scontrol", "update", f"JobId={part}", f"StartTime={_utc(until_s)}"])
            except SlurmError as error:
                complaints.append(str(error))
                continue
            if said.rc:
                complaints.extend(_complaints(said.stderr))
        return Outcome(not complaints, "; ".join(complaints))

    # What the janitor and `explain` need besides.

    def job(self, job_id: str) -> JobRecord | None:
        """The record of one job, also of one that ended a short while ago; None where slurmctld does not know it."""
        return next((record for record in self.find(job_id) if record.job_id == job_id), None)

    def find(self, job_id: str) -> list[JobRecord]:
        """All records that this number means: a job, a task by the number Slurm gave it, or all of an array."""
        said = self._run(_squeue(f"--jobs={job_id}", "--states=all"))
        return [] if _none_left(said) else list(_read(said).values())

    def names(self, numbers: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Account and name of these jobs and arrays, by number."""
        options = ["--noheader", "--all", "--states=all", f"--jobs={','.join(numbers)}"]
        said = self._run(["squeue", *options, f"--Format={parse.NAMES_FORMAT}"])
        return {} if _none_left(said) else parse.names(said.checked())

    @property
    def managed_partitions(self) -> frozenset[str]:
        """Partitions whose jobs are managed by configuration."""
        return frozenset(self._partitions)

    def _records(self) -> list[JobRecord]:
        """All jobs that wait or hold nodes."""
        if self._read_jobs is None:
            self._read_jobs = self._job_source(self._version()) or self._squeued
        return self._read_jobs()

    def _squeued(self) -> list[JobRecord]:
        """All jobs that wait or hold nodes. Arrays with waiting tasks take one more command, and sometimes two."""
        self._read_before = _read(self._run(_squeue(_STATES)), self._read_before)
        records = list(self._read_before.values())
        arrays = sorted({record.array_id for record in records if record.together}, key=int)
        if not arrays:
            return records
        tasks = self._tasks(arrays)
        together: dict[str, list[int]] = {}
        for task in tasks:
            if task.together:
                together.setdefault(task.array_id, []).append(task.task)
        # Of all states: a task that waited unseen among the others may have started since the first look.
        known = {record.number for record in records if not record.together}
        alone = sorted({task.number for task in tasks if not task.together} - known, key=int)
        records = [
            replace(record, tasks_together=tuple(sorted(together.get(record.array_id, ()))))
            if record.together
            else record
            for record in records
        ]
        if alone:
            said = self._run(_squeue(_STATES, "--array", f"--jobs={','.join(alone)}"))
            records += [] if _none_left(said) else _read(said).values()
        return list({(record.number, record.array_tasks): record for record in records}.values())

    def _tasks(self, arrays: Sequence[str]) -> list[parse.Task]:
        listed = f"--jobs={','.join(arrays)}"
        options = ["--noheader", "--all", "--array", _STATES, listed, f"--Format={parse.TASKS_FORMAT}"]
        said = self._run(["squeue", *options])
        return [] if _none_left(said) else parse.tasks(said.checked())

    def _update(self, update: JobUpdate, before: JobRecord) -> Answer:
        sent = _sendable(update, before)
        computed = self._restores_priority(sent, before)
        if computed:
            sent = replace(sent, priority=None)
        words = _assignments(sent, before)
        said = self._patiently(["scontrol", "update", f"JobId={update.job_id}", *words])
        if computed:
            # The only way to let Slurm compute it again: an update cannot say so (22.05 refuses INFINITE).
            self._run(["scontrol", "release", update.job_id])
        elif update.priority is not None and before.priority == 0 and not before.held and not said.rc:
            # Slurm gave it a new priority with the update, behind all others.
            self._run(["scontrol", "update", f"JobId={update.job_id}", f"Priority={update.priority}"])
        return said

    def _patiently(self, argv: Sequence[str]) -> Answer:
        said = self._run(argv)
        for _ in range(_ATTEMPTS_WITH_STALE_ERRNO - 1):
            if not (said.rc and any(text in said.stderr for text in _ERRNO_TEXTS)):
                break
            time.sleep(_PAUSE_S)
            said = self._run(argv)
        return said

    def _why_not_amounts(self, amounts: Resources, before: JobRecord) -> str:
        """Why these amounts must not be asked for; "" where they may."""
        if bool(amounts.gpus) == bool(before.amounts.gpus) or self._differences().gpus_come_and_go:
            return ""
        return (
            f"job {before.job_id} asks for {before.amounts.gpus} GPUs: this Slurm ({self._setting('SLURM_VERSION')}) "
            "can neither take all GPUs from a waiting job nor take back its first"
        )

    def _restores_priority(self, update: JobUpdate, before: JobRecord) -> bool:
        """Whether the priority is to be given back to a Slurm that computes it from age, size and share."""
        return (
            update.priority is not None
            and update.priority != TOP_PRIORITY
            and before.priority == TOP_PRIORITY
            and "multifactor" in self._setting("PriorityType")
        )

    def _name_to_renew(self, job_id: str) -> str:
        array_id, _, task = job_id.partition("_")
        together = self._together.get(array_id, ())
        return f"{array_id}_[{parse.folded(together)}]" if task.isdigit() and int(task) in together else job_id

    def _site(self, nodes: Sequence[Node], partitions: Sequence[Partition]) -> Site:
        capacity = {node.name: node.capacity for node in nodes}
        return Site(
            partitions=self._partitions,
            memory_counts=self._memory_counts(),
            needs_lease=self._needs_lease,
            exclusive_words=self._differences().exclusive_words,
            gpus_come_and_go=self._differences().gpus_come_and_go,
            whole_node={
                partition.name: _least(capacity[name] for name in partition.nodes)
                for partition in partitions
                if partition.nodes
            },
            array_limits=self._array_limits,
        )

    def _note_limits(self, records: Iterable[JobRecord]) -> None:
        """Keeps how many tasks of each array may run at a time; asks once where squeue does not show it."""
        shown: dict[str, int | None] = {}
        for record in records:
            if record.array_tasks:
                shown[record.array_id] = shown.get(record.array_id) or parse.array_limit(record.array_tasks)
        self._array_limits = {
            array_id: limit or self._array_limits.get(array_id) or self._array_limit(array_id)
            for array_id, limit in shown.items()
        }

    def _array_limit(self, array_id: str) -> int:
        """The array's limit as scontrol shows it; a number too great to matter where there is none."""
        said = self._run(["scontrol", "--oneliner", "show", "job", array_id])
        # Before the job's name, where nobody can write.
        limit = re.match(rb"JobId=\d+ ArrayJobId=\d+ ArrayTaskId=\S+ ArrayTaskThrottle=(\d+) ", said.stdout)
        return int(limit[1]) if limit and int(limit[1]) else _NO_ARRAY_LIMIT

    def _differences(self) -> versions.Differences:
        return versions.of(self._version())

    def _version(self) -> versions.Version:
        return versions.read(self._setting("SLURM_VERSION"))

    def _memory_counts(self) -> bool:
        return "MEMORY" in self._setting("SelectTypeParameters").upper()

    def _setting(self, key: str) -> str:
        if self._settings is None:
            text = self._text("scontrol", "show", "config")
            self._settings = dict(re.findall(r"^(\w+)\s*= (.*)$", text, re.MULTILINE))
        return self._settings.get(key, "").strip()

    def _text(self, *argv: str) -> str:
        return self._run(argv).checked().decode("utf-8", "replace")


def _why_untouchable(update: JobUpdate, before: JobRecord) -> str:
    """Why the update must not be sent; "" where it may."""
    if before.submit_s != update.submit_time_s:
        return f"job {update.job_id} of {update.submit_time_s} is not there any more"
    if before.state != "PD":
        return f"job {update.job_id} is not pending but {before.state}"
    if before.priority == 0 and update.node:
        return f"job {update.job_id} is held ({before.reason})"
    return ""


def _sendable(update: JobUpdate, before: JobRecord) -> JobUpdate:
    """A job that is held has priority 0 until it is released; giving it another would be refused, or lift the hold."""
    return replace(update, priority=None) if before.priority == 0 else update


def _least(amounts: Iterable[Resources]) -> Resources:
    """Resource by resource."""
    every = list(amounts)
    return Resources(min(a.cpus for a in every), min(a.gpus for a in every), min(a.mem_mb for a in every))


def _squeue(*options: str) -> list[str]:
    return ["squeue", "--noheader", "--all", "--noconvert", f"--Format={parse.SQUEUE_FORMAT}", *options]


def _none_left(said: Answer) -> bool:
    """Whether squeue knows none of the jobs that it was asked for (any more)."""
    return said.rc != 0 and "Invalid job id" in said.stderr


def _read(said: Answer, known: Mapping[bytes, JobRecord] | None = None) -> dict[bytes, JobRecord]:
    text = said.checked()
    if "Invalid job format" in said.stderr:
        # squeue leaves the column out and goes on, which would shift all others.
        raise SlurmError(
            f"squeue: {said.stderr}: this Slurm lacks a column that tapfinger reads (22.05 or newer is needed)"
        )
    return parse.jobs(text, known)


def _assignments(update: JobUpdate, before: JobRecord) -> list[str]:
    """The update in scontrol's words. All in one call: half an update must not start."""
    words: list[str] = []
    if update.partition is not None:
        words.append(f"Partition={update.partition}")
    if update.node is not None:
        words.append(f"ReqNodeList={update.node}")
    if update.amounts is not None:
        words += _amount_words(update, before)
    if update.priority is not None:
        words.append(f"Priority={update.priority}")
    if update.begin_s is not None:
        words.append(f"StartTime={_utc(update.begin_s) if update.begin_s else 'now'}")
    return words


def _amount_words(update: JobUpdate, before: JobRecord) -> list[str]:
    amounts = update.amounts
    assert amounts is not None
    words = [
        "NumNodes=1",
        f"NumTasks={update.tasks}",
        f"NumCPUs={amounts.cpus}",
        # Without it a job cannot shrink: 16 CPUs stay 16, and scontrol says all is well.
        f"MinCPUsNode={amounts.cpus}",
        f"CPUsPerTask={amounts.cpus // update.tasks}",
    ]
    if amounts.mem_mb:
        words.append(f"MinMemoryNode={amounts.mem_mb}")
    if amounts.gpus:
        kind = f":{update.gpu_type}" if update.gpu_type else ""
        words.append(f"Gres=gpu{kind}:{amounts.gpus}")
    elif before.amounts.gpus:
        # Gres=gpu:0 and Gres= leave the job its GPUs; an empty TresPerNode takes them (22.05).
        words.append("TresPerNode=")
    return words


def _difference(update: JobUpdate, after: JobRecord | None, *, keeps_priority: bool) -> str:
    """What of the update is not to be seen in the job; "" where all of it is."""
    if after is None:
        return f"job {update.job_id} is gone"
    if after.submit_s != update.submit_time_s:
        return f"job {update.job_id} is another one now, of {after.submit_s}"
    if after.state in HOLDING or (after.state != "PD" and after.nodes):
        return _difference_running(update, after)
    if after.state != "PD":
        return f"job {update.job_id} is not pending but {after.state}"
    pairs: list[tuple[str, object, object]] = []
    if update.partition is not None:
        pairs.append(("partition", set(update.partition.split(",")), set(after.partitions)))
    if update.node is not None:
        pairs.append(("node", {update.node} - {""}, set(after.asked_nodes)))
    if update.amounts is not None:
        pairs.append(("amounts", str(update.amounts), str(after.amounts)))
        pairs.append(("tasks", update.tasks, after.tasks))
        # After a refused update these two may differ (22.05).
        pairs.append(("CPUs", update.amounts.cpus, after.cpus_asked))
    if update.priority is not None and keeps_priority:
        pairs.append(("priority", update.priority, after.priority))
    if update.begin_s:
        pairs.append(("earliest start", update.begin_s, after.eligible_s))
    for what, wanted, found in pairs:
        if wanted != found:
            return f"{what} of job {update.job_id} is {found}, not {wanted}"
    return ""


def _difference_running(update: JobUpdate, after: JobRecord) -> str:
    if update.node and after.nodes != (update.node,):
        return f"job {update.job_id} runs on {','.join(after.nodes)}, not on {update.node}"
    # Of a job that was freed from its node and started at once: it must run with what it was given back.
    if update.node is None or update.amounts is None:
        return f"job {update.job_id} runs already"
    # Slurm grants whole cores.
    granted = after.amounts
    exact = (granted.gpus, granted.mem_mb) == (update.amounts.gpus, update.amounts.mem_mb)
    if not exact or granted.cpus < update.amounts.cpus:
        return f"job {update.job_id} runs with {granted}, not with {update.amounts}"
    return ""


def _complaints(stderr: str) -> Iterable[str]:
    """What scontrol says of a renewal, without the jobs that started or ended meanwhile."""
    for line in stderr.splitlines():
        passed_over = any(text in line for text in _STARTED_OR_ENDED) or line.endswith("No error")
        if line.strip() and not passed_over:
            yield line.strip()


def _utc(epoch_s: int) -> str:
    """A time for scontrol, which runs with TZ=UTC."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
