"""What an installation consists of: folders, files and commands; and what is remembered of each to undo it."""

import hashlib
from pathlib import Path

import msgspec


class Folder(msgspec.Struct, frozen=True, tag="folder"):
    """A folder that is to be there."""

    path: str
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"
    ours_alone: bool = False
    """Whatever comes to lie in it goes with it."""

    def __str__(self) -> str:
        return f"make the folder {self.path} ({self.owner}:{self.group}, {self.mode:04o})"


class File(msgspec.Struct, frozen=True, tag="file"):
    """A file that is to be there with this text."""

    path: str
    text: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    sites_to_edit: bool = False
    """Written once; from then on it is the site's to change, and one that is there already is the site's."""
    follows: tuple[str, ...] = ()
    """Written again, though its text is the same, when one of these is: its time of change is what counts."""

    @property
    def content(self) -> bytes:
        return self.text.encode()

    def __str__(self) -> str:
        return f"write {self.path} ({self.owner}:{self.group}, {self.mode:04o}, {len(self.content)} bytes)"


class Command(msgspec.Struct, frozen=True, tag="command"):
    """A command that is to be run."""

    why: str
    do: tuple[str, ...]
    """() where it is only to be undone."""
    undo: tuple[str, ...] = ()
    """() where nothing is left of it once the rest is undone."""
    follows: tuple[str, ...] = ()
    """Only run when one of these files is written; () is always."""

    def __str__(self) -> str:
        return f"{self.why}: {' '.join(self.do)}" if self.do else self.why


Step = Folder | File | Command


class MadeFolder(msgspec.Struct, frozen=True, tag="folder"):
    """A folder that was not there before."""

    path: str
    ours_alone: bool


class MadeFile(msgspec.Struct, frozen=True, tag="file"):
    """A file that was not there before, and what we wrote into it: the last text, and where that was cut short the one
    before.
    """

    path: str
    digests: tuple[str, ...]


class Ran(msgspec.Struct, frozen=True, tag="command"):
    """A command that was run, and the one that undoes it."""

    why: str
    undo: tuple[str, ...]
    done: bool
    """False while it runs, and so where the installation was killed meanwhile."""


Entry = MadeFolder | MadeFile | Ran


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that an installation made, in the order in which it was made."""

    entries: tuple[Entry, ...] = ()
    version: int = 1

    def made(self, path: str) -> MadeFolder | MadeFile | None:
        """What is remembered of this path; None where it is not ours."""
        for entry in self.entries:
            if not isinstance(entry, Ran) and entry.path == path:
                return entry
        return None


def digest(content: bytes) -> str:
    """By which a file is known again."""
    return hashlib.sha256(content).hexdigest()


def ancestors(path: str) -> tuple[str, ...]:
    """The folders above, outermost first, without the root."""
    return tuple(str(folder) for folder in reversed(Path(path).parents) if str(folder) != "/")
