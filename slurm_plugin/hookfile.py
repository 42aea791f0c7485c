"""The agent's sign of life for the submit hook: one line, ``MODE EPOCH LEASE_S``, replaced as a whole every cycle.

The hook leases jobs only while MODE is enforce and EPOCH is fresh. So with a dead, watching, disabled or degraded
agent every job is stock Slurm's.
"""

import os
from pathlib import Path
from typing import Literal

import msgspec

from tapfinger_hpc.errors import ConfigError

FRESH_S = 15
"""As in tapfinger.lua: an older sign is that of a dead agent."""
HookMode = Literal["observe", "advise", "enforce", "disabled", "degraded"]


class SignOfLife(msgspec.Struct, frozen=True):
    """What the file says."""

    mode: str
    at_s: int
    lease_s: int

    def fresh(self, now_s: float) -> bool:
        """Whether an agent wrote it a moment ago."""
        return abs(now_s - self.at_s) <= FRESH_S


def write(path: Path, mode: HookMode, now_s: float, lease_s: int) -> None:
    """Replaces the file. ConfigError where that cannot be done."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SlurmUser reads it.
        partial.write_text(f"{mode} {int(now_s)} {lease_s}\n", encoding="ascii")
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"agent.hook_file {str(path)!r} cannot be written: {error}") from error


def read(path: Path) -> SignOfLife | None:
    """What the file says; None where there is none that can be read."""
    try:
        words = path.read_text(encoding="ascii").split()
        return SignOfLife(words[0], int(float(words[1])), int(words[2]))
    except (OSError, ValueError, IndexError):
        return None
