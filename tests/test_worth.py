"""What TapFinger was worth: accounts of single jobs, their sums, and stock Slurm as it is imagined."""

import random
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from slurm_plugin import worth
from slurm_plugin.journal import Intent, IntentState, Journal, Told
from slurm_plugin.worth import stock, sums
from slurm_plugin.worth.accounts import START_S, Account, Book, Seen, Shape, book
from slurm_plugin.worth.stock import StockJob
from tapfinger_hpc import trace
from tapfinger_hpc.cli import tapfinger
from tapfinger_hpc.config import AgentConfig, Config, SlurmConfig
from tapfinger_hpc.decision import Decision, JobUpdate, Placement
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import Resources
from tapfinger_hpc.units import Mark, Range
from trace_tools.records import EndedJob

ONE, TWO, FOUR = Resources(4, 1, 8000), Resources(4, 2, 8000), Resources(4, 4, 8000)
MODEL = SpeedModel((4,), (1, 2, 4), (8000,), (400.0, 200.0, 100.0), (0.1,))
CLASSES = {"resnet": JobClass("resnet", MODEL, 5)}
SHAPE = Shape({"n1": Resources(16, 4, 64000), "n2": Resources(16, 4, 64000)}, {"pa": ("n1", "n2")})


def job(number: object, submit_s: int = 1000, wait_s: int = 100, ran_s: float = 210.0, **fields) -> EndedJob:
    values: dict = {
        "state": "COMPLETED", "elapsed_s": ran_s, "granted": TWO, "requested": TWO, "partition": "pa", "user": "ada",
        "node_names": ("n1",), "mark": Mark(gpus=Range(1, 4), job_class="resnet"), "time_limit_s": 3600,
    }  # fmt: skip
    times = {"submit_time_s": submit_s, "start_time_s": submit_s + wait_s}
    return EndedJob(job_id=str(number), **(values | times | fields))


def told(one: EndedJob, amounts: Resources | None, after_s: float = 10.0, node: str = "n2", **fields) -> Told:
    place = Placement("pa", node, amounts) if amounts else None
    decision = Decision(one.job_id, one.submit_time_s, place, "scripted")
    return Told(one.submit_time_s + after_s, "d1", "price", decision, **({"mode": "observe"} | fields))


def intent(one: EndedJob, state: IntentState = "started") -> Intent:
    update = JobUpdate(one.job_id, one.submit_time_s)
    return Intent(one.job_id, one.submit_time_s, "t", "d1", one.submit_time_s + 1.0, update, update, state=state)


def account(seen: Seen, shape: Shape | None = SHAPE) -> Account:
    (one,) = book([seen], CLASSES, shape).accounts
    return one


def test_a_watched_job_is_held_against_what_was_decided_for_it() -> None:
    mine = job(1)
    one = account(Seen(mine, (told(mine, None), told(mine, FOUR, after_s=20.0), told(mine, ONE, after_s=30.0))))
    assert (one.way, one.placed, one.basis) == ("watched", True, "class")
    assert (one.stock_waited_s, one.stock_ran_s) == (100.0, 210.0)
    assert one.tapfinger_waited_s == 20.0 + START_S
    # What the job did beside its class (210 s in place of 200 s) is kept.
    assert one.tapfinger_ran_s == pytest.approx(105.0)
    assert one.log_doubt == pytest.approx(0.1 * 2**0.5)


def test_on_the_amounts_that_it_had_a_job_takes_as_long_as_it_did() -> None:
    mine = job(1)
    one = account(Seen(mine, (told(mine, TWO),)))
    assert (one.tapfinger_ran_s, one.log_doubt, one.basis) == (210.0, 0.0, "same amounts")


@pytest.mark.parametrize(
    "decisions",
    [lambda mine: (told(mine, None),), lambda mine: (told(mine, FOUR, refused="no room"),),
     lambda mine: (told(mine, FOUR, after_s=150.0),)],
    ids=["left to wait", "refused by the guard", "decided after it had started"],
)  # fmt: skip
def test_a_watched_job_without_a_decision_that_counts_is_as_it_was(decisions) -> None:
    mine = job(1)
    one = account(Seen(mine, decisions(mine)))
    assert (one.placed, one.tapfinger_s) == (False, one.stock_s)


