"""Jobs that the agent sees end: in its journal, and from there in the job classes."""

import math
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from slurm_plugin import parse
from slurm_plugin.ended import PATIENCE_S, Endings
from slurm_plugin.journal import KEEP_S, Intent, Journal
from slurm_plugin.parse import COLUMNS, JobRecord
from tapfinger_hpc.cli import tapfinger
from tapfinger_hpc.decision import JobUpdate
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import ClusterState, Resources, RunningJob, Share
from trace_tools import learning
from trace_tools.records import EndedJob

SUBMIT_S = 1000


def squeue(**values: str) -> list[JobRecord]:
    """What squeue prints of a job that has ended a moment ago, read."""
    ordinary = dict.fromkeys(COLUMNS, "N/A") | {
        "number": "7", "state": "CD", "partition": "pa", "batch": "1", "submit_s": str(SUBMIT_S), "start_s": "1100",
        "end_s": "1400", "priority": "5", "cpus": "8", "tasks": "1", "tres": "cpu=8,mem=9000M,node=1,gres/gpu=2",
        "time_limit": "10:00", "comment": "tapfinger gpus=1-4 class=resnet", "restarts": "0", "user": "ada",
        "admin_comment": "tapfinger lease=60 ticket=t7", "dependency": "(null)", "nodes": "n1",
    }  # fmt: skip
    cells = {name: (ordinary | values)[name].encode() for name in COLUMNS}
    text = b"".join(cells[name].ljust(width) for name, (_, width) in COLUMNS.items()) + b"\n"
    return list(parse.jobs(text).values())


def state(*running: str, at_s: float = 1500.0, **fields) -> ClusterState:
    values = {"job_class": "resnet", "managed": True} | fields
    share = (Share("n1", Resources(8, 2, 9000)),)
    jobs = tuple(RunningJob(job_id, SUBMIT_S, "pa", share, 1100, **values) for job_id in running)
    return ClusterState(at_s, (), (), running=jobs)


@pytest.fixture
def journal(tmp_path: Path):
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def ended(journal: Journal) -> list[EndedJob]:
    return [job for _, job in journal.ended_after(0)]


def test_a_job_that_runs_no_more_is_journalled_with_what_it_had_and_how_long_it_took(journal):
    asked = JobUpdate("7", SUBMIT_S, amounts=Resources(4, 1, 8000))
    journal.write_intents([Intent("7", SUBMIT_S, "t7", "d1", 1090.0, asked, asked)])
    endings = Endings(lambda _: squeue(), journal)
    endings.look(state("7"))
    assert ended(journal) == []
    endings.look(state())
    (job,) = ended(journal)
    assert (job.state, job.elapsed_s, job.granted) == ("COMPLETED", 300.0, Resources(8, 2, 9000))
    assert job.requested == Resources(4, 1, 8000)
    assert (job.user, job.partition, job.time_limit_s) == ("ada", "pa", 600)
    assert job.mark is not None
    assert job.mark.job_class == "resnet"


@pytest.mark.parametrize(
    ("word", "wanted"), [("TO", "TIMEOUT"), ("OOM", "OUT_OF_MEMORY"), ("F", "FAILED"), ("CA", "CANCELLED")]
)
def test_how_a_job_ended_is_kept(journal, word, wanted):
    endings = Endings(lambda _: squeue(state=word), journal)
    endings.look(state("7"))
    endings.look(state())
    assert [job.state for job in ended(journal)] == [wanted]


@pytest.mark.parametrize(
    "values", [{"state": "PD", "start_s": "N/A"}, {"end_s": "1100"}, {"submit_s": "999"}, {"start_s": "N/A"}]
)
def test_jobs_that_were_requeued_or_never_ran_or_are_others_of_that_number_are_not_kept(journal, values):
    endings = Endings(lambda _: squeue(**values), journal)
    endings.look(state("7"))
    endings.look(state())
    assert ended(journal) == []


