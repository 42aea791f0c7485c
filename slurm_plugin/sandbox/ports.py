"""Claims TCP ports for a sandbox, so that several can run and restart their daemons side by side.

A probe alone would not do: between probe and listen another sandbox may take the port, and a killed daemon gives its
port back for a while. So a claim is written down, under a lock, for as long as the sandbox's folder exists.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
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


def claim(directory: Path, nodes: int) -> PortBlock:
    """The first block of free ports that nobody else has claimed, now claimed for this folder."""
    count = nodes + 2
    with _locked_register(create=True) as register:
        assert register is not None
        taken = {
            port
            for folder, block in _claims(register)
            if folder != directory
            for port in range(block.first, block.first + block.count)
        }
        first = FIRST_PORT
        while first + count <= LAST_PORT:
            busy = next((p for p in reversed(range(first, first + count)) if p in taken or not _free(p)), None)
            if busy is None:
                block = PortBlock(first, count)
                entry = {"directory": str(directory), "first": first, "count": count}
                (register / _entry_name(directory)).write_text(json.dumps(entry), encoding="utf-8")
                return block
            first = busy + 1
    raise SandboxError(
        f"no {count} consecutive free TCP ports between {FIRST_PORT} and {LAST_PORT} for {nodes} nodes; "
        "end sandboxes that are no longer needed (tapfinger sandbox list, tapfinger sandbox down --dir D)"
    )


def release(directory: Path) -> None:
    """Gives the claim of this folder back, and removes the register when it was the last. Nothing claimed is no error."""
    with _locked_register(create=False) as register:
        if register is None:
            return
        (register / _entry_name(directory)).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other sandboxes have entries
            register.rmdir()


def directories() -> tuple[Path, ...]:
    """Folders of the sandboxes of this machine."""
    with _locked_register(create=False) as register:
        return () if register is None else tuple(sorted(folder for folder, _ in _claims(register)))


def _entry_name(directory: Path) -> str:
    return sha256(str(directory).encode()).hexdigest()[:16] + ".json"


def _claims(register: Path) -> Iterator[tuple[Path, PortBlock]]:
    """Claims of folders that still exist; the entry of one that was removed by hand is dropped."""
    for entry in sorted(register.glob("*.json")):
        content = json.loads(entry.read_text(encoding="utf-8"))
        folder = Path(content["directory"])
        if folder.is_dir():
            yield folder, PortBlock(content["first"], content["count"])
        else:
            entry.unlink()


@contextlib.contextmanager
def _locked_register(*, create: bool) -> Iterator[Path | None]:
    """The register, ours alone; None where there is none and none is to be made."""
    while True:
        try:
            if create:
                REGISTER.mkdir(mode=0o755, exist_ok=True)
            descriptor = os.open(REGISTER, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if create:
                continue  # removed between the two calls
            yield None
            return
        except OSError as error:
            raise SandboxError(f"the register of sandboxes {REGISTER} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _same_folder(descriptor):
                yield REGISTER
                return
        finally:
            os.close(descriptor)


def _same_folder(descriptor: int) -> bool:
    """Whether the locked folder is still the one with this name: the last sandbox may have removed it meanwhile."""
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
