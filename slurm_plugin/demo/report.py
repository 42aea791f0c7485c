"""What the demo found: per job what was asked, given and taken, per side the figures, and the reduction with its interval."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from tapfinger_hpc import stats
from tapfinger_hpc.state import PendingJob, Resources


class JobResult(msgspec.Struct, frozen=True):
    """How one job fared on one side; times in seconds."""

    node: str
    got: Resources
    waited_s: float
    """From submission to the first line of its script."""
    ran_s: float
    completion_s: float
    """From submission to the end."""


class JobComparison(msgspec.Struct, frozen=True):
    """One job on both sides."""

    job: str
    job_class: str
    submitted_s: float
    """From the start of the demo."""
    asked: Resources
    least: Resources
    greatest: Resources
    partitions: tuple[str, ...]
    stock: JobResult
    tapfinger: JobResult


class SideFigures(msgspec.Struct, frozen=True):
    """One side's figures; times in seconds."""

    mean_completion_s: float
    median_completion_s: float
    p95_completion_s: float
    mean_wait_s: float
    gpu_use: float
    """GPU seconds held / (GPUs of the cluster * time from the first submission to the last end)."""
    gpu_hours: float
    makespan_s: float


class DemoReport(msgspec.Struct, frozen=True):
    """Everything that `tapfinger demo --json` writes."""

    cluster: str
    """``slurm``, or ``simulated`` where Slurm cannot be installed."""
    policy: str
    seed: int
    requested_load: float
    """GPU seconds at the requested amounts / (GPUs of the cluster * time over which jobs arrive)."""
    stock: SideFigures
    tapfinger: SideFigures
    reduction: float
    """1 - mean completion time with TapFinger / mean completion time on stock Slurm."""
    reduction_interval: tuple[float, float]
    """95 % bootstrap interval over this run's jobs. It says nothing of other workloads; use more seeds for that."""
    jobs: tuple[JobComparison, ...]


def compare(
    *,
    cluster: str,
    policy: str,
    seed: int,
    requested_load: float,
    gpus: int,
    jobs: Sequence[tuple[PendingJob, JobResult, JobResult]],
) -> DemoReport:
    """The report of both sides' results: (job as submitted, on stock Slurm, with TapFinger), in order of submission."""
    compared = tuple(
        JobComparison(
            job=job.job_id,
            job_class=job.job_class,
            submitted_s=float(job.submit_time_s),
            asked=job.requested,
            least=job.minimum,
            greatest=job.maximum,
            partitions=job.partitions,
            stock=stock,
            tapfinger=ours,
        )
        for job, stock, ours in jobs
    )
    reduction = stats.paired_reduction(
        [job.stock.completion_s for job in compared], [job.tapfinger.completion_s for job in compared], seed=seed
    )
    return DemoReport(
        cluster=cluster,
        policy=policy,
        seed=seed,
        requested_load=requested_load,
        stock=_figures(compared, [job.stock for job in compared], gpus),
        tapfinger=_figures(compared, [job.tapfinger for job in compared], gpus),
        reduction=reduction.value,
        reduction_interval=(reduction.low, reduction.high),
        jobs=compared,
    )


def write_json(report: DemoReport, path: Path) -> None:
    """Writes the report, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    partial.replace(path)


def table(report: DemoReport) -> Table:
    """The figures side by side."""
    made = Table(title=f"{len(report.jobs)} jobs, seed {report.seed}, requested load {report.requested_load:.2f}")
    made.add_column("")
    made.add_column("stock Slurm", justify="right")
    made.add_column(f"TapFinger ({report.policy})", justify="right")
    made.add_column("change", justify="right")
    rows = (
        ("mean completion time [s]", "mean_completion_s", "{:.1f}"),
        ("median completion time [s]", "median_completion_s", "{:.1f}"),
        ("95th percentile [s]", "p95_completion_s", "{:.1f}"),
        ("mean waiting time [s]", "mean_wait_s", "{:.1f}"),
        ("GPU use", "gpu_use", "{:.0%}"),
        ("GPU hours held", "gpu_hours", "{:.2f}"),
        ("time for all jobs [s]", "makespan_s", "{:.0f}"),
    )
    for title, field, form in rows:
        before, after = getattr(report.stock, field), getattr(report.tapfinger, field)
        change = f"{after / before - 1:+.0%}" if before else "-"
        made.add_row(title, form.format(before), form.format(after), change)
    return made


def summary(report: DemoReport) -> str:
    """The one line that counts."""
    low, high = report.reduction_interval
    return (
        f"Mean completion time {report.reduction:.1%} below stock Slurm "
        f"(95 % interval over these jobs {low:.1%} to {high:.1%})."
    )


def _figures(jobs: Sequence[JobComparison], results: Sequence[JobResult], gpus: int) -> SideFigures:
    completions = [result.completion_s for result in results]
    first_s = min(job.submitted_s for job in jobs)
    makespan_s = max(job.submitted_s + result.completion_s for job, result in zip(jobs, results, strict=True)) - first_s
    gpu_s = sum(result.got.gpus * result.ran_s for result in results)
    return SideFigures(
        mean_completion_s=stats.mean(completions),
        median_completion_s=stats.percentile(completions, 50),
        p95_completion_s=stats.percentile(completions, 95),
        mean_wait_s=stats.mean([result.waited_s for result in results]),
        gpu_use=gpu_s / (gpus * makespan_s),
        gpu_hours=gpu_s / 3600,
        makespan_s=makespan_s,
    )