def test_slurm_is_asked_only_when_a_job_of_ours_has_ended_and_for_all_at_once(journal):
    asked: list[str] = []
    endings = Endings(lambda jobs: asked.append(jobs) or [], journal)
    endings.look(state("7", "8"))
    endings.look(state("7", "8"))
    endings.look(state())
    endings.look(state())
    assert asked == ["7,8"] or asked == ["8,7"]
    endings.look(state("9", job_class="", managed=False))
    endings.look(state())
    assert len(asked) == 1


def test_where_slurm_does_not_answer_it_is_asked_again_but_not_for_ever(journal):
    answers = [SlurmError("silent"), squeue()]

    def find(_: str) -> list[JobRecord]:
        answer = answers.pop(0)
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    endings = Endings(find, journal)
    endings.look(state("7"))
    endings.look(state())
    endings.look(state(at_s=1501.0))
    assert len(ended(journal)) == 1
    answers[:] = [SlurmError("silent"), SlurmError("silent"), squeue(submit_s="1000", start_s="2000", end_s="2300")]
    endings.look(state("7", at_s=2400.0))
    endings.look(state(at_s=2401.0))
    endings.look(state(at_s=2402.0 + PATIENCE_S))
    endings.look(state(at_s=2403.0 + PATIENCE_S))
    assert len(answers) == 1


def test_one_run_of_a_job_is_kept_once_and_old_ones_go(journal):
    endings = Endings(lambda _: squeue(), journal)
    for at_s in (1500.0, 1600.0):
        endings.look(state("7", at_s=at_s))
        endings.look(state(at_s=at_s))
    assert len(ended(journal)) == 1
    journal.prune(1501.0 + KEEP_S)
    assert ended(journal) == []


def test_a_journal_of_before_there_were_ended_jobs_has_none(journal, tmp_path: Path):
    journal._connection.execute("drop table ended")
    with Journal.reading(tmp_path / "journal.sqlite") as reading:
        assert reading.ended_after(0) == []


def configured(folder: Path) -> Path:
    path = folder / "tapfinger.toml"
    path.write_text(f"[agent]\njournal = '{folder / 'journal.sqlite'}'\nclasses_file = '{folder / 'classes.json'}'\n")
    return path


def learned(folder: Path) -> dict[str, JobClass]:
    done = CliRunner().invoke(tapfinger, ["learn", "--config", str(configured(folder))])
    assert done.exit_code == 0, done.output
    read = msgspec.json.decode((folder / "classes.json").read_bytes(), type=tuple[JobClass, ...])
    return {one.name: one for one in read}


def test_learning_from_the_journal_takes_each_job_once(journal, tmp_path: Path):
    endings = Endings(lambda _: squeue(), journal)
    endings.look(state("7"))
    endings.look(state())
    assert learned(tmp_path)["resnet"].observations == 1
    assert learned(tmp_path)["resnet"].observations == 1
    again = Endings(lambda _: squeue(number="8", start_s="2000", end_s="2350"), journal)
    again.look(state("8", at_s=2400.0))
    again.look(state(at_s=2401.0))
    found = learned(tmp_path)["resnet"]
    assert found.observations == 2
    assert found.speed.duration_s(Resources(8, 2, 9000)) == pytest.approx(math.sqrt(300 * 350), rel=0.1)


def test_a_journal_that_was_begun_anew_is_read_from_its_begin(tmp_path: Path):
    kept = learning.Learner()
    rows = [(number, EndedJob(job_id=str(number), state="COMPLETED", elapsed_s=9.0, user="ada",
                              granted=Resources(1, 0, 1), requested=Resources(1, 0, 1)))
            for number in (1, 2, 3)]  # fmt: skip

    def first(after: int) -> list[tuple[int, EndedJob]]:
        return [row for row in rows if row[0] > after]

    kept.take_in_journal("j", first)
    kept.take_in_journal("j", lambda after: rows[:1] if after < 1 else [])
    assert kept.jobs == 4
    assert kept.kept.journal_upto == 1


def test_without_a_file_for_the_classes_it_is_said_what_to_set(tmp_path: Path):
    path = tmp_path / "tapfinger.toml"
    path.write_text(f"[agent]\njournal = '{tmp_path / 'journal.sqlite'}'\n")
    done = CliRunner().invoke(tapfinger, ["learn", "--config", str(path)])
    assert "agent.classes_file" in str(done.exception)
