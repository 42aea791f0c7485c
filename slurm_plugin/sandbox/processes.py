"""Starts the daemons of a sandbox and ends every process that came of them, and no other.

A pid says nothing by itself: it may have been given to somebody else since. Ours are known by what they were started
with: the daemons by a mark in their environment, the processes of jobs by the name of our cluster there, all others by
their parents. Signals go through a pidfd, so that nothing can change between looking and killing.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tapfinger_hpc.errors import SandboxError

MARK = "TAPFINGER_SANDBOX"
"""Environment variable of every daemon of a sandbox; its value is the sandbox's folder."""

_JOB_MARK = "SLURMD_NODENAME"
"""Only slurmd gives this to a process; without it a user's own salloc with our cluster's name would count as ours."""


def start(arguments: Sequence[str], *, directory: Path, log: Path, environment: Mapping[str, str], user: str = "") -> None:
    """Starts a daemon, marked as one of this sandbox, in a session of its own; returns without waiting for it to serve.

    Raises:
        SandboxError: it ended at once with an error.
    """
    command = ["setsid", "--fork", *_as_user(user), *arguments]
    with log.open("ab") as output:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, MARK: str(directory)},
            cwd=directory,
            check=False,
        )
    if ended.returncode:
        raise SandboxError(f"starting {arguments[0]} ended with {ended.returncode}: {tail(log)}")


def run(arguments: Sequence[str], *, environment: Mapping[str, str], user: str = "", timeout_s: float = 60) -> str:
    """Runs a command of the set-up to its end and returns what it said.

    Raises:
        SandboxError: with the command, its exit status and the end of what it said.
    """
    command = [*_as_user(user), *arguments]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, env=dict(environment), timeout=timeout_s, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"{' '.join(arguments[:3])} did not end within {timeout_s:g} s") from error
    if ended.returncode:
        said = (ended.stderr + ended.stdout).strip()[-1500:]
        raise SandboxError(f"{' '.join(arguments[:3])} ended with {ended.returncode}: {said or 'it said nothing'}")
    return ended.stdout


def wait_until(ready: Callable[[], bool], *, doing: str, log: Path | None, timeout_s: float) -> None:
    """Returns when ``ready`` is true.

    Raises:
        SandboxError: not within the time; shows the end of the log.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            shown = f"; its log {log} ends with: {tail(log)}" if log else ""
            raise SandboxError(f"{doing}: not ready after {timeout_s:g} s{shown}")
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


def of_sandbox(directory: Path, cluster: str) -> dict[int, str]:
    """Pid and name of every living process of this sandbox: daemons, steps, jobs, and whatever these started.

    Our own process and its ancestors are never among them: ``down`` may be called from the sandbox's own shell.
    """
    parents, names = {}, {}
    ours = set()
    for pid in _pids():
        stat = _stat(pid)
        if stat is None:
            continue
        names[pid], parents[pid] = stat
        if _is_marked(_environment(pid), directory, cluster):
            ours.add(pid)
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= children
        grown = bool(children)
    return {pid: names[pid] for pid in sorted(ours - _ourselves(parents))}


def end_all(directory: Path, cluster: str, *, timeout_s: float = 15) -> None:
    """Kills every process of this sandbox. Nothing is kept of it, so nobody is asked to save.

    Raises:
        SandboxError: some are still there after the time.
    """
    deadline = time.monotonic() + timeout_s
    while found := of_sandbox(directory, cluster):
        if time.monotonic() > deadline:
            named = ", ".join(f"{name} ({pid})" for pid, name in found.items())
            raise SandboxError(f"ending the sandbox in {directory}: still running after SIGKILL: {named}")
        for pid in found:
            _kill_if_ours(pid, directory, cluster, found)
        time.sleep(0.02)


def end_one(pid: int, directory: Path, with_signal: signal.Signals, *, timeout_s: float = 20) -> bool:
    """Ends one daemon of this sandbox and waits for its end; False where this pid is none of ours (any more)."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _is_marked(_environment(pid), directory, ""):
            return False
        signal.pidfd_send_signal(descriptor, with_signal)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    wait_until(
        lambda: not is_daemon(pid, directory), doing=f"waiting for process {pid} to end", log=None, timeout_s=timeout_s
    )
    return True


def is_daemon(pid: int, directory: Path) -> bool:
    """Whether this pid is a living daemon of the sandbox."""
    return _stat(pid) is not None and _is_marked(_environment(pid), directory, "")


def _kill_if_ours(pid: int, directory: Path, cluster: str, found: Mapping[int, str]) -> None:
    """Kills through a pidfd that was opened before a last look, so a reused pid is never hit."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return  # ended by itself
    try:
        stat = _stat(pid)
        marked = _is_marked(_environment(pid), directory, cluster)
        if stat is not None and (marked or (stat[0] == found[pid] and stat[1] in found)):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _is_marked(environment: Mapping[str, str], directory: Path, cluster: str) -> bool:
    if environment.get(MARK) == str(directory):
        return True
    return bool(cluster) and environment.get("SLURM_CLUSTER_NAME") == cluster and _JOB_MARK in environment


def _environment(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    entries = (entry.partition("=") for entry in raw.decode(errors="replace").split("\0"))
    return {name: value for name, separator, value in entries if separator}


def _stat(pid: int) -> tuple[str, int] | None:
    """Name and parent; None where it has ended (also where only its parent has not been told yet)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return None if state in "ZX" else (name, int(parent))


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _ourselves(parents: Mapping[int, int]) -> set[int]:
    chain, pid = set(), os.getpid()
    while pid > 0 and pid not in chain:
        chain.add(pid)
        pid = parents.get(pid, 0)
    return chain


def _as_user(user: str) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
