"""Where everything of one sandbox lies: in one folder. Outside it there is only its entry in the register."""

from dataclasses import dataclass
from pathlib import Path

from tapfinger_hpc.errors import SandboxError

DEFAULT_DIRECTORY = Path("/tmp/tapfinger-sandbox")
_LONGEST_SOCKET_PATH = 107
"""sun_path holds 108 bytes with its final zero; munge and MariaDB cut a longer path off silently."""


@dataclass(frozen=True)
class Layout:
    """The paths inside the folder."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """JSON with the spec, the ports and the cluster's name; its presence makes the folder a sandbox."""
        return self.directory / "sandbox.json"

    @property
    def etc(self) -> Path:
        return self.directory / "etc"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.etc / "slurmdbd.conf"

    @property
    def munge_key(self) -> Path:
        return self.directory / "munge" / "munge.key"

    @property
    def munge_socket(self) -> Path:
        return self.directory / "munge" / "munge.socket"

    @property
    def munge_pid(self) -> Path:
        return self.directory / "munge" / "munged.pid"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    @property
    def devices(self) -> Path:
        return self.directory / "dev"

    @property
    def database(self) -> Path:
        return self.directory / "mysql"

    @property
    def database_scratch(self) -> Path:
        """MariaDB's own temporary files."""
        return self.directory / "mysql-tmp"

    @property
    def database_socket(self) -> Path:
        return self.database / "mysql.sock"

    @property
    def database_setup(self) -> Path:
        return self.database / "setup.sql"

    @property
    def jobs(self) -> Path:
        """Working directory of submitted jobs; everyone may write here."""
        return self.directory / "jobs"

    @property
    def tapfinger(self) -> Path:
        """Sockets, journal and sign of life of our own processes."""
        return self.directory / "tapfinger"

    @property
    def tapfinger_toml(self) -> Path:
        return self.tapfinger / "tapfinger.toml"

    @property
    def hook_file(self) -> Path:
        return self.tapfinger / "hook"

    @property
    def classes_file(self) -> Path:
        """What the agent is told of job classes: none at first."""
        return self.tapfinger / "classes.json"

    @property
    def wake_socket(self) -> Path:
        return self.tapfinger / "wake.sock"

    @property
    def server_socket(self) -> Path:
        return self.tapfinger / "server.sock"

    @property
    def wake_script(self) -> Path:
        return self.directory / "bin" / "wake"

    @property
    def commands(self) -> Path:
        """Slurm's commands of another Debian release, to stand first in PATH; empty for this machine's own Slurm."""
        return self.directory / "commands"

    def check_length(self) -> None:
        """Refuses a folder in which a Unix socket could not be bound."""
        for socket in (self.munge_socket, self.database_socket, self.server_socket, self.wake_socket):
            length = len(str(socket).encode())
            if length > _LONGEST_SOCKET_PATH:
                raise SandboxError(
                    f"folder {str(self.directory)!r} is too long for the Unix socket {socket.name} in it "
                    f"({length} bytes, at most {_LONGEST_SOCKET_PATH}); choose a shorter one with --dir"
                )
