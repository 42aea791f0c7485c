"""The agent on a simulated cluster: the loop that runs on a real one, with hours in seconds and faults at will."""

import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from slurm_plugin import hookfile, janitor, placed
from slurm_plugin.agent import Agent, only_one
from slurm_plugin.classes import ClassesFile
from slurm_plugin.events import WakeClock
from slurm_plugin.journal import Intent, Journal
from tapfinger_hpc.config import AgentConfig
from tapfinger_hpc.decision import Decision, JobUpdate, Outcome, Placement
from tapfinger_hpc.errors import ConfigError, ServerError, SlurmError
from tapfinger_hpc.policies import registry
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.sim.cluster import SimulatedCluster
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import ClusterState, PendingJob, Resources
from tapfinger_hpc.trace import Trace, TraceJob
from tapfinger_hpc.wire import DecideResponse, PolicyInfo

ASKED = Resources(4, 2, 8000)
CLASS = JobClass("demo", SpeedModel((1, 16), (1, 4), (1,), (400.0, 200.0, 200.0, 100.0)), 5)
START_S = 1_000_000.0


def trace_job(number: int, arrives_s: int = 0, **fields: object) -> TraceJob:
    values: dict = {
        "partitions": ("pa",), "requested": ASKED, "minimum": Resources(1, 1, 4000), "maximum": Resources(16, 4, 32000),
        "time_limit_s": 3600, "managed": True, "job_class": "demo", "user": "ann",
    }  # fmt: skip
    return TraceJob(PendingJob(job_id=str(number), submit_time_s=arrives_s, **(values | fields)))


class Script:
    """A policy server that gives each job the place it is told."""

    def __init__(self) -> None:
        self.places: dict[str, Placement] = {}
        self.asked: list[ClusterState] = []
        self.fails = ""
        self.extra: tuple[Decision, ...] = ()

    def place(self, job_id: object, node: str = "n1", amounts: Resources = ASKED, partition: str = "pa") -> None:
        self.places[str(job_id)] = Placement(partition, node, amounts)

    def __call__(self, state: ClusterState) -> DecideResponse:
        self.asked.append(state)
        if self.fails:
            raise ServerError(self.fails)
        ours = [job for job in state.pending if job.managed and job.eligible]
        decisions = [Decision(*job.key, self.places.get(job.job_id), "scripted") for job in ours]
        decisions.sort(key=lambda one: one.placement is None)
        return DecideResponse(f"d{len(self.asked)}", PolicyInfo("script"), (*self.extra, *decisions))


class World:
    """A simulated cluster, an agent on it, and what the test looks at."""

    def __init__(self, folder: Path, jobs: list[TraceJob], decide: Callable | None = None, **options: object) -> None:
        self.folder = folder
        agent = {name: options.pop(name) for name in list(options) if name in AgentConfig.__struct_fields__}
        self.config = AgentConfig(
            **(
                {
                    "mode": "enforce",
                    "journal": str(folder / "journal.sqlite"),
                    "disable_file": str(folder / "disabled"),
                    "hook_file": str(folder / "hook"),
                }
                | agent
            )
        )
        self.clock = SimClock(START_S)
        self.script = decide or Script()
        trace = Trace("test", (CLASS, replace(CLASS, name="")), tuple(jobs))  # the last is of jobs that name no class
        spec = ClusterSpec.uniform(partitions=2, nodes_each=2)
        self.slurm = SimulatedCluster(spec, trace, self.clock, lease_s=self.config.lease_s, **options)  # type: ignore[arg-type]
        self.journal = Journal.open(Path(self.config.journal))
        self.agent = self.new_agent()

    def new_agent(self) -> Agent:
        """An agent that knows nothing but the journal."""
        return Agent(self.slurm, self.clock, self.script, self.journal, self.config)

    def cycle(self, times: int = 1, every_s: float = 1.0) -> None:
        for _ in range(times):
            self.agent.cycle()
            self.clock.wait(every_s)

    def pending(self, number: object) -> PendingJob | None:
        return next((job for job in self.slurm.observe().pending if job.job_id == str(number)), None)

    def running(self, number: object) -> Resources | None:
        return next((job.amounts for job in self.slurm.observe().running if job.job_id == str(number)), None)

    def fates(self, number: object) -> list[str]:
        return [intent.state for intent in self.journal.history(str(number)).intents]

    def refusals(self, number: object) -> list[str]:
        return [told.refused for told in self.journal.history(str(number)).told if told.refused]

    def hook(self) -> str:
        sign = hookfile.read(Path(self.config.hook_file))
        return sign.mode if sign else ""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(jobs: list[TraceJob], decide: Callable | None = None, **options: object) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, jobs, decide, **options))
        return made[-1]

    yield make
    for one in made:
        one.journal.close()


