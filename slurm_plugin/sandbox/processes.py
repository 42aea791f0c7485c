"""Starts the daemons of a sandbox and ends every process that came of them, and no other.

A pid says nothing by itself: it may have been given to somebody else since. Ours are known by what they were started
with: the daemons by a mark in their environment, the processes of jobs by the name of our cluster there or by their
open files, all others by their parents. A signal goes through a pidfd that was opened before a last look, so it
cannot hit a reused pid.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from slurm_plugin.sandbox.layout import Layout
from tapfinger_hpc.errors import SandboxError

MARK = "TAPFINGER_SANDBOX"
"""Environment variable of every daemon of a sandbox; its value is the sandbox's folder."""

_JOB_MARK = "SLURMD_NODENAME"
"""Only slurmd gives this to a process; without it a user's own salloc with our cluster's name would count as ours."""

_STEP = "slurmstepd"

_LOOKS = 4
"""A process has no environment for the moment in which it becomes another program, so one look in vain says little."""


class Process(NamedTuple):
    """A living process; the start tells it from a later one with the same pid."""

    pid: int
    name: str
    parent: int
    start_ticks: int
    has_terminal: bool


def start(
    arguments: Sequence[str],
    *,
    directory: Path,
    log: Path,
    environment: Mapping[str, str],
    user: str = "",
    prefix: Sequence[str] = (),
) -> None:
    """Starts a daemon, marked as one of this sandbox, in a session of its own; returns without waiting for it to serve.

    What stands before it as a prefix is done as root.

    Raises:
        SandboxError: it ended at once with an error; shows the end of its log.
    """
    with log.open("ab") as output:
        ended = subprocess.run(
            ["setsid", "--fork", *prefix, *as_user(user), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, MARK: str(directory)},
            cwd=directory,
            check=False,
        )
    if ended.returncode:
        raise SandboxError(f"starting {arguments[0]} ended with {ended.returncode}: {tail(log)}")


def run(arguments: Sequence[str], *, directory: Path, environment: Mapping[str, str], timeout_s: float = 60) -> str:
    """Runs a command of the set-up to its end, marked as well, and returns what it said.

    Raises:
        SandboxError: with the command, its exit status and the end of what it said.
    """
    said = " ".join(arguments[:3])
    try:
        ended = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**environment, MARK: str(directory)},
            timeout=timeout_s,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"{said} did not end within {timeout_s:g} s") from error
    if ended.returncode:
        words = (ended.stderr + ended.stdout).strip()[-1500:]
        raise SandboxError(f"{said} ended with {ended.returncode}: {words or 'it said nothing'}")
    return ended.stdout


def as_user(user: str, group: str = "") -> list[str]:
    """What stands before a command so that it runs as this user; nothing for ""."""
    return ["setpriv", f"--reuid={user}", f"--regid={group or user}", "--init-groups"] if user else []


def wait_until(
    ready: Callable[[], bool],
    *,
    doing: str,
    log: Callable[[], Path],
    timeout_s: float,
    alive: Callable[[], bool] | None = None,
) -> None:
    """Returns when ``ready`` is true.

    Raises:
        SandboxError: not within the time, or it ended (``alive`` was false twice); shows the end of the log.
    """
    deadline = time.monotonic() + timeout_s
    next_look = time.monotonic() + 0.5
    absences = 0
    while not ready():
        now = time.monotonic()
        if now > deadline:
            raise SandboxError(f"{doing}: not ready after {timeout_s:g} s; {_end_of(log())}")
        if alive is not None and now > next_look:
            next_look = now + 0.5
            # Twice, as a daemon that is just going into the background has no process for a moment.
            absences = 0 if alive() else absences + 1
            if absences == 2:
                raise SandboxError(f"{doing}: it ended; {_end_of(log())}")
        time.sleep(0.02)


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, or a word on why there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"(no log: {error.strerror})"
    last = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n  ".join(["", *last]) if last else "(the log is empty)"


