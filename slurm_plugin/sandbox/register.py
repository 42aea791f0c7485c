"""The register of this machine's sandboxes: which ports each has claimed, and which process it is to end with.

Probing for free ports alone would not do: between probe and listen another sandbox may take the port, and a killed
daemon gives its port back for a while. So a claim is written down, under a lock, for as long as the folder exists.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from tapfinger_hpc.errors import SandboxError

REGISTER = Path("/run/tapfinger-sandboxes")
"""One file for each sandbox of this machine; gone with the last one. /run is emptied when the machine starts."""

FIRST_PORT, LAST_PORT = 20000, 32700
"""Below Linux's range of ports for outgoing connections, which would take them at random."""


@dataclass(frozen=True)
class PortBlock:
    """Consecutive ports: slurmctld, slurmdbd, then one for each slurmd."""

    first: int
    count: int

    @property
    def slurmctld(self) -> int:
        return self.first

    @property
    def slurmdbd(self) -> int:
        return self.first + 1

    @property
    def slurmd(self) -> int:
        """Port of the first node."""
        return self.first + 2


@dataclass(frozen=True)
class Owner:
    """The process that a sandbox ends with. The start tells it from a later process with the same pid."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Entry:
    """One sandbox of this machine."""

    directory: Path
    ports: PortBlock
    owner: Owner | None = None
    """None where it stays until somebody ends it."""

    def is_orphan(self) -> bool:
        """Whether the process it was to end with is gone."""
        return self.owner is not None and _start_ticks(self.owner.pid) != self.owner.start_ticks


def claim(directory: Path, nodes: int) -> PortBlock:
    """The first block of free ports that nobody else has claimed, now claimed for this folder, which must exist.

    Tied to the calling process until ``untie``, so that nothing stays of a start that was killed.
    """
    count = nodes + 2
    with _locked_register(create=True) as register:
        assert register is not None
        others = [entry.ports for entry in _entries(register) if entry.directory != directory]
        taken = {port for block in others for port in range(block.first, block.first + block.count)}
        first = FIRST_PORT
        while first + count <= LAST_PORT:
            busy = next((p for p in reversed(range(first, first + count)) if p in taken or not _free(p)), None)
            if busy is None:
                block = PortBlock(first, count)
                _write(register, Entry(directory, block, _this_process()))
                return block
            first = busy + 1
    raise SandboxError(
        f"no {count} consecutive free TCP ports between {FIRST_PORT} and {LAST_PORT} for {nodes} nodes; "
        "end sandboxes that are no longer needed (tapfinger sandbox list, tapfinger sandbox down --dir D)"
    )


def tie(directory: Path) -> None:
    """Notes that this sandbox is to end with the calling process."""
    _set_owner(directory, _this_process())


def untie(directory: Path) -> None:
    """Notes that this sandbox is to stay until somebody ends it."""
    _set_owner(directory, None)


def release(directory: Path) -> None:
    """Strikes this folder out, and removes the register with its last entry. Nothing to strike out is no error."""
    with _locked_register(create=False) as register:
        if register is None:
            return
        (register / _file_name(directory)).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others have entries
            register.rmdir()


def entries() -> tuple[Entry, ...]:
    """The sandboxes of this machine."""
    with _locked_register(create=False) as register:
        return () if register is None else tuple(_entries(register))


def _set_owner(directory: Path, owner: Owner | None) -> None:
    with _locked_register(create=False) as register:
        if register is None:
            return
        for entry in _entries(register):
            if entry.directory == directory:
                _write(register, replace(entry, owner=owner))


def _this_process() -> Owner:
    return Owner(os.getpid(), _start_ticks(os.getpid()))


def _file_name(directory: Path) -> str:
    return sha256(str(directory).encode()).hexdigest()[:16] + ".json"


def _write(register: Path, entry: Entry) -> None:
    """By rename, so that a killed writer leaves no half entry."""
    content = {**asdict(entry), "directory": str(entry.directory)}
    draft = register / (_file_name(entry.directory) + ".draft")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.rename(register / _file_name(entry.directory))


def _entries(register: Path) -> Iterator[Entry]:
    """Those whose folder still exists; the entry of one that was removed by hand is dropped."""
    for file in sorted(register.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        owner = Owner(**content["owner"]) if content["owner"] else None
        entry = Entry(Path(content["directory"]), PortBlock(**content["ports"]), owner)
        if entry.directory.is_dir():
            yield entry
        else:
            file.unlink()


@contextlib.contextmanager
def _locked_register(*, create: bool) -> Iterator[Path | None]:
    """The register, ours alone; None where there is none and none is to be made."""
    descriptor = _lock(create=create)
    if descriptor is None:
        yield None
        return
    try:
        yield REGISTER
    finally:
        os.close(descriptor)


def _lock(*, create: bool) -> int | None:
    while True:
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    REGISTER.mkdir(mode=0o755)
            descriptor = os.open(REGISTER, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not create:
                return None
            if REGISTER.parent.is_dir():
                continue  # the last sandbox removed it between the two calls
            raise SandboxError(f"the register of sandboxes {REGISTER} cannot be made: no {REGISTER.parent}") from None
        except OSError as error:
            raise SandboxError(f"the register of sandboxes {REGISTER} cannot be used: {error.strerror}") from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _still_named(descriptor):
            return descriptor
        os.close(descriptor)


def _still_named(descriptor: int) -> bool:
    """Whether the locked folder still has its name: the last sandbox may have removed it while we waited."""
    try:
        named = REGISTER.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))


def _free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Slurm does; TIME_WAIT is no obstacle
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since the machine did; -1 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return -1
    return int(text.rpartition(")")[2].split()[19])
