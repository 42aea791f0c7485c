"""``tapfinger train``: a course of training with a progress bar, which Ctrl-C ends and ``--resume`` goes on with."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.nets.config import ABLATIONS
from tapfinger_hpc.sim.levels import LEVELS, ORACLE
from tapfinger_hpc.training import adapting

CLUSTERS = 96
"""Settling in on them takes some minutes of a course that should take an hour."""


@click.command()
@click.option(
    "--scenario",
    help="Train in this scenario of the paper, or in drawn ones (random, cluster); several with commas between.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the checkpoint."
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True)
@click.option("--iterations", type=click.IntRange(min=0), default=0, help="End after so many instead (reproducible).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option(
    "--table", type=click.Path(dir_okay=False, path_type=Path), help="Test-bed measurements (testbed-3, trace-*)."
)
@click.option("--start", type=click.Path(file_okay=False, path_type=Path), help="Checkpoint to begin with.")
@click.option(
    "--clusters",
    type=click.IntRange(min=0),
    default=CLUSTERS,
    show_default=True,
    help="Different clusters of a drawn scenario, each settled in on; 0: another for every workload, and no settling.",
)
@click.option(
    "--knowledge", type=click.Choice(LEVELS), default=ORACLE, show_default=True, help="What it is told of tasks' speed."
)
@click.option("--ablate", type=click.Choice(ABLATIONS), multiple=True, help="Go without this; repeatable.")
@click.option("--from-scratch", is_flag=True, help="No imitation of the price heuristic before PPO.")
@click.option("--resume", is_flag=True, help="Go on from what an earlier run left in the folder.")
@adapting.options
@click.pass_context
def train(
    context: click.Context,
    scenario: str,
    out: Path,
    minutes: float,
    iterations: int,
    seed: int,
    workers: int,
    table: Path | None,
    start: Path | None,
    clusters: int,
    knowledge: str,
    ablate: Sequence[str],
    from_scratch: bool,
    resume: bool,
    **site: Any,
) -> None:
    """Train the policy network in one of the paper's scenarios, in random ones, or on a site's own past jobs.

    With --scenario first by imitating the price heuristic, then by PPO. With --trace and --cluster the policy that
    ships is adapted to the site, and kept only if it beats the present one on the later part of the trace. Started by
    torchrun or srun, all processes train together. Ctrl-C keeps what was last saved; --resume goes on from there.
    """
    adapts = adapting.asked(context)
    if not resume and (out / "checkpoint.json").exists():
        raise click.UsageError(f"{str(out)!r} already holds a checkpoint: give --resume, or another folder")
    try:
        from tapfinger_hpc.training import course, starting
    except ImportError as error:
        raise ConfigError(
            f"training needs {error.name}, which is not installed: pip install 'tapfinger-hpc[train]'"
        ) from error
    if adapts:
        sys.exit(adapting.adapt(out, start, minutes, iterations, seed, workers, resume, **site))
    config = course.CourseConfig(
        scenario, knowledge=knowledge, minutes=minutes, iterations=iterations, seed=seed, clusters=clusters
    )
    config = course.ablated(config, [*ablate, *(["imitation"] if from_scratch else [])])
    try:
        info = starting.run(config, out, workers=workers, table=table, start=start, resume=resume)
    except KeyboardInterrupt:
        adapting.stopped(out)
    if info is not None:
        trained = info.training
        Console().print(
            f"{out}: weights {info.fingerprint}, {trained.iterations} iterations in {trained.minutes:g} min, "
            f"{trained.episodes} episodes of {trained.scenario}"
        )
