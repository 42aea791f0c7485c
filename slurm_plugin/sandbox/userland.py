"""Whose programs a sandbox runs: this machine's own, or those of another Debian release in a folder.

Programs of a release run in a mount namespace of their own, in which /usr and /etc are the folder's and everything else
is this machine's. Not a chroot: paths of the sandbox, of jobs and of tests mean the same on both sides, and nothing has
to be carried in. Not the folder's loader either: plugins, Lua and slurmstepd are found by paths compiled in. Such a
namespace ends with its last process, so no mount is ever seen on the machine, or left behind by a crash.
"""

import os
import pwd
import shlex
import shutil
from pathlib import Path

import msgspec

from tapfinger_hpc.errors import SandboxError

RELEASES = ("bookworm", "trixie", "sid")
"""Debian's names; with them come Slurm 22.05, 24.11, and whatever is newest."""

CACHE = Path("/var/cache/tapfinger-sandbox")
"""Where the folders of releases are; removing one removes all there is of it."""

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where daemons and commands are looked for, whatever PATH the caller has."""

ENTERING = frozenset({"sh", "nsenter", "unshare", "mount", "setsid", "setpriv"})
"""What a process is called before it has become the program that was started."""


class Userland(msgspec.Struct, frozen=True):
    """Where programs come from."""

    release: str = ""
    """"" is this machine."""

    def __post_init__(self) -> None:
        if self.release and self.release not in RELEASES:
            raise SandboxError(f"Debian release {self.release!r}: expected one of {', '.join(RELEASES)}")

    @property
    def folder(self) -> Path:
        return CACHE / self.release if self.release else Path("/")

    @property
    def marker(self) -> Path:
        """There, and only there, is this file."""
        return Path(f"/etc/tapfinger-{self.release}")

    @property
    def install_hint(self) -> str:
        """What fetches the programs that are missing."""
        return "tapfinger sandbox install" + (f" --release {self.release}" if self.release else "")

    def prefix(self, keeper: Path | None = None) -> tuple[str, ...]:
        """What stands before a command so that it runs there; only root can enter a release, from outside of it.

        Args:
            keeper: pid file of a process whose namespace to join while it lives. A new one takes some 20 ms.
        """
        return ("/bin/sh", "-c", self._entering(keeper), "sh") if self.release else ()

    def wrapper(self, keeper: Path) -> str:
        """A script that runs, of the release, the program that it is itself called as."""
        return f'#!/bin/sh\nset -- /usr/bin/"${{0##*/}}" "$@"\n{self._entering(keeper)}\n'

    def program(self, name: str) -> str | None:
        """The path of a program for who is there; None where there is none.

        By its plain name: slurmctld and slurmd crash where they are called slurmctld-wlm and so on.
        """
        if not self.release:
            return shutil.which(name, path=SEARCH_PATH)
        for path in (f"/usr/sbin/{name}", f"/usr/bin/{name}"):
            # Alternatives are links that lead somewhere only from inside.
            if os.path.lexists(f"{self.folder}{path}"):
                return path
        return None

    def owner(self, user: str) -> tuple[int, int]:
        """The numbers of a user and its group.

        Raises:
            SandboxError: there is no such user.
        """
        if not self.release:
            try:
                found = pwd.getpwnam(user)
            except KeyError:
                raise SandboxError(f"there is no user {user!r} here") from None
            return found.pw_uid, found.pw_gid
        users = self.folder / "etc/passwd"
        for line in users.read_text(encoding="utf-8").splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return int(fields[2]), int(fields[3])
        raise SandboxError(f"there is no user {user!r} in {users}")

    def _entering(self, keeper: Path | None) -> str:
        """Shell text that runs its arguments there, at once where it is there already, as in a job."""
        root, marker = self.folder, self.marker
        mounts = (
            f"mount --bind /etc/hosts {root}/etc/hosts; "
            f"mount --rbind /usr/local {root}/usr/local; "
            f"mount --rbind {root}/etc /etc; "
            f"mount --rbind {root}/usr /usr; "
            'exec "$@"'
        )
        begun = f'set -- unshare --mount -- /bin/sh -ec {shlex.quote(mounts)} sh "$@"'
        if keeper:
            # What is read there may be the number of another process by now.
            joined = 'set -- nsenter --mount="/proc/$pid/ns/mnt" --wdns="$PWD" -- "$@"'
            found = f'{{ read -r pid <{keeper} && [ -e "/proc/$pid/root{marker}" ]; }} 2>/dev/null'
            begun = f"if {found}; then {joined}; else {begun}; fi"
        return f'[ -e {marker} ] || {begun}; exec "$@"'


MACHINE = Userland()
"""This machine's own programs."""
