"""Looks at everything that the checks judge, once, and changes nothing. What cannot be looked at is a fact as well.

The one part of the doctor that touches the world. Text that others wrote (Slurm's, slurmctld's log, Lua scripts) is
kept as it is; checks.py reads it, so that tests can hold recorded text against it.
"""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec.structs import replace

from slurm_plugin import hookfile
from slurm_plugin.classes import ClassesFile
from slurm_plugin.client import PolicyClient
from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.commands import Answer, Runner, SlurmCommands
from slurm_plugin.doctor.places import Place, User, look, mounts, user
from slurm_plugin.hookfile import SignOfLife
from slurm_plugin.install import hook
from slurm_plugin.journal import Journal, JournalError
from slurm_plugin.naming import Names
from slurm_plugin.pid_file import pid_in
from slurm_plugin.slurm_conf import settings_in
from tapfinger_hpc import __version__
from tapfinger_hpc.config import DEFAULT_PATH, Config
from tapfinger_hpc.decision import guard_all
from tapfinger_hpc.errors import ConfigError, ServerError, SlurmError
from tapfinger_hpc.state import ClusterState, PendingJob, Resources
from tapfinger_hpc.wire import Health, PolicyDescription

MADE_UP = "doctor"
"""Name of the job that is made up for a dry decision while nobody waits."""
_LOG_BYTES = 2 * 1024 * 1024
_LOG_LINES = 200
_LOG_WORTH = re.compile(r"error: .*(?:tapfinger|job_submit)|processing time")
_LUA_LIBRARY = re.compile(rb"liblua-?(5\.\d)\.so|liblua\.so\.(5\.\d)")
_LUA_SOCKETS = ("lib/*/lua/{}/socket/unix.so", "lib*/lua/{}/socket/unix.so", "local/lib*/lua/{}/socket/unix.so")


class Said(msgspec.Struct, frozen=True):
    """What a command said, or why it could not be asked."""

    text: str = ""
    why: str = ""


class Hook(msgspec.Struct, frozen=True):
    """The Lua files that slurmctld reads."""

    script: Place
    script_text: str
    module: Place
    module_text: str
    site: Place
    site_text: str
    modules_caller: str
    """The script in lua_job_submit_d that calls ours; "" where there is none."""
    shipped_script: str
    shipped_module: str


class JournalFacts(msgspec.Struct, frozen=True):
    """The agent's journal and the disk that it is on."""

    place: Place
    why: str = ""
    """Why it cannot be read; "" where it can."""
    damage: str = ""
    """What SQLite finds wrong in it."""
    aside: tuple[str, ...] = ()
    """Broken ones that were set aside."""
    free_mb: float | None = None
    free_files: int | None = None


class DryRun(msgspec.Struct, frozen=True):
    """A decision on the live state that nobody carries out."""

    waiting: int = 0
    """Jobs of ours that wait and may start."""
    made_up: bool = False
    """Nobody waits, so that the server was asked about a small job that does not exist."""
    placed: int = 0
    refused: int = 0
    """Placements that the guard would not let through."""
    policy: str = ""
    elapsed_s: float = 0.0
    why: str = ""
    """Why there is no decision."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the checks judge."""

    now_s: float
    version: str
    """Of this tapfinger."""
    me: User
    config: Config
    config_file: Place
    config_named: bool
    """The file was named on the command line."""
    asked_config: Said
    """``scontrol show config``."""
    stand_in: dict[str, str] = {}
    """The file of each setting of slurm.conf, by key in small letters: itself, or one that it includes."""
    asked_s: tuple[float, float]
    """When it was asked, and when it had answered."""
    pinged: Said
    commands_version: Said
    slurm_user: User | None
    agent_user: User
    agent_user_from: str
    """What told who the agent is."""
    agent_started_s: float | None
    """None where no agent runs on this machine."""
    admin_level: Said
    on_controller: bool
    lua_version: str
    lua_from: str
    lua_sockets: bool
    hook: Hook | None
    """None where slurmctld's folder is not known."""
    log: Said
    """The lines of slurmctld's log that say something of the hook or of long processing, the latest last."""
    diagnosis: Said
    """``sdiag``."""
    sign: SignOfLife | None
    hook_file: Place
    wake_socket: Place
    disabled: bool
    server_socket: Place
    server: Health | None
    server_why: str
    server_starts: bool = False
    """It runs on this machine, and has not opened its sockets yet."""
    policy: PolicyDescription | None
    constants_why: str = ""
    """Why the file of ``server.constants`` cannot be used, as far as this machine can tell."""
    journal: JournalFacts
    mounts: tuple[tuple[str, str], ...]
    state: ClusterState | None
    state_why: str
    dry: DryRun


