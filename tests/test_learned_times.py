"""Policies that are told what was learned from ended jobs: the whole way from a simulated history to decisions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tapfinger_hpc.errors import ConfigError, ScenarioError
from tapfinger_hpc.sim import cli, ended, experience, knowledge, players, scenarios
from tapfinger_hpc.sim.episodes import play
from tapfinger_hpc.sim.scenarios import SLOT_S
from tapfinger_hpc.speed import JobClass, SpeedModel, read_classes
from trace_tools.speed_cli import fit


def run(command, *words: str):
    return CliRunner().invoke(command, list(words))


def classes_of(scenario: scenarios.Scenario) -> tuple[JobClass, ...]:
    """The truth of each type, as a class says it."""
    found = []
    for kind in scenario.types:
        cpus, gpus = (range(least, most) for least, most in zip(kind.minimum, kind.slots.shape, strict=True))
        seconds = tuple(float(kind.slots[cpu, gpu]) * SLOT_S for cpu in cpus for gpu in gpus)
        found.append(JobClass(kind.name, SpeedModel(tuple(cpus), tuple(gpus), (1,), seconds, (0.25,))))
    return tuple(found)


def test_classes_that_tell_the_truth_are_believed_to_the_letter():
    scenario = scenarios.scenario("hetero-6")
    belief = knowledge.of_classes(scenario, classes_of(scenario))
    for kind, slots, log_std in zip(scenario.types, belief.slots, belief.log_std, strict=True):
        assert np.allclose(slots, kind.slots)
        assert log_std == pytest.approx(0.25)


def test_a_class_that_no_type_has_is_missed_and_drawn_scenarios_have_none():
    scenario = scenarios.scenario("hetero-6")
    with pytest.raises(ScenarioError, match=r"\(IMG\) lack its types LM"):
        knowledge.of_classes(scenario, classes_of(scenario)[:1])
    with pytest.raises(ScenarioError, match="other types for each seed"):
        knowledge.of_classes(scenarios.workload("random", 0).scenario, classes_of(scenario))


@pytest.mark.parametrize("name", ["hetero-6", "cluster"])
def test_the_jobs_of_an_episode_are_its_tasks(name):
    workload = scenarios.workload(name, 3)
    (episode,) = play([workload], players.make("price", scenario=workload.scenario))
    trace = ended.trace([episode, episode])
    ours = workload.ours.nonzero()[0]
    assert len(trace.jobs) == 2 * len(ours)
    slot_s = SLOT_S if name == "hetero-6" else 1.0
    for task, item in zip(ours, trace.jobs, strict=False):
        assert item.ran is not None
        assert item.ran.elapsed_s == pytest.approx((episode.end[task] - episode.start[task]) * slot_s)
        assert [item.ran.amounts.cpus, item.ran.amounts.gpus] == episode.amounts[task].tolist()
        assert item.job.job_class == workload.scenario.types[workload.type[task]].name
    first, second = trace.jobs[: len(ours)], trace.jobs[len(ours) :]
    assert min(item.job.submit_time_s for item in second) >= max(
        (item.ran.start_time_s or 0) + item.ran.elapsed_s for item in first if item.ran
    )


def test_a_task_whose_amounts_were_changed_says_nothing_of_any():
    workload = scenarios.workload("hetero-6", 0).begin(60)
    with pytest.raises(ConfigError, match="'optimus' changed the amounts"):
        ended.trace(play([workload], players.make("optimus")))


def test_three_hundred_ended_jobs_are_enough_to_decide_by(tmp_path: Path):
    history, classes, out = (str(tmp_path / name) for name in ("history.jsonl", "classes.json", "out.json"))
    told = ("--scenario", "hetero-6", "--policy", "random", "--load", "0.3", "--trace", history)
    done = run(cli.simulate, *told)
    assert done.exit_code == 0, done.output
    assert run(fit, history, "--first", "300", "-o", classes).exit_code == 0
    assert sum(one.observations for one in read_classes(Path(classes))) == 300
    means = []
    for knows in (("curves", "--classes", classes), ("oracle",)):
        done = run(
            cli.evaluate, "--scenario", "hetero-6", "--policies", "price", "--seeds", "4", "--json", out,
            "--knowledge", *knows,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        (row,) = json.loads(Path(out).read_text())["contests"][0]["policies"]
        assert row["knowledge"] == knows[0]
        means.append(row["mean_jct"]["mean"])
    assert means[0] != means[1]
    assert means[0] == pytest.approx(means[1], rel=0.05)


def test_what_was_learned_of_other_speeds_is_decided_by(tmp_path: Path):
    """Else the file might be read and the truth be told."""
    scenario = scenarios.scenario("order-3")
    wrong = classes_of(replace(scenario, types=tuple(reversed(scenario.types))))
    swapped = tuple(JobClass(kind.name, one.speed) for one, kind in zip(wrong, scenario.types, strict=True))
    (belief,) = experience.beliefs([scenarios.workload("order-3", 0)], "curves", classes=swapped)
    assert belief is not None
    assert [belief.slots[0][3, 3], belief.slots[1][3, 3]] == pytest.approx([11, 1])


def test_classes_that_cannot_be_used_are_said_before_anything_is_played(tmp_path: Path):
    call = ("--scenario", "hetero-6", "--policies", "price", "--seeds", "1")
    done = run(cli.evaluate, *call, "--classes", str(tmp_path / "none.json"))
    assert done.exit_code == 2 and "--knowledge curves" in done.output
    done = run(cli.evaluate, *call, "--knowledge", "curves", "--classes", str(tmp_path / "none.json"))
    assert done.exit_code == 2 and "No such file" in done.output
    (tmp_path / "bad.json").write_text("[{}]")
    done = run(cli.evaluate, *call, "--knowledge", "curves", "--classes", str(tmp_path / "bad.json"))
    assert done.exit_code == 2 and "trace fit" in done.output
    (tmp_path / "empty.json").write_text("[]")
    done = run(cli.evaluate, *call, "--knowledge", "curves", "--classes", str(tmp_path / "empty.json"))
    assert done.exit_code == 2 and "there are none in it" in done.output
