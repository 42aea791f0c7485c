"""The offline bundle, as `make dist` makes it, for tests that install from it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from release import build
from slurm_plugin.sandbox.userland import Userland

EPOCH_S = 1_795_000_000


def make(folder: Path, debian: Userland) -> tuple[Path, Path]:
    """The bundle for this Debian's Python, and the wheels that are in it; skips the test where they cannot be had."""
    python = (debian.folder / "usr/bin/python3").readlink().name.removeprefix("python")
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(EPOCH_S))
    try:
        ours = build.wheel(folder)
        house = build.wheelhouse(folder / "house", f"{ours}[server]", python)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no package index here, or it has not all for Python {python}: {error}")
    shutil.rmtree(folder / "source")
    return build.bundle(folder, {python: house}, build.pages(EPOCH_S), EPOCH_S), house