def gather(config: Config, config_path: Path, *, named: bool) -> Facts:
    """Looks at everything.

    Args:
        config: as it was read from ``config_path``.
        named: whether somebody named that file, rather than that it is the default.
    """
    run: Runner = SlurmCommands.from_config(config.slurm)
    asked_s = time.time()
    asked = _ask(run, "scontrol", "show", "config")
    answered_s = time.time()
    # A slurmctld that does not answer lets every command wait for its full time: one is enough.
    silent = Said(why="slurmctld does not answer") if asked.why else None
    settings = settings_of(asked.text)
    slurm_user = _slurm_user(settings)
    pid = controller(settings.get("SlurmctldPidFile", ""))
    agent, agent_from, agent_started_s = _agent_user(Path(config.agent.journal))
    lua_version, lua_from = _lua(pid, settings.get("PluginDir", ""))
    client = PolicyClient.from_config(config)
    server, policy, server_why = _server(client)
    state, state_why = _state(config, run) if silent is None else (None, silent.why)
    return Facts(
        now_s=time.time(),
        version=__version__,
        me=user(os.geteuid()),
        config=config,
        config_file=look(str(config_path)),
        config_named=named,
        asked_config=asked,
        stand_in=_stand_in(settings.get("SLURM_CONF", "")),
        asked_s=(asked_s, answered_s),
        pinged=silent or _ask(run, "scontrol", "ping"),
        commands_version=_ask(run, "scontrol", "--version"),
        slurm_user=slurm_user,
        agent_user=agent,
        agent_user_from=agent_from,
        agent_started_s=agent_started_s,
        admin_level=silent or _admin_level(run, settings, agent),
        on_controller=pid is not None,
        lua_version=lua_version,
        lua_from=lua_from,
        lua_sockets=_has_lua_sockets(pid, lua_version),
        hook=_hook(settings.get("SLURM_CONF", "")),
        log=_log(settings.get("SlurmctldLogFile", "")),
        diagnosis=silent or _ask(run, "sdiag"),
        sign=hookfile.read(Path(config.agent.hook_file)) if config.agent.hook_file else None,
        hook_file=look(config.agent.hook_file),
        wake_socket=look(config.agent.wake_socket),
        disabled=bool(config.agent.disable_file) and Path(config.agent.disable_file).exists(),
        server_socket=look(config.server.socket),
        server=server,
        server_why=server_why,
        server_starts=server is None and _serves(config_path),
        policy=policy,
        constants_why=_constants(config.server.constants),
        journal=_journal(Path(config.agent.journal)),
        mounts=mounts(),
        state=state,
        state_why=state_why,
        dry=_dry_run(client, state, state_why, server_why),
    )


def settings_of(text: str) -> dict[str, str]:
    """The settings in the text of ``scontrol show config``; "" for those that are not set."""
    found = re.findall(r"^([\w\[\]]+)\s*= (.*)$", text, re.MULTILINE)
    return {key: "" if value.strip() in ("(null)", "N/A") else value.strip() for key, value in found}


def file_of(facts: Facts, key: str) -> str:
    """The file where this setting of slurm.conf stands, or is to stand."""
    return facts.stand_in.get(key.lower()) or settings_of(facts.asked_config.text).get("SLURM_CONF", "slurm.conf")


def logged_s(stamp: str, unknown_s: float) -> float:
    """The time in front of a line of slurmctld's log; ``unknown_s`` of a form that is not the default one."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return unknown_s


def module_path(script: str, folder: str) -> str:
    """The path of tapfinger.lua that a site's own script names; beside the script where it names none."""
    named = re.search(r"""["'](/[^"'\n]*tapfinger\.lua)["']""", script)
    return named[1] if named else f"{folder}/{hook.MODULE}"


