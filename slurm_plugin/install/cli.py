"""The commands ``install`` and ``uninstall``."""

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from tapfinger_hpc import config as configuration
from tapfinger_hpc.errors import InstallError

_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Files go under this folder, as with DESTDIR: nothing is asked of Slurm, no command is run.",
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask; without a terminal nobody is asked anyway.")


@click.command()
@_ROOT
@_DRY_RUN
@_YES
def install(root: Path | None, dry_run: bool, yes: bool) -> None:
    """Put TapFinger on this Slurm controller, watching only (agent.mode is observe).

    Lists every change first and writes it down; `tapfinger uninstall` takes all of it back. Files that are not ours,
    such as the site's job_submit.lua and slurm.conf, are never changed: what they need is shown. May be run again,
    after an update or when nodes have changed.
    """
    # Only here, so that the other commands start quickly.
    from slurm_plugin.install import carry

    tree = carry.Tree(_absolute(root))
    with contextlib.nullcontext() if dry_run else carry.alone(tree):
        _install(tree, _absolute(root), dry_run=dry_run, yes=yes)


@click.command()
@_ROOT
@_DRY_RUN
@_YES
def uninstall(root: Path | None, dry_run: bool, yes: bool) -> None:
    """Take back all that `tapfinger install` did, also one that was cut short.

    With the journal, the learned classes and the configuration. Files that were edited since stay, unless they lie in
    folders that are ours alone. Exit status 1 where something could not be undone; it can be run again then.
    """
    from slurm_plugin.install import carry

    tree = carry.Tree(_absolute(root))
    with contextlib.nullcontext() if dry_run else carry.alone(tree):
        _uninstall(tree, dry_run=dry_run, yes=yes)


def _install(tree, root: Path, *, dry_run: bool, yes: bool) -> None:
    from slurm_plugin.commands import SlurmCommands
    from slurm_plugin.install import carry, plan, site
    from slurm_plugin.install.paths import Paths
    from slurm_plugin.install.steps import Command

    ledger = carry.Ledger(tree, Paths.of(configuration.Config()).record)
    there = tree.at(str(configuration.DEFAULT_PATH))
    config = configuration.load(there) if there.exists() else None
    run = carry.runner(SlurmCommands.from_config((config or configuration.Config()).slurm))
    found = site.unasked(root) if tree.elsewhere else site.survey(run, config or configuration.Config())
    config = config or plan.first_config(found)
    paths = Paths.of(config)
    program = _program()
    taken = tree.taken(paths.run, ledger.record)
    steps = plan.wanted(found, config, paths, program, ledger.record, taken)
    planned = plan.make(steps, tree.look(steps), ledger.record)
    if planned.conflicts:
        raise InstallError("nothing was changed, as these are in the way:" + _lines(planned.conflicts))
    to_run = [step for step in planned.steps if isinstance(step, Command)] if tree.elsewhere else []
    to_do = [step for step in planned.steps if step not in to_run]

    click.echo(_headline(found, tree))
    _say("is to be done", to_do, "nothing: all is there already")
    _say("stays as it is", [f"{left.path}: {left.why}" for left in planned.left])
    _say("left to the machine itself", to_run)
    if to_do and not dry_run:
        _needs_root(tree)
        if not _agreed(yes):
            return
        carry.carry_out(to_do, tree, ledger, run)
        click.echo("Done; tapfinger uninstall takes it back.")
    _say("left to you", plan.by_hand(found, planned, ledger.record, program, paths.config))


def _uninstall(tree, *, dry_run: bool, yes: bool) -> None:
    from slurm_plugin.commands import SlurmCommands
    from slurm_plugin.install import carry
    from slurm_plugin.install.paths import Paths

    ledger = carry.Ledger(tree, Paths.of(configuration.Config()).record)
    if not ledger.record.entries:
        click.echo("nothing is installed: there is no record of an installation here")
        return
    _say("is to be undone", carry.undoing(tree, ledger))
    if conf := carry.still_called(tree, ledger.record):
        raise InstallError(
            f"nothing was changed: {conf} has lua in JobSubmitPlugins, and slurmctld would not start again without our "
            "job_submit.lua; take lua out of it, restart slurmctld, then run tapfinger uninstall again"
        )
    if dry_run:
        return
    _needs_root(tree)
    if not _agreed(yes):
        return
    run = carry.runner(SlurmCommands.from_config(_slurm_of(tree)))
    failed = carry.take_back(tree, ledger, run)
    if failed:
        for why in failed:
            click.echo(f"tapfinger: {why}", err=True)
        click.echo("tapfinger: the rest is undone; put that right and run tapfinger uninstall again", err=True)
        sys.exit(1)
    click.echo("Done; a line in the site's own job_submit.lua does nothing now and can be taken out.")


def _absolute(root: Path | None) -> Path:
    return Path(os.path.realpath(root)) if root else Path("/")


def _program() -> str:
    """The command as systemd is to call it: that of the Python which runs this, where it has one."""
    beside = Path(sys.executable).parent / "tapfinger"
    return str(beside) if beside.exists() else str(Path(sys.argv[0]).absolute())


def _slurm_of(tree) -> configuration.SlurmConfig:
    """How Slurm is reached; a configuration that was broken since must not keep us here."""
    try:
        path = tree.at(str(configuration.DEFAULT_PATH))
        return configuration.load(path).slurm if path.exists() else configuration.SlurmConfig()
    except configuration.ConfigError:
        return configuration.SlurmConfig()


def _needs_root(tree) -> None:
    if os.geteuid() != 0 and not tree.elsewhere:
        raise InstallError("nothing was changed: what is listed above needs root; use sudo, or look on with --dry-run")


def _agreed(yes: bool) -> bool:
    return yes or not sys.stdin.isatty() or click.confirm("Go on?")


def _headline(found, tree) -> str:
    if tree.elsewhere:
        return "For another root: nothing is asked of Slurm, so the hook is told of no nodes yet."
    accounts = "slurmdbd" if found.accounting else f"no slurmdbd, so agent and server run as {found.slurm_user}"
    return f"Cluster {found.cluster}, Slurm {found.slurm_version}, {found.slurm_conf}; {accounts}."


def _say(title: str, lines: Iterable[object], otherwise: str = "") -> None:
    texts = [str(line) for line in lines] or ([otherwise] if otherwise else [])
    if texts:
        click.echo(f"{title}:".capitalize())
    for text in texts:
        click.echo("  " + text.replace("\n", "\n  "))


def _lines(left) -> str:
    return "".join(f"\n  {one.path}: {one.why}" for one in left)