def test_a_class_of_which_nothing_is_known_has_the_prior_and_a_wide_doubt() -> None:
    mine = job(1, mark=Mark(job_class="new"))
    one = account(Seen(mine, (told(mine, ONE),)))
    assert (one.basis, one.log_doubt) == ("prior", pytest.approx(2**0.5))
    assert one.tapfinger_ran_s > 210.0


def test_what_cannot_be_compared_is_left_out_with_the_reason() -> None:
    timeout, wide, early, starved = (
        job(1, state="TIMEOUT"), job(2, nodes=2), job(3), job(4),
    )  # fmt: skip
    seen = [
        Seen(timeout, (told(timeout, FOUR),)),
        Seen(wide, (told(wide, FOUR),)),
        Seen(early),
        Seen(starved, (told(starved, Resources(4, 4, 10)),)),
    ]
    found = book(seen, CLASSES, SHAPE)
    assert found == Book(
        (),
        {
            "TIMEOUT: how long all of its work takes is not known": ("1",),
            "it ran on several nodes": ("2",),
            "it started before anything was decided": ("3",),
            "the model of its class has no time for the other amounts": ("4",),
        },
    )


def test_an_enforced_job_is_held_against_stock_slurm() -> None:
    mine = job(1, wait_s=2, granted=FOUR, ran_s=110.0)
    one = account(Seen(mine, (told(mine, FOUR, mode="enforce"),), (intent(mine),)))
    assert (one.way, one.placed) == ("enforced", True)
    assert (one.tapfinger_waited_s, one.tapfinger_ran_s) == (2.0, 110.0)
    assert (one.stock_waited_s, one.stock_ran_s) == (0.0, pytest.approx(220.0))
    assert account(Seen(mine, (), (intent(mine),)), shape=None).stock_s is None


def test_stock_slurm_has_enforced_jobs_wait_for_each_other() -> None:
    crowd = [job(number, submit_s=1000, wait_s=1, granted=ONE, requested=FOUR, ran_s=400.0) for number in range(3)]
    found = book([Seen(one, (), (intent(one),)) for one in crowd], CLASSES, SHAPE)
    assert sorted(one.stock_waited_s for one in found.accounts) == [0.0, 0.0, pytest.approx(100.0)]


def test_decisions_for_room_that_an_earlier_one_had_taken_are_marked() -> None:
    first, second, third = job(1, 1000), job(2, 1010, node_names=("n2",)), job(3, 5000)
    seen = [Seen(one, (told(one, FOUR),)) for one in (first, second, third)]
    assert [one.contested for one in book(seen, CLASSES, SHAPE).accounts] == [False, True, False]
    # Where the first really ran there, the second decision saw it.
    there = replace(first, start_time_s=1011, node_names=("n2",))
    seen[0] = Seen(there, (told(there, FOUR),))
    assert [one.contested for one in book(seen, CLASSES, SHAPE).accounts] == [False, False, False]


# Sums.


def accounts(count: int, **fields) -> list[Account]:
    """Watched jobs that would have waited 50 s less, an hour apart."""
    values: dict = {
        "user": "ada", "job_class": "resnet", "way": "watched", "placed": True, "stock_amounts": TWO,
        "tapfinger_amounts": TWO, "stock_waited_s": 100.0, "stock_ran_s": 100.0, "tapfinger_waited_s": 50.0,
        "tapfinger_ran_s": 100.0, "basis": "same amounts", "log_doubt": 0.0,
    }  # fmt: skip
    return [
        Account(job_id=str(number), submit_time_s=1000 + 3600 * number, **(values | fields)) for number in range(count)
    ]


