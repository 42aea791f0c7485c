"""The demo on real clusters: what is seen while it runs, and that Ctrl-C leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from slurm_plugin.demo import run
from slurm_plugin.sandbox import Sandbox
from slurm_plugin.sandbox.spec import SandboxSpec
from tapfinger_hpc import workload
from tapfinger_hpc.state import PendingJob, Resources
from tapfinger_hpc.trace import Trace, TraceJob

pytestmark = pytest.mark.slurm


def tapfinger(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tapfinger_hpc.cli", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def processes_of(folder: str) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in text:
            found.append(text)
    return found


@pytest.fixture
def folder():
    """A short path, as Unix sockets want one, in which only this demo makes its clusters."""
    with tempfile.TemporaryDirectory(prefix="tf") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_ctrl_c_leaves_no_process_and_no_file_behind(folder, release):
    of = ["--release", release] if release else []
    demo = subprocess.Popen(
        [sys.executable, "-m", "tapfinger_hpc.cli", "demo", "--policy", "price", *of],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 90
    while len([path for path in folder.iterdir() if (path / "jobs" / "records").exists()]) < 2:
        assert demo.poll() is None, demo.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(5)  # into the stream of jobs
    assert processes_of(str(folder))
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, said
    assert processes_of(str(folder)) == []
    assert list(folder.iterdir()) == []


def test_a_job_that_outlives_its_time_limit_is_reported_as_such(release):
    classes = workload.demo_trace(seed=0).classes
    asked = Resources(4, 1, 16000)
    job = PendingJob(
        job_id="slow",
        submit_time_s=0,
        partitions=("pa",),
        requested=asked,
        minimum=asked,
        maximum=asked,
        job_class=classes[0].name,
        time_limit_s=60,
        managed=True,
    )
    trace = Trace("one slow job", classes, (TraceJob(job, scale=100.0),))
    stock, ours = run.on_slurm(trace, classes, "price", lambda sides, elapsed_s, hint: None, release=release)
    assert stock[0].outcome == ours[0].outcome == "TIMEOUT"


def test_status_and_explain_work_while_server_and_agent_run(release):
    with Sandbox.up(SandboxSpec(accounting=False, release=release)) as box, run.tapfinger_running(box, "price"):
        job_id = box.submit("sleep 5", "--gres=gpu:1", "--time=1", "--comment=tapfinger gpus=1-4 class=unknown")
        box.wait_state(job_id, "RUNNING")
        status = tapfinger("status", "--config", str(box.tapfinger_toml))
        assert status.returncode == 0, status.stderr
        assert "enforce" in status.stdout
        assert "price" in status.stdout
        explained = tapfinger("explain", str(job_id), "--config", str(box.tapfinger_toml))
        assert explained.returncode == 0, explained.stderr
        assert "n" in explained.stdout and "GPU" in explained.stdout