# Placing.


def test_a_job_runs_as_it_was_placed_and_the_journal_says_so(world) -> None:
    here = world([trace_job(1)])
    here.script.place(1, "n2", Resources(8, 4, 9000))
    here.cycle(3)
    assert here.running(1) == Resources(8, 4, 9000)
    (intent,) = here.journal.history("1").intents
    assert (intent.state, intent.update.node, intent.decision_id) == ("started", "n2", "d1")
    assert intent.original.amounts == ASKED
    (told,) = here.journal.history("1").told
    assert (told.policy, told.refused, told.mode) == ("script", "", "enforce")


def test_the_intent_is_on_disk_before_the_cluster_is_touched(world) -> None:
    here = world([trace_job(1)])
    here.script.place(1)
    seen = []
    apply = here.slurm.apply

    def watched(update: JobUpdate) -> Outcome:
        with Journal.reading(Path(here.config.journal)) as reader:
            seen.extend(intent.state for intent in reader.open_intents())
        return apply(update)

    here.slurm.apply = watched
    here.cycle()
    assert seen == ["written"]


def test_the_server_is_told_the_classes_that_jobs_name(world, tmp_path: Path) -> None:
    here = world([trace_job(1), trace_job(2, job_class="")])
    other = replace(CLASS, name="other")
    (tmp_path / "classes.json").write_bytes(msgspec.json.encode([CLASS, other]))
    here.agent = Agent(
        here.slurm, here.clock, here.script, here.journal, here.config, classes=ClassesFile(tmp_path / "classes.json")
    )
    here.cycle()
    assert here.script.asked[-1].classes == (CLASS,)


def test_room_of_a_placed_job_is_not_given_away_before_it_starts(world) -> None:
    here = world([trace_job(1), trace_job(2)], update_latency_s=3.0)
    here.script.place(1, "n1", Resources(4, 4, 8000))
    here.script.place(2, "n1", Resources(4, 4, 8000))
    here.cycle(3)
    assert here.fates(1) == ["open"]
    assert here.fates(2) == []
    state = here.script.asked[-1]
    assert state.node("n1").free.gpus == 0
    assert [job.job_id for job in state.pending] == ["2"]


def test_decisions_for_unknown_and_twice_decided_jobs_are_refused_with_a_reason(world) -> None:
    here = world([trace_job(1)])
    here.script.place(1)
    place = Placement("pa", "n1", ASKED)
    here.script.extra = (Decision("99", 5, place, ""), Decision("1", int(START_S), place, "first"))
    here.cycle(2)
    assert "no longer pending" in here.refusals("99")[0]
    assert here.fates(1) == ["started"]


@pytest.mark.parametrize(
    ("placement", "why"),
    [
        (Placement("pa", "n1", Resources(4, 4, 64000)), "outside what job"),
        (Placement("pa", "n3", ASKED), "cannot take job"),
        (Placement("pb", "n3", ASKED), "not open to job"),
        (Placement("pa", "nowhere", ASKED), "cannot take job"),
    ],
)
def test_a_placement_that_may_not_be_is_refused_and_the_job_waits_on(world, placement: Placement, why: str) -> None:
    here = world([trace_job(1)])
    here.script.places["1"] = placement
    here.cycle(3)
    assert why in here.refusals(1)[0]
    assert here.fates(1) == []
    assert here.pending(1).lease_until_s > here.clock.now_s()


def test_the_same_decision_is_told_once(world) -> None:
    here = world([trace_job(1)])
    here.cycle(60)
    assert len(here.journal.history("1").told) == 1


# Taking back.


