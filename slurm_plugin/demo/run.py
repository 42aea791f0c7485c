"""Runs the demo: both clusters side by side at the same time, or, where Slurm is not to be had, both simulated."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from slurm_plugin.client import PolicyClient
from slurm_plugin.demo.side import Side
from slurm_plugin.demo.view import Progress
from slurm_plugin.sandbox.sandbox import Sandbox
from slurm_plugin.sandbox.spec import SandboxSpec
from tapfinger_hpc import config
from tapfinger_hpc.errors import ServerError, SlurmError
from tapfinger_hpc.policies import registry
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace

CLUSTER = SandboxSpec(nodes=6, partitions=3, gpus=4, cpus=16, memory_mb=64000, accounting=False)
"""The demo's cluster. Without accounting, as nothing here reads it and two databases would take the processors."""

GPUS = CLUSTER.nodes * CLUSTER.gpus

READY_S = 300.0
"""A server that has nothing compiled yet takes a minute of one core to be ready, and cores may be shared."""
LONGEST_S = 900.0
"""The demo gives up after this: it takes some three minutes."""

Records = tuple[tuple[JobRecord, ...], tuple[JobRecord, ...]]
"""Of all jobs on stock Slurm, and with TapFinger."""

Watcher = Callable[[tuple[Progress, Progress], float, str], None]
"""Called once a second with both sides, the elapsed seconds, and what else to try meanwhile."""


def on_slurm(trace: Trace, known: tuple[JobClass, ...], policy: str, watch: Watcher, *, release: str = "") -> Records:
    """Runs the trace on two real clusters at once.

    Args:
        trace: the jobs and the true speed of their classes, which only the jobs themselves read.
        known: what TapFinger is told of the classes.
        policy: name of the policy that the server runs.
        watch: shows both sides.
        release: Debian release whose Slurm both are; "" is that of this machine.
    """
    cluster = replace(CLUSTER, release=release)
    with contextlib.ExitStack() as stack:
        stock_box = stack.enter_context(Sandbox.up(replace(cluster, hook=False)))
        box = stack.enter_context(Sandbox.up(cluster))
        box.layout.classes_file.write_bytes(msgspec.json.encode(known))
        stack.enter_context(tapfinger_running(box, policy))
        sides = (Side("stock Slurm", stock_box, trace), Side("TapFinger", box, trace))
        started_s = time.time() + 1.0
        for side in sides:
            side.start(started_s)
            stack.callback(side.stop)
        _until_done(sides, started_s, watch, _hint(box))
        return sides[0].records(), sides[1].records()


@contextlib.contextmanager
def tapfinger_running(box: Sandbox, policy: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Policy server and agent as processes of their own, both ready; ended with the block.

    Yields:
        the processes by name, ``serve`` and ``agent``.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    toml = str(box.tapfinger_toml)
    try:
        running["serve"] = _start(box, "serve", "--config", toml, "--policy", policy)
        client = PolicyClient.from_config(config.load(box.tapfinger_toml))
        _wait_until(running, box, "serve", lambda: _answers(client))
        running["agent"] = _start(box, "agent", "--config", toml)
        _wait_until(running, box, "agent", lambda: "enforce" in _text(box.layout.hook_file))
        yield running
    finally:
        for process in reversed(running.values()):
            process.terminate()
        for process in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
            process.wait()


def simulated(trace: Trace, known: tuple[JobClass, ...], policy: str) -> Records:
    """The same on the simulated cluster, in event time: no server and no agent, but their loop and the same guard."""
    return replay(trace, shape()), replay(trace, shape(), registry.make(policy), classes=known)


def shape() -> ClusterSpec:
    """The demo's cluster as the simulator describes it."""
    each = CLUSTER.nodes // CLUSTER.partitions
    return ClusterSpec.uniform(CLUSTER.partitions, each, Resources(CLUSTER.cpus, CLUSTER.gpus, CLUSTER.memory_mb))


def _until_done(sides: tuple[Side, Side], started_s: float, watch: Watcher, hint: str) -> None:
    while True:
        progress = (sides[0].look(), sides[1].look())
        elapsed_s = max(0.0, time.time() - started_s)
        watch(progress, elapsed_s, hint)
        if all(side.done == side.jobs for side in progress):
            return
        if elapsed_s > LONGEST_S:
            raise SlurmError(
                f"demo: not done after {LONGEST_S:.0f} s: "
                + ", ".join(f"{side.done} of {side.jobs} jobs on {side.title}" for side in progress)
            )
        time.sleep(1.0)


def _start(box: Sandbox, *arguments: str) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process alone, which then ends its children in order.
    with _log(box, arguments[0]).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tapfinger_hpc.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=box.env,
            start_new_session=True,
        )


def _wait_until(
    running: dict[str, subprocess.Popen[bytes]], box: Sandbox, name: str, ready: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if running[name].poll() is not None or time.monotonic() > deadline:
            raise ServerError(f"starting tapfinger {name}: it is not ready; it said: {_text(_log(box, name))[-800:]}")
        time.sleep(0.1)


def _hint(box: Sandbox) -> str:
    return f"Meanwhile: tapfinger status --config {box.tapfinger_toml}   (and: tapfinger explain JOBID --config ...)"


def _answers(client: PolicyClient) -> bool:
    try:
        client.health()
    except ServerError:
        return False
    return True


def _log(box: Sandbox, name: str) -> Path:
    return box.layout.tapfinger / f"{name}.log"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
