"""The offline bundle, as `make dist` makes it, for tests that install from it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from release import build

PYTHON = "3.11"
"""Debian 12's."""
EPOCH_S = 1_795_000_000


def make(folder: Path) -> tuple[Path, Path]:
    """The bundle, and the wheels that are in it; skips the test where there is no package index."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(EPOCH_S))
    try:
        ours = build.wheel(folder)
        house = build.wheelhouse(folder / "house", f"{ours}[server]", PYTHON)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no package index here: {error}")
    shutil.rmtree(folder / "source")
    return build.bundle(folder, {PYTHON: house}, build.pages(EPOCH_S), EPOCH_S), house
