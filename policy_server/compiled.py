"""Where the server keeps compiled policies, settled before they are imported: where they are kept is read only once.

What was compiled is kept beside the package, or at its user's home, or not at all. A service has its own user, without
a home, and a package that root installed. What is kept is code that will run, so the folder must be nobody else's.
"""

import logging
import os
import stat
import sys
import tempfile
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path

import tapfinger_hpc
from tapfinger_hpc import log

logger = logging.getLogger(__name__)

NUMBA_CACHE_DIR = "NUMBA_CACHE_DIR"
PACKAGE = Path(tapfinger_hpc.__file__).parent


def settle(
    environment: MutableMapping[str, str], folder: Path, until_the_end: ExitStack, package: Path = PACKAGE
) -> None:
    """Sets NUMBA_CACHE_DIR where it is not set and the package cannot be written: to this folder, or to one that goes
    away with the server.
    """
    if environment.get(NUMBA_CACHE_DIR) or _can_write(package / "__pycache__"):
        return
    why = _unfit(folder)
    if why is not None:
        temporary = until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="tapfinger-compiled-"))
        log.event(
            logger,
            logging.WARNING,
            "compiles-anew",
            key="server.compiled",
            folder=folder,
            why=f"{why}; every start of the server compiles its policies",
        )
        folder = Path(temporary)
    environment[NUMBA_CACHE_DIR] = str(folder)


def nothing_yet() -> bool:
    """Whether what was imported has to be compiled first."""
    numba = sys.modules.get("numba")
    return numba is not None and not any(Path(numba.config.CACHE_DIR or PACKAGE).rglob("*.nbi"))


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _unfit(folder: Path) -> str | None:
    """Why the folder cannot be used; it is made where it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return error.strerror or str(error)
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, not to the one who serves"
    if stat.S_IMODE(status.st_mode) & 0o022:
        return "others may write there"
    return None if _can_write(folder) else "it cannot be written"
