"""``tapfinger sandbox``: a throw-away Slurm cluster for the command line."""

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from slurm_plugin.sandbox import packages, register, releases
from slurm_plugin.sandbox.layout import DEFAULT_DIRECTORY
from slurm_plugin.sandbox.sandbox import Sandbox
from slurm_plugin.sandbox.spec import SandboxSpec
from slurm_plugin.sandbox.userland import RELEASES, Userland
from tapfinger_hpc.errors import SandboxError

_DEFAULTS = SandboxSpec()

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Folder of the sandbox.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
_accounting = click.option(
    "--no-accounting", is_flag=True, help="Without slurmdbd and MariaDB: quicker, but sacct knows nothing."
)


release_option = click.option(
    "--release",
    type=click.Choice(RELEASES),
    callback=lambda context, option, value: value or "",
    help="Slurm of this Debian release, from its folder in /var/cache/tapfinger-sandbox, rather than this machine's.",
)


@click.group()
def sandbox() -> None:
    """A real throw-away Slurm cluster with fake GPUs, in one folder of this machine."""


@sandbox.command()
@_directory
@click.option("--nodes", default=_DEFAULTS.nodes, show_default=True, help="Nodes; each is a slurmd on this machine.")
@click.option("--partitions", default=_DEFAULTS.partitions, show_default=True, help="Partitions that share the nodes.")
@click.option("--gpus", default=_DEFAULTS.gpus, show_default=True, help="Fake GPUs of each node.")
@click.option("--cpus", default=_DEFAULTS.cpus, show_default=True, help="CPUs that each node claims to have.")
@click.option("--memory", default=_DEFAULTS.memory_mb, show_default=True, metavar="MB", help="Memory of each node.")
@_accounting
@click.option("--stock", is_flag=True, help="Without our hook: stock Slurm with the same scheduling parameters.")
@click.option("--conf", multiple=True, metavar="LINE", help="A further line of slurm.conf; may be repeated.")
@release_option
@click.option("--install", is_flag=True, help="First fetch what is missing.")
@_as_json
def up(
    directory: Path,
    nodes: int,
    partitions: int,
    gpus: int,
    cpus: int,
    memory: int,
    no_accounting: bool,
    stock: bool,
    conf: tuple[str, ...],
    release: str,
    install: bool,
    as_json: bool,
) -> None:
    """Start a sandbox. It stays until `tapfinger sandbox down`."""
    spec = SandboxSpec(
        nodes=nodes,
        partitions=partitions,
        gpus=gpus,
        cpus=cpus,
        memory_mb=memory,
        accounting=not no_accounting,
        hook=not stock,
        extra_conf=conf,
        release=release,
    )
    if install:
        _install(release, accounting=spec.accounting, quiet=as_json)
    before = time.monotonic()
    with _ended_politely():
        started = Sandbox.up(spec, directory)
    seconds = round(time.monotonic() - before, 3)
    if as_json:
        _print_json({**_described(started), "up_s": seconds, "parts_s": dict(started.up_s)})
        return
    names = ", ".join(spec.partition_order())
    chosen = "" if directory == DEFAULT_DIRECTORY else f" --dir {started.directory}"
    click.echo(
        f"Slurm with {spec.nodes} nodes of {spec.cpus} CPUs, {spec.gpus} GPUs and {spec.memory_mb} MB "
        f"in the partitions {names} is up in {seconds:.1f} s.\n"
        f"  use it:  tapfinger sandbox shell{chosen}      or  export SLURM_CONF={started.slurm_conf}\n"
        f"  end it:  tapfinger sandbox down{chosen}"
    )


@sandbox.command()
@_directory
@_as_json
def status(directory: Path, as_json: bool) -> None:
    """Say what runs in a sandbox: daemons, nodes, jobs. Exits with 1 where a daemon is missing."""
    attached = Sandbox.attach(directory)
    described = _described(attached)
    if as_json:
        _print_json(described)
    else:
        click.echo(f"sandbox {attached.directory}: {described['state']}")
        if described["missing"]:
            click.echo(f"  not running: {', '.join(described['missing'])}; logs are in {attached.layout.log}")
        for table in (described["nodes_table"], described["jobs_table"]):
            click.echo(table)
    if described["missing"]:
        sys.exit(1)


