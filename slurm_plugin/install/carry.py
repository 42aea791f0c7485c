"""Carries a plan out, and takes back what was carried out: the one place of an installation that changes anything.

What a step makes is on disk before the step is taken, so that an installation that was killed at any moment can be
undone. Files are put in their place whole or not at all, and never over a file that is not ours.
"""

import contextlib
import fcntl
import grp
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from slurm_plugin.commands import Answer, CommandError, Runner, spelled
from slurm_plugin.install import hook
from slurm_plugin.install.plan import Seen
from slurm_plugin.install.steps import (
    Command,
    Entry,
    File,
    Folder,
    MadeFile,
    MadeFolder,
    Ran,
    Record,
    Step,
    ancestors,
    digest,
)
from slurm_plugin.slurm_conf import asks_lua, settings_in
from tapfinger_hpc.errors import InstallError

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 180.0
"""systemctl waits for services to end."""


class Tree:
    """The file tree of this machine, or one under another root."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def at(self, path: str) -> Path:
        return self._root / Path(path).relative_to("/")

    @property
    def elsewhere(self) -> bool:
        return self._root != Path("/")

    def look(self, steps: Iterable[Step]) -> Mapping[str, Seen | None]:
        """What lies at each path of these steps, and at the folders above."""
        seen: dict[str, Seen | None] = {}
        for step in steps:
            if isinstance(step, Command):
                continue
            seen[step.path] = self._seen(step.path, step)
            for folder in ancestors(step.path):
                seen.setdefault(folder, self._seen(folder))
        return seen

    def taken(self, folders: Iterable[str], record: Record) -> tuple[str, ...]:
        """Those that are there and not ours."""
        return tuple(folder for folder in folders if self.at(folder).exists() and record.made(folder) is None)

    def _seen(self, path: str, step: Folder | File | None = None) -> Seen | None:
        at = self.at(path)
        try:
            status = at.stat() if isinstance(step, Folder) or step is None else at.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return Seen("other") if at.is_symlink() else None
        owner, group = self._owners(status, step)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            return Seen("folder", mode, owner, group)
        if stat.S_ISREG(status.st_mode):
            return Seen("file", mode, owner, group, digest(at.read_bytes()))
        return Seen("other")

    def _owners(self, status: os.stat_result, step: Folder | File | None) -> tuple[str | None, str | None]:
        """Names of the owners; None where they do not count."""
        if step is None or os.geteuid() != 0 or self.elsewhere:
            return None, None
        return _name(pwd.getpwuid, status.st_uid), _name(grp.getgrgid, status.st_gid)

    def owners(self, step: Folder | File) -> tuple[int, int]:
        """Numbers for chown, -1 leaves them.

        Raises:
            InstallError: no such user or group, though it is this machine's tree.
        """
        if os.geteuid() != 0:
            return -1, -1
        uid, gid = _uid(step.owner), _gid(step.group)
        if (uid is None or gid is None) and not self.elsewhere:
            raise InstallError(f"{step.path} is to belong to {step.owner}:{step.group}: there is no such user or group")
        return -1 if uid is None else uid, -1 if gid is None else gid


class Ledger:
    """The record on disk: written anew, whole, before every change."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree = tree
        self._path = path
        self.record = self._read()

    def _read(self) -> Record:
        file = self._tree.at(self._path)
        try:
            status = file.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                # Whoever can write it decides what is removed.
                raise InstallError(f"{file} may be written by others than who runs this: it cannot be believed")
            return msgspec.json.decode(file.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record()
        except PermissionError as error:
            raise InstallError(f"{file}, what was installed, cannot be read: {error.strerror}; use sudo") from error
        except msgspec.MsgspecError as error:
            raise InstallError(f"{file}, what was installed, cannot be understood: {error}") from error

    def begin(self) -> None:
        """Makes the folder of the record, the first change of all, and remembers it."""
        missing = [folder for folder in ancestors(self._path) if not self._tree.at(folder).exists()]
        for folder in missing:
            self._tree.at(folder).mkdir(mode=0o700 if folder == missing[-1] else 0o755)
        self._write([*(MadeFolder(folder, ours_alone=False) for folder in missing), *self.record.entries])

    def note(self, entry: Entry) -> None:
        """Remembers it in place of what was remembered of the same path or command."""
        entries = list(self.record.entries)
        same = next((at for at, known in enumerate(entries) if _same(known, entry)), None)
        if same is None:
            entries.append(entry)
        else:
            entries[same] = entry
        self._write(entries)

    def forget(self, entry: Entry) -> None:
        self._write([known for known in self.record.entries if known != entry])

    def end(self) -> None:
        """Removes the record, with the folders that were made for it."""
        self._tree.at(self._path).unlink(missing_ok=True)
        for entry in reversed(self.record.entries):
            if isinstance(entry, MadeFolder):
                with contextlib.suppress(OSError):
                    self._tree.at(entry.path).rmdir()

    def holds(self, entry: Entry) -> bool:
        """Whether this is a folder that the record itself lies in."""
        return isinstance(entry, MadeFolder) and entry.path in ancestors(self._path)

    def _write(self, entries: Sequence[Entry]) -> None:
        self.record = Record(tuple(entries))
        text = msgspec.json.format(msgspec.json.encode(self.record), indent=1) + b"\n"
        _put(self._tree.at(self._path), text, 0o600, (-1, -1), replaces=True)


@contextlib.contextmanager
def alone(tree: Tree) -> Iterator[None]:
    """While nobody else installs or uninstalls in this tree. The lock is on its folder, and leaves nothing behind.

    Raises:
        InstallError: somebody does.
    """
    root = tree.at("/")
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InstallError(f"{root}: {error.strerror}; --root names a folder that is there") from error
    try:
        _lock(folder, root)
        yield
    finally:
        os.close(folder)


def carry_out(steps: Iterable[Step], tree: Tree, ledger: Ledger, run: Runner) -> None:
    """Takes the steps in order.

    Raises:
        InstallError: one failed. What was done until then stands, and can be undone or gone on with.
    """
    ledger.begin()
    for step in steps:
        try:
            if isinstance(step, Command):
                _run(step, ledger, run)
            elif isinstance(step, Folder):
                _make_folder(step, tree, ledger)
            else:
                _write_file(step, tree, ledger)
        except (OSError, CommandError) as error:
            raise InstallError(
                f"could not {step}: {error}; go on with tapfinger install, or take all back with tapfinger uninstall"
            ) from error


def take_back(tree: Tree, ledger: Ledger, run: Runner) -> tuple[str, ...]:
    """Undoes what is recorded, last first; what could not be undone, with the reason. What failed stays recorded."""
    failed = []
    for entry in reversed(ledger.record.entries):
        if ledger.holds(entry):
            continue
        try:
            _undo(entry, tree, ledger.record, run)
            ledger.forget(entry)
        except (OSError, CommandError) as error:
            failed.append(f"{_spelled(entry)}: {error}")
    if not failed:
        ledger.end()
    return tuple(failed)


def still_called(tree: Tree, record: Record) -> str:
    """The file, slurm.conf or one that it includes, for which slurmctld loads a job_submit.lua of ours; "" where none
    does.

    Without the script it goes on with the one it has, but does not start again ("failed to initialize job_submit
    plugin").
    """
    for entry in record.entries:
        if not isinstance(entry, MadeFile) or Path(entry.path).name != hook.SCRIPT:
            continue
        script = tree.at(entry.path)
        conf = script.with_name("slurm.conf")
        if not script.exists() or not conf.exists() or _keeps(entry, tree, record):
            continue
        plugins = settings_in(conf, tree.at).get("jobsubmitplugins")
        if plugins and asks_lua(plugins.value.split(",")):
            return plugins.file
    return ""


def undoing(tree: Tree, ledger: Ledger) -> tuple[str, ...]:
    """What taking back would do, without doing it."""
    return tuple(
        _intention(entry, tree, ledger.record) for entry in reversed(ledger.record.entries) if not ledger.holds(entry)
    )


def runner(slurm: Runner) -> Runner:
    """Slurm's commands through their one place, all others here."""

    def run(argv: Sequence[str]) -> Answer:
        return slurm(argv) if argv[0] in ("scontrol", "sacctmgr") else _run_program(argv)

    return run


def _lock(folder: int, root: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InstallError(
            f"nothing was changed: another tapfinger install or uninstall is at work in {root} (lslocks names it); "
            "run this again when it has ended"
        ) from error


# Doing.


def _run(step: Command, ledger: Ledger, run: Runner) -> None:
    if step.undo:
        ledger.note(Ran(step.why, step.undo, done=not step.do))
    if step.do:
        run(step.do).checked()
        if step.undo:
            ledger.note(Ran(step.why, step.undo, done=True))


def _make_folder(step: Folder, tree: Tree, ledger: Ledger) -> None:
    folder = tree.at(step.path)
    with _remembered(MadeFolder(step.path, step.ours_alone), ledger) as known:
        folder.mkdir(mode=0o700, exist_ok=known)
    # Through the folder itself: one that belongs to another user could be put aside for a link meanwhile.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, *tree.owners(step))
        os.fchmod(descriptor, step.mode)
    finally:
        os.close(descriptor)


def _write_file(step: File, tree: Tree, ledger: Ledger) -> None:
    before = ledger.record.made(step.path)
    kept = before.digests[:1] if isinstance(before, MadeFile) else ()
    entry = MadeFile(step.path, tuple(dict.fromkeys((digest(step.content), *kept))))
    with _remembered(entry, ledger) as known:
        _put(tree.at(step.path), step.content, step.mode, tree.owners(step), replaces=known)


@contextlib.contextmanager
def _remembered(entry: MadeFolder | MadeFile, ledger: Ledger) -> Iterator[bool]:
    """Remembers it before it is made, and forgets it where somebody else has made it meanwhile.

    Gives whether it was ours before.
    """
    known = ledger.record.made(entry.path) is not None
    ledger.note(entry)
    try:
        yield known
    except FileExistsError:
        if not known:
            ledger.forget(entry)
        raise


def _put(path: Path, content: bytes, mode: int, owners: tuple[int, int], *, replaces: bool) -> None:
    """The whole file or none. Without ``replaces`` FileExistsError where something is there."""
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), *owners)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        if replaces:
            partial.replace(path)
        else:
            path.hardlink_to(partial)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.tapfinger-install")