def test_a_placement_that_is_refused_leaves_the_job_as_it_was_with_a_new_lease(world) -> None:
    here = world([trace_job(1)])
    before = here.pending(1)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    apply = here.slurm.apply

    def half(update: JobUpdate) -> Outcome:
        here.slurm.apply = apply
        apply(replace(update, node=None, begin_s=None))
        return Outcome(False, "Requested partition configuration not available now")

    here.slurm.apply = half
    here.cycle()
    after = here.pending(1)
    assert here.fates(1) == ["refused"]
    assert replace(after, lease_until_s=None) == replace(before, lease_until_s=None)
    assert after.lease_until_s > here.clock.now_s() + 50


def test_a_placed_job_that_does_not_start_is_taken_back_and_tried_again_later(world) -> None:
    here = world([trace_job(1)], update_latency_s=1e6)
    before = here.pending(1)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    here.cycle(int(placed.START_PATIENCE_S) + 3)
    assert here.fates(1) == ["restored"]
    assert here.pending(1).requested == before.requested
    assert here.pending(1).priority == before.priority
    here.cycle(10)
    assert here.fates(1) == ["restored"]
    here.cycle(10)
    assert here.fates(1) == ["restored", "open"]


def test_a_job_whose_placements_never_start_is_slurms_in_the_end(world) -> None:
    here = world([trace_job(1)], update_latency_s=20.0)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    here.cycle(200)
    assert here.fates(1) == ["restored", "restored", "given up"]
    assert here.running(1) == ASKED


def test_a_placed_job_is_taken_back_when_its_node_goes_away(world) -> None:
    here = world([trace_job(1)], update_latency_s=5.0)
    here.script.place(1, "n1", Resources(8, 4, 9000))
    here.cycle()
    here.slurm.set_node("n1", available=False)
    here.cycle()
    assert here.fates(1) == ["restored"]
    assert "n1 cannot be used" in here.journal.history("1").intents[0].why
    assert here.pending(1).requested == ASKED


def test_an_update_that_a_crash_undid_is_seen_and_the_job_placed_anew(world) -> None:
    here = world([trace_job(1)], update_latency_s=5.0)
    before = here.pending(1)
    here.script.place(1)
    here.agent.cycle()
    # As after a restart of slurmctld from an older state: lease and request are back.
    here.slurm.apply(
        JobUpdate(
            "1", before.submit_time_s, node="", amounts=ASKED, priority=before.priority, begin_s=int(START_S) + 60
        )
    )
    here.cycle(8)
    assert here.fates(1) == ["lost", "started"]


def test_amounts_that_the_user_changed_after_the_placement_stay(world) -> None:
    here = world([trace_job(1)], update_latency_s=5.0)
    here.script.place(1, "n1", Resources(8, 4, 9000))
    here.cycle()
    key = here.pending(1).key
    here.slurm.apply(JobUpdate(*key, amounts=Resources(2, 1, 7000)))
    here.slurm.set_node("n1", available=False)
    here.cycle()
    assert here.fates(1) == ["restored"]
    assert here.pending(1).requested == Resources(2, 1, 7000)


@pytest.mark.parametrize("state", ["written", "open"])
def test_a_new_agent_takes_over_what_a_dead_one_placed(world, state: str) -> None:
    here = world([trace_job(1)], update_latency_s=3.0)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    move = here.journal.move
    if state == "written":
        # It dies after the update, before it could note that it was made.
        def dies(intent: Intent, *_: object) -> Intent:
            raise SystemExit

        here.journal.move = dies
        with pytest.raises(SystemExit):
            here.agent.cycle()
        here.journal.move = move
    else:
        here.agent.cycle()
    here.agent = here.new_agent()
    here.cycle(8)
    assert here.fates(1)[-1] == "started"
    assert here.running(1) == Resources(8, 4, 9000)
    assert here.journal.open_intents() == []


def test_a_job_number_used_again_is_another_job(world) -> None:
    here = world([trace_job(1, time_limit_s=600)], update_latency_s=3.0)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    here.agent.cycle()
    crashed = world([trace_job(2)])
    here.agent._placements._cluster = here.agent._cluster = crashed.slurm
    here.script.places.clear()
    crashed.clock.wait(50)
    crashed.slurm.submit(trace_job(1))
    here.cycle(3)
    assert here.fates(1) == ["gone"]
    assert crashed.pending(1).requested == ASKED


