"""``tapfinger demo``."""

import random
import signal
import sys
from pathlib import Path

import click
from msgspec.structs import replace
from rich.console import Console
from rich.live import Live

from slurm_plugin.demo import report, run, view
from slurm_plugin.sandbox import packages, releases
from slurm_plugin.sandbox.cli import release_option
from slurm_plugin.sandbox.userland import Userland
from tapfinger_hpc.errors import SandboxError
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.trace import Trace

KNOWLEDGE_LOG_STD = 0.1
"""How well TapFinger knows the classes' speed: every point of a curve is off by some 10 %, as after a few runs."""


@click.command()
@click.option("--seed", default=0, show_default=True, help="Which workload.")
@click.option("--jobs", default=48, show_default=True, type=click.IntRange(min=2), help="How many jobs.")
@click.option("--policy", default="tapfinger", show_default=True, help="What the policy server decides with.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
@click.option(
    "--foreign",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 0.9),
    help="Share of jobs that are not TapFinger's: submitted without the mark.",
)
@click.option("--simulated", is_flag=True, help="Simulate both clusters even where Slurm is installed.")
@click.option("--install", is_flag=True, help="Install Debian's Slurm packages where they are missing (as root).")
@release_option
def demo(
    seed: int,
    jobs: int,
    policy: str,
    json_file: Path | None,
    foreign: float,
    simulated: bool,
    install: bool,
    release: str,
) -> None:
    """Run the same stream of jobs on stock Slurm and with TapFinger, and compare.

    Both clusters are real: throw-away ones with fake GPUs, side by side at the same time. Each job works out from what
    it really got how long it takes, and sleeps that. Where Slurm cannot be installed both are simulated.
    """
    # Ended like Ctrl-C, so that everything is taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Only here, because it needs numpy and `tapfinger demo --help` does not.
    from tapfinger_hpc import workload

    console = Console()
    trace = workload.demo_trace(seed=seed, n_jobs=jobs, foreign=foreign)
    known = estimated(trace.classes, seed)
    reason = "as asked" if simulated else _why_not_slurm(console, Userland(release), install)
    if reason:
        console.print(f"Both clusters are simulated: {reason}.")
        stock, ours = run.simulated(trace, known, policy)
    else:
        console.print("Two real throw-away Slurm clusters: 3 partitions, 6 nodes, 24 GPUs each.")
        try:
            stock, ours = _watched(console, trace, known, policy, release)
        except KeyboardInterrupt:
            console.print("Stopped; both clusters are gone.")
            sys.exit(130)
    made = report.compare(
        cluster="simulated" if reason else "slurm",
        policy=policy,
        seed=seed,
        requested_load=workload.requested_load(trace, run.shape())[1],
        gpus=run.GPUS,
        trace=trace,
        stock=stock,
        tapfinger=ours,
    )
    console.print(report.table(made))
    console.print(report.summary(made))
    if json_file is not None:
        report.write_json(made, json_file)
        console.print(f"All figures: {json_file}")


def estimated(classes: tuple[JobClass, ...], seed: int) -> tuple[JobClass, ...]:
    """What TapFinger is told of the classes: their true curves, each point off by a random factor."""
    draw = random.Random(f"knowledge {seed}")
    return tuple(_estimate(job_class, draw) for job_class in classes)


def _estimate(job_class: JobClass, draw: random.Random) -> JobClass:
    seconds = tuple(
        None if exact is None else exact * draw.lognormvariate(0.0, KNOWLEDGE_LOG_STD)
        for exact in job_class.speed.seconds
    )
    return replace(job_class, speed=replace(job_class.speed, seconds=seconds, log_std=(KNOWLEDGE_LOG_STD,)))


def _why_not_slurm(console: Console, userland: Userland, install: bool) -> str:
    """Why the clusters cannot be real; "" where they can. Fetches Slurm first where that is wanted."""
    if install and packages.missing(userland, accounting=False):
        console.print("Installing Debian's Slurm packages; no service is started ...")
        try:
            if userland.release:
                releases.install(userland)
            else:
                packages.install(accounting=False)
        except SandboxError as error:
            return str(error)
    return packages.why_not(userland, accounting=False)


def _watched(console: Console, trace: Trace, known: tuple[JobClass, ...], policy: str, release: str) -> run.Records:
    """Runs on Slurm with the live view; plain lines, now and then, where the output is no terminal."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            return run.on_slurm(
                trace,
                known,
                policy,
                lambda sides, elapsed_s, hint: live.update(view.render(sides, elapsed_s, hint)),
                release=release,
            )
    last_s = -20.0

    def print_line(sides: tuple[view.Progress, view.Progress], elapsed_s: float, hint: str) -> None:
        nonlocal last_s
        if last_s < 0:
            console.print(hint)
        if elapsed_s - last_s >= 20:
            last_s = elapsed_s
            console.print(f"{elapsed_s:4.0f} s  " + "   ".join(view.line(side) for side in sides))

    return run.on_slurm(trace, known, policy, print_line, release=release)