def _stand_in(conf: str) -> dict[str, str]:
    return {key: setting.file for key, setting in settings_in(Path(conf)).items()} if conf else {}


def _ask(run: Runner, *argv: str) -> Said:
    try:
        answer: Answer = run(argv)
        return Said(answer.checked().decode("utf-8", "replace"))
    except SlurmError as error:
        return Said(why=str(error))


def _slurm_user(settings: dict[str, str]) -> User | None:
    number = re.search(r"\((\d+)\)", settings.get("SlurmUser", ""))
    return user(int(number[1])) if number else None


def controller(pid_file: str, processes: Path = Path("/proc")) -> int | None:
    """The slurmctld that answers, where it runs on this machine; "" where none answers.

    With --systemd, as the units of newer releases have it, it writes no pid file: then the only one that runs so.
    """
    if not pid_file:
        return None
    with contextlib.suppress(OSError, ValueError):
        pid = pid_in(Path(pid_file))
        if (processes / f"{pid}/comm").read_text(encoding="ascii", errors="replace").startswith("slurmctld"):
            return pid
    found = [
        pid
        for pid, (program, *options) in _command_lines(processes)
        if Path(program).name == "slurmctld" and "--systemd" in options
    ]
    return found[0] if len(found) == 1 else None


def _agent_user(journal: Path) -> tuple[User, str, float | None]:
    """Who runs the agent, what told so, and since when it runs."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(journal.with_name(journal.name + ".lock").read_text(encoding="ascii"))
        status = Path(f"/proc/{pid}").stat()
        if b"tapfinger" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return user(status.st_uid), "it runs", status.st_mtime
    with contextlib.suppress(OSError):
        return user(journal.stat().st_uid), "the journal is its", None
    with contextlib.suppress(OSError):
        return user(journal.parent.stat().st_uid), "the journal's folder is its", None
    return user(os.geteuid()), "it has never run; yours is taken", None


def _admin_level(run: Runner, settings: dict[str, str], agent: User) -> Said:
    if "slurmdbd" not in settings.get("AccountingStorageType", ""):
        return Said(why="there is no slurmdbd")
    return _ask(run, "sacctmgr", "--noheader", "--parsable2", "show", "user", agent.name, "format=User,AdminLevel")


def _lua(pid: int | None, plugins: str) -> tuple[str, str]:
    """The Lua that slurmctld has loaded, or that its plugin was built for; and which of both."""
    sources = [(f"/proc/{pid}/maps", "slurmctld")] if pid else []
    sources.append((f"{plugins}/job_submit_lua.so", "the plugin"))
    for path, which in sources:
        with contextlib.suppress(OSError):
            if found := _LUA_LIBRARY.search(Path(path).read_bytes()):
                return (found[1] or found[2]).decode(), which
    return "", ""


def _has_lua_sockets(pid: int | None, version: str) -> bool:
    with contextlib.suppress(OSError):
        if pid and b"socket-unix" in Path(f"/proc/{pid}/maps").read_bytes():
            return True
    return bool(version) and any(next(Path("/usr").glob(pattern.format(version)), None) for pattern in _LUA_SOCKETS)


def _hook(slurm_conf: str) -> Hook | None:
    if not slurm_conf:
        return None
    folder = str(Path(slurm_conf).parent)
    script = f"{folder}/{hook.SCRIPT}"
    script_text = _text(script)
    module = module_path(script_text, folder)
    site = str(Path(module).with_name(hook.SITE_FILE))
    return Hook(
        script=look(script),
        script_text=script_text,
        module=look(module),
        module_text=_text(module),
        site=look(site),
        site_text=_text(site),
        modules_caller=_modules_caller(Path(folder) / hook.MODULES_FOLDER),
        shipped_script=_text(str(hook.LUA / hook.SCRIPT)),
        shipped_module=_text(str(hook.LUA / hook.MODULE)),
    )


def _modules_caller(folder: Path) -> str:
    return next((str(one) for one in sorted(folder.glob("*.lua")) if "tapfinger" in _text(str(one))), "")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _log(path: str) -> Said:
    if not path:
        return Said(why="slurmctld logs to syslog")
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return Said(why=f"{path}: {error.strerror}")
    return Said("\n".join([line for line in lines if _LOG_WORTH.search(line)][-_LOG_LINES:]))


def _server(client: PolicyClient) -> tuple[Health | None, PolicyDescription | None, str]:
    try:
        return client.health(), client.policy(), ""
    except ServerError as error:
        return None, None, str(error)


def _constants(path: str) -> str:
    if not path:
        return ""
    try:
        from tapfinger_hpc.policies import constants
    except ModuleNotFoundError:  # numba: the server is another machine's
        return ""
    try:
        constants.read(Path(path))
    except ConfigError as error:
        return str(error)
    return ""


def _serves(config_path: Path) -> bool:
    """Whether a server runs on this machine with this configuration, as far as others' processes are shown."""
    return any(_is_server(words, config_path) for _, words in _command_lines())


