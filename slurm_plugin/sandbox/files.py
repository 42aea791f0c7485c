"""Writes what lies in the folder of a sandbox before anything is started. What the files say is decided in conf.py."""

import os
import re
import secrets
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec

from slurm_plugin import hookconf
from slurm_plugin.install import hook
from slurm_plugin.sandbox import conf, packages
from slurm_plugin.sandbox.layout import Layout
from slurm_plugin.sandbox.register import PortBlock
from slurm_plugin.sandbox.spec import SandboxSpec
from slurm_plugin.sandbox.userland import Userland
from slurm_plugin.versions import Version
from tapfinger_hpc import config
from tapfinger_hpc.errors import SandboxError

_SAFE_PATH = re.compile(r"[A-Za-z0-9/._+-]+")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What another process needs to know to use or end a sandbox."""

    cluster: str
    first_port: int
    port_count: int
    spec: SandboxSpec

    @property
    def ports(self) -> PortBlock:
        return PortBlock(self.first_port, self.port_count)


def make_directory(directory: Path) -> Path:
    """The folder with its real name, new or empty and ours alone, reachable for every user.

    Raises:
        SandboxError: something is in it already, or it cannot be made or used.
    """
    directory = Path(os.path.realpath(directory))
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        status = directory.stat()
        content = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise SandboxError(f"folder {directory} for the sandbox cannot be made: {error.strerror}") from error
    if Layout(directory).manifest.name in content:
        raise SandboxError(
            f"there is a sandbox in {directory} already; "
            f"end it with: tapfinger sandbox down --dir {directory}, or choose another folder with --dir"
        )
    if content:
        raise SandboxError(
            f"folder {directory} is in use and not by a sandbox (it holds {content[0]}); "
            "choose a new or an empty one with --dir"
        )
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SandboxError(
            f"folder {directory} can be written by others, who could then command root's daemons; "
            "choose a new one with --dir"
        )
    directory.chmod(0o755)
    return directory


def check_directory(directory: Path) -> None:
    """Refuses a folder that the daemons, which do not run as root, could not reach or bind their sockets in."""
    if not _SAFE_PATH.fullmatch(str(directory)):
        raise SandboxError(
            f"folder {str(directory)!r}: its name goes into Slurm's configuration, which takes letters, digits, "
            "'/', '.', '_', '+' and '-' without quoting; choose another with --dir"
        )
    Layout(directory).check_length()
    for folder in directory.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise SandboxError(
                f"folder {directory}: {folder} is closed to other users, and slurm, munge, mysql and the users of jobs "
                "must get through it; choose a folder such as /tmp/my-sandbox with --dir"
            )


def write_manifest(layout: Layout, manifest: Manifest) -> None:
    """Comes first: whatever is started afterwards can be ended by any process."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    layout.manifest.write_bytes(text + b"\n")


