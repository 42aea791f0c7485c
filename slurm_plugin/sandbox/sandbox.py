"""A real Slurm cluster in one folder, up in seconds and gone without a trace.

munged, MariaDB, slurmdbd, slurmctld and one slurmd for each node run on this machine with ports and sockets of their
own. Nothing is read from or written to /etc/slurm, and a Slurm that runs here already is not touched.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from slurm_plugin import versions
from slurm_plugin.sandbox import daemons, files, packages, processes, register
from slurm_plugin.sandbox.layout import Layout
from slurm_plugin.sandbox.spec import SandboxSpec
from slurm_plugin.sandbox.userland import SEARCH_PATH, Userland
from tapfinger_hpc.errors import SandboxError

_FIELD = re.compile(r"(?:^|(?<=\s))([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|$)")
_REST_OF_LINE = re.compile(r"(?:^|(?<=\s))(JobName|\w*Comment|Command|WorkDir|Std\w+)=(.*)$")
"""Fields that stand last on their line and may hold anything a user typed."""


class Sandbox:
    """A running throw-away cluster.

    As a context manager it is taken down at the end of the block; and where the process is killed before that, by the
    next sandbox that starts on this machine.
    """

    def __init__(self, directory: Path, manifest: files.Manifest) -> None:
        self.directory = directory
        self.layout = Layout(directory)
        self.spec = manifest.spec
        self.cluster = manifest.cluster
        """Slurm's name of the cluster."""
        self.ports = manifest.ports
        self.up_s: Mapping[str, float] = {}
        """Seconds that each daemon's start took; empty where another process started it."""
        self._userland = Userland(self.spec.release)
        self._daemons = daemons.Daemons(self.layout, self.spec, self.ports)
        self._crashed = False

    @classmethod
    def up(cls, spec: SandboxSpec | None = None, directory: Path | None = None) -> Self:
        """Starts a cluster in this folder (a new one in the temporary folder by default).

        What was started is ended, and what was written removed, where the start fails or is interrupted.

        Raises:
            SandboxError: no root, no Slurm, the folder cannot be used, or a daemon did not come up.
        """
        spec = spec or SandboxSpec()
        if reason := packages.why_not(Userland(spec.release), accounting=spec.accounting):
            raise SandboxError(f"starting a sandbox: {reason}")
        _remove_orphans()
        cluster = f"tf{secrets.token_hex(4)}"
        made: Path | None = None
        try:
            with _uninterrupted():
                made = files.make_directory(directory or Path(tempfile.mkdtemp(prefix="tapfinger-sandbox-")))
            files.check_directory(made)
            block = register.claim(made, spec.nodes)
            manifest = files.Manifest(cluster=cluster, first_port=block.first, port_count=block.count, spec=spec)
            sandbox = cls(made, manifest)
            files.write_manifest(sandbox.layout, manifest)
            files.write_all(sandbox.layout, manifest, daemons.slurm_version(Userland(spec.release)))
            sandbox.up_s = sandbox._daemons.start_all()
            register.untie(made)
        except BaseException:
            if made is not None:
                _remove(made, cluster)
            raise
        return sandbox

    @classmethod
    def attach(cls, directory: Path) -> Self:
        """The sandbox that was started in this folder.

        Raises:
            SandboxError: there is none.
        """
        directory = Path(os.path.realpath(directory))
        return cls(directory, files.read_manifest(Layout(directory)))

    @classmethod
    def end(cls, directory: Path) -> bool:
        """Ends the sandbox of this folder, also where all or much of it was removed by hand; False where there is none.

        Raises:
            SandboxError: the folder holds something else, or a sandbox of another user.
        """
        directory = Path(os.path.realpath(directory))
        # A daemon may have written into the folder while it was removed.
        removed_by_hand = not Layout(directory).manifest.exists() and processes.of_sandbox(directory, cluster="")
        if removed_by_hand:
            _remove(directory, cluster="")
        elif directory.exists():
            cls.attach(directory).down()
        else:
            return False
        return True

    def down(self) -> None:
        """Ends every process of the sandbox, with the jobs, and removes its folder. Twice is no error."""
        _remove(self.directory, self.cluster)

    def __enter__(self) -> Self:
        register.tie(self.directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()

    # Using it.

    @property
    def slurm_conf(self) -> Path:
        """For SLURM_CONF or slurm.conf in tapfinger.toml."""
        return self.layout.slurm_conf

    @property
    def tapfinger_toml(self) -> Path:
        """Configuration of agent and server for this sandbox."""
        return self.layout.tapfinger_toml

    @property
    def env(self) -> dict[str, str]:
        """Environment in which every Slurm command means this sandbox."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SALLOC", "SRUN"))}
        ours = [str(self.layout.commands)] if self.spec.release else []
        folders = [*ours, *kept.get("PATH", "").split(os.pathsep), *SEARCH_PATH.split(os.pathsep)]
        path = os.pathsep.join(dict.fromkeys(folder for folder in folders if folder))
        return {**kept, "PATH": path, "SLURM_CONF": str(self.slurm_conf)}

    def run(
        self,
        *arguments: str,
        timeout_s: float = 60,
        as_user: str | None = None,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the sandbox's environment, in its folder for jobs, as root or as another user.

        Raises:
            SandboxError: it failed (unless ``check`` is false) or took too long.
        """
        doing = f"running {' '.join(arguments)!r} in the sandbox {self.directory}"
        environment = self.env
        if as_user:
            environment |= {"HOME": str(self.layout.jobs), "USER": as_user, "LOGNAME": as_user}
        try:
            ended = subprocess.run(
                [
                    *self._userland.prefix(self.layout.munge_pid),
                    *(self._as_user(as_user) if as_user else ()),
                    *arguments,
                ],
                input=stdin or "",
                capture_output=True,
                text=True,
                env=environment,
                cwd=self.layout.jobs,
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise SandboxError(f"{doing}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"{doing}: no end within {timeout_s:g} s") from error
        if check and ended.returncode:
            raise SandboxError(f"{doing}: ended with {ended.returncode}: {(ended.stderr or ended.stdout).strip()}")
        return ended

    def submit(self, script: str, *arguments: str, as_user: str | None = None) -> int:
        """Submits a batch script with these options of sbatch; the job's id. Output lands in the folder for jobs."""
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        ended = self.run("sbatch", "--parsable", *arguments, stdin=text, as_user=as_user)
        return int(ended.stdout.strip().splitlines()[-1].split(";")[0])

    def job(self, job_id: int | str) -> dict[str, str]:
        """Fields of ``scontrol show job``; of an array the first record."""
        records = self.jobs(job_id)
        if not records:
            raise SandboxError(f"job {job_id} is not known to slurmctld (any more)")
        return records[0]

    def jobs(self, job_id: int | str | None = None) -> tuple[dict[str, str], ...]:
        """Fields of all records of this job, or of all jobs that slurmctld knows; TRES is there in every release."""
        wanted = [] if job_id is None else [str(job_id)]
        records = parse_records(self.run("scontrol", "show", "job", *wanted).stdout, "JobId")
        for record in records:
            found = (record.get(key, "") for key in versions.TRES_OF_A_JOB)
            record["TRES"] = next((tres for tres in found if tres not in ("", "(null)")), "")
        return records

    def node(self, name: str) -> dict[str, str]:
        """Fields of ``scontrol show node``."""
        return parse_records(self.run("scontrol", "show", "node", self._known(name)).stdout, "NodeName")[0]

    def output(self, job_id: int | str) -> str:
        """What a job wrote to Slurm's standard output file; "" before it wrote anything."""
        with contextlib.suppress(FileNotFoundError):
            return (self.layout.jobs / f"slurm-{job_id}.out").read_text(encoding="utf-8", errors="replace")
        return ""

    def wait_for(self, predicate: Callable[[], object], timeout_s: float = 60, what: str = "") -> None:
        """Returns as soon as the predicate is true; looks ten times a second.

        Raises:
            SandboxError: not within the time; says what was waited for and shows the queue.
        """
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() > deadline:
                queue = self.run("squeue", "--all", "--format=%i %P %T %r %R %S", check=False).stdout.strip()
                waited = f"waiting for {what or predicate!r}: not within {timeout_s:g} s"
                raise SandboxError(f"{waited}; the queue of the sandbox {self.directory}:\n{queue}")
            time.sleep(0.1)

    def wait_state(self, job_id: int | str, *states: str, timeout_s: float = 60) -> dict[str, str]:
        """Waits until the job is in one of these states (RUNNING, COMPLETED and so on); its fields then."""
        seen: dict[str, str] = {}

        def reached() -> bool:
            seen.update(self.job(job_id))
            return seen["JobState"] in states

        self.wait_for(reached, timeout_s, what=f"job {job_id} to be {' or '.join(states)}")
        return seen

    def running(self) -> dict[str, int]:
        """Name and pid of each daemon that is running, as ``slurmctld`` or ``slurmd.n1``."""
        return self._daemons.running()

    def missing(self) -> tuple[str, ...]:
        """Daemons that should be running and are not."""
        running = self.running()
        return tuple(name for name in self._daemons.names() if name not in running)

    def slurm_version(self) -> versions.Version:
        """Year and month: (22, 5)."""
        return daemons.slurm_version(self._userland)

    # Failures, for tests.

    def kill_slurmctld(self) -> None:
        """SIGKILL, as a crash: what it had not written down is lost."""
        self._crashed = True
        self._daemons.end("slurmctld", signal.SIGKILL)

    def stop_slurmctld(self) -> None:
        """SIGTERM, as an administrator does: it saves its state."""
        self._daemons.end("slurmctld", signal.SIGTERM)

    def start_slurmctld(self) -> None:
        """Starts slurmctld with the state it left, and waits until it answers."""
        self._daemons.start_slurmctld()

    def stop_slurmd(self, node: str) -> None:
        """Kills a node's slurmd; its jobs run on. Slurm marks it down after SlurmdTimeout, set_node does so at once."""
        self._daemons.end(f"slurmd.{self._known(node)}", signal.SIGKILL)

    def start_slurmd(self, node: str) -> None:
        """Starts a node's slurmd again."""
        self._daemons.start_slurmd(self._known(node))

    def set_node(self, node: str, state: Literal["down", "drain", "resume"]) -> None:
        """What an administrator does with a node."""
        reason = [] if state == "resume" else ["reason=sandbox"]
        self.run("scontrol", "update", f"nodename={self._known(node)}", f"state={state}", *reason)

    def reset(self, timeout_s: float = 90) -> None:
        """Makes the cluster as after ``up`` but for its job ids: no job, all nodes idle, all daemons running.

        After a crash of slurmctld job ids go on from a higher number.

        Files that agent, server and hook left in the folder for them are removed; end these first.
        """
        if self._crashed or "slurmctld" in self.missing():
            self._forget_jobs()
        self.start_slurmctld()
        for node in self.spec.node_names():
            self.start_slurmd(node)
        deadline = time.monotonic() + timeout_s
        while unfinished := self._tidy():
            if time.monotonic() > deadline:
                still = ", ".join(unfinished)
                raise SandboxError(
                    f"resetting the sandbox {self.directory}: still there after {timeout_s:g} s: {still}"
                )
            time.sleep(0.1)
        processes.end_jobs(self.directory, self.cluster)
        for file in self.layout.tapfinger.iterdir():
            file.unlink()
        files.write_agent_files(self.layout, self.spec)

    def _forget_jobs(self) -> None:
        """After a crash: what slurmctld and each slurmd remember of jobs need not agree. Ends all of these daemons.

        slurmds are quicker started again than found by a new slurmctld.
        """
        self.stop_slurmctld()
        for node in self.spec.node_names():
            self.stop_slurmd(node)
        processes.end_jobs(self.directory, self.cluster)
        files.raise_first_job_id(self.layout)
        self._crashed = False

    def _tidy(self) -> tuple[str, ...]:
        """Cancels jobs, resumes nodes and opens partitions; what is still to be waited for."""
        queued = self.run("squeue", "--noheader", "--all", "--format=%A").stdout.split()
        if queued:
            self.run("scancel", *dict.fromkeys(queued), check=False)
        busy = []
        for line in self.run("sinfo", "--noheader", "--Node", "--all", "--format=%N %R %a %T").stdout.splitlines():
            node, partition, availability, state = line.split()
            if availability != "up":
                self.run("scontrol", "update", f"partitionname={partition}", "state=up")
            if state.startswith(("down", "drain", "fail")):
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            if state != "idle" or availability != "up":
                busy.append(f"{node} {state}")
        return (*(f"job {job}" for job in queued), *dict.fromkeys(busy))

    def _as_user(self, user: str) -> list[str]:
        return processes.as_user(user, str(self._userland.owner(user)[1]))

    def _known(self, node: str) -> str:
        if node not in self.spec.node_names():
            raise SandboxError(f"node {node!r}: this sandbox has {', '.join(self.spec.node_names())}")
        return node


def parse_records(text: str, key: str) -> tuple[dict[str, str], ...]:
    """Blocks of ``Key=value`` that scontrol prints, one for each record; a value may hold blanks, as a comment does."""
    blocks = (block for block in re.split(r"\n\s*\n", text) if block.lstrip().startswith(f"{key}="))
    return tuple(_fields(block) for block in blocks)


def _fields(block: str) -> dict[str, str]:
    fields = {}
    for line in block.splitlines():
        last = _REST_OF_LINE.search(line)
        if last:
            fields[last[1]] = last[2].strip()
            line = line[: last.start()]
        fields |= {name: value.strip() for name, value in _FIELD.findall(line)}
    return fields


def _remove(directory: Path, cluster: str) -> None:
    """No process, then no file, then no entry in the register; a second Ctrl-C has to wait for it."""
    with _uninterrupted():
        processes.end_all(directory, cluster)
        if directory.exists():
            shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():  # somebody's open file on a network file system, or a mount
            left = ", ".join(sorted(str(path) for path in directory.rglob("*"))[:3])
            raise SandboxError(f"ending the sandbox: {directory} cannot be removed ({left}); remove it by hand")
        register.release(directory)


def _remove_orphans() -> None:
    """Ends sandboxes whose process was killed before it could."""
    for entry in register.entries():
        if entry.is_orphan():
            cluster = ""
            with contextlib.suppress(SandboxError):  # killed before it was written, or another process is faster
                cluster = files.read_manifest(Layout(entry.directory)).cluster
            _remove(entry.directory, cluster)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keeps Ctrl-C and a polite kill waiting until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