# Undoing.


def _undo(entry: Entry, tree: Tree, record: Record, run: Runner) -> None:
    if isinstance(entry, Ran):
        answer = run(entry.undo)
        # One that was cut short may have nothing to undo.
        if entry.done:
            answer.checked()
    elif isinstance(entry, MadeFile):
        _partial(tree.at(entry.path)).unlink(missing_ok=True)
        if not _keeps(entry, tree, record):
            tree.at(entry.path).unlink(missing_ok=True)
    elif entry.ours_alone:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(tree.at(entry.path))
    elif not _others_in(entry.path, tree):
        with contextlib.suppress(FileNotFoundError):
            tree.at(entry.path).rmdir()


def _intention(entry: Entry, tree: Tree, record: Record) -> str:
    if isinstance(entry, Ran):
        return f"run {spelled(entry.undo)}"
    at = tree.at(entry.path)
    if not at.exists() and not at.is_symlink():
        return f"{entry.path} is gone already"
    if isinstance(entry, MadeFile):
        if _keeps(entry, tree, record):
            return f"leave {entry.path}: it was changed since, and is the site's now"
        return f"remove {entry.path}"
    if entry.ours_alone:
        return f"remove {entry.path} with all that is in it"
    return f"remove {entry.path}, unless something of others is in it"


