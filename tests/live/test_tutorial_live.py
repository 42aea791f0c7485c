"""The tutorial as its reader runs it: every block of commands, in order, in one bash, on a real sandbox.

With --slurm-release two things differ, as docs/compatibility.md tells its reader: which Slurm `up` starts, and PATH.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_plugin.sandbox import Sandbox

pytestmark = pytest.mark.slurm

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
STARTS = "tapfinger sandbox up --dir lab"
LONGEST_S = 270
"""Some two minutes where the server's policies are compiled already."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the daemons' users get through, as they do not through pytest's own."""
    with tempfile.TemporaryDirectory(prefix="tapfinger-tutorial-") as made:
        Path(made).chmod(0o755)
        try:
            yield Path(made)
        finally:
            Sandbox.end(Path(made) / "lab")


def test_the_commands_of_the_tutorial_run(release: str, folder: Path) -> None:
    status, said = ran(folder, release)
    assert status == 0, said
    assert "would place it on" in said
    assert re.search(r"^watched: .*^enforced: ", said, re.MULTILINE | re.DOTALL), said
    assert re.search(r"Placement of .*: the job started", said), said
    assert not (folder / "lab").exists()


def ran(folder: Path, release: str) -> tuple[int, str]:
    """The exit status of all blocks, and what they said."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = "\n".join(blocks)
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if release:
        assert STARTS in commands
        commands = commands.replace(STARTS, f"{STARTS} --release {release}")
        path.insert(0, f"{folder}/lab/commands")
    said = folder / "said.txt"
    with said.open("w") as output:
        bash = subprocess.Popen(
            ("bash", "-ec", commands),
            cwd=folder,
            env={**os.environ, "PATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = bash.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the tutorial is not done after {LONGEST_S} s; so far: {said.read_text()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(bash.pid, signal.SIGKILL)
            bash.wait()
    return status, said.read_text()