def listening(port: int) -> bool:
    """Whether somebody listens on this TCP port; read from the kernel, as a connection would be logged as an error."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), Path(table).open(encoding="ascii") as rows:
            for row in rows:
                fields = row.split()
                if fields[1].endswith(wanted) and fields[3] == "0A":
                    return True
    return False


def of_sandbox(directory: Path, cluster: str) -> tuple[Process, ...]:
    """Every living process of this sandbox: daemons, steps, jobs, and whatever these started.

    Our own process and its ancestors are never among them: ``down`` may be called from a job of the sandbox.
    """
    return _found(lambda process: _is_daemon(process, directory) or _is_of_job(process, Layout(directory), cluster))


def of_jobs(directory: Path, cluster: str) -> tuple[Process, ...]:
    """Those of the sandbox that are jobs: steps, their programs, and whatever these started."""
    return _found(lambda process: _is_of_job(process, Layout(directory), cluster))


def _found(belongs: Callable[[Process], bool]) -> tuple[Process, ...]:
    processes = {process.pid: process for pid in _pids() if (process := _process(pid))}
    ours = {pid for pid, process in processes.items() if belongs(process)}
    while children := {p.pid for p in processes.values() if p.parent in ours} - ours:
        ours |= children
    pid = os.getpid()
    while pid in processes:
        ours.discard(pid)
        pid = processes[pid].parent
    return tuple(processes[pid] for pid in sorted(ours))


def end_all(directory: Path, cluster: str) -> None:
    """Kills every process of this sandbox. Nothing is kept of it, so nobody is asked to save.

    Raises:
        SandboxError: some are still there long after.
    """
    _end(lambda: of_sandbox(directory, cluster), doing=f"ending the sandbox in {directory}")


def end_jobs(directory: Path, cluster: str) -> None:
    """Kills every process of the sandbox's jobs, whatever slurmctld knows of them.

    Raises:
        SandboxError: some are still there long after.
    """
    _end(lambda: of_jobs(directory, cluster), doing=f"ending the jobs of the sandbox in {directory}")


def _end(find: Callable[[], Iterable[Process]], *, doing: str, timeout_s: float = 15) -> None:
    """All are stopped before the first is killed: a child whose parent is gone, and that cleared its environment, could
    not be told from others any more, and a stopped process has no more children.
    """
    deadline = time.monotonic() + timeout_s
    stopped: set[Process] = set()
    looks_in_vain = 0
    while looks_in_vain < _LOOKS:
        found = set(find())
        looks_in_vain = 0 if found else looks_in_vain + 1
        if found and time.monotonic() > deadline:
            named = ", ".join(f"{process.name} ({process.pid})" for process in sorted(found))
            raise SandboxError(f"{doing}: still running after SIGKILL: {named}")
        for process in found - stopped:
            send(process, signal.SIGSTOP)
        if found <= stopped:
            for process in found:
                send(process, signal.SIGKILL)
            time.sleep(0.02)
        stopped |= found


def send(process: Process, with_signal: signal.Signals) -> bool:
    """Signals this process and no later one with its pid; False where it has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = _process(process.pid)
        if now is None or now.start_ticks != process.start_ticks:
            return False
        signal.pidfd_send_signal(descriptor, with_signal)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def daemon(pid: int, directory: Path) -> Process | None:
    """The living daemon of this sandbox with this pid; None where it ended or the pid is somebody else's."""
    process = _process(pid)
    return process if process and _is_daemon(process, directory) else None


def has_ended(process: Process) -> bool:
    """Whether it is gone (or only its parent has not been told)."""
    now = _process(process.pid)
    return now is None or now.start_ticks != process.start_ticks


def _end_of(log: Path) -> str:
    return f"the log {log} ends with: {tail(log)}"


def _is_daemon(process: Process, directory: Path) -> bool:
    return _environment(process.pid).get(MARK) == str(directory) and process.name != _STEP


def _is_of_job(process: Process, layout: Layout, cluster: str) -> bool:
    environment = _environment(process.pid)
    if process.name == _STEP and environment.get(MARK) == str(layout.directory):
        return True
    if cluster and environment.get("SLURM_CLUSTER_NAME") == cluster and _JOB_MARK in environment:
        return True
    return _is_step(process, layout) or _is_escaped(process, layout)


def _is_step(process: Process, layout: Layout) -> bool:
    """A slurmstepd, which since 24.11 writes its title over its environment, in the folder that slurmd gave it."""
    return process.name == _STEP and _refers_to(process, "cwd", layout.log)


def _is_escaped(process: Process, layout: Layout) -> bool:
    """A process that left its job's tree and cleared its environment, yet still has the job's output file.

    One with a terminal is somebody's at a shell, who may look into that folder.
    """
    return not process.has_terminal and any(_refers_to(process, link, layout.jobs) for link in ("fd/1", "fd/2"))


def _refers_to(process: Process, link: str, folder: Path) -> bool:
    try:
        # A folder that was removed meanwhile is still named, with a word behind it.
        target = Path(str(Path(f"/proc/{process.pid}/{link}").readlink()).removesuffix(" (deleted)"))
    except OSError:
        return False
    return target.is_relative_to(folder)


def _environment(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    entries = (entry.partition("=") for entry in raw.decode(errors="replace").split("\0"))
    return {name: value for name, separator, value in entries if separator}


def _process(pid: int) -> Process | None:
    """None where it has ended, also where only its parent has not been told yet."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return (
        None
        if fields[0] in "ZX"
        else Process(pid, name, parent=int(fields[1]), start_ticks=int(fields[19]), has_terminal=fields[4] != "0")
    )


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
