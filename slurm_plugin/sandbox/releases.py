"""Fetches another Debian release with its Slurm into a folder of its own (see userland.py), without touching this
machine's packages.

Base and packages are put in place in a mount namespace that ends with the command, and the folder takes its name last:
a folder with that name is whole, whoever was killed meanwhile.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from slurm_plugin.sandbox import packages
from slurm_plugin.sandbox.userland import CACHE, SEARCH_PATH, Userland
from tapfinger_hpc.errors import SandboxError

_LIBRARIES = "python3"
"""For jobs that are run by a Python of this machine: it brings the libraries that such a one is linked to."""

_TIMEOUT_S = 1800.0

_STEPS = r"""
debootstrap --variant=minbase "$2" "$1"
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
mount -t proc proc "$1/proc"
root=$1
shift 2
# A mirror may be frozen, or older than its own word allows, and debootstrap took it as well.
chroot "$root" apt-get --quiet -o Acquire::Check-Valid-Until=false update
chroot "$root" apt-get --quiet --yes --no-install-recommends install "$@"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/*
touch "$root/etc/hosts"
"""


def why_not_installable() -> str:
    """Why no release can be fetched on this machine; "" where one can be tried."""
    if os.geteuid() != 0:
        return "fetching a Debian release needs root; use sudo"
    if shutil.which("debootstrap", path=SEARCH_PATH) is None:
        return "fetching a Debian release needs debootstrap; install it with: apt-get install debootstrap"
    if not Path("/bin").is_symlink():
        return "programs of another Debian release need a machine whose /bin is part of /usr, as Debian's is since 12"
    return ""


def install(userland: Userland) -> bool:
    """Fetches the release, with all that a sandbox needs; False where it is there already. Minutes, 600 MB.

    Raises:
        SandboxError: it cannot be fetched here, with the last words of what was tried.
    """
    if not packages.missing(userland):
        return False
    doing = f"fetching Debian {userland.release}"
    if reason := why_not_installable():
        raise SandboxError(f"{doing}: {reason}")
    with _locked(userland.folder):
        if not packages.missing(userland):  # somebody else was fetching it
            return True
        partial = userland.folder.with_suffix(".partial")
        log = userland.folder.with_suffix(".log")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _fetch(userland, partial, log, doing)
            shutil.rmtree(userland.folder, ignore_errors=True)
            partial.rename(userland.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    if absent := packages.missing(userland):
        raise SandboxError(f"{doing}: all went well, yet {', '.join(absent)} is missing; see {log}")
    return True


def _fetch(userland: Userland, partial: Path, log: Path, doing: str) -> None:
    wanted = dict.fromkeys([*packages.wanted().values(), *packages.HELPFUL, _LIBRARIES])
    command = ["unshare", "--mount", "--", "/bin/sh", "-ec", _STEPS, "sh", str(partial), userland.release, *wanted]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": SEARCH_PATH}
    with log.open("wb") as output:
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"{doing}: no end within {_TIMEOUT_S:g} s; see {log}") from error
    if ended.returncode:
        words = log.read_text(encoding="utf-8", errors="replace").splitlines()[-6:]
        raise SandboxError("\n  ".join([f"{doing} ended with {ended.returncode} (network? all of it: {log}):", *words]))
    (partial / "etc" / userland.marker.name).touch()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
