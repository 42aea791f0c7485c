"""``tapfinger train``: teaches the network, shows how far it is, and says at the end how good it has become."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.policies import registry
from tapfinger_hpc.sim.levels import LEVELS, ORACLE

if TYPE_CHECKING:
    from tapfinger_hpc.training import imitation
    from tapfinger_hpc.training.checkpoint import CheckpointInfo, Validation

TEACHERS = tuple(name for name in registry.NAMES if name != "tapfinger")


@click.command()
@click.option("--scenario", default="", help="Train in this scenario of the paper, or in random ones (random).")
@click.option("--imitate", type=click.Choice(TEACHERS), help="Without --scenario: policy to learn from, on clusters.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the checkpoint."
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--steps", type=click.IntRange(min=0), default=0, help="End after so many steps instead (reproducible).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from what an earlier run left in the folder.")
@click.option(
    "--workloads",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    help="Held-out workloads of each sort to validate on; 0 leaves it out.",
)
@click.option("--iterations", type=click.IntRange(min=0), default=0, help="With --scenario: end after so many instead.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="With --scenario: processes.")
@click.option(
    "--table", type=click.Path(dir_okay=False, path_type=Path), help="Test-bed measurements (testbed-3, trace-*)."
)
@click.option("--start", type=click.Path(file_okay=False, path_type=Path), help="Checkpoint to begin with.")
@click.option(
    "--knowledge", type=click.Choice(LEVELS), default=ORACLE, show_default=True, help="What it is told of tasks' speed."
)
@click.option("--from-scratch", is_flag=True, help="With --scenario: no imitation of the price heuristic before PPO.")
def train(
    scenario: str,
    imitate: str | None,
    out: Path,
    minutes: float,
    steps: int,
    seed: int,
    resume: bool,
    workloads: int,
    iterations: int,
    workers: int,
    table: Path | None,
    start: Path | None,
    knowledge: str,
    from_scratch: bool,
) -> None:
    """Train the policy network.

    With --scenario: in one of the paper's scenarios, or in random ones, first by imitating the price heuristic, then by
    PPO. Started by torchrun or srun, all processes train together. With --imitate: to decide as another policy does, on
    random clusters and workloads. Ctrl-C keeps what was last saved; --resume goes on from there.
    """
    if not resume and (out / "checkpoint.json").exists():
        raise click.UsageError(f"{str(out)!r} already holds a checkpoint: give --resume, or another folder")
    if scenario:
        _train_in_scenario(
            scenario, out, minutes, iterations, seed, resume, workers, table, start, knowledge, from_scratch
        )
        return
    if imitate is None:
        raise click.UsageError("give --scenario NAME, or --imitate POLICY")
    imitation = _load_training()
    config = imitation.ImitationConfig(minutes=minutes, steps=steps, seed=seed)
    console = Console(stderr=True)
    try:
        with _shown(console, steps > 0) as report:
            imitation.train(config, registry.make(imitate, seed=seed), out, resume=resume, report=report)
        if workloads:
            _validate(console, out, imitate, workloads)
    except KeyboardInterrupt:
        kept = (out / "checkpoint.json").exists()
        console.print(f"Stopped; {'go on with --resume' if kept else 'nothing had been learned yet'}.")
        sys.exit(130)
    from tapfinger_hpc.training import checkpoint

    _show(Console(), out, checkpoint.describe(out))


def _train_in_scenario(
    scenario: str,
    out: Path,
    minutes: float,
    iterations: int,
    seed: int,
    resume: bool,
    workers: int,
    table: Path | None,
    start: Path | None,
    knowledge: str,
    from_scratch: bool,
) -> None:
    try:
        from tapfinger_hpc.training import course, starting
    except ImportError as error:
        raise ConfigError(
            f"training needs {error.name}, which is not installed: pip install 'tapfinger-hpc[train]'"
        ) from error
    config = course.CourseConfig(
        scenario,
        knowledge=knowledge,
        minutes=minutes,
        iterations=iterations,
        seed=seed,
        teacher="" if from_scratch else "price",
    )
    try:
        info = starting.run(config, out, workers=workers, table=table, start=start, resume=resume)
    except KeyboardInterrupt:
        kept = (out / course.STATE).exists()
        Console(stderr=True).print(f"Stopped; {'go on with --resume' if kept else 'nothing had been saved yet'}.")
        sys.exit(130)
    if info is not None:
        trained = info.training
        Console().print(
            f"{out}: weights {info.fingerprint}, {trained.iterations} iterations in {trained.minutes:g} min, "
            f"{trained.episodes} episodes of {trained.scenario}"
        )


def _load_training():
    try:
        from tapfinger_hpc.training import imitation
    except ImportError as error:
        raise ConfigError(
            f"training needs {error.name}, which is not installed: pip install 'tapfinger-hpc[train]'"
        ) from error
    return imitation


@contextlib.contextmanager
def _shown(console: Console, by_steps: bool) -> Iterator:
    """A line that says how far the training is and how much longer it takes."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("step {task.fields[step]}"),
        TextColumn("{task.fields[states]} states of {task.fields[episodes]} episodes"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=1.0, step=0, states=0, episodes=0, loss=float("nan"), left="")

        def report(progress: "imitation.Progress") -> None:
            minutes, seconds = divmod(int(min(progress.seconds_left, 359999)), 60)
            shown.update(
                task,
                completed=progress.share,
                step=progress.step,
                states=progress.states,
                episodes=progress.episodes,
                loss=progress.loss,
                left=f"{minutes}:{seconds:02d} left" if progress.step or not by_steps else "",
            )

        yield report


def _validate(console: Console, out: Path, teacher: str, workloads: int) -> None:
    """Compares on held-out workloads, and writes what comes of it into the checkpoint."""
    from tapfinger_hpc.policies.learned import LearnedPolicy
    from tapfinger_hpc.training import imitation, validate
    from tapfinger_hpc.training.episodes import HELD_OUT, demo_scenario, random_scenario

    policy = LearnedPolicy.load(out)
    others = [registry.make(teacher), registry.make("fifo"), None]
    found: list[Validation] = []
    columns = (TextColumn("validating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=2 * workloads)
        for words, scenarios in (
            ("random clusters and workloads", (random_scenario(HELD_OUT, number) for number in range(workloads))),
            ("the demo's cluster and workload", (demo_scenario(seed) for seed in range(workloads))),
        ):
            found += validate.compare(policy, others, scenarios, words, lambda: shown.advance(task))
    imitation.with_validation(out, tuple(found))


def _show(console: Console, out: Path, info: "CheckpointInfo") -> None:
    training = info.training
    console.print(
        f"{out}: weights {info.fingerprint}, {training.steps} steps in {training.minutes:g} min on "
        f"{training.decisions} states of {training.episodes} episodes, imitating {training.imitates}"
    )
    if training.agreement:
        shares = ", ".join(f"{head} {share:.1%}" for head, share in training.agreement.items())
        console.print(f"chooses as {training.imitates} does on held-out states: {shares}")
    if not training.validation:
        return
    table = Table("mean completion time", "over that of", "ratio", "95 % interval", "workloads")
    for shown in training.validation:
        interval = f"{shown.low:.3f} to {shown.high:.3f}"
        table.add_row(shown.workloads, shown.against, f"{shown.ratio:.3f}", interval, str(shown.seeds))
    console.print(table)
