"""The Debian packages that a sandbox is made of, and how they are fetched without starting any service."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from slurm_plugin.sandbox.userland import MACHINE, SEARCH_PATH, Userland
from tapfinger_hpc.errors import SandboxError

_PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "scontrol": "slurm-client",
    "munged": "munge",
    "perl": "perl-base",
    "setpriv": "util-linux",
    "setsid": "util-linux",
}
"""Each program that is needed, and its package.

Never slurm-wlm-emulator: installing it silently makes the machine's slurmctld and slurmd the emulator's.
"""

_ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "sacct": "slurm-client",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}

COMMANDS = (
    "sacct", "sacctmgr", "salloc", "sbatch", "scancel", "scontrol", "sdiag", "sinfo", "sprio", "squeue", "sreport",
    "srun", "sshare", "sstat",
)  # fmt: skip
"""Those of slurm-client that a user or an administrator types."""

HELPFUL = ("lua-socket",)
"""Not needed: with it the hook wakes the agent at each submission, without it the agent looks once a second."""

_UNITS = {
    "slurmctld": "slurmctld.service",
    "slurmd": "slurmd.service",
    "slurmdbd": "slurmdbd.service",
    "munge": "munge.service",
    "mariadb-server": "mariadb.service",
}
"""The services that come with packages; the sandbox uses the programs alone."""

_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\n# Put here by tapfinger sandbox for the time of one installation; remove it.\nexit 101\n"


def wanted(*, accounting: bool = True) -> dict[str, str]:
    """Programs that a sandbox needs, each with its package."""
    return _PROGRAMS | (_ACCOUNTING_PROGRAMS if accounting else {})


def missing(userland: Userland = MACHINE, *, accounting: bool = True) -> dict[str, str]:
    """Programs that a sandbox needs and that are not there, each with its package."""
    return {name: package for name, package in wanted(accounting=accounting).items() if userland.program(name) is None}


def why_not(userland: Userland = MACHINE, *, accounting: bool = True) -> str:
    """Why no sandbox can be started on this machine, with the next step; "" where one can."""
    if os.geteuid() != 0:
        return "a sandbox needs root (Slurm starts jobs as other users, fake GPUs are device nodes); use sudo"
    if absent := missing(userland, accounting=accounting):
        where = f"of Debian {userland.release} " if userland.release else ""
        return (
            f"Slurm {where}is not installed here ({', '.join(absent)} missing); fetch it with: {userland.install_hint}"
        )
    return ""


def install(*, accounting: bool = True, policy: Path = _POLICY) -> tuple[str, ...]:
    """Fetches the missing packages and returns their names; () where nothing was missing.

    No service is started, neither now nor with the machine; those that run go on. Nothing is removed.

    Raises:
        SandboxError: not root, not Debian, or apt-get failed, with its last words.
    """
    absent = tuple(dict.fromkeys(missing(accounting=accounting).values()))
    if not absent:
        return ()
    if os.geteuid() != 0:
        raise SandboxError(f"installing {', '.join(absent)} needs root; use sudo {MACHINE.install_hint}")
    if shutil.which("apt-get", path=SEARCH_PATH) is None:
        raise SandboxError(f"installing Slurm: no apt-get here; install what Debian calls {', '.join(absent)} by hand")
    with no_service_starts(policy):
        update = _apt_get("update")
        done = _apt_get("install", "--yes", "--no-remove", "--no-install-recommends", *absent, *HELPFUL)
    if done.returncode:
        # A source that could not be read is no reason to give up, but often the reason for what follows.
        raise SandboxError("".join(_last_words(ended) for ended in (update, done) if ended.returncode))
    _disable([_UNITS[package] for package in absent if package in _UNITS])
    if still := missing(accounting=accounting):
        raise SandboxError(f"installing {', '.join(absent)}: apt-get was content, yet {', '.join(still)} is missing")
    return absent


@contextlib.contextmanager
def no_service_starts(policy: Path = _POLICY) -> Iterator[None]:
    """Debian asks policy-rc.d before it starts a service; ours says no, and is gone afterwards.

    Where the site has one already it stands: what it decides is the site's wish. One of ours that a killed
    installation left is taken over.
    """
    try:
        with policy.open("x", encoding="ascii") as file:
            file.write(_POLICY_TEXT)
    except FileExistsError:
        if policy.read_bytes() != _POLICY_TEXT.encode():
            yield
            return
    try:
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)


def _disable(units: list[str]) -> None:
    """Keeps services that came with the packages from starting with the machine; there may be no systemd at all."""
    if units and shutil.which("systemctl", path=SEARCH_PATH):
        subprocess.run(
            ["systemctl", "--quiet", "disable", *units], capture_output=True, env=_environment(), check=False
        )


def _apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=120", *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment(), check=False
    )


def _last_words(ended: subprocess.CompletedProcess[str]) -> str:
    last = "\n  ".join((ended.stdout + ended.stderr).strip().splitlines()[-12:])
    return f"{' '.join(ended.args)} ended with {ended.returncode}:\n  {last}\n"


def _environment() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SEARCH_PATH}
