"""The commands ``agent``, ``doctor``, ``janitor``, ``status``, ``explain``, ``learn``, ``profile`` and ``report``."""

import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from tapfinger_hpc import config as configuration
from tapfinger_hpc import log
from tapfinger_hpc.config import Config, Mode
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.units import mark_of

_CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"TOML file; {configuration.DEFAULT_PATH} by default.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
_OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The classes; agent.classes_file by default.",
)


@click.command()
@_CONFIG
@click.option("--mode", type=click.Choice(["observe", "advise", "enforce"]), help="In place of agent.mode.")
@click.option("--once", is_flag=True, help="One look, then end.")
def agent(config_file: Path | None, mode: Mode | None, once: bool) -> None:
    """Watch the queue and place managed jobs, until SIGTERM."""
    # Only here, so that reading commands start quickly.
    from slurm_plugin.agent import Agent, only_one
    from slurm_plugin.classes import ClassesFile
    from slurm_plugin.client import PolicyClient
    from slurm_plugin.cluster import SlurmCluster
    from slurm_plugin.ended import Endings
    from slurm_plugin.events import WakeClock
    from slurm_plugin.journal import Journal
    from slurm_plugin.naming import Names

    config = _with_mode(configuration.load(config_file), mode)
    log.to_stderr(config.log.format, config.log.level, os.environ)
    path = Path(config.agent.journal)
    with only_one(path), Journal.open(path) as journal:
        clock = WakeClock(Path(config.agent.wake_socket) if config.agent.wake_socket else None)
        stop = _Stop(clock.interrupt, once=once)
        classes = ClassesFile(Path(config.agent.classes_file) if config.agent.classes_file else None)
        cluster = SlurmCluster.from_config(config)
        names = Names(cluster.names)
        try:
            Agent(
                cluster,
                clock,
                PolicyClient.from_config(config).decide,
                journal,
                config.agent,
                classes=classes,
                names=names,
                endings=Endings(cluster.find, journal, names),
            ).run(stop)
        finally:
            clock.close()


@click.command()
@_CONFIG
@_OUTPUT
@_JSON
def learn(config_file: Path | None, output: Path | None, as_json: bool) -> None:
    """Learn job classes from the jobs that the agent saw end (one shot; for a timer or cron).

    Goes on from what earlier runs of this command and of `tapfinger trace fit` have seen, kept beside the classes.
    """
    from slurm_plugin.journal import Journal
    from trace_tools import learning
    from trace_tools.speed_cli import shown

    config = configuration.load(config_file)
    path = _classes_path(config, output)
    with Journal.reading(Path(config.agent.journal)) as journal, learning.locked(path):
        learner = learning.opened(path)
        learner.take_in_journal(config.agent.journal, journal.ended_after)
        classes = learning.write(learner, path)
    shown(classes, path, learner.jobs, as_json)