def test_the_sum_is_the_fall_of_the_mean_with_its_parts() -> None:
    found = sums.total(accounts(40), "watched")
    assert found is not None
    assert (found.stock_mean_s, found.tapfinger_mean_s) == (200.0, 150.0)
    assert found.completion == sums.Estimate(0.25, 0.25, 0.25)
    assert (found.waiting_saved_s, found.running_saved_s) == (50.0, 0.0)
    assert (found.lost, found.losers) == (0, ())
    assert found.stock_gpu_hours == pytest.approx(40 * 2 * 100 / 3600)
    assert sums.total(accounts(40), "enforced") is None


def test_contested_decisions_count_for_nothing_in_a_second_figure() -> None:
    half = [replace(one, contested=int(one.job_id) % 2 == 0) for one in accounts(40)]
    found = sums.total(half, "watched")
    assert found is not None
    assert found.completion.value == 0.25
    assert found.completion_uncontested is not None
    assert found.completion_uncontested.value == pytest.approx(0.125)
    assert found.contested == 20


def test_what_the_model_doubts_is_in_the_interval_and_is_one_error_for_a_class() -> None:
    doubted = accounts(40, log_doubt=0.3, basis="class", tapfinger_amounts=FOUR)
    many = accounts(40, log_doubt=0.3, basis="class", tapfinger_amounts=FOUR)
    apart = [replace(one, job_class=f"class {one.job_id}") for one in many]
    one_class, many_classes = sums.total(doubted, "watched"), sums.total(apart, "watched")
    assert one_class is not None
    assert many_classes is not None
    assert one_class.completion.low is not None and one_class.completion.high is not None
    assert one_class.completion.low < 0.1 < 0.25 < 0.35 < one_class.completion.high
    assert many_classes.completion.low is not None and many_classes.completion.low > one_class.completion.low


def test_too_few_jobs_have_no_interval() -> None:
    found = sums.total(accounts(5), "watched")
    assert found is not None
    assert str(found.completion) == "25.0%"


def test_jobs_that_lost_are_named_the_worst_first() -> None:
    mixed = accounts(20)
    mixed[3] = replace(mixed[3], tapfinger_ran_s=300.0, tapfinger_amounts=ONE)
    mixed[7] = replace(mixed[7], tapfinger_waited_s=120.0)
    mixed[8] = replace(mixed[8], tapfinger_waited_s=101.0)  # a second more is within what Slurm's clock tells
    found = sums.total(mixed, "watched")
    assert found is not None
    assert [(loser.job_id, loser.lost_s) for loser in found.losers] == [("3", 150.0), ("7", 20.0)]
    assert found.losers[0].why == f"runs 200 s longer on {ONE} than on {TWO}"
    assert found.losers[1].why == "waits 20 s longer"


# Stock Slurm.


def stock_job(number: int, submit_s: float, gpus: int, runs_s: float, limit_s: float = 1000.0) -> StockJob:
    return StockJob((str(number), 0), submit_s, "pa", Resources(1, gpus, 100), runs_s, limit_s)


def test_a_short_job_may_pass_one_that_waits_and_a_long_one_may_not() -> None:
    one_node = {"n1": Resources(16, 4, 64000)}
    jobs = [
        stock_job(1, 0, 3, 100, limit_s=100),
        stock_job(2, 1, 4, 50),  # waits for all of the node
        stock_job(3, 2, 1, 50, limit_s=90),  # ends before the first does
        stock_job(4, 3, 1, 50, limit_s=500),
    ]
    started = stock.starts(jobs, one_node, {"pa": ("n1",)})
    assert started == {("1", 0): 0, ("2", 0): 100, ("3", 0): 2, ("4", 0): 150}


@pytest.mark.parametrize("seed", range(5))
def test_no_node_is_ever_overfilled_and_every_job_that_fits_runs(seed: int) -> None:
    draw = random.Random(seed)
    jobs = [
        stock_job(number, draw.randrange(500), draw.randrange(6), draw.randrange(1, 90), limit_s=draw.choice([60, 100]))
        for number in range(80)
    ]
    started = stock.starts(jobs, SHAPE.nodes, SHAPE.partitions)
    assert set(started) == {one.key for one in jobs if one.amounts.gpus <= 4}
    assert all(started[one.key] >= one.submit_s for one in jobs if one.key in started)
    for moment in sorted(started.values()):
        running = [one for one in jobs if one.key in started and 0 <= moment - started[one.key] < one.runs_s]
        assert sum(one.amounts.gpus for one in running) <= 8


