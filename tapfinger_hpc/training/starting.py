"""Starts a course of training: alone, in several processes of this machine, or as one of a team that srun started."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.multiprocessing
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from torch.utils.tensorboard import SummaryWriter

from tapfinger_hpc import checkpoint
from tapfinger_hpc.checkpoint import CheckpointInfo
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.sim.scenarios import Workload
from tapfinger_hpc.training import course, team
from tapfinger_hpc.training.course import CourseConfig, Progress
from tapfinger_hpc.training.team import Team


def run(
    config: CourseConfig,
    out: Path,
    *,
    workers: int,
    table: Path | None,
    start: Path | None,
    resume: bool,
    drawn: Callable[[int], Workload] | None = None,
) -> CheckpointInfo | None:
    """Trains, showing how far it is; the checkpoint's description, or None where another process tells it.

    Args:
        drawn: as for ``course.train``.

    Raises:
        ConfigError: ``workers`` beside a team that torchrun or srun has started.
        TapfingerError: as ``course.train``.
    """
    joined = team.join()
    if joined.size > 1 and workers > 1:
        raise ConfigError(f"--workers {workers} within one of {joined.size} processes of a team; leave it out")
    if workers == 1:
        try:
            info = _member(joined, config, out, table, start, resume, drawn)
        finally:
            joined.leave()
        return info if joined.leads else None
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.spawn(
            _worker, args=(workers, meeting, config, out, table, start, resume, drawn), nprocs=workers
        )
    return checkpoint.describe(out)


def _worker(
    rank: int,
    size: int,
    meeting: str,
    config: CourseConfig,
    out: Path,
    table: Path | None,
    start: Path | None,
    resume: bool,
    drawn: Callable[[int], Workload] | None,
) -> None:
    joined = team.join_file(meeting, rank, size)
    try:
        _member(joined, config, out, table, start, resume, drawn)
    finally:
        joined.leave()


def _member(
    joined: Team,
    config: CourseConfig,
    out: Path,
    table: Path | None,
    start: Path | None,
    resume: bool,
    drawn: Callable[[int], Workload] | None,
) -> CheckpointInfo:
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(_reporting(out)) if joined.leads else _silent
        return course.train(
            config, out, table=table, start=start, resume=resume, team=joined, drawn=drawn, report=report
        )


def _silent(progress: Progress) -> None:
    pass


@contextlib.contextmanager
def _reporting(out: Path) -> Iterator[Callable[[Progress], None]]:
    """A line with the time that is left, and TensorBoard's files in the folder of the checkpoint."""
    columns = (
        TextColumn("{task.fields[phase]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("iteration {task.fields[iteration]}, {task.fields[episodes]} episodes"),
        TextColumn("{task.fields[told]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar, SummaryWriter(str(out / "tensorboard")) as writer:
        task = bar.add_task("", total=1.0, phase="starting", iteration=0, episodes=0, told="", left="")

        def report(progress: Progress) -> None:
            for name, value in progress.told.items():
                writer.add_scalar(name, value, progress.iteration)
            left_s = progress.seconds * (1 - progress.share) / max(1e-9, progress.share)
            minutes, seconds = divmod(int(min(left_s, 359_999)), 60)
            shown = [
                f"{name} {progress.told[name]:.3f}"
                for name in ("loss", "mean_jct", "over_price")
                if name in progress.told
            ]
            bar.update(
                task,
                completed=progress.share,
                phase=progress.phase,
                iteration=progress.iteration,
                episodes=progress.episodes,
                told=" ".join(shown),
                left=f"{minutes}:{seconds:02d} left",
            )

        yield report
