"""Agents for the live tests: the real loop in this process with scripted answers, or processes of their own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from slurm_plugin import versions
from slurm_plugin.agent import Agent
from slurm_plugin.classes import ClassesFile
from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.ended import Endings
from slurm_plugin.events import WakeClock
from slurm_plugin.journal import Journal
from slurm_plugin.naming import Names
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc import config
from tapfinger_hpc.config import Config, ServerConfig
from tapfinger_hpc.decision import Decision, Placement
from tapfinger_hpc.state import ClusterState, PendingJob, Resources
from tapfinger_hpc.wire import DecideResponse, PolicyInfo

USER = "nobody"
PRIMED = "tapfinger gpus=0-4 cpus=1-16 mem=1G-32G"

COMPILING_S = 200
"""A server that is the first with a policy compiles it: half a minute on a core of its own, minutes on a busy one."""

REPORT = """#!/bin/bash
echo batch cpus=$SLURM_CPUS_ON_NODE gpus=${SLURM_GPUS_ON_NODE:-0} node=$SLURMD_NODENAME
srun --ntasks=1 bash -c 'echo step gpus=$(echo $CUDA_VISIBLE_DEVICES | tr , "\\n" | grep -c .)'
sleep ${1:-0}
"""


def settings(box: Sandbox, folder: Path, **agent: object) -> Config:
    """The sandbox's configuration with a journal of the test's own."""
    read = config.load(box.tapfinger_toml)
    fields = {"journal": str(folder / "journal.sqlite"), "disable_file": str(folder / "disabled"), "wake_socket": ""}
    # A dead slurmctld is to be noticed soon.
    return replace(read, agent=replace(read.agent, **(fields | agent)), slurm=replace(read.slurm, timeout_s=3.0))


class Script:
    """Answers like a policy server: each job of ``places`` gets its place once it is asked about, the others wait."""

    def __init__(self) -> None:
        self.places: dict[str, Placement] = {}
        self.asked: list[ClusterState] = []
        self.reason = "scripted"

    def place(self, job_id: object, node: str, amounts: Resources, partition: str = "pa") -> None:
        self.places[str(job_id)] = Placement(partition, node, amounts)

    def __call__(self, state: ClusterState) -> DecideResponse:
        self.asked.append(state)
        ours = [job for job in state.pending if job.managed and job.eligible]
        decisions = [self._decision(job) for job in sorted(ours, key=lambda job: job.job_id not in self.places)]
        return DecideResponse(f"answer-{len(self.asked)}", PolicyInfo("script"), tuple(decisions))

    def _decision(self, job: PendingJob) -> Decision:
        return Decision(job.job_id, job.submit_time_s, self.places.get(job.job_id), self.reason)


class LiveAgent:
    """The real loop on the real cluster, one cycle at a time."""

    def __init__(
        self,
        box: Sandbox,
        folder: Path,
        decide: Callable | None = None,
        classes: ClassesFile | None = None,
        **agent: object,
    ) -> None:
        self.box = box
        self.config = settings(box, folder, **agent)
        self.script = decide or Script()
        self.cluster = SlurmCluster.from_config(self.config)
        self.clock = WakeClock(None)
        self.journal = Journal.open(Path(self.config.agent.journal))
        names = Names(self.cluster.names)
        self.agent = Agent(
            self.cluster,
            self.clock,
            self.script,
            self.journal,
            self.config.agent,
            classes=classes,
            names=names,
            endings=Endings(self.cluster.find, self.journal, names),
        )
        self.agent.cycle()

    def until(self, predicate: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        """Cycles until the predicate holds."""

        def looked() -> object:
            self.agent.cycle()
            return predicate()

        self.box.wait_for(looked, timeout_s, what)

    def pending(self, job_id: object) -> PendingJob | None:
        """The job as the cluster shows it."""
        return next((job for job in self.cluster.observe().pending if job.job_id == str(job_id)), None)

    def fates(self, job_id: object) -> list[str]:
        """What became of each placement of the job."""
        return [intent.state for intent in self.journal.history(str(job_id)).intents]

    def notes(self, job_id: object) -> list[tuple[str, str]]:
        return [(note.kind, note.text) for note in self.journal.history(str(job_id)).notes]

    def refusals(self, job_id: object) -> list[str]:
        return [told.refused for told in self.journal.history(str(job_id)).told if told.refused]

    def close(self) -> None:
        self.agent.leave()
        self.journal.close()
        self.clock.close()


@contextlib.contextmanager
def live_agent(box: Sandbox, folder: Path, decide: Callable | None = None, **agent: object) -> Iterator[LiveAgent]:
    started = LiveAgent(box, folder, decide, **agent)
    try:
        yield started
    finally:
        started.close()


def is_running(box: Sandbox, job_id: object) -> bool:
    return box.job(str(job_id))["JobState"] in ("RUNNING", "COMPLETING", "COMPLETED")


def gpus_come_and_go(box: Sandbox) -> bool:
    """Whether this Slurm can leave a job that asked for GPUs without any, and take its first ones back."""
    return versions.of(box.slurm_version()).gpus_come_and_go


def request(box: Sandbox, job_id: object) -> dict[str, str]:
    """A job's record without what Slurm notes in it by itself whenever it looks at the job."""
    noted = ("Reason", "LastSchedEval", "Scheduler", "AccrueTime")
    return {name: value for name, value in box.job(str(job_id)).items() if name not in noted}


