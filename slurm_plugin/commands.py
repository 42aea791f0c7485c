"""The one place that runs a Slurm command: an argument list, a deadline, an environment of its own; never a shell.

Output is bytes, because users' names and comments are whatever they like. What a command refuses is a result with
its exit status; what cannot be run at all, or does not end in time, is a CommandError.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from tapfinger_hpc.config import SlurmConfig
from tapfinger_hpc.errors import SlurmError

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandError(SlurmError):
    """A Slurm command that failed; carries what an operator would ask for."""

    def __init__(self, message: str, argv: Sequence[str], rc: int | None, stderr: str) -> None:
        super().__init__(message)
        self.argv = tuple(argv)
        self.rc = rc
        """None where the command did not end by itself."""
        self.stderr = stderr


class Answer(msgspec.Struct, frozen=True):
    """What a command said."""

    argv: tuple[str, ...]
    rc: int
    stdout: bytes
    stderr: str

    def checked(self) -> bytes:
        """The output; CommandError where the command failed."""
        if self.rc != 0:
            raise CommandError(
                f"{spelled(self.argv)} ended with {self.rc}: {self.stderr or 'without a word'}",
                self.argv,
                self.rc,
                self.stderr,
            )
        return self.stdout


class Runner(Protocol):
    """Runs a command; tests give one that answers with recorded text."""

    def __call__(self, argv: Sequence[str]) -> Answer:
        """What the command said. CommandError if it could not be run, or did not end in time."""
        ...


class SlurmCommands:
    """Runs Slurm's commands for one cluster."""

    def __init__(self, *, conf: str = "", bin_dir: str = "", timeout_s: float = 10.0) -> None:
        self._environment = _environment(conf, os.environ)
        self._path = os.pathsep.join(filter(None, (bin_dir, self._environment["PATH"])))
        self._timeout_s = timeout_s
        self._found: dict[str, str] = {}

    @classmethod
    def from_config(cls, config: SlurmConfig) -> "SlurmCommands":
        return cls(conf=config.conf, bin_dir=config.bin_dir, timeout_s=config.timeout_s)

    def __call__(self, argv: Sequence[str]) -> Answer:
        program = self._program(argv[0])
        try:
            ended = subprocess.run(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self._environment,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandError(
                f"{spelled(argv)} did not end within {self._timeout_s:g} s: is slurmctld up?", argv, None, ""
            ) from error
        except OSError as error:
            raise CommandError(f"{spelled(argv)} cannot be run: {error}", argv, None, "") from error
        stderr = ended.stderr.decode("utf-8", "replace").strip()
        return Answer(tuple(argv), ended.returncode, ended.stdout, stderr)

    def _program(self, name: str) -> str:
        if name not in self._found:
            path = shutil.which(name, path=self._path)
            if path is None:
                raise CommandError(
                    f"{name} was not found in {self._path}: install Slurm's commands or set slurm.bin_dir",
                    [name],
                    None,
                    "",
                )
            self._found[name] = path
        return self._found[name]


def spelled(argv: Sequence[str]) -> str:
    """A command for an error message: as typed, but without endless words such as the format of squeue."""
    text = " ".join(word if len(word) <= 60 else f"{word[:24]}..." for word in argv)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _environment(conf: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Only what is needed: a SQUEUE_* or SCONTROL_* variable of whoever started us would change what we read."""
    environment = {
        "PATH": inherited.get("PATH", _SEARCH_PATH),
        "LC_ALL": "C",
        # Times come as seconds since the epoch, and those we send are UTC.
        "TZ": "UTC",
        "SLURM_TIME_FORMAT": "%s",
        # Longest array expression, such as 3_[2-20%2], before Slurm cuts it.
        "SLURM_BITSTR_LEN": "200",
    }
    if chosen := conf or inherited.get("SLURM_CONF", ""):
        environment["SLURM_CONF"] = chosen
    return environment