def _command_lines(processes: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    for file in processes.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(file.parent.name), file.read_text(encoding="utf-8", errors="replace").split("\0")


def _is_server(words: list[str], config_path: Path) -> bool:
    after = dict(pairwise(words))
    if not any(after.get(word) == "serve" for word in words if word.endswith(("tapfinger", "tapfinger_hpc.cli"))):
        return False
    return Path(after.get("--config", str(DEFAULT_PATH))) == config_path


def _journal(path: Path) -> JournalFacts:
    place = look(str(path))
    why, damage = "", ""
    try:
        with Journal.reading(path) as journal:
            damage = journal.damage()
    except (JournalError, sqlite3.Error) as error:
        why = str(error)
    free_mb, free_files = None, None
    with contextlib.suppress(OSError):
        disk = os.statvfs(path.parent)
        free_mb = disk.f_bavail * disk.f_frsize / 1e6
        free_files = disk.f_favail if disk.f_files else None
    broken = (str(one) for one in path.parent.glob(f"{path.name}.broken-*"))
    aside = tuple(sorted(one for one in broken if not one.endswith(("-wal", "-shm"))))
    return JournalFacts(place, why, damage, aside, free_mb, free_files)


def _state(config: Config, run: Runner) -> tuple[ClusterState | None, str]:
    try:
        cluster = SlurmCluster(run, config)
        state = Names(cluster.names).named(cluster.observe())
    except (SlurmError, ValueError) as error:
        return None, str(error)
    classes = Path(config.agent.classes_file) if config.agent.classes_file else None
    return ClassesFile(classes).attach(state), ""


def _dry_run(client: PolicyClient, state: ClusterState | None, state_why: str, server_why: str) -> DryRun:
    if state is None:
        return DryRun(why=state_why)
    waiting = sum(job.managed and job.eligible for job in state.pending)
    asked = state if waiting else _with_made_up_job(state)
    if asked is None:
        return DryRun(why="no partition with a node is up")
    if server_why:
        return DryRun(waiting, made_up=not waiting, why="the server does not answer")
    before_s = time.monotonic()
    try:
        answer = client.decide(asked)
    except ServerError as error:
        return DryRun(waiting, made_up=not waiting, why=str(error))
    elapsed_s = time.monotonic() - before_s
    placements = [one for one in answer.decisions if one.placement is not None]
    allowed, refused, _ = guard_all(placements, asked)
    return DryRun(
        waiting,
        made_up=not waiting,
        placed=len(allowed),
        refused=len(refused) + len(answer.refused),
        policy=answer.policy.name,
        elapsed_s=elapsed_s,
    )


def _with_made_up_job(state: ClusterState) -> ClusterState | None:
    partition = next((one for one in state.partitions if one.up and one.nodes), None)
    if partition is None:
        return None
    amounts = Resources(cpus=1, mem_mb=1)
    job = PendingJob(
        MADE_UP, int(state.time_s), (partition.name,), amounts, amounts, amounts, time_limit_s=60, managed=True
    )
    return replace(state, pending=(*state.pending, job))
