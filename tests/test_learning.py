"""From ended jobs to the file of job classes, and on from there."""

import math
import random

import msgspec
import pytest
from click.testing import CliRunner

from tapfinger_hpc import trace as traces
from tapfinger_hpc.cli import tapfinger
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from tapfinger_hpc.units import Mark
from tapfinger_hpc.workload import WorkloadKnobs, random_trace
from trace_tools import learning
from trace_tools.records import EndedJob


def ended(name: str, elapsed_s: float, gpus: int = 1, **fields) -> EndedJob:
    amounts = Resources(4 * gpus, gpus, 8000)
    values = {"job_id": "1", "state": "COMPLETED", "user": "ada", "account": "lab", "name": name}
    return EndedJob(elapsed_s=elapsed_s, granted=amounts, requested=amounts, **(values | fields))


def jobs(count: int) -> list[EndedJob]:
    draw = random.Random(count)
    return [ended(f"{draw.choice('abc')}_{n}", 100 * math.exp(draw.gauss(0, 0.2)), 1 + n % 3) for n in range(count)]


def test_jobs_become_classes_that_the_agent_can_read(tmp_path):
    output = tmp_path / "classes.json"
    learner = learning.Learner()
    learner.take_in([*jobs(30), ended("x", 50.0, mark=Mark(job_class="declared"))])
    learning.write(learner, output)
    read = msgspec.json.decode(output.read_bytes(), type=tuple[JobClass, ...])
    assert [one.name for one in read] == ["ada/lab/a_#", "ada/lab/b_#", "ada/lab/c_#", "declared"]
    assert sum(one.observations for one in read) == 31


def test_learning_in_two_runs_is_learning_in_one(tmp_path):
    at_once, in_two = tmp_path / "one.json", tmp_path / "two.json"
    learner = learning.Learner()
    learner.take_in(jobs(40))
    learning.write(learner, at_once)
    for part in (jobs(40)[:25], jobs(40)[25:]):
        learner = learning.opened(in_two)
        learner.take_in(part)
        learning.write(learner, in_two)
    assert in_two.read_bytes() == at_once.read_bytes()


def test_only_classes_with_new_jobs_are_fitted_again(tmp_path, monkeypatch):
    from trace_tools import speeds

    output = tmp_path / "classes.json"
    learner = learning.Learner()
    learner.take_in([ended("a", 10.0), ended("b", 20.0)])
    learning.write(learner, output)
    fitted = []
    fit = speeds.fit
    monkeypatch.setattr(speeds, "fit", lambda seen, *given: fitted.append(seen.name) or fit(seen, *given))
    again = learning.opened(output)
    again.take_in([ended("b", 22.0)])
    assert len(learning.write(again, output)) == 2
    assert fitted == ["ada/lab/b"]


def test_a_class_file_that_is_lost_is_made_again_of_what_was_seen(tmp_path):
    output = tmp_path / "classes.json"
    learner = learning.Learner()
    learner.take_in(jobs(20))
    learning.write(learner, output)
    before = output.read_bytes()
    output.unlink()
    learning.write(learning.opened(output), output)
    assert output.read_bytes() == before


def test_of_too_many_classes_those_of_most_jobs_are_kept(monkeypatch):
    monkeypatch.setattr(learning, "MOST_CLASSES", 10)
    monkeypatch.setattr(learning, "MOST_WRITTEN", 5)
    learner = learning.Learner()
    learner.take_in(ended("steady", 100.0) for _ in range(5))
    learner.take_in(ended("once " + "x" * number, 100.0) for number in range(50))
    assert len(learner.all_seen()) <= 10
    made = learner.classes()
    assert len(made) == 5
    assert "ada/lab/steady" in {one.name for one in made}


@pytest.mark.parametrize("which", ["classes.json", "classes.json.seen"])
def test_a_file_that_cannot_be_used_is_named_and_left_alone(tmp_path, which):
    output = tmp_path / "classes.json"
    learner = learning.Learner()
    learner.take_in(jobs(5))
    learning.write(learner, output)
    (tmp_path / which).write_bytes(b'{"format":')
    with pytest.raises(TraceError, match=which):
        learning.opened(output)


