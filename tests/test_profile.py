"""Profiling a class on purpose: where it runs, when it stops, and what it asks of Slurm."""

import random
from pathlib import Path

import pytest

from slurm_plugin.commands import Answer
from slurm_plugin.parse import JobRecord
from slurm_plugin.profile import Plan, SlurmRuns, profile
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import Resources
from trace_tools import choosing
from trace_tools.choosing import Point
from trace_tools.records import EndedJob
from trace_tools.seen import Seen

PLAN = Plan("nap", Path("nap.sh"), ("--fast",), cpus=(1, 16), gpus=(1, 4), mem_mb=2000, partition="pa")


def true_s(amounts: Resources) -> float:
    return 200 * (0.1 + 0.9 / amounts.gpus) * max(1.0, 1.5 * amounts.gpus / amounts.cpus) ** 0.8


def ended(amounts: Resources, elapsed_s: float, state: str = "COMPLETED") -> EndedJob:
    return EndedJob(job_id="5", state=state, elapsed_s=elapsed_s, granted=amounts, requested=amounts)


def runner(amounts: Resources) -> EndedJob:
    return ended(amounts, true_s(amounts))


def test_the_curve_sharpens_with_the_runs_and_comes_to_be_right():
    steps = list(profile(PLAN, Seen("nap"), runner))
    assert steps[-1].doubt < steps[0].doubt / 2
    errors = sorted(abs(point.seconds / true_s(point.amounts) - 1) for point in steps[-1].curve)
    assert errors[len(errors) // 2] < 0.1
    assert len({step.job.granted for step in steps}) == len(steps)


def test_it_ends_when_it_is_sure_enough_and_does_not_begin_where_it_is():
    seen = Seen("nap")
    plan = Plan("nap", Path("nap.sh"), (), cpus=(1, 16), gpus=(1, 4), most_runs=40, sure=0.2)
    steps = list(profile(plan, seen, runner))
    assert len(steps) < 40
    assert steps[-1].doubt <= 0.2 < steps[-2].doubt
    assert list(profile(plan, seen, runner)) == []


def test_runs_chosen_where_the_model_is_least_sure_teach_more_than_random_ones():
    def error(choices: list[Resources]) -> float:
        seen = Seen("nap")
        for amounts in choices:
            seen.add(runner(amounts))
        points = choosing.curve(seen, choosing.candidates(PLAN.cpus, PLAN.gpus, PLAN.mem_mb))
        return choosing.mean_doubt(points)

    chosen = error([step.job.granted for step in profile(PLAN, Seen("nap"), runner)][:5])
    draw = random.Random(0)
    everywhere = choosing.candidates(PLAN.cpus, PLAN.gpus, PLAN.mem_mb)
    at_random = sorted(error(draw.sample(everywhere, 5)) for _ in range(20))
    assert chosen < at_random[len(at_random) // 2]


def test_a_run_that_fails_ends_the_profile_and_one_that_times_out_teaches():
    with pytest.raises(SlurmError, match="job 5 of the profile ended FAILED"):
        list(profile(PLAN, Seen("nap"), lambda amounts: ended(amounts, 3.0, "FAILED")))
    steps = list(profile(PLAN, Seen("nap"), lambda amounts: ended(amounts, 100.0, "TIMEOUT")))
    assert all(point.seconds > 50 for point in steps[-1].curve)


def test_candidates_span_the_ranges_with_both_ends():
    amounts = choosing.candidates((2, 10), (0, 5), 1000)
    assert sorted({one.cpus for one in amounts}) == [2, 3, 4, 6, 8, 10]
    assert sorted({one.gpus for one in amounts}) == [0, 1, 2, 3, 4, 5]
    assert choosing.first(amounts) == Resources(6, 0, 1000)


def test_where_the_doubt_is_alike_the_smallest_amounts_are_next():
    points = [
        Point(Resources(8, 4, 0), 1.0, 0.5),
        Point(Resources(1, 1, 0), 1.0, 0.499),
        Point(Resources(1, 2, 0), 1, 0.2),
    ]
    assert choosing.least_sure(points).amounts == Resources(1, 1, 0)


def squeue_record(state: str, end_s: int | None) -> JobRecord:
    return JobRecord(
        number="9", array_id="", array_tasks="", het_id="", user="ada", state=state, reason="", batch=True,
        partitions=("pa",), submit_s=100, eligible_s=100, start_s=100, end_s=end_s, time_limit_s=600, priority=1,
        tasks=1, amounts=Resources(4, 2, 2000), cpus_asked=4, node_count=1, gpu_type="", dependent=False,
        nodes=("n1",), asked_nodes=(), planned_nodes=(), constraint="", sharing="OK", restarts=0, comment="",
        admin_comment="",
    )  # fmt: skip


class Slurm:
    """squeue and sbatch of a cluster on which one job runs."""

    def __init__(self, *records: JobRecord | None) -> None:
        self.records, self.asked = list(records), []

    def __call__(self, argv) -> Answer:
        self.asked.append(list(argv))
        return Answer(tuple(argv), 0, b"9;cluster\n", "")

    def job(self, job_id: str) -> JobRecord | None:
        assert job_id == "9"
        return self.records.pop(0) if self.records else None


def test_a_run_is_a_plain_job_with_just_these_amounts():
    slurm = Slurm(squeue_record("PD", None), None, squeue_record("R", None), squeue_record("CD", 350))
    job = SlurmRuns(slurm, slurm, PLAN, wait=lambda _: None)(Resources(4, 2, 2000))  # type: ignore[arg-type]
    assert (job.state, job.elapsed_s, job.granted) == ("COMPLETED", 250.0, Resources(4, 2, 2000))
    assert job.mark is not None
    assert job.mark.job_class == "nap"
    (sbatch,) = slurm.asked
    assert sbatch[:2] == ["sbatch", "--parsable"]
    assert {"--cpus-per-task=4", "--gres=gpu:2", "--mem=2000M", "--partition=pa"} <= set(sbatch)
    assert sbatch[-2:] == ["nap.sh", "--fast"]


def test_a_profile_that_is_interrupted_cancels_its_job():
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    slurm = Slurm(squeue_record("R", None))
    with pytest.raises(KeyboardInterrupt):
        SlurmRuns(slurm, slurm, PLAN, wait=interrupted)(Resources(4, 2, 2000))  # type: ignore[arg-type]
    assert slurm.asked[-1] == ["scancel", "9"]


def test_a_job_that_slurm_lost_is_said_to_be():
    slurm = Slurm()
    with pytest.raises(SlurmError, match="unknown to Slurm"):
        SlurmRuns(slurm, slurm, PLAN, wait=lambda _: None)(Resources(4, 2, 2000))  # type: ignore[arg-type]