def read_manifest(layout: Layout) -> Manifest:
    """The manifest of a running sandbox.

    Raises:
        SandboxError: there is none, it is somebody else's, or it cannot be read.
    """
    path = layout.manifest
    try:
        if path.stat().st_uid != os.geteuid():
            # It names processes and a folder that root would end and remove.
            raise SandboxError(f"the sandbox in {layout.directory} belongs to another user; only that user may use it")
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise SandboxError(
            f"no sandbox in {layout.directory}; start one with: tapfinger sandbox up --dir {layout.directory}"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise SandboxError(f"sandbox in {layout.directory}: {path.name} cannot be read: {error}") from error


def write_all(layout: Layout, manifest: Manifest, version: Version) -> None:
    """Folders, devices, keys, the configuration of Slurm, of our processes and of the hook."""
    userland = Userland(manifest.spec.release)
    _make_folders(layout, manifest.spec, userland)
    _make_devices(layout, manifest.spec)
    _make_munge_key(layout, userland)
    _make_commands(layout, userland)
    _write_slurm_conf(layout, manifest, version)
    _write(layout.wake_script, conf.wake_script(layout), mode=0o755)
    write_agent_files(layout, manifest.spec)
    if manifest.spec.hook:
        write_hook(layout, manifest.spec)


def write_agent_files(layout: Layout, spec: SandboxSpec) -> None:
    """What agent and server start with; read back, so that a mistake in ``extra_toml`` is met here."""
    _write(layout.classes_file, "[]\n")
    _write(layout.tapfinger_toml, conf.tapfinger_toml(spec, layout))
    config.load(layout.tapfinger_toml)


def write_hook(layout: Layout, spec: SandboxSpec) -> None:
    """The hook beside slurm.conf, where slurmctld looks for job_submit.lua, with its site file.

    job_submit.lua comes last: slurmctld reads the scripts again when its time of change is another.
    """
    site = config.load(layout.tapfinger_toml)
    partitions = [
        hookconf.HookPartition(name, spec.cpus, spec.gpus, spec.memory_mb, managed=site.partitions.get(name))
        for name in spec.partition_nodes()
    ]
    site_file = hookconf.render(
        partitions,
        hook_file=str(layout.hook_file),
        wake_socket=str(layout.wake_socket),
        agent_uid=os.geteuid(),
        gres_separator="",
    )
    etc = str(layout.etc)
    for file in (*hook.module_files(etc, site_file), hook.script(etc)):
        _write(Path(file.path), file.text, file.mode)


def this_host(resolve: Callable[[str], str] = socket.gethostbyname) -> conf.Host:
    """This machine's name, and whether it means the loopback address."""
    name = socket.gethostname().split(".")[0]
    try:
        return conf.Host(name, is_loopback=resolve(name) == "127.0.0.1")
    except OSError:  # a name that nobody knows, as in a container
        return conf.Host(name, is_loopback=False)


def raise_first_job_id(layout: Layout) -> None:
    """Has the next slurmctld begin with job ids that were never given.

    A killed one may have lost its last jobs and would give their ids again, to jobs that slurmd then refuses as
    running already.
    """
    before = layout.slurm_conf.read_text(encoding="utf-8")
    after = re.sub(
        r"^FirstJobId=(\d+)$", lambda match: f"FirstJobId={int(match[1]) + 10_000}", before, flags=re.MULTILINE
    )
    _write(layout.slurm_conf, after)


def _make_folders(layout: Layout, spec: SandboxSpec, userland: Userland) -> None:
    for folder in (layout.etc, layout.spool, layout.devices, layout.wake_script.parent):
        folder.mkdir(mode=0o755)
    for folder in (layout.log, layout.run, layout.state):
        folder.mkdir(mode=0o755)
        os.chown(folder, *userland.owner("slurm"))
    for node in spec.node_names():
        (layout.spool / node).mkdir(mode=0o755)
    layout.jobs.mkdir()
    layout.jobs.chmod(0o1777)
    layout.tapfinger.mkdir()
    # The hook and the job-end event, as user slurm, send to the socket that the agent makes here.
    os.chown(layout.tapfinger, -1, userland.owner("slurm")[1])
    layout.tapfinger.chmod(0o2775)


def _make_devices(layout: Layout, spec: SandboxSpec) -> None:
    """Each fake GPU is a second /dev/null: only a device node makes Slurm set CUDA_VISIBLE_DEVICES."""
    for index in range(spec.gpus):
        device = layout.devices / f"fakegpu{index}"
        try:
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError as error:
            raise SandboxError(
                f"making the fake GPU {device}: device nodes are forbidden here (a container without CAP_MKNOD?); "
                "allow them, or take --gpus 0"
            ) from error
        device.chmod(0o666)


def _make_munge_key(layout: Layout, userland: Userland) -> None:
    layout.munge_key.parent.mkdir(mode=0o755)
    layout.munge_key.touch(mode=0o600)
    layout.munge_key.write_bytes(secrets.token_bytes(128))
    layout.munge_key.chmod(0o400)
    for path in (layout.munge_key, layout.munge_key.parent):
        os.chown(path, *userland.owner("munge"))


def _make_commands(layout: Layout, userland: Userland) -> None:
    """Slurm's commands of another release by their plain names, for whoever has only a PATH."""
    layout.commands.mkdir(mode=0o755)
    if not userland.release:
        return
    _write(layout.commands / "tapfinger-wrapper", userland.wrapper(layout.munge_pid), mode=0o755)
    for name in packages.COMMANDS:
        (layout.commands / name).symlink_to("tapfinger-wrapper")


def _write_slurm_conf(layout: Layout, manifest: Manifest, version: Version) -> None:
    spec = manifest.spec
    slurm_conf = conf.slurm_conf(spec, layout, manifest.ports, cluster=manifest.cluster, host=this_host())
    _write(layout.slurm_conf, slurm_conf)
    _write(layout.etc / "gres.conf", conf.gres_conf(spec, layout))
    _write(layout.etc / "cgroup.conf", conf.cgroup_conf(version))
    if spec.accounting:
        _write(layout.slurmdbd_conf, conf.slurmdbd_conf(layout, manifest.ports), mode=0o600)
        # slurmdbd refuses any other owner and wider rights.
        os.chown(layout.slurmdbd_conf, *Userland(spec.release).owner("slurm"))


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
