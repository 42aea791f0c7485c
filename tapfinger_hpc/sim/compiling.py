"""How the simulator's functions are compiled (numba), and where machine code is kept for later processes.

numba keeps it until the function's own file changes, though what the function calls in other files is compiled into it:
after an upgrade it would go on with the older code. So here it is kept in a folder for exactly these sources.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba

PACKAGE = Path(__file__).parents[1]
COMPILED_ROOMS = ("sim", "features", "nets", "policies")
"""Folders of the package in which functions are compiled, or find the constants that are compiled into them."""
COMPILED_FILES = ("frame.py", "training/following.py")
"""The same elsewhere."""
NUMBA_CACHE_DIR = "NUMBA_CACHE_DIR"
PREFIX = "compiled-"
KEPT = 3
"""Folders that stay: of these sources, and of those before them, as another version may still be running."""


def folder(base: Path, package: Path = PACKAGE) -> Path:
    """Of what is compiled from the package as it is now; it is made, and the oldest of others go."""
    made = base / f"{PREFIX}{_digest(package)}"
    if not made.is_dir():
        made.mkdir(parents=True, exist_ok=True)
        others = (each for each in base.glob(f"{PREFIX}*") if each != made)
        for outdated in sorted(others, key=_changed)[: -(KEPT - 1)]:
            shutil.rmtree(outdated, ignore_errors=True)
    return made


def sources(package: Path = PACKAGE) -> Iterator[Path]:
    """All that takes part in what is compiled."""
    yield from (package / name for name in COMPILED_FILES)
    for room in COMPILED_ROOMS:
        yield from sorted((package / room).rglob("*.py"))


def _digest(package: Path) -> str:
    found = hashlib.sha256()
    for source in sources(package):
        found.update(f"{source.relative_to(package)}\n".encode())
        found.update(hashlib.sha256(source.read_bytes()).digest())
    return found.hexdigest()[:16]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process was faster
        return 0.0


def _settle() -> None:
    """Beside the package, or where the user keeps such things; where neither can be written numba says so."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    named = os.environ.get(NUMBA_CACHE_DIR)
    for base in [Path(named)] if named else [PACKAGE / "__pycache__", Path(home) / "tapfinger-hpc"]:
        try:
            chosen = folder(base)
        except OSError:
            continue
        if os.access(chosen, os.W_OK):
            numba.config.CACHE_DIR = str(chosen)  # type: ignore[attr-defined]
            return


_settle()

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
lean: Any = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]
"""For functions that allocate nothing and return numbers alone: without counting references. To count those to the
fifty arrays of a frame and its truth at every call took nine tenths of a step's time."""
woven: Any = numba.njit(inline="always", nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]
"""As ``lean``, but repeated wherever it is called: calls of what every step needs cost as much as what it does."""
threaded = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