@sandbox.command(context_settings={"ignore_unknown_options": True})
@_directory
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(directory: Path, command: tuple[str, ...]) -> None:
    """Open a shell, or run COMMAND, in which Slurm's commands mean the sandbox."""
    attached = Sandbox.attach(directory)
    arguments = list(command) or [_login_shell()]
    if not command and sys.stdin.isatty():
        click.echo(f"Slurm's commands now mean the sandbox {attached.directory}; leave with: exit")
    try:
        ended = subprocess.run(arguments, env=attached.env, cwd=None if command else attached.layout.jobs, check=False)
    except OSError as error:
        raise SandboxError(f"running {arguments[0]!r} in the sandbox {attached.directory}: {error.strerror}") from error
    sys.exit(ended.returncode if ended.returncode >= 0 else 128 - ended.returncode)


@sandbox.command()
@_directory
def down(directory: Path) -> None:
    """End a sandbox with its jobs and remove its folder. Nothing to end is no error."""
    if Sandbox.end(directory):
        click.echo(f"sandbox {directory} is gone")
    else:
        click.echo(f"no sandbox in {directory}; nothing to do")


@sandbox.command("list")
@_as_json
def list_(as_json: bool) -> None:
    """List the sandboxes of this machine."""
    entries = register.entries()
    if as_json:
        _print_json([{"directory": str(e.directory), "first_port": e.ports.first} for e in entries])
    elif not entries:
        click.echo("no sandbox on this machine")
    else:
        for entry in entries:
            click.echo(str(entry.directory))


@sandbox.command()
@_accounting
@release_option
def install(no_accounting: bool, release: str) -> None:
    """Fetch the Debian packages that a sandbox needs. No service is started or enabled.

    With --release they go, with all of that Debian, into a folder of its own: this machine's packages stay as they are.
    """
    _install(release, accounting=not no_accounting, quiet=False)


def _install(release: str, *, accounting: bool, quiet: bool) -> None:
    if release:
        _install_release(Userland(release), quiet=quiet)
        return
    absent = packages.missing(accounting=accounting)
    if absent and not quiet:
        click.echo(f"installing what has {', '.join(absent)} (a minute or so) ...")
    installed = packages.install(accounting=accounting)
    if not quiet:
        done = f"installed {', '.join(installed)}; no service was started" if installed else "all packages are there"
        click.echo(done)


def _install_release(userland: Userland, *, quiet: bool) -> None:
    if packages.missing(userland) and not quiet:
        click.echo(f"fetching Debian {userland.release} with its Slurm into {userland.folder} (minutes, 600 MB) ...")
    fetched = releases.install(userland)
    if not quiet:
        done = "was fetched; no package of this machine changed" if fetched else "is there already"
        click.echo(f"Debian {userland.release} {done}; rm -r {userland.folder} removes it")


def _described(attached: Sandbox) -> dict[str, Any]:
    spec = attached.spec
    missing = attached.missing()
    answers = "slurmctld" not in missing
    return {
        "directory": str(attached.directory),
        "state": "incomplete" if missing else "up",
        "missing": missing,
        "daemons": attached.running(),
        "cluster": attached.cluster,
        "release": spec.release,
        "slurm_conf": str(attached.slurm_conf),
        "tapfinger_toml": str(attached.tapfinger_toml),
        "nodes": spec.nodes,
        "partitions": {name: list(nodes) for name, nodes in spec.partition_nodes().items()},
        "gpus": spec.gpus,
        "cpus": spec.cpus,
        "memory_mb": spec.memory_mb,
        "accounting": spec.accounting,
        "hook": spec.hook,
        "nodes_table": attached.run("sinfo", "--all", "--Node", "--format=%N %P %T %C %m %G").stdout if answers else "",
        "jobs_table": attached.run("squeue", "--all").stdout if answers else "",
    }


def _print_json(content: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=1).decode())


def _login_shell() -> str:
    return os.environ.get("SHELL") or pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"


@contextlib.contextmanager
def _ended_politely() -> Iterator[None]:
    """A SIGTERM or a closed terminal interrupts as Ctrl-C does, so that a half-started sandbox is taken down again."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