# The command.


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A journal with a watched and an enforced job, and a Slurm that does not answer."""
    for name in ("squeue", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "classes.json").write_bytes(msgspec.json.encode(list(CLASSES.values())))
    agent = AgentConfig(journal=str(tmp_path / "journal.sqlite"), classes_file=str(tmp_path / "classes.json"))
    watched, enforced, failed = job(1), job(2, granted=FOUR), job(3, granted=ONE, state="TIMEOUT")
    with Journal.open(Path(agent.journal)) as journal:
        journal.tell([told(watched, FOUR), told(enforced, FOUR, mode="enforce"), told(job(9), FOUR)])
        journal.write_intents([intent(enforced), intent(failed)])
        journal.keep_ended([watched, enforced, failed], 2000.0)
        journal.keep_ended([job(8, submit_s=3000)], 4000.0)
    return Config(agent=agent, slurm=SlurmConfig(bin_dir=str(tmp_path), conf="/nowhere", timeout_s=1.0))


@pytest.fixture
def toml(config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "tapfinger.toml"
    path.write_text(
        f'[agent]\njournal = "{config.agent.journal}"\nclasses_file = "{config.agent.classes_file}"\n'
        f'[slurm]\nbin_dir = "{config.slurm.bin_dir}"\nconf = "/nowhere"\ntimeout_s = 1\n'
    )
    return path


def test_the_report_is_of_the_jobs_that_ended_in_the_time_asked_for(config: Config) -> None:
    found = worth.report(config, 1000, 3000)
    assert found.ended == 3
    assert found.watched is not None and found.enforced is not None
    assert (found.watched.jobs, found.watched.changed) == (1, 1)
    # Without Slurm's nodes its waiting is not known, and that is said.
    assert (found.enforced.jobs, found.enforced.waiting_unknown) == (0, 1)
    assert any("Slurm does not tell its nodes" in note for note in found.notes)
    assert found.unfinished == (f"3 (TIMEOUT, on {ONE} where {TWO} were asked for)",)
    assert worth.report(config, 3000, 5000).left_out == {"it started before anything was decided": 1}


def test_what_the_figures_cannot_say_stands_below_them(toml: Path) -> None:
    arguments = ["report", "--config", str(toml), "--since", "1970-01-01"]
    said = CliRunner().invoke(tapfinger, arguments)
    assert said.exit_code == 0, said.output
    assert "watched: 1 jobs, 1 that would have been placed, 1 on other amounts" in said.output
    assert "saved 62.7%" in said.output
    for note in (*worth.WATCHED, *worth.ENFORCED, *worth.FOR_ALL):
        assert note in said.output
    as_json = CliRunner().invoke(tapfinger, [*arguments, "--json"])
    assert msgspec.json.decode(as_json.output)["watched"]["completion"]["value"] == pytest.approx(0.627, abs=1e-3)


def test_the_jobs_can_be_written_as_a_trace(toml: Path, tmp_path: Path) -> None:
    output = tmp_path / "jobs.jsonl"
    said = CliRunner().invoke(
        tapfinger, ["report", "--config", str(toml), "--since", "1970-01-01", "--trace", str(output)]
    )
    assert said.exit_code == 0, said.output
    assert "4 jobs" in said.output
    written = trace.read(output)
    assert written.zero_s == 1000
    first = written.jobs[0]
    assert (first.job.job_id, first.job.managed, first.job.minimum.gpus, first.job.maximum.gpus) == ("1", True, 1, 4)
    assert first.ran is not None
    assert (first.ran.elapsed_s, first.ran.amounts, first.ran.start_time_s) == (210.0, TWO, 100)