def test_a_fit_of_a_trace_foretells_its_jobs(tmp_path):
    trace = random_trace(3, ClusterSpec.uniform(), WorkloadKnobs(jobs=400, classes=4, size_follows_request=0.0))
    file, output = tmp_path / "trace.jsonl", tmp_path / "classes.json"
    traces.write(trace, file)
    done = CliRunner().invoke(tapfinger, ["trace", "fit", str(file), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "4 classes, 400 jobs" in done.output
    learned = {one.name: one for one in msgspec.json.decode(output.read_bytes(), type=tuple[JobClass, ...])}
    true = {one.name: one for one in trace.classes}
    away = []
    for item in trace.jobs:
        name, amounts = item.job.job_class, item.job.requested
        away.append(abs(math.log(learned[name].speed.duration_s(amounts) / true[name].speed.duration_s(amounts))))
    assert sorted(away)[len(away) // 2] < 0.15
    more = CliRunner().invoke(tapfinger, ["trace", "fit", str(file), "-o", str(output), "--add", "--json"])
    assert sum(one["observations"] for one in msgspec.json.decode(more.output)) > 700


def test_jobs_of_which_neither_user_nor_name_is_known_are_counted_and_make_no_class():
    learner = learning.Learner()
    learner.take_in([ended("", 5.0, user="", account=""), ended("", 5.0, account="")])
    assert (learner.jobs, learner.nameless) == (1, 1)
    assert [one.name for one in learner.classes()] == ["ada//"]


ACCOUNTING = """JobID|JobName|User|Account|Partition|State|Submit|Start|End|ElapsedRaw|AllocCPUS|AllocTRES|ReqMem|MaxRSS
1|train_lr0.1|ada|lab|pa|COMPLETED|1700000000|1700000010|1700000310|300|4|cpu=4,mem=8G,node=1,gres/gpu=1|8G|
1.batch|batch|||||||||||COMPLETED|3000M
2|train_lr0.2|ada|lab|pa|COMPLETED|1700000100|1700000110|1700000270|160|8|cpu=8,mem=8G,node=1,gres/gpu=2|8G|
3|train_lr0.3|ada|lab|pa|TIMEOUT|1700000200|1700000210|1700000810|600|4|cpu=4,mem=8G,node=1,gres/gpu=1|8G|
4|other|bob|lab|pa|FAILED|1700000200|1700000210|1700000270|60|4|cpu=4,mem=8G,node=1|8G|
"""


def test_accounting_becomes_classes_by_user_account_and_name(tmp_path):
    accounting, file, output = (tmp_path / name for name in ("sacct.txt", "trace.jsonl", "classes.json"))
    accounting.write_text(ACCOUNTING.replace("|||||||||||COMPLETED|3000M", "||||COMPLETED||||300|4|||3000M"))
    for arguments in (["convert", str(accounting), "-o", str(file)], ["fit", str(file), "-o", str(output)]):
        done = CliRunner().invoke(tapfinger, ["trace", *arguments])
        assert done.exit_code == 0, (done.output, done.exception)
    found = {one.name: one for one in msgspec.json.decode(output.read_bytes(), type=tuple[JobClass, ...])}
    assert found["ada/lab/train_lr#"].observations == 2
    assert found["ada/lab/train_lr#"].speed.duration_s(Resources(4, 1, 8000)) == pytest.approx(300, rel=0.5)
    assert 3000 < found["ada/lab/train_lr#"].speed.mem_mb[0] < 8000
    assert found["bob/lab/other"].observations == 0


def test_a_trace_without_jobs_is_refused(tmp_path):
    file = tmp_path / "trace.jsonl"
    traces.write(traces.Trace("empty", (), ()), file)
    done = CliRunner().invoke(tapfinger, ["trace", "fit", str(file), "-o", str(tmp_path / "classes.json")])
    assert isinstance(done.exception, TraceError)
    assert not (tmp_path / "classes.json").exists()
