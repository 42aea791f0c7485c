"""Starts and ends the daemons of one sandbox: munged, MariaDB, slurmdbd, slurmctld and a slurmd for each node."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from slurm_plugin import versions
from slurm_plugin.pid_file import pid_in
from slurm_plugin.sandbox import processes
from slurm_plugin.sandbox.layout import Layout
from slurm_plugin.sandbox.register import PortBlock
from slurm_plugin.sandbox.spec import SandboxSpec
from slurm_plugin.sandbox.userland import ENTERING, SEARCH_PATH, Userland
from tapfinger_hpc.errors import SandboxError

_TIMEOUT_S = 60.0
"""For each daemon. Each is ready within a second or so; a machine that is busy with other things needs longer."""


def slurm_version(userland: Userland) -> versions.Version:
    """Year and month of the Slurm that is there: (22, 5)."""
    command = [*userland.prefix(), _program(userland, "slurmctld"), "-V"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    version = versions.read(said.stdout)
    if version < versions.OLDEST:
        raise SandboxError(
            f"asking slurmctld -V for its version: it said {(said.stdout or said.stderr).strip()!r}, "
            "expected slurm 22.05 or newer"
        )
    return version


def _program(userland: Userland, name: str) -> str:
    path = userland.program(name)
    if path is None:
        raise SandboxError(f"starting {name}: not installed; fetch it with: {userland.install_hint}")
    return path


class Daemons:
    """The daemons of one sandbox, known by their pid files and, as these may be stale, by their mark."""

    def __init__(self, layout: Layout, spec: SandboxSpec, ports: PortBlock) -> None:
        self._layout = layout
        self._spec = spec
        self._ports = ports
        self._userland = Userland(spec.release)
        self._prefix = self._userland.prefix(layout.munge_pid)
        # Little: what the caller happens to have in its environment must not reach daemons and jobs.
        self._environment = {
            "PATH": SEARCH_PATH,
            "SLURM_CONF": str(layout.slurm_conf),
            "LANG": "C.UTF-8",
            "HOME": "/",
            "MYSQL_UNIX_PORT": str(layout.database_socket),
        }

    def start_all(self) -> dict[str, float]:
        """Starts them in the order in which they need each other; seconds that each took."""
        steps: dict[str, Callable[[], None]] = {"munged": self._start_munged}
        if self._spec.accounting:
            steps |= {"mariadb": self._start_database, "slurmdbd": self._start_slurmdbd}
        steps |= {"slurmctld": self.start_slurmctld, "slurmds": self._start_nodes}
        took = {}
        for name, step in steps.items():
            before = time.monotonic()
            step()
            took[name] = round(time.monotonic() - before, 3)
        return took

    def running(self) -> dict[str, int]:
        """Name and pid of each daemon that is running, as ``slurmctld`` or ``slurmd.n1``."""
        return {name: process.pid for name in self.names() if (process := self._find(name))}

    def names(self) -> tuple[str, ...]:
        """Those that a healthy sandbox has."""
        accounting = ("mariadb", "slurmdbd") if self._spec.accounting else ()
        return ("munged", *accounting, "slurmctld", *(f"slurmd.{node}" for node in self._spec.node_names()))

    def start_slurmctld(self) -> None:
        """With the state it left, if any; returns when it answers."""
        if not self._find("slurmctld"):
            self._start("slurmctld", [self._program("slurmctld"), *self._forgiving()])
        self._wait("slurmctld", lambda: "is UP" in self._ask("scontrol", "ping"))

    def start_slurmd(self, node: str) -> None:
        """Returns before it has told slurmctld."""
        if not self._find(f"slurmd.{node}"):
            self._start(f"slurmd.{node}", [self._program("slurmd"), "-N", node])

    def end(self, name: str, with_signal: signal.Signals) -> None:
        """Ends one and waits for its end; none running is no error."""
        process = self._find(name)
        if process and processes.send(process, with_signal):
            doing = f"sandbox in {self._layout.directory}: waiting for the end of {name}"
            processes.wait_until(
                lambda: processes.has_ended(process), doing=doing, log=lambda: self._log(name), timeout_s=_TIMEOUT_S
            )

    def _forgiving(self) -> tuple[str, ...]:
        """What has slurmctld start after an early crash, where it would not."""
        if (self._layout.state / "assoc_usage").exists():
            return ()
        return ("-i",) if versions.of(slurm_version(self._userland)).usage_must_be_there else ()

    def _start_munged(self) -> None:
        folder = self._layout.munge_socket.parent
        arguments = [
            self._program("munged"),
            f"--key-file={self._layout.munge_key}",
            f"--socket={self._layout.munge_socket}",
            f"--pid-file={self._pid_file('munged')}",
            f"--log-file={self._log('munged')}",
            f"--seed-file={folder / 'seed'}",
            "--num-threads=4",
        ]
        self._start("munged", arguments, user="munge")
        self._wait("munged", self._layout.munge_socket.is_socket)

    def _start_database(self) -> None:
        layout = self._layout
        layout.database.mkdir(mode=0o755)
        layout.database_scratch.mkdir(mode=0o700)
        for folder in (layout.database, layout.database_scratch):
            os.chown(folder, *self._userland.owner("mysql"))
        # In /tmp, two databases that are made at once take each other's files.
        scratch = f"--tmpdir={layout.database_scratch}"
        install = [
            *self._prefix,
            self._program("mariadb-install-db"),
            "--no-defaults",
            "--user=mysql",
            f"--datadir={layout.database}",
            "--skip-test-db",
            "--force",  # also where the machine's name cannot be looked up; no grant is made for it
            "--auth-root-authentication-method=socket",
            scratch,
            *_UNSAFE_BUT_FAST,
        ]
        processes.run(install, directory=layout.directory, environment=self._environment)
        layout.database.chmod(0o755)  # mariadb-install-db closes it; slurmdbd must reach the socket in it
        layout.database_setup.write_text(_DATABASE_SETUP, encoding="utf-8")
        arguments = [
            self._program("mariadbd"),
            "--no-defaults",
            "--user=mysql",
            f"--datadir={layout.database}",
            f"--socket={layout.database_socket}",
            f"--pid-file={self._pid_file('mariadb')}",
            f"--init-file={layout.database_setup}",
            # Reached only through the socket, which tells MariaDB who calls: no password and no port.
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
            scratch,
            *_UNSAFE_BUT_FAST,
        ]
        self._start("mariadb", arguments)
        self._wait("mariadb", layout.database_socket.is_socket)

    def _start_slurmdbd(self) -> None:
        self._start("slurmdbd", [self._program("slurmdbd")])
        self._wait("slurmdbd", lambda: processes.listening(self._ports.slurmdbd))

    def _start_nodes(self) -> None:
        nodes = self._spec.node_names()
        for node in nodes:
            self.start_slurmd(node)
        processes.wait_until(
            lambda: self._idle_nodes() == len(nodes),
            doing=f"sandbox in {self._layout.directory}: starting slurmd for {len(nodes)} nodes",
            log=self._log_of_a_node,
            timeout_s=_TIMEOUT_S + len(nodes) / 4,
            alive=lambda: self._count("slurmd") >= len(nodes),
        )

    def _log_of_a_node(self) -> Path:
        """Of one whose slurmd ended, or else of slurmctld, which says what it misses."""
        running = self.running()
        ended = [name for name in self.names() if name.startswith("slurmd.") and name not in running]
        return self._log(ended[0] if ended else "slurmctld")

    def _idle_nodes(self) -> int:
        lines = self._ask("sinfo", "--noheader", "--all", "--Node", "--format=%N %T").splitlines()
        return len({line.split()[0] for line in lines if line.endswith(" idle")})

    def _ask(self, *command: str) -> str:
        """What a Slurm command says while Slurm is coming up; "" where it fails or hangs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                [*self._prefix, *command],
                capture_output=True,
                text=True,
                env=self._environment,
                timeout=15,
                check=False,
            ).stdout
        return ""

    def _start(self, name: str, arguments: list[str], user: str = "") -> None:
        self._pid_file(name).unlink(missing_ok=True)  # one of a killed predecessor
        log = self._log(name)
        if name == "munged":  # it refuses a log that it did not make
            log = log.with_suffix(".out")
        try:
            processes.start(
                arguments,
                directory=self._layout.directory,
                log=log,
                environment=self._environment,
                user=user,
                prefix=self._prefix,
            )
        except SandboxError as error:
            raise SandboxError(f"sandbox in {self._layout.directory}: {error}") from error

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        doing = f"sandbox in {self._layout.directory}: starting {name}"
        kernel_name = "mariadbd" if name == "mariadb" else name
        processes.wait_until(
            ready,
            doing=doing,
            log=lambda: self._log(name),
            timeout_s=_TIMEOUT_S,
            alive=lambda: self._count(kernel_name) > 0,
        )

    def _count(self, kernel_name: str) -> int:
        """Living daemons with this name, or about to take it; counted so because a pid file takes its time."""
        names = ENTERING | {kernel_name}
        return sum(process.name in names for process in processes.of_sandbox(self._layout.directory, cluster=""))

    def _program(self, name: str) -> str:
        return _program(self._userland, name)

    def _find(self, name: str) -> processes.Process | None:
        with contextlib.suppress(OSError, ValueError):
            return processes.daemon(pid_in(self._pid_file(name)), self._layout.directory)
        return None

    def _pid_file(self, name: str) -> Path:
        folders = {"munged": self._layout.munge_socket.parent, "mariadb": self._layout.database}
        return folders.get(name, self._layout.run) / f"{name}.pid"

    def _log(self, name: str) -> Path:
        folder = self._layout.munge_socket.parent if name == "munged" else self._layout.log
        return folder / f"{name}.log"


_UNSAFE_BUT_FAST = (
    # Nothing in this database has to survive a crash of the machine. Without these MariaDB asks the disk to write
    # some 700 times during the start, which on a busy disk takes 6 s of it; "loose" where a version may not know one.
    "--loose-debug-no-sync",
    "--loose-innodb-flush-method=nosync",
    "--innodb-flush-log-at-trx-commit=0",
    "--skip-innodb-doublewrite",
    "--innodb-log-file-size=16M",
)

_DATABASE_SETUP = """create database slurm_acct_db;
create user slurm@localhost identified via unix_socket;
grant all on slurm_acct_db.* to slurm@localhost;
"""
