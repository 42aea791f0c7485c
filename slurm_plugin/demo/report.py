"""What the demo found: per job what was asked, given and taken; per side the figures; the reduction."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import msgspec
from rich.table import Table

from tapfinger_hpc import stats
from tapfinger_hpc.errors import SandboxError
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.state import PendingJob, Resources
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace


class JobResult(msgspec.Struct, frozen=True):
    """How one job fared on one side; times in seconds."""

    node: str
    given: Resources
    waited_s: float
    """From submission to the first line of its script."""
    ran_s: float
    completion_s: float
    """From submission to the end."""
    outcome: str
    """COMPLETED, or TIMEOUT where its time limit ended it."""


class JobComparison(msgspec.Struct, frozen=True):
    """One job on both sides."""

    job: str
    job_class: str
    managed: bool
    submitted_s: float
    """From the start of the demo."""
    asked: Resources
    least: Resources
    greatest: Resources
    partitions: tuple[str, ...]
    stock: JobResult
    tapfinger: JobResult


class DemoReport(msgspec.Struct, frozen=True):
    """Everything that `tapfinger demo --json` writes."""

    cluster: str
    """``slurm``, or ``simulated`` where Slurm cannot be installed."""
    policy: str
    seed: int
    requested_load: float
    """GPU seconds at the requested amounts / (GPUs of the cluster * time over which jobs arrive)."""
    stock: stats.Summary
    tapfinger: stats.Summary
    reduction: float
    """1 - mean completion time with TapFinger / mean completion time on stock Slurm."""
    reduction_interval: tuple[float, float]
    """95 % bootstrap interval over this run's jobs."""
    foreign_wait_s: tuple[float, float] | None
    """Mean wait of the jobs that are not ours, on stock Slurm and with TapFinger; None where there are none."""
    jobs: tuple[JobComparison, ...]


def compare(
    *,
    cluster: str,
    policy: str,
    seed: int,
    requested_load: float,
    gpus: int,
    trace: Trace,
    stock: Sequence[JobRecord],
    tapfinger: Sequence[JobRecord],
) -> DemoReport:
    """The report of both sides' records of all jobs of the trace."""
    before = {record.job_id: record for record in stock}
    after = {record.job_id: record for record in tapfinger}
    # Jobs of one run queue behind each other, so this interval is about these jobs; more seeds tell of other workloads.
    reduction = stats.paired_reduction(stock, tapfinger, seed=seed)
    return DemoReport(
        cluster=cluster,
        policy=policy,
        seed=seed,
        requested_load=requested_load,
        stock=stats.summarise(stock, gpus),
        tapfinger=stats.summarise(tapfinger, gpus),
        reduction=reduction.value,
        reduction_interval=(reduction.low, reduction.high),
        foreign_wait_s=foreign_waits(stock, tapfinger),
        jobs=tuple(
            _comparison(trace_job.job, before[trace_job.job.job_id], after[trace_job.job.job_id])
            for trace_job in trace.jobs
        ),
    )


def foreign_waits(stock: Sequence[JobRecord], tapfinger: Sequence[JobRecord]) -> tuple[float, float] | None:
    """Mean wait in seconds of the jobs that are not ours, on either side; None where there are none."""
    before = [record.waiting_s for record in stock if not record.managed]
    after = [record.waiting_s for record in tapfinger if not record.managed]
    return (fmean(before), fmean(after)) if before and after else None


def write_json(report: DemoReport, path: Path) -> None:
    """Writes the report, whole or not at all."""
    with whole_or_not_at_all(path, SandboxError) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def table(report: DemoReport) -> Table:
    """The figures side by side."""
    made = Table(title=f"{len(report.jobs)} jobs, seed {report.seed}, requested load {report.requested_load:.2f}")
    made.add_column("")
    made.add_column("stock Slurm", justify="right")
    made.add_column(f"TapFinger ({report.policy})", justify="right")
    made.add_column("change", justify="right")
    stock, ours = report.stock, report.tapfinger
    rows = [
        ("mean completion time (s)", stock.mean_completion_s, ours.mean_completion_s, "{:.1f}"),
        ("median completion time (s)", stock.median_completion_s, ours.median_completion_s, "{:.1f}"),
        ("95th percentile of it (s)", stock.p95_completion_s, ours.p95_completion_s, "{:.1f}"),
        ("mean waiting time (s)", stock.mean_waiting_s, ours.mean_waiting_s, "{:.1f}"),
        ("GPU use", stock.gpu_use, ours.gpu_use, "{:.0%}"),
        ("time for all jobs (s)", stock.makespan_s, ours.makespan_s, "{:.0f}"),
    ]
    if stock.not_completed or ours.not_completed:
        rows.append(("jobs ended by their time limit", stock.not_completed, ours.not_completed, "{:.0f}"))
    if report.foreign_wait_s is not None:
        rows.append(("mean wait of others' jobs (s)", *report.foreign_wait_s, "{:.1f}"))
    for title, before, after, form in rows:
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


def _comparison(job: PendingJob, stock: JobRecord, tapfinger: JobRecord) -> JobComparison:
    return JobComparison(
        job=job.job_id,
        job_class=job.job_class,
        managed=job.managed,
        submitted_s=float(job.submit_time_s),
        asked=job.requested,
        least=job.minimum,
        greatest=job.maximum,
        partitions=job.partitions,
        stock=_result(stock),
        tapfinger=_result(tapfinger),
    )


def _result(record: JobRecord) -> JobResult:
    return JobResult(
        node=",".join(record.nodes),
        given=record.amounts,
        waited_s=record.waiting_s,
        ran_s=record.running_s,
        completion_s=record.completion_s,
        outcome=record.outcome,
    )
