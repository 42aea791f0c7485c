"""What lies at a path and who can reach it: modes and owners as values, so that questions about them need no disk.

Access control lists are not looked at: where a site uses them, a refusal told here may be none.
"""

import grp
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

READ, WRITE, PASS = 4, 2, 1


class User(msgspec.Struct, frozen=True):
    """Somebody who runs a process."""

    name: str
    uid: int
    groups: tuple[int, ...] = ()


class Entry(msgspec.Struct, frozen=True):
    """One file, folder or socket, without what is in it."""

    path: str
    kind: Literal["file", "folder", "socket", "other"]
    mode: int
    uid: int
    gid: int
    changed_s: float = 0.0


class Place(msgspec.Struct, frozen=True):
    """What lies at a path."""

    path: str
    entry: Entry | None = None
    """None where there is nothing, or nothing that we may see."""
    why: str = ""
    """Why there is nothing."""
    folders: tuple[Entry, ...] = ()
    """Those on the way there, from the root."""

    def why_not(self, who: User, wanted: int) -> str:
        """Why this user cannot read or write there; "" where it can."""
        for folder in self.folders:
            if not _may(who, folder, PASS):
                return f"{folder.path} (mode {folder.mode:04o}, of {owner(folder)}) is closed to {who.name}"
        if self.entry is None:
            return f"{self.path}: {self.why}"
        if not _may(who, self.entry, wanted):
            doing = "read" if wanted == READ else "write"
            return f"{who.name} cannot {doing} {self.path} (mode {self.entry.mode:04o}, of {owner(self.entry)})"
        return ""


def look(path: str) -> Place:
    """What lies at this path now; links are followed."""
    real = Path(os.path.realpath(path))
    folders = []
    try:
        for folder in reversed(real.parents):
            folders.append(_entry(folder))
        return Place(path, _entry(real), folders=tuple(folders))
    except OSError as error:
        return Place(path, None, error.strerror or str(error), tuple(folders))


def user(uid: int) -> User:
    """The user of this number, with the groups that the system knows of."""
    try:
        known = pwd.getpwuid(uid)
    except KeyError:
        return User(str(uid), uid)
    return User(known.pw_name, uid, tuple(os.getgrouplist(known.pw_name, known.pw_gid)))


def owner(entry: Entry) -> str:
    """Owner and group by name."""
    try:
        group = grp.getgrgid(entry.gid).gr_name
    except KeyError:
        group = str(entry.gid)
    return f"{user(entry.uid).name}:{group}"


def slow_disk(path: str, mounts: Sequence[tuple[str, str]]) -> str:
    """The kind of file system where the path is on one of the network; "" where it is on a local one.

    Args:
        mounts: where file systems are mounted, and their kinds.
    """
    real = os.path.realpath(path)
    inside = [(len(at), kind) for at, kind in mounts if at == "/" or real == at or real.startswith(f"{at}/")]
    kind = max(inside, default=(0, ""))[1]
    far = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs", "afs", "9p")
    return kind if kind.startswith(far) else ""


def mounts() -> tuple[tuple[str, str], ...]:
    """Mount points with their kinds; () where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    words = (line.split() for line in lines)
    return tuple((word[1].replace("\\040", " "), word[2]) for word in words if len(word) > 2)


def _entry(path: Path) -> Entry:
    status = path.stat()
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
    return Entry(
        str(path),
        kinds.get(stat.S_IFMT(status.st_mode), "other"),  # type: ignore[arg-type]
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime,
    )


def _may(who: User, entry: Entry, wanted: int) -> bool:
    if who.uid == 0:
        return True
    if who.uid == entry.uid:
        return bool(entry.mode >> 6 & wanted)
    if entry.gid in who.groups:
        return bool(entry.mode >> 3 & wanted)
    return bool(entry.mode & wanted)