def _keeps(entry: MadeFile, tree: Tree, record: Record) -> bool:
    """Whether a file is left: it was edited, and it does not lie in a folder that is ours alone."""
    alone = {made.path for made in record.entries if isinstance(made, MadeFolder) and made.ours_alone}
    if not alone.isdisjoint(ancestors(entry.path)):
        return False
    with contextlib.suppress(FileNotFoundError):
        return digest(tree.at(entry.path).read_bytes()) not in entry.digests
    return False


def _others_in(path: str, tree: Tree) -> bool:
    try:
        return any(tree.at(path).iterdir())
    except FileNotFoundError:
        return False


def _spelled(entry: Entry) -> str:
    return f"running {spelled(entry.undo)}" if isinstance(entry, Ran) else f"removing {entry.path}"


def _same(known: Entry, entry: Entry) -> bool:
    if isinstance(known, Ran) or isinstance(entry, Ran):
        return isinstance(known, Ran) and isinstance(entry, Ran) and known.undo == entry.undo
    return known.path == entry.path


# This machine.


def _run_program(argv: Sequence[str]) -> Answer:
    path = os.pathsep.join((os.environ.get("PATH", ""), _SEARCH_PATH))
    program = shutil.which(argv[0], path=path)
    if program is None:
        raise CommandError(f"{argv[0]} was not found in {path}", argv, None, "")
    try:
        ended = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PATH": path, "LC_ALL": "C"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{spelled(argv)} did not end within {_TIMEOUT_S:g} s", argv, None, "") from error
    return Answer(tuple(argv), ended.returncode, ended.stdout, ended.stderr.decode("utf-8", "replace").strip())


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _name(lookup: Callable[[int], tuple], number: int) -> str:
    try:
        return lookup(number)[0]
    except KeyError:
        return str(number)
