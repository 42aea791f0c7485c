"""A real Slurm cluster in one folder, up in seconds and gone without a trace.

munged, MariaDB, slurmdbd, slurmctld and one slurmd for each node run on this machine with ports and sockets of their
own. Nothing is read from or written to /etc/slurm, and a Slurm that runs here already is not touched.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from slurm_plugin.sandbox import conf, packages, ports, processes
from slurm_plugin.sandbox.layout import Layout
from slurm_plugin.sandbox.spec import SandboxSpec
from tapfinger_hpc.errors import SandboxError

_START_TIMEOUT_S = 60.0
"""For each daemon. Each is ready within a second; a machine that is busy with other things needs longer."""

_LUA = Path(__file__).parents[1] / "lua"
_FIELD = re.compile(r"(?:^|\s)([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|$)", re.MULTILINE)


class Sandbox:
    """A running throw-away cluster. As a context manager it is taken down at the end of the block."""

    def __init__(self, directory: Path, spec: SandboxSpec, block: ports.PortBlock, cluster: str) -> None:
        self.directory = directory
        self.spec = spec
        self.ports = block
        self.cluster = cluster
        self.layout = Layout(directory)
        self.up_s: dict[str, float] = {}
        """How long each part of the start took."""

    @classmethod
    def up(cls, spec: SandboxSpec | None = None, directory: Path | None = None) -> Self:
        """Starts a cluster in this folder (a new one in the temporary folder by default).

        What was started is ended, and what was written removed, where the start fails or is interrupted.

        Raises:
            SandboxError: no root, no Slurm, the folder cannot be used, or a daemon did not come up.
        """
        spec = spec or SandboxSpec()
        if reason := packages.why_not(accounting=spec.accounting):
            raise SandboxError(f"starting a sandbox: {reason}")
        directory = _new_directory(directory)
        cluster = f"tf{secrets.token_hex(4)}"
        try:
            Layout(directory).check_length()
            _check_reachable(directory)
            sandbox = cls(directory, spec, ports.claim(directory, spec.nodes), cluster)
            sandbox._write_files()
            sandbox._start_all()
        except BaseException:
            _remove(directory, cluster)
            raise
        return sandbox

    @classmethod
    def attach(cls, directory: Path) -> Self:
        """The sandbox that was started in this folder.

        Raises:
            SandboxError: there is none.
        """
        directory = Path(directory).resolve()
        manifest = Layout(directory).manifest
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            fields = {name: tuple(v) if isinstance(v, list) else v for name, v in content["spec"].items()}
            block = ports.PortBlock(content["first_port"], content["port_count"])
            return cls(directory, SandboxSpec(**fields), block, content["cluster"])
        except FileNotFoundError:
            raise SandboxError(
                f"no sandbox in {directory}: start one with: tapfinger sandbox up --dir {directory}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SandboxError(f"sandbox in {directory}: {manifest.name} cannot be read: {error}") from error

    def down(self) -> None:
        """Ends every process of the sandbox, with the jobs, and removes its folder. Twice is no error."""
        _remove(self.directory, self.cluster)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()

    # What others need to use it.

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
        path = os.pathsep.join(dict.fromkeys([*kept.get("PATH", "").split(os.pathsep), *packages.SEARCH_PATH.split(":")]))
        return {**kept, "PATH": path.lstrip(os.pathsep), "SLURM_CONF": str(self.slurm_conf)}

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
        environment = self.env
        command = list(arguments)
        if as_user:
            command = ["setpriv", f"--reuid={as_user}", f"--regid={_group_of(as_user)}", "--init-groups", *command]
            environment |= {"HOME": str(self.layout.jobs), "USER": as_user, "LOGNAME": as_user}
        said = " ".join(arguments)
        try:
            ended = subprocess.run(
                command,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                env=environment,
                cwd=self.layout.jobs,
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise SandboxError(f"running {said!r} in the sandbox {self.directory}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"running {said!r} in the sandbox: no end within {timeout_s:g} s") from error
        if check and ended.returncode:
            raise SandboxError(
                f"running {said!r} in the sandbox ended with {ended.returncode}: {(ended.stderr or ended.stdout).strip()}"
            )
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
        """Fields of all records of this job, or of all jobs that slurmctld knows."""
        wanted = [] if job_id is None else [str(job_id)]
        ended = self.run("scontrol", "show", "job", *wanted)
        return _records(ended.stdout, "JobId")

    def node(self, name: str) -> dict[str, str]:
        """Fields of ``scontrol show node``."""
        return _records(self.run("scontrol", "show", "node", name).stdout, "NodeName")[0]

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
                queue = self.run("squeue", "-o", "%i %P %T %r %R %S", check=False).stdout.strip()
                raise SandboxError(f"waiting for {what or predicate!r}: not within {timeout_s:g} s; the queue:\n{queue}")
            time.sleep(0.1)

    def wait_state(self, job_id: int | str, *states: str, timeout_s: float = 60) -> dict[str, str]:
        """Waits until the job is in one of these states (RUNNING, COMPLETED and so on); its fields then."""
        self.wait_for(
            lambda: self.job(job_id)["JobState"] in states, timeout_s, what=f"job {job_id} to be {' or '.join(states)}"
        )
        return self.job(job_id)

    # Failures, for tests.

    def kill_slurmctld(self) -> None:
        """SIGKILL, as a crash: what it had not written down is lost."""
        self._end_daemon("slurmctld", signal.SIGKILL)

    def stop_slurmctld(self) -> None:
        """SIGTERM, as an administrator does: it saves its state."""
        self._end_daemon("slurmctld", signal.SIGTERM)

    def start_slurmctld(self) -> None:
        """Starts slurmctld with the state it left, and waits until it answers."""
        if self._pid_of("slurmctld"):
            return
        self._start("slurmctld", [self._program("slurmctld")], self.layout.log / "slurmctld.log")
        self._wait_ready("slurmctld", self._slurmctld_answers)

    def stop_slurmd(self, node: str) -> None:
        """Ends a node's slurmd. Slurm marks the node down only after SlurmdTimeout; set_node does it at once."""
        self._end_daemon(f"slurmd.{self._known(node)}", signal.SIGKILL)

    def start_slurmd(self, node: str) -> None:
        """Starts a node's slurmd again."""
        name = f"slurmd.{self._known(node)}"
        if self._pid_of(name):
            return
        log = self.layout.log / f"{name}.log"
        self._start(name, [self._program("slurmd"), "-N", node, "-d", self._program("slurmstepd")], log)

    def set_node(self, node: str, state: Literal["down", "drain", "resume"]) -> None:
        """What an administrator does with a node."""
        reason = [] if state == "resume" else ["reason=sandbox"]
        self.run("scontrol", "update", f"nodename={self._known(node)}", f"state={state}", *reason)

    def reset(self, timeout_s: float = 90) -> None:
        """Ends all jobs, starts what was stopped and brings all nodes back, so that the next test finds an idle cluster."""
        self.start_slurmctld()
        for node in self.spec.node_names():
            self.start_slurmd(node)
        deadline = time.monotonic() + timeout_s
        while unfinished := self._unfinished():
            if time.monotonic() > deadline:
                raise SandboxError(f"resetting the sandbox {self.directory}: still there after {timeout_s:g} s: {unfinished}")
            time.sleep(0.1)

    def _unfinished(self) -> str:
        """Cancels jobs and resumes nodes that are not idle; what is still to be waited for."""
        queued = self.run("squeue", "--noheader", "--all", "--format=%A").stdout.split()
        if queued:
            self.run("scancel", *dict.fromkeys(queued), check=False)
        busy = []
        for line in self.run("sinfo", "--noheader", "--Node", "--all", "--format=%N %T").stdout.splitlines():
            node, state = line.split()
            if state == "idle" or (node, state) in busy:
                continue
            busy.append((node, state))
            if state.startswith(("down", "drain", "draining", "drained", "fail")):
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return " ".join([*(f"job {job}" for job in queued), *(f"{node} {state}" for node, state in busy)])

    # Starting.

    def _write_files(self) -> None:
        layout, spec = self.layout, self.spec
        for folder in (layout.etc, layout.log, layout.run, layout.state, layout.spool, layout.devices, layout.jobs):
            folder.mkdir(mode=0o755)
        for folder in (layout.munge_key.parent, layout.wake_script.parent, layout.tapfinger):
            folder.mkdir(mode=0o755)
        for folder in (layout.log, layout.run, layout.state):
            shutil.chown(folder, "slurm", "slurm")
        layout.jobs.chmod(0o1777)
        # The hook (as user slurm) sends to the socket that the agent makes here.
        shutil.chown(layout.tapfinger, "root", "slurm")
        layout.tapfinger.chmod(0o2775)
        for node in spec.node_names():
            (layout.spool / node).mkdir()
        for index in range(spec.gpus):
            device = layout.devices / f"fakegpu{index}"
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            device.chmod(0o666)
        layout.munge_key.write_bytes(secrets.token_bytes(128))
        layout.munge_key.chmod(0o400)
        shutil.chown(layout.munge_key, "munge", "munge")
        shutil.chown(layout.munge_key.parent, "munge", "munge")
        content = {
            "cluster": self.cluster,
            "first_port": self.ports.first,
            "port_count": self.ports.count,
            "spec": asdict(spec),
        }
        layout.manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        self._write_slurm_files()

    def _write_slurm_files(self) -> None:
        layout, spec = self.layout, self.spec
        hostname = socket.gethostname().split(".")[0]
        slurm_conf = conf.slurm_conf(spec, layout, self.ports, cluster=self.cluster, hostname=hostname)
        layout.slurm_conf.write_text(slurm_conf, encoding="utf-8")
        (layout.etc / "gres.conf").write_text(conf.gres_conf(spec, layout), encoding="utf-8")
        # 22.05 knows no "disabled"; with the plugins above it is loaded and not used.
        (layout.etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="utf-8")
        if spec.accounting:
            slurmdbd_conf = layout.etc / "slurmdbd.conf"
            slurmdbd_conf.write_text(conf.slurmdbd_conf(layout, self.ports), encoding="utf-8")
            slurmdbd_conf.chmod(0o600)  # slurmdbd refuses anything wider
            shutil.chown(slurmdbd_conf, "slurm", "slurm")
        layout.tapfinger_toml.write_text(conf.tapfinger_toml(spec, layout), encoding="utf-8")
        layout.wake_script.write_text(conf.wake_script(layout), encoding="utf-8")
        layout.wake_script.chmod(0o755)
        if spec.hook:
            self._write_hook()

    def _write_hook(self) -> None:
        """slurmctld reads job_submit.lua from the folder of slurm.conf."""
        scripts = sorted(_LUA.glob("*.lua"))
        if not any(script.name == "job_submit.lua" for script in scripts):
            # Without it slurmctld refuses every submission.
            (self.layout.etc / "job_submit.lua").write_text(_NO_HOOK, encoding="utf-8")
        for script in scripts:
            shutil.copyfile(script, self.layout.etc / script.name)

    def _start_all(self) -> None:
        self._timed("munge", self._start_munge)
        if self.spec.accounting:
            self._timed("mariadb", self._start_database)
            self._timed("slurmdbd", self._start_slurmdbd)
        self._timed("slurmctld", self.start_slurmctld)
        self._timed("slurmd", self._start_nodes)

    def _timed(self, part: str, step: Callable[[], None]) -> None:
        before = time.monotonic()
        step()
        self.up_s[part] = round(time.monotonic() - before, 3)

    def _start_munge(self) -> None:
        folder = self.layout.munge_socket.parent
        log = folder / "munged.log"
        arguments = [
            self._program("munged"),
            f"--key-file={self.layout.munge_key}",
            f"--socket={self.layout.munge_socket}",
            f"--pid-file={folder / 'munged.pid'}",
            f"--log-file={log}",
            f"--seed-file={folder / 'seed'}",
            "--num-threads=4",
        ]
        self._start("munged", arguments, self.layout.log / "munged.out", user="munge")
        self._wait_ready("munged", self.layout.munge_socket.is_socket, log=log)

    def _start_database(self) -> None:
        layout = self.layout
        layout.database.mkdir(mode=0o755)
        shutil.chown(layout.database, "mysql", "mysql")
        install = [
            self._program("mariadb-install-db"),
            "--no-defaults",
            "--user=mysql",
            f"--datadir={layout.database}",
            "--skip-test-db",
            "--auth-root-authentication-method=socket",
        ]
        processes.run(install, environment=self._daemon_environment())
        layout.database.chmod(0o755)
        arguments = [
            self._program("mariadbd"),
            "--no-defaults",
            "--user=mysql",
            f"--datadir={layout.database}",
            f"--socket={layout.database_socket}",
            f"--pid-file={layout.database / 'pid'}",
            # Reached only through the socket, which tells MariaDB who calls: no password, no port.
            "--skip-networking",
            f"--init-file={self._database_setup()}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
            # Nothing in it has to survive this machine.
            "--innodb-flush-log-at-trx-commit=0",
            "--skip-innodb-doublewrite",
        ]
        log = layout.log / "mariadb.log"
        self._start("mariadbd", arguments, log)
        self._wait_ready("mariadbd", layout.database_socket.is_socket, log=log)

    def _database_setup(self) -> Path:
        setup = self.layout.database / "setup.sql"
        setup.write_text(
            "create database slurm_acct_db;\n"
            "create user slurm@localhost identified via unix_socket;\n"
            "grant all on slurm_acct_db.* to slurm@localhost;\n",
            encoding="utf-8",
        )
        return setup

    def _start_slurmdbd(self) -> None:
        log = self.layout.log / "slurmdbd.log"
        self._start("slurmdbd", [self._program("slurmdbd")], log, MYSQL_UNIX_PORT=str(self.layout.database_socket))
        self._wait_ready("slurmdbd", lambda: processes.listening(self.ports.slurmdbd), log=log)

    def _start_nodes(self) -> None:
        nodes = self.spec.node_names()
        for node in nodes:
            self.start_slurmd(node)
        self._wait_ready(
            f"slurmd of {len(nodes)} nodes",
            lambda: self._idle_nodes() == len(nodes),
            log=self.layout.log / f"slurmd.{nodes[-1]}.log",
            timeout_s=_START_TIMEOUT_S + len(nodes) / 4,
        )

    def _idle_nodes(self) -> int:
        counts = self.run("sinfo", "--noheader", "--all", "--format=%N %T", "--Node", check=False).stdout
        return len({line.split()[0] for line in counts.splitlines() if line.endswith(" idle")})

    def _slurmctld_answers(self) -> bool:
        return "is UP" in self.run("scontrol", "ping", check=False).stdout

    def _start(self, name: str, arguments: Sequence[str], log: Path, *, user: str = "", **extra: str) -> None:
        environment = {**self._daemon_environment(), **extra}
        try:
            processes.start(arguments, directory=self.directory, log=log, environment=environment, user=user)
        except SandboxError as error:
            raise SandboxError(f"sandbox in {self.directory}: {name}: {error}") from error

    def _wait_ready(
        self, name: str, ready: Callable[[], bool], *, log: Path | None = None, timeout_s: float = _START_TIMEOUT_S
    ) -> None:
        log = log or self.layout.log / f"{name}.log"
        doing = f"sandbox in {self.directory}: starting {name}"
        processes.wait_until(ready, doing=doing, log=log, timeout_s=timeout_s)

    def _daemon_environment(self) -> Mapping[str, str]:
        """Little: jobs of the daemons must not inherit what the caller happened to have."""
        return {"PATH": packages.SEARCH_PATH, "SLURM_CONF": str(self.slurm_conf), "LANG": "C.UTF-8", "HOME": "/"}

    def _program(self, name: str) -> str:
        """Its path by its plain name: slurmctld and slurmd segfault under the name slurmctld-wlm."""
        path = shutil.which(name, path=packages.SEARCH_PATH)
        if path is None:
            raise SandboxError(f"starting {name}: not installed; fetch it with: tapfinger sandbox install")
        return path

    # Stopping.

    def _end_daemon(self, name: str, with_signal: signal.Signals) -> None:
        pid = self._pid_of(name)
        if pid:
            processes.end_one(pid, self.directory, with_signal)

    def _pid_of(self, name: str) -> int:
        """Pid of a living daemon of ours, from its pid file; 0 where there is none."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.layout.run / f"{name}.pid").read_text(encoding="ascii"))
            if processes.is_daemon(pid, self.directory):
                return pid
        return 0

    def _known(self, node: str) -> str:
        if node not in self.spec.node_names():
            raise SandboxError(f"node {node!r}: this sandbox has {', '.join(self.spec.node_names())}")
        return node


_NO_HOOK = """function slurm_job_submit(job, partitions, uid) return slurm.SUCCESS end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
return slurm.SUCCESS
"""


def _new_directory(directory: Path | None) -> Path:
    if directory is None:
        made = Path(tempfile.mkdtemp(prefix="tapfinger-sandbox-"))
        made.chmod(0o755)
        return made.resolve()
    directory = Path(directory).absolute()
    directory = directory.parent.resolve() / directory.name
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        if Layout(directory).manifest.exists():
            raise SandboxError(
                f"there is a sandbox in {directory} already; "
                f"end it with: tapfinger sandbox down --dir {directory}, or choose another folder with --dir"
            ) from None
        raise SandboxError(f"folder {directory} exists and is no sandbox; choose a new one with --dir") from None
    except OSError as error:
        raise SandboxError(f"folder {directory} for the sandbox cannot be made: {error.strerror}") from error
    directory.chmod(0o755)
    return directory


def _check_reachable(directory: Path) -> None:
    """The daemons do not run as root and must get through to the folder."""
    for folder in directory.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise SandboxError(
                f"folder {directory}: {folder} is closed to other users, and slurm, munge and mysql must reach "
                "theirs; choose a folder such as /tmp/my-sandbox with --dir"
            )


def _remove(directory: Path, cluster: str) -> None:
    """No process, then no file, then no claim; as often as it takes and not less when interrupted."""
    processes.end_all(directory, cluster)
    for _ in range(5):
        if not directory.exists():
            break
        shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise SandboxError(f"ending the sandbox: {directory} cannot be removed; look what is in it and remove it by hand")
    ports.release(directory)


def _records(text: str, key: str) -> tuple[dict[str, str], ...]:
    """Blocks of ``Key=value`` that scontrol prints; a value may hold blanks, as a comment does."""
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.lstrip().startswith(f"{key}=")]
    return tuple({name: value.strip() for name, value in _FIELD.findall(block)} for block in blocks)


def _group_of(user: str) -> str:
    import pwd

    try:
        return str(pwd.getpwnam(user).pw_gid)
    except KeyError:
        raise SandboxError(f"running a command as {user!r}: there is no such user here") from None
