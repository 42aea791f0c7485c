"""The Debian packages that a sandbox is made of, and how they are fetched without starting any service."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tapfinger_hpc.errors import SandboxError

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server")
"""Not slurm-wlm-emulator: installing it silently makes slurmctld and slurmd of the machine the emulator's."""

_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged", "setpriv", "setsid")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_POLICY = Path("/usr/sbin/policy-rc.d")
INSTALL_HINT = "tapfinger sandbox install"


def missing(*, accounting: bool = True) -> tuple[str, ...]:
    """Programs that a sandbox needs and this machine does not have."""
    wanted = (*_PROGRAMS, *(_ACCOUNTING_PROGRAMS if accounting else ()))
    return tuple(program for program in wanted if shutil.which(program, path=SEARCH_PATH) is None)


def why_not(*, accounting: bool = True) -> str:
    """Why no sandbox can be started on this machine, with the next step; "" where one can."""
    if os.geteuid() != 0:
        return "a sandbox needs root (Slurm starts jobs as other users, fake GPUs are device nodes); use sudo"
    if absent := missing(accounting=accounting):
        return f"Slurm is not installed here ({', '.join(absent)} missing); fetch it with: {INSTALL_HINT}"
    return ""


def install(*, accounting: bool = True) -> bool:
    """Fetches the missing packages; False where nothing was missing. No service is started, running ones go on.

    Raises:
        SandboxError: not root, not Debian, or apt-get failed, with its last words.
    """
    if not missing(accounting=accounting):
        return False
    wanted = (*PACKAGES, *(ACCOUNTING_PACKAGES if accounting else ()))
    if os.geteuid() != 0:
        raise SandboxError(f"installing {', '.join(wanted)} needs root; use sudo {INSTALL_HINT}")
    if shutil.which("apt-get", path=SEARCH_PATH) is None:
        raise SandboxError(f"installing Slurm: no apt-get here; install by hand what Debian has as {', '.join(wanted)}")
    with _no_service_starts():
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *wanted)
    if absent := missing(accounting=accounting):
        raise SandboxError(f"installing {', '.join(wanted)}: apt-get was content, yet {', '.join(absent)} is missing")
    return True


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian asks policy-rc.d before it starts a service; ours says no, and is gone afterwards.

    Where the site has one already it stands: what it decides is the site's wish.
    """
    try:
        descriptor = os.open(_POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        yield
        return
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as policy:
            policy.write("#!/bin/sh\n# Put here by tapfinger sandbox for the time of one installation.\nexit 101\n")
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _apt_get(*arguments: str) -> None:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SEARCH_PATH}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        last = "\n  ".join((ended.stdout + ended.stderr).strip().splitlines()[-15:])
        raise SandboxError(f"{' '.join(command)} ended with {ended.returncode}:\n  {last}")
