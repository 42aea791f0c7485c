"""Which jobs are of one class."""

import pytest

from tapfinger_hpc.state import Resources
from tapfinger_hpc.units import Mark
from trace_tools.classes import LONGEST, class_name, class_of, plain_name
from trace_tools.records import EndedJob


def job(**fields) -> EndedJob:
    values = {"job_id": "1", "state": "COMPLETED", "elapsed_s": 10.0, "user": "ada", "account": "lab"}
    amounts = Resources(1, 1, 1000)
    return EndedJob(granted=amounts, requested=amounts, **(values | fields))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train_lr0.01_seed3", "train_lr1e-4_seed12"),
        ("eval-2024-05-01T12:33:10", "eval-2024-11-23"),
        ("job_3f2a9c1_run", "job_9bc04fe_run"),
        ("x-550e8400-e29b-41d4-a716-446655440000", "x-123e4567-e89b-12d3-a456-426614174000"),
        ("sweep[1-30%4]", "sweep[7]"),
        ("Sweep_Mon12Jan2024", "sweep_Tue3Feb2025"),
        ("run.sh", "run"),
    ],
)
def test_names_that_differ_in_numbers_dates_and_hashes_are_alike(one, other):
    assert plain_name(one) == plain_name(other)


@pytest.mark.parametrize(("one", "other"), [("train", "eval"), ("facade", "decade"), ("bert_1", "gpt_1")])
def test_names_of_different_words_stay_apart(one, other):
    assert plain_name(one) != plain_name(other)


@pytest.mark.parametrize("name", ["train_lr0.01", "a[1-3]", "", "12", "  spaces  and 7 ", "🔥 run 3"])
def test_a_plain_name_is_its_own_plain_name(name):
    assert plain_name(plain_name(name)) == plain_name(name)


def test_hashed_names_of_an_anonymous_trace_stay_apart():
    assert plain_name("name-3f2a9c1b7d5e") != plain_name("name-9bc04fe07d5e")


def test_a_declared_class_goes_before_user_account_and_name():
    assert class_of(job(name="run_3", mark=Mark(job_class="resnet"))) == "resnet"
    assert class_of(job(name="run_3", mark=Mark())) == class_of(job(name="run_7")) == "ada/lab/run_#"
    assert class_of(job(name="run_3", user="bob")) != class_of(job(name="run_3"))


def test_a_class_name_fits_into_a_job_class():
    assert len(class_name("u" * 200, "a" * 200, "n" * 300)) == LONGEST