def test_an_agent_that_leaves_frees_what_has_not_started(world) -> None:
    here = world([trace_job(1)], update_latency_s=100.0)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    here.cycle()
    here.agent.leave()
    assert here.fates(1) == ["restored"]
    assert here.hook() == ""
    here.clock.wait(200)
    assert here.running(1) == ASKED


def test_a_placement_that_could_not_be_noted_is_followed_all_the_same(world, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world([trace_job(1)], update_latency_s=1e6)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    move = here.journal.move
    monkeypatch.setattr(here.journal, "move", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk full")))
    here.cycle()
    monkeypatch.setattr(here.journal, "move", move)
    here.script.places.clear()
    here.cycle(2)
    assert here.fates(1) == ["restored"]
    assert here.pending(1).requested == ASKED


# Leases.


def test_leases_are_renewed_when_half_is_over_and_not_before(world) -> None:
    here = world([trace_job(1)], lease_s=60)
    here.cycle(29)
    assert here.pending(1).lease_until_s == START_S + 60
    here.cycle(5)
    assert here.pending(1).lease_until_s >= START_S + 90
    here.cycle(600)
    assert here.pending(1) is not None


def test_a_lease_of_the_jobs_own_length_is_renewed_by_that_length(world) -> None:
    here = world([])
    key = here.slurm.submit(trace_job(1, lease_s=600), lease_s=600)
    here.cycle(310)
    assert here.pending(1).lease_until_s >= key[1] + 600 + 300


def test_without_an_answer_leases_lapse_and_jobs_start_with_what_was_asked(world) -> None:
    here = world([trace_job(1)], lease_s=60)
    here.script.fails = "no answer within 2 s"
    here.cycle(70)
    assert here.running(1) == ASKED
    assert any("no answer within 2 s" in note.text for note in here.journal.agent_notes())


def test_a_silent_server_is_asked_ever_more_rarely_and_the_hook_told(world) -> None:
    here = world([trace_job(1)])
    here.cycle(2)
    assert here.hook() == "enforce"
    here.script.fails = "connection refused"
    asked = len(here.script.asked)
    here.cycle(200)
    assert here.hook() == "degraded"
    assert 5 <= len(here.script.asked) - asked <= 14
    here.script.fails = ""
    here.cycle(31)
    assert here.hook() == "enforce"


def test_a_dead_server_is_noticed_while_nothing_waits(world) -> None:
    here = world([])
    here.cycle(2)
    here.script.fails = "connection refused"
    here.cycle(12)
    assert here.hook() == "degraded"


def test_an_unchanged_queue_is_not_asked_about_every_second(world) -> None:
    here = world([trace_job(1)], lease_s=600)
    here.cycle(60)
    assert len(here.script.asked) <= 25
    empty = world([])
    empty.cycle(60)
    assert len(empty.script.asked) <= 7


def test_a_job_that_waited_too_long_is_given_to_slurm_and_stays_there(world) -> None:
    here = world([trace_job(1), trace_job(2, eligible=False)], max_hold_s=100, lease_s=30)
    here.cycle(110)
    assert here.running(1) == ASKED
    assert here.pending(2) is not None  # it could not start, so it has not waited
    (note,) = [note for note in here.journal.history("1").notes if note.kind == "given up"]
    assert note.text == "no place within 100 s"


def test_a_given_up_job_is_not_taken_again_by_the_next_agent(world) -> None:
    full = [trace_job(n, requested=Resources(16, 4, 60000), managed=False, time_limit_s=86400) for n in (8, 9)]
    here = world([*full, trace_job(1)], max_hold_s=50, lease_s=30)
    here.cycle(60)
    here.agent = here.new_agent()
    here.cycle(5)
    assert [job.managed for job in here.script.asked[-1].pending] == [False]


# Modes.


@pytest.mark.parametrize("mode", ["observe", "advise"])
def test_observe_and_advise_change_nothing(world, mode: str) -> None:
    here = world([trace_job(1)], mode=mode)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    here.slurm.apply = here.slurm.renew = lambda *_: pytest.fail("the cluster was changed")
    here.cycle(70)
    assert here.running(1) == ASKED
    assert here.hook() == mode
    assert [told.mode for told in here.journal.history("1").told] == [mode]


def test_the_disable_file_stops_everything_within_one_cycle(world) -> None:
    here = world([trace_job(1)])
    here.cycle()
    here.script.place(1, amounts=Resources(8, 4, 9000))
    Path(here.config.disable_file).touch()
    asked = len(here.script.asked)
    here.cycle(100)
    assert here.hook() == "disabled"
    assert len(here.script.asked) == asked
    assert here.running(1) == ASKED


def test_a_cluster_that_does_not_answer_is_waited_for(world) -> None:
    here = world([trace_job(1)])
    observe = here.slurm.observe

    def silent() -> ClusterState:
        raise SlurmError("squeue ended with 1: Unable to contact slurm controller")

    here.slurm.observe = silent
    here.cycle(3)
    assert here.hook() == "degraded"
    here.slurm.observe = observe
    here.script.place(1)
    here.cycle(3)
    assert here.hook() == "enforce"
    assert here.fates(1) == ["started"]
    assert [note.text for note in here.journal.agent_notes() if note.kind == "slurm"] == [
        "squeue ended with 1: Unable to contact slurm controller",
        "answers",
    ]


def test_a_cycle_that_fails_for_a_reason_nobody_thought_of_does_not_end_the_agent(world) -> None:
    here = world([trace_job(1)])
    here.cycle()

    def broken(_: ClusterState) -> DecideResponse:
        raise RuntimeError("never thought of this")

    here.agent._decide = broken
    here.cycle(10)
    assert here.hook() == "degraded"
    here.agent._decide = here.script
    here.cycle(10)
    assert here.hook() == "enforce"


def test_nothing_is_placed_that_cannot_be_journaled(world, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world([trace_job(1)])
    here.script.place(1)

    def full(_: object) -> list[Intent]:
        raise sqlite3.OperationalError("database or disk is full")

    for writing in ("write_intents", "note"):
        monkeypatch.setattr(here.journal, writing, full)
    here.cycle(3)
    assert here.pending(1) is not None
    assert here.pending(1).managed
    assert here.hook() == "degraded"


# Whole workloads.


@pytest.mark.parametrize("policy", ["min", "price"])
@pytest.mark.parametrize("seed", range(3))
def test_no_job_is_lost_or_stuck_whatever_slurm_refuses_and_the_server_misses(world, policy: str, seed: int) -> None:
    jobs = [trace_job(n, arrives_s=37 * n, partitions=(("pa",), ("pa", "pb"), ("pb",))[n % 3]) for n in range(24)]
    jobs += [trace_job(100 + n, arrives_s=101 * n, managed=False, minimum=ASKED, maximum=ASKED) for n in range(8)]
    decide = registry.make(policy).decide
    moods = iter([*range(10_000)])

    def server(state: ClusterState) -> DecideResponse:
        if next(moods) % 17 > 12:
            raise ServerError("away")
        return DecideResponse("d", PolicyInfo(policy), decide(state))

    here = world(jobs, server, update_latency_s=2.0, refusal=0.2, seed=seed)
    for turn in range(6000):
        here.cycle()
        if turn % 400 == 399:
            here.agent = here.new_agent()  # killed and started again
        if here.slurm.finished:
            break
    records = {record.job_id: record for record in here.slurm.records()}
    assert len(records) == len(jobs)
    for one in jobs:
        given = records[one.job.job_id].amounts
        assert one.job.maximum.covers(given) and given.covers(one.job.minimum)
    assert here.journal.open_intents() == []


# The janitor.


def test_the_janitor_frees_a_pinned_job_of_a_dead_agent_and_only_then(world) -> None:
    here = world([trace_job(1)], update_latency_s=1e6)
    before = here.pending(1)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    here.cycle()

    def tidy(force: bool = False) -> janitor.Report:
        return janitor.tidy(here.slurm, here.journal, here.config, force=force, now_s=here.clock.now_s)

    assert not tidy().acted
    assert here.pending(1).requested == Resources(8, 4, 9000)
    here.clock.wait(60)
    report = tidy()
    assert [(repair.job_id, repair.done) for repair in report.repairs] == [("1", True)]
    after = here.pending(1)
    assert (after.requested, after.priority, after.managed) == (before.requested, before.priority, True)
    assert tidy().repairs == ()
    assert here.fates(1) == ["restored"]


def test_the_janitor_forced_acts_beside_a_live_agent(world) -> None:
    here = world([trace_job(1)], update_latency_s=1e6)
    here.script.place(1, amounts=Resources(8, 4, 9000))
    here.cycle()
    report = janitor.tidy(here.slurm, here.journal, here.config, force=True, now_s=here.clock.now_s)
    assert report.acted and not report.failed
    assert here.pending(1).requested == ASKED


def test_a_job_that_the_janitor_cannot_restore_is_reported(world) -> None:
    here = world([trace_job(1)], update_latency_s=1e6)
    here.script.place(1)
    here.cycle()
    here.clock.wait(60)
    here.slurm.apply = lambda update: Outcome(False, "Access/permission denied")
    report = janitor.tidy(here.slurm, here.journal, here.config, now_s=here.clock.now_s)
    assert report.failed
    assert "permission denied" in report.repairs[0].what


# What surrounds the loop.


def test_only_one_agent_uses_a_journal(tmp_path: Path) -> None:
    with (
        only_one(tmp_path / "journal"),
        pytest.raises(ConfigError, match=f"another agent \\(process {os.getpid()}\\)"),
        only_one(tmp_path / "journal"),
    ):
        pass
    with only_one(tmp_path / "journal"):
        pass


def test_the_sign_of_life_is_what_the_hook_reads(tmp_path: Path) -> None:
    path = tmp_path / "run" / "hook"
    hookfile.write(path, "enforce", 1234.9, 60)
    assert path.read_text() == "enforce 1234 60\n"
    assert path.stat().st_mode & 0o777 == 0o644
    sign = hookfile.read(path)
    assert sign is not None
    assert sign.fresh(1249.0) and not sign.fresh(1250.0) and not sign.fresh(1200.0)
    path.write_text("rubbish")
    assert hookfile.read(path) is None
    assert [other.name for other in path.parent.iterdir()] == ["hook"]


def test_the_classes_file_is_read_again_when_it_changes_and_a_broken_one_keeps_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "classes.json"
    state = ClusterState(0.0, (), (), (trace_job(1).job,))
    classes = ClassesFile(path)
    for _ in range(3):
        assert classes.attach(state).classes == ()
    assert caplog.text.count("classes-unusable") == 1
    path.write_bytes(msgspec.json.encode([CLASS]))
    assert classes.attach(state).classes == (CLASS,)
    better = replace(CLASS, observations=9)
    path.write_bytes(msgspec.json.encode([better, replace(better, name="unused")]))
    assert classes.attach(state).classes == (better,)
    for broken in (b"[", b'[{"name": "demo"}]', b""):
        path.write_bytes(broken)
        with caplog.at_level(logging.ERROR):
            assert classes.attach(state).classes == (better,)
        assert "classes-unusable" in caplog.text
    path.unlink()
    assert classes.attach(state).classes == (better,)


def test_a_datagram_or_an_interrupt_ends_the_wait(tmp_path: Path) -> None:
    path = tmp_path / "run" / "wake.sock"
    clock = WakeClock(path)
    try:
        assert path.stat().st_mode & 0o777 == 0o660
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.setblocking(False)
        for wake in (lambda: [sender.sendto(b"submit\n", str(path)) for _ in range(5)], clock.interrupt):
            before = time.monotonic()
            threading.Timer(0.1, wake).start()
            clock.wait(30)
            assert time.monotonic() - before < 20
        # All five were one reason to look.
        before = time.monotonic()
        clock.wait(0.3)
        assert time.monotonic() - before >= 0.29
        sender.close()
    finally:
        clock.close()
    assert not path.exists()


def test_the_socket_of_another_agent_is_left_when_ours_ends(tmp_path: Path) -> None:
    path = tmp_path / "wake.sock"
    first, second = WakeClock(path), WakeClock(path)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()
