"""The class of jobs that declare none."""

import pytest

from slurm_plugin import naming, parse
from slurm_plugin.naming import Names
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import ClusterState, PendingJob, Resources

AMOUNTS = Resources(1, 1, 1000)


def state(*jobs: tuple[str, str], managed: bool = True, submit_s: int = 5) -> ClusterState:
    pending = tuple(
        PendingJob(
            job_id, submit_s, ("pa",), AMOUNTS, AMOUNTS, AMOUNTS, user="ada", managed=managed, job_class=declared
        )
        for job_id, declared in jobs
    )
    return ClusterState(10.0, (), (), pending=pending)


def classes(found: ClusterState) -> dict[str, str]:
    return {job.job_id: job.job_class for job in found.pending}


def test_a_job_of_ours_without_a_class_gets_that_of_user_account_and_plain_name():
    names = Names(lambda _: {"1": ("lab", "train_17"), "2": ("lab", "x")})
    assert classes(names.named(state(("1", ""), ("2", "declared")))) == {"1": "ada/lab/train_#", "2": "declared"}
    assert names.of("1", 5) == ("lab", "train_17")


def test_tasks_of_an_array_are_asked_for_as_one_and_each_job_once():
    asked: list[list[str]] = []

    def ask(numbers):
        asked.append(list(numbers))
        return dict.fromkeys(numbers, ("lab", "sweep"))

    names = Names(ask)
    for _ in range(3):
        assert set(classes(names.named(state(("7_1", ""), ("7_2", "")))).values()) == {"ada/lab/sweep"}
    assert asked == [["7"]]
    names.named(state(("7_1", ""), submit_s=6))
    assert len(asked) == 2


def test_jobs_of_others_are_not_asked_about():
    names = Names(lambda _: pytest.fail("asked"))
    assert classes(names.named(state(("1", ""), managed=False))) == {"1": ""}


def test_where_slurm_does_not_tell_the_job_has_no_class_and_is_asked_about_again():
    answers = [SlurmError("silent"), {"1": ("lab", "train")}]

    def ask(_):
        answer = answers.pop(0)
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    names = Names(ask)
    assert classes(names.named(state(("1", "")))) == {"1": ""}
    assert classes(names.named(state(("1", "")))) == {"1": "ada/lab/train"}


def test_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(naming, "MOST_KNOWN", 3)
    names = Names(lambda numbers: dict.fromkeys(numbers, ("lab", "n")))
    for number in range(1, 6):
        names.named(state((str(number), "")))
    assert names.of("1", 5) == ("", "")
    assert names.of("5", 5) == ("lab", "n")


def record(number: str, array_id: str, account: str, name: str) -> bytes:
    cells = zip((number, array_id, account, name), parse.NAMES_COLUMNS, strict=True)
    return b"".join(cell.encode()[:width].ljust(width) for cell, (_, width) in cells) + b"\n"


def test_names_are_read_whatever_users_write_into_them():
    text = record("1", "N/A", "lab", "a\n2 b|c") + record("9", "8", "(null)", "näme")
    assert parse.names(text) == {"1": ("lab", "a\n2 b|c"), "8": ("", "näme")}
    with pytest.raises(SlurmError, match="no whole number"):
        parse.names(text[:-5])
