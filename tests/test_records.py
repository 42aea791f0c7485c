"""The record of a job that has ended."""

import pytest

from tapfinger_hpc.state import Resources
from trace_tools.records import ENDED, EndedJob, plain_name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train_lr0.01_seed3", "train_lr0.1_seed12"),
        ("Eval-2024-01-31", "eval-2023-12-01"),
        ("run 8d3c1f3e-1111-2222-3333-444455556666", "run 00000000-aaaa-bbbb-cccc-ddddeeeeffff"),
        ("array[7]", "array[31]"),
    ],
)
def test_runs_of_one_kind_of_job_have_one_plain_name(one, other):
    assert plain_name(one) == plain_name(other)


def test_different_words_stay_different():
    assert plain_name("train_bert") != plain_name("train_resnet")


def test_only_a_completed_job_has_done_all_of_its_work():
    amounts = Resources(4, 1, 1000)
    jobs = [EndedJob(job_id="1", state=state, elapsed_s=5.0, granted=amounts, requested=amounts) for state in ENDED]
    assert [job.state for job in jobs if job.finished] == ["COMPLETED"]