# Processes.


@contextlib.contextmanager
def process(box: Sandbox, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A ``tapfinger`` command as a process of its own; killed at the end of the block where it still lives."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "tapfinger_hpc.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=box.env,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.terminate()
            try:
                started.wait(timeout=20)
            except subprocess.TimeoutExpired:
                started.kill()
        started.wait()


def command(box: Sandbox, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a ``tapfinger`` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tapfinger_hpc.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=box.env,
        timeout=timeout_s,
        check=False,
    )


def hook_mode(box: Sandbox) -> str:
    """What the agent's sign of life says now; "" without one."""
    try:
        return box.layout.hook_file.read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return ""


def in_charge(box: Sandbox, *processes: subprocess.Popen[bytes]) -> None:
    """Waits until the agent has its server's answers; the test fails at once where one of these processes ends."""

    def leads() -> bool:
        ended = [each.args for each in processes if each.poll() is not None]
        assert not ended, f"it ended: {ended}"
        return hook_mode(box) == "enforce"

    soon(leads, "the agent to be in charge", timeout_s=COMPILING_S)


def write_toml(path: Path, sections: Mapping[str, Mapping[str, object]]) -> Path:
    """A tapfinger.toml of these values."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [
            f"{key} = {value if isinstance(value, int | float) else repr(value)}" for key, value in values.items()
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def toml_for(box: Sandbox, folder: Path, **agent: object) -> Path:
    """A configuration file for processes, with the server's socket and the journal in the test's folder."""
    read = settings(box, folder, **agent)
    made: dict[str, dict[str, object]] = {
        "server": {"socket": str(folder / "server.sock"), "timeout_s": 2.0},
        "agent": {
            "mode": read.agent.mode,
            "lease_s": read.agent.lease_s,
            "journal": read.agent.journal,
            "disable_file": read.agent.disable_file,
            "hook_file": read.agent.hook_file,
            "wake_socket": str(box.layout.wake_socket),
        },
        "slurm": {"conf": read.slurm.conf, "bin_dir": read.slurm.bin_dir, "timeout_s": read.slurm.timeout_s},
    }
    return write_toml(folder / "tapfinger.toml", made)


def server_config(folder: Path, timeout_s: float = 0.5) -> ServerConfig:
    return ServerConfig(socket=str(folder / "server.sock"), timeout_s=timeout_s)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def from_now_on() -> int:
    """The next second, once it has come: nothing in accounting that ends since then is of the test before."""
    begun_s = int(time.time()) + 1
    time.sleep(max(0.0, begun_s - time.time()))
    return begun_s


def touch_later(script: Path) -> None:
    """slurmctld reads its script again when the script's time is a later one, in whole seconds."""
    loaded_s = int(script.stat().st_mtime)
    soon(lambda: int(time.time()) > loaded_s, "a later second than the script's")
    script.touch()


def soon(predicate: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    """Waits for something that is no matter of Slurm."""
    until_s = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < until_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
