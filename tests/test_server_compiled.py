"""Where the server keeps compiled policies: beside the package, or where its own user alone may write."""

import logging
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import tapfinger_hpc
from policy_server import compiled


def package(folder: Path, *, writable: bool) -> Path:
    """A package of one module. A file in place of its cache folder keeps everyone out, root too."""
    made = folder / "package"
    made.mkdir()
    (made / "module.py").touch()
    if not writable:
        (made / "__pycache__").touch()
    return made


def settled(folder: Path, beside: Path, **environment: str) -> str | None:
    """NUMBA_CACHE_DIR while the server runs."""
    with ExitStack() as until_the_end:
        compiled.settle(environment, folder, until_the_end, beside)
        kept = environment.get("NUMBA_CACHE_DIR")
        assert kept is None or Path(kept).is_dir()
    return kept


def test_what_is_compiled_stays_beside_a_package_that_can_be_written(tmp_path: Path) -> None:
    assert settled(tmp_path / "cache", package(tmp_path, writable=True)) is None
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_the_environment_names_is_left_alone(tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    assert settled(tmp_path / "cache", package(tmp_path, writable=False), NUMBA_CACHE_DIR=str(named)) == str(named)


def test_otherwise_it_is_the_configured_folder_which_is_made_for_oneself_alone(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "cache"
    assert settled(folder, package(tmp_path, writable=False)) == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_in_which_others_may_write_is_not_used_and_the_log_says_so(tmp_path: Path, caplog) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        kept = settled(folder, package(tmp_path, writable=False))
    assert kept != str(folder)
    assert not Path(kept or "").exists(), "what stood in for it goes away with the server"
    assert "others may write" in caplog.text
    assert "server.compiled" in caplog.text


def test_a_folder_that_cannot_be_made_is_not_used_either(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    assert settled(tmp_path / "file" / "cache", package(tmp_path, writable=False)) is not None
    assert "Not a directory" in caplog.text


@pytest.mark.slow
def test_a_server_whose_package_cannot_be_written_answers_and_keeps_what_it_compiled(tmp_path: Path) -> None:
    root = Path(tapfinger_hpc.__file__).parents[1]
    for room in ("tapfinger_hpc", "policy_server"):
        shutil.copytree(root / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
        (tmp_path / room / "__pycache__").touch()
    toml = tmp_path / "tapfinger.toml"
    toml.write_text(
        f'[server]\nsocket = "{tmp_path}/s.sock"\npolicy = "price"\nfallback = "min"\ncompiled = "{tmp_path}/kept"\n'
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tapfinger_hpc.cli", "serve", "--config", str(toml)],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path), "HOME": "/nowhere"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stderr is not None
        assert "event=compiling policy=price" in server.stderr.readline()
        assert server.stdout.readline().startswith("policy price (ok)")
    finally:
        server.terminate()
        server.wait(30)
    assert list((tmp_path / "kept").rglob("*.nbi"))