@click.command()
@_CONFIG
@click.option("--class", "job_class", required=True, help="The class that is profiled, as in class= of the mark.")
@click.option("--gpus", default="0", show_default=True, help="Range of GPUs, such as 1-4.")
@click.option("--cpus", default="1", show_default=True, help="Range of CPUs, such as 1-16.")
@click.option("--mem", default="", help="Memory of each run, such as 8G; the site's default where not given.")
@click.option("--partition", default="", help="Where to run.")
@click.option("--runs", default=8, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@click.option(
    "--sure",
    default=15.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Percent of doubt of the whole curve with which it is known well enough.",
)
@_OUTPUT
@_JSON
@click.argument("script", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def profile(
    config_file: Path | None,
    job_class: str,
    gpus: str,
    cpus: str,
    mem: str,
    partition: str,
    runs: int,
    sure: float,
    output: Path | None,
    as_json: bool,
    script: Path,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT a few times, each on the amounts of which its class's model is least sure.

    Ends when the model is sure enough, or after so many runs. Runs are ordinary jobs of yours, one after the other;
    what was learned is kept after each. Give -- before SCRIPT where its arguments begin with a dash.
    """
    from slurm_plugin.cluster import SlurmCluster
    from slurm_plugin.commands import SlurmCommands
    from slurm_plugin.profile import Plan, SlurmRuns
    from slurm_plugin.profile import profile as steps
    from slurm_plugin.views import show_curve
    from trace_tools import learning

    config = configuration.load(config_file)
    path = _classes_path(config, output)
    given = {"class": job_class, "gpus": gpus, "cpus": cpus} | ({"mem": mem} if mem else {})
    declared = mark_of(given)
    assert declared.gpus is not None and declared.cpus is not None
    plan = Plan(
        job_class=declared.job_class,
        script=script,
        arguments=arguments,
        cpus=(declared.cpus.least, declared.cpus.greatest),
        gpus=(declared.gpus.least, declared.gpus.greatest),
        mem_mb=declared.mem_mb.greatest if declared.mem_mb else 0,
        partition=partition,
        most_runs=runs,
        sure=sure / 100,
    )
    commands = SlurmCommands.from_config(config.slurm)
    run = SlurmRuns(commands, SlurmCluster(commands, config), plan)
    doubt = None
    for step in steps(plan, learning.opened(path).of(plan.job_class), run):
        with learning.locked(path):
            learner = learning.opened(path)
            learner.take_in([step.job])
            learning.write(learner, path)
        doubt = step.doubt
        if as_json:
            click.echo(msgspec.json.encode(step))
        else:
            show_curve(step)
    if not as_json:
        sure_now = "it was sure enough before" if doubt is None else f"unsure by {doubt:.0%}"
        click.echo(f"{path}: class {plan.job_class}, {sure_now}")


def _classes_path(config: Config, output: Path | None) -> Path:
    path = output or (Path(config.agent.classes_file) if config.agent.classes_file else None)
    if path is None:
        raise ConfigError("there is no file for the classes: set agent.classes_file, or give --output")
    return path


@click.command()
@_CONFIG
@click.option("--force", is_flag=True, help="Also while an agent shows a sign of life.")
@_JSON
def janitor(config_file: Path | None, force: bool, as_json: bool) -> None:
    """Free jobs that a dead agent left pinned (one shot; for cron or EpilogSlurmctld).

    Exit status: 0 nothing to do or all repaired, 3 a job could not be repaired, 1 it could not look.
    """
    from slurm_plugin.cluster import SlurmCluster
    from slurm_plugin.janitor import tidy
    from slurm_plugin.journal import Journal

    config = configuration.load(config_file)
    with Journal.open(Path(config.agent.journal)) as journal:
        report = tidy(SlurmCluster.from_config(config), journal, config.agent, force=force)
    if as_json:
        _print_json(report)
    else:
        click.echo(f"agent: {report.agent}" + ("" if report.acted else "; it is in charge, nothing was touched"))
        for repair in report.repairs:
            click.echo(f"job {repair.job_id}: {repair.what}")
        if report.acted and not report.repairs:
            click.echo("no job is pinned")
    if report.failed:
        sys.exit(3)


@click.command()
@_CONFIG
@_JSON
def doctor(config_file: Path | None, as_json: bool) -> None:
    """Check Slurm, hook, agent and server; one line each, with what to do. Changes nothing.

    Best as root on the controller. Exit status: 0 nothing fails (there may be warnings), 3 something fails, 1 the
    configuration cannot be used.
    """
    from slurm_plugin import views
    from slurm_plugin.doctor import examine

    config = configuration.load(config_file)
    found = examine(config, config_file or configuration.DEFAULT_PATH, named=config_file is not None)
    if as_json:
        _print_json(found)
    else:
        views.show_diagnosis(found)
    if not found.healthy:
        sys.exit(3)


@click.command()
@_CONFIG
@click.option("--since", default="7d", show_default=True, help="Jobs that ended from then on: 7d, 2025-01-31, seconds.")
@click.option("--until", default="", help="Jobs that ended before then; now, if not given.")
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the jobs as a trace instead, for `tapfinger evaluate --trace`.",
)
@_JSON
def report(config_file: Path | None, since: str, until: str, trace_file: Path | None, as_json: bool) -> None:
    """What TapFinger would have saved while it watched, and what it did save while it enforced.

    Each job that ended is held against what was decided for it; with an interval, the jobs that lost, and what such
    figures cannot say.
    """
    from slurm_plugin import views, worth
    from trace_tools.since import moment_s

    config = configuration.load(config_file)
    here = datetime.now().astimezone().tzinfo or UTC
    since_s = moment_s(since, here, time.time()) or 0
    until_s = moment_s(until, here, time.time()) or int(time.time()) + 1
    if trace_file is not None:
        count = worth.write_trace(config, since_s, until_s, trace_file)
        click.echo(f"{trace_file}: {count} jobs; to replay: tapfinger evaluate --trace {trace_file} --cluster live")
        return
    found = worth.report(config, since_s, until_s)
    if as_json:
        _print_json(found)
    else:
        views.show_worth(found)


@click.command()
@_CONFIG
@_JSON
def status(config_file: Path | None, as_json: bool) -> None:
    """What agent and server are doing now."""
    from slurm_plugin import report, views

    found = report.status(configuration.load(config_file))
    if as_json:
        _print_json(found)
    else:
        views.show_status(found)


@click.command()
@click.argument("job_id")
@_CONFIG
@_JSON
def explain(job_id: str, config_file: Path | None, as_json: bool) -> None:
    """Say what was decided for a job, and why.

    Exit status 1 where nothing is known of the job.
    """
    from slurm_plugin import report

    found = report.explain(configuration.load(config_file), job_id)
    if as_json:
        _print_json(found)
    else:
        for sentence in found.summary:
            click.echo(sentence)
    if not found.known:
        sys.exit(1)


class _Stop:
    """Whether the agent is to end: after one look, or after SIGTERM or SIGINT."""

    def __init__(self, interrupt, *, once: bool) -> None:
        self._stopped = once
        self._looks = 0
        self._once = once
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop(interrupt))

    def __call__(self) -> bool:
        self._looks += 1
        return self._looks > 1 if self._once else self._stopped

    def _stop(self, interrupt) -> None:
        self._stopped = True
        interrupt()


def _with_mode(config: Config, mode: Mode | None) -> Config:
    if mode is None:
        return config
    return msgspec.structs.replace(config, agent=msgspec.structs.replace(config.agent, mode=mode))


def _print_json(value: msgspec.Struct) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())
