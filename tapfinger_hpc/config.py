"""The one configuration: read once from TOML, typed, passed down. No other module reads the environment.

Every default stands here beside its unit. Whatever is wrong is told at once, and then nothing starts.
"""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tapfinger_hpc import config_check, log
from tapfinger_hpc.errors import ConfigError, UnitError
from tapfinger_hpc.units import Mark, mark_of

Mode = Literal["observe", "advise", "enforce"]
Backend = Literal["auto", "scontrol", "pyslurm"]
Seconds = Annotated[float, Meta(gt=0, le=86400)]


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the policy server listens, and with what it answers."""

    socket: str = "/run/tapfinger/server.sock"
    """Unix socket; "" where only TCP is wanted."""
    tcp: str = ""
    """host:port on loopback, only with token_file; "" is off."""
    token_file: str = ""
    """File with the bearer token for TCP, readable by its owner only."""
    policy: str = "tapfinger"
    """Who answers: fifo, min, random, price or tapfinger."""
    fallback: str = "price"
    """Policy that answers where the checkpoint cannot be loaded."""
    checkpoint: str = ""
    """Folder of a checkpoint; "" is the one that ships with the package."""
    constants: str = ""
    """File of ``tapfinger tune``: constants of price, whose advice tapfinger hears; "" are those that ship."""
    compiled: str = "/var/cache/tapfinger"
    """Folder for compiled policies where the package's own folders cannot be written."""
    timeout_s: Seconds = 2.0
    """How long the agent waits for a decision."""


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the agent watches the queue and what it may do."""

    mode: Mode = "observe"
    """observe: decide and log; advise: also tell the user; enforce: change jobs."""
    interval_s: Seconds = 1.0
    """Longest time between two looks at the queue."""
    lease_s: Annotated[int, Meta(ge=5, le=86400)] = 60
    """How long Slurm waits before it starts a managed job by itself, unless the job says ``lease=``."""
    max_hold_s: Annotated[int, Meta(ge=1)] = 14400
    """A job that waited this long is given to Slurm as it is."""
    journal: str = "/var/lib/tapfinger/journal.sqlite"
    """Intents, decisions and outcomes."""
    disable_file: str = "/run/tapfinger/disabled"
    """While this file exists nothing is changed."""
    hook_file: str = "/run/tapfinger/hook"
    """The agent's sign of life for the submit hook: it leases jobs only while this is fresh."""
    wake_socket: str = "/run/tapfinger/wake.sock"
    """Datagrams here ("look now") shorten the wait; sent by the hook and by jobcomp/script where configured."""
    classes_file: str = ""
    """JSON list of job classes with their speed; "" starts with none."""


class PartitionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Makes every batch job of a partition managed, with these ranges unless the job declares its own."""

    gpus: str = ""
    """Range in the words of the job comment: ``1-4``; "" keeps what the job asks for."""
    cpus: str = ""
    """Range of CPUs: ``2-16``."""
    mem: str = ""
    """Range of memory: ``4G-32G``."""


class SlurmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How Slurm is reached."""

    conf: str = ""
    """slurm.conf for the commands (SLURM_CONF); "" leaves it to them."""
    bin_dir: str = ""
    """Folder of scontrol and squeue; "" takes PATH."""
    timeout_s: Seconds = 10.0
    """Longest time that one Slurm command may take."""
    backend: Backend = "auto"
    """What jobs are read with: Slurm's commands (scontrol), or pyslurm; auto takes pyslurm where it fits the Slurm."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How agent and server log, to standard error."""

    format: log.Format = "text"
    """text: one line of key=value an event; json: one JSON object a line."""
    level: log.Level = "info"
    """debug also logs answers that place nothing."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a site can set."""

    server: ServerConfig = ServerConfig()
    agent: AgentConfig = AgentConfig()
    slurm: SlurmConfig = SlurmConfig()
    log: LogConfig = LogConfig()
    partitions: dict[str, PartitionConfig] = {}


DEFAULT_PATH = Path("/etc/tapfinger/tapfinger.toml")


def load(path: Path | None) -> Config:
    """The configuration in this file; without a path that of /etc/tapfinger, or the defaults where there is none.

    Raises:
        ConfigError: names the file and, of each mistake, line and key, with the nearest right one.
    """
    text = _text(path or DEFAULT_PATH)
    if text is None:
        if path is None:
            return Config()
        raise ConfigError(f"configuration {str(path)!r} cannot be read: No such file or directory")
    return parse(text, path or DEFAULT_PATH)


def parse(text: str, path: Path) -> Config:
    """The configuration in this text; ``path`` is where it comes from. Raises ConfigError as ``load`` does."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refusal(path, [config_check.not_toml(text, str(error))]) from error
    try:
        config = msgspec.convert(content, Config)
    except msgspec.ValidationError as error:
        raise _refusal(path, config_check.mistakes(text, content, Config)) from error
    if wrong := dict(_wrong_ranges(config)):
        raise _refusal(path, config_check.located(text, wrong))
    return config


def partition_mark(partition: PartitionConfig) -> Mark:
    """The ranges that a partition's configuration gives its jobs, as if they were declared in the comment."""
    return mark_of({key: value for key in ("gpus", "cpus", "mem") if (value := getattr(partition, key))})


def _text(path: Path) -> str | None:
    """What the file holds; None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"configuration {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {str(path)!r} is not TOML, which is UTF-8: {error}") from error


def _refusal(path: Path, mistakes: Sequence[config_check.Mistake]) -> ConfigError:
    """One line for each mistake, as compilers write them: editors jump to such places."""
    return ConfigError("\n".join(f"configuration {path}:{mistake}" for mistake in mistakes))


def _wrong_ranges(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, partition in config.partitions.items():
        for key in ("gpus", "cpus", "mem"):
            try:
                mark_of({key: value} if (value := getattr(partition, key)) else {})
            except UnitError as error:
                yield ("partitions", name, key), str(error)
