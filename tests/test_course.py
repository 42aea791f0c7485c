"""Courses of training: they end with a checkpoint, go on exactly after a kill, and stop where a number is none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tapfinger_hpc import checkpoint
from tapfinger_hpc.errors import CheckpointError, ConfigError, ScenarioError
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.policy_network import Critic, PolicyNetwork
from tapfinger_hpc.policies import settling
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim import scenarios
from tapfinger_hpc.training import course, ppo, team
from tapfinger_hpc.training.cli import train as train_command
from tapfinger_hpc.training.course import CourseConfig, Progress, TrainingError
from tapfinger_hpc.training.ppo import Collected, PPOConfig, advantages

TINY = CourseConfig(
    "synthetic-3",
    iterations=3,
    imitation=0.3,
    network=NetworkConfig(hidden=8, heads=2, rounds=1),
    ppo=PPOConfig(workloads=2, siblings=2, slots=16, repeats=1),
    save_every=1,
)


class Interrupted(Exception):
    """Stands for a kill between two saved states."""


def interrupt_at(iteration: int):
    def report(progress: Progress) -> None:
        if progress.iteration == iteration:
            raise Interrupted

    return report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, checkpoint.CheckpointInfo]:
    """A course that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    return out, course.train(TINY, out)


def test_a_course_that_was_interrupted_and_resumed_makes_the_same_weights(whole, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        course.train(TINY, tmp_path, report=interrupt_at(2))
    info = course.train(TINY, tmp_path, resume=True)
    assert info.fingerprint == whole[1].fingerprint
    steps = [json.loads(line)["step"] for line in (tmp_path / course.METRICS).read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_another_seed_makes_other_weights_and_the_description_says_where_they_come_from(whole) -> None:
    out, info = whole
    _, described = checkpoint.load(out)
    assert described == info
    assert (info.training.scenario, info.training.iterations, info.training.workers) == ("synthetic-3", 3, 1)
    phases = [json.loads(line)["phase"] for line in (out / course.METRICS).read_text().splitlines()]
    assert phases == ["imitation", "ppo", "ppo"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda content: content[:-100], "truncated or changed"),
        (lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:], "truncated or changed"),
    ],
)
def test_a_state_that_was_harmed_is_not_resumed(whole, tmp_path: Path, harm, says: str) -> None:
    (tmp_path / course.STATE).write_bytes(harm((whole[0] / course.STATE).read_bytes()))
    with pytest.raises(CheckpointError, match=says):
        course.train(TINY, tmp_path, resume=True)


def test_a_course_is_not_resumed_with_other_settings(whole) -> None:
    import msgspec

    with pytest.raises(CheckpointError, match="seed = 0, not 5"):
        course.train(msgspec.structs.replace(TINY, seed=5), whole[0], resume=True)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: next(folder.glob("weights-*")).write_bytes(b"short"), "truncated or changed"),
        (
            lambda folder: (folder / checkpoint.DESCRIPTION).write_text(
                (folder / checkpoint.DESCRIPTION).read_text().replace('"version": 3', '"version": 2')
            ),
            "schema 2, this program reads 3",
        ),
        (
            lambda folder: (folder / checkpoint.DESCRIPTION).write_text(
                (folder / checkpoint.DESCRIPTION).read_text().replace('"slot_log"', '"slots_log"')
            ),
            "columns are not those",
        ),
        (lambda folder: (folder / checkpoint.DESCRIPTION).unlink(), "cannot be read"),
        (lambda folder: (folder / checkpoint.DESCRIPTION).write_text('{"schema": {"version": 3}'), "truncated"),
    ],
)
def test_a_checkpoint_that_was_harmed_is_refused_with_what_is_wrong(whole, tmp_path: Path, harm, says: str) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    harm(folder)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(folder)


def test_a_gradient_that_is_not_a_number_stops_training_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = ppo.collect
    calls = []

    def poisoned(*arguments):
        collected = collect(*arguments)
        calls.append(1)
        if len(calls) == 2:
            collected.rewards[3] = np.nan
        return collected

    monkeypatch.setattr(ppo, "collect", poisoned)
    with pytest.raises(TrainingError, match="iteration 3: a gradient is not a number"):
        course.train(TINY, tmp_path)
    assert checkpoint.load(tmp_path)[1].training.iterations == 2  # it is refused where a weight is not a number


def test_an_unknown_scenario_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"'hetero-7' is not known; known: hetero-6, uniform-3"):
        course.train(CourseConfig("hetero-7"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_advantage_is_measured_against_siblings_that_met_the_same_arrivals() -> None:
    """What all siblings suffer alike, by their arrivals, is nobody's merit; what one does differently is."""
    slots, siblings = 5, 4
    common = np.random.default_rng(0).normal(size=(slots, 1)) * 100
    rewards = np.repeat(common, siblings, axis=1)
    rewards[2, 1] += 1.0
    collected = Collected(
        [], rewards, np.ones((slots, siblings), bool), np.full((slots, siblings), 0.9), np.zeros(siblings)
    )
    found, returns = advantages(collected, np.zeros((slots, siblings)), siblings, 1.0)
    assert (found[:3, 1] > 0).all()
    np.testing.assert_allclose(found[3:], 0, atol=1e-9)
    np.testing.assert_allclose(found[:3, [0, 2, 3]], np.repeat(-found[:3, [1]] / 3, 3, axis=1))
    assert returns[4, 0] == pytest.approx(common[4, 0])


def test_every_workload_has_the_same_say_however_far_its_returns_spread() -> None:
    slots, siblings = 6, 4
    rewards = np.random.default_rng(1).normal(size=(slots, siblings))
    rewards = np.concatenate([rewards, 50 * rewards], axis=1)
    alive = np.ones((slots, 2 * siblings), bool)
    alive[4:, 2] = alive[4:, 2 + siblings] = False
    collected = Collected([], rewards, alive, np.full(rewards.shape, 0.9), np.zeros(2 * siblings))
    found, _ = advantages(collected, np.zeros(rewards.shape), siblings, 0.9)
    np.testing.assert_allclose(found[:, :siblings], found[:, siblings:], atol=1e-6)
    assert found[:, :siblings][alive[:, :siblings]].std() == pytest.approx(1.0)
    assert not found[~alive].any()


def test_several_scenarios_take_turns(tmp_path: Path) -> None:
    both = course._Course(CourseConfig("random,cluster"), tmp_path, None, team.Team())
    names = [each.scenario.name for each in both._workloads(4)]
    assert names == ["random", "cluster"] * 2
    with pytest.raises(ConfigError, match="train in one, or in drawn ones"):
        course.train(CourseConfig("uniform-3,random", knowledge="types"), tmp_path / "out")
    with pytest.raises(ScenarioError, match="'hetero-7' is not known"):
        course.train(CourseConfig("random,hetero-7"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clusters_come_again_with_other_jobs_and_the_constants_they_were_settled_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(settling, "settle", lambda scenario: asked.append(scenario) or Prices(base=0.5))
    begun = course._Course(
        msgspec.structs.replace(TINY, scenario="random,cluster", clusters=3), tmp_path, None, team.Team()
    )
    first = begun._workloads(12)
    assert [each.scenario.name for each in first[:4]] == ["random", "cluster"] * 2
    assert len({id(each.scenario) for each in first}) == 6
    assert first[0].scenario is first[6].scenario
    assert not np.array_equal(first[0].arrival, first[6].arrival)
    assert np.array_equal(begun._prices(first), np.tile(Prices(base=0.5).array(), (12, 1)))
    assert asked == [each.scenario for each in first]


@pytest.mark.parametrize(("passed", "sizes"), [(12, {4}), (100, {5}), (400, {20})])
def test_the_longer_an_episode_the_more_of_it_is_in_one_step(monkeypatch, passed: int, sizes: set[int]) -> None:
    learner = ppo.Learner(
        PolicyNetwork(TINY.network), Critic(TINY.network.hidden), PPOConfig(siblings=1, repeats=1), team.Team()
    )
    seen: list[int] = []

    def step(decisions, advantage, returns, told) -> None:
        seen.append(len(decisions))
        for values in told.values():
            values.append(0.0)

    monkeypatch.setattr(learner, "_step", step)
    monkeypatch.setattr(learner, "critic", lambda _: torch.zeros(1))
    monkeypatch.setattr(ppo.GraphTensors, "of", lambda _: None)
    alive = np.ones((passed, 1), bool)
    decisions = [SimpleNamespace(envs=np.array([0]), graphs=None) for _ in range(passed)]
    rewards = np.random.default_rng(0).normal(size=(passed, 1))
    learner.learn(
        Collected(decisions, rewards, alive, np.full((passed, 1), 0.9), np.zeros(1)), np.random.default_rng(0)
    )
    assert set(seen) == sizes
    assert sum(seen) == passed


def test_in_an_overloaded_cluster_a_decision_is_felt_for_longer() -> None:
    workloads = [scenarios.workload("hetero-6", 0, load=load).begin(12) for load in (0.75, 1.2)]
    collected = ppo.collect(PolicyNetwork(TINY.network), workloads, PPOConfig(), np.random.default_rng(0))
    best = np.mean([kind.slots.min() for kind in workloads[0].scenario.types])
    least = collected.discount.min(axis=0)
    assert least == pytest.approx([0.86 ** (1 / best), 0.97 ** (1 / best)])
    assert collected.trace.tolist() == [0.95, 0.98]


def test_returns_end_where_an_episode_ends() -> None:
    alive = np.array([[True, True], [True, False]])
    collected = Collected([], np.array([[-1.0, -1.0], [-2.0, 0.0]]), alive, np.full((2, 2), 0.5), np.zeros(2))
    _, returns = advantages(collected, np.zeros((2, 2)), 1, 1.0)
    np.testing.assert_allclose(returns[0], [-2.0, -1.0])


def test_a_team_that_cannot_find_its_first_process_is_told_so() -> None:
    assert team.join({}).size == 1
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        team.join({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"})
    with pytest.raises(ConfigError, match="RANK='x'"):
        team.join({"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(TrainingError, match="2 workloads of an iteration cannot be shared among 3 processes"):
        course.train(TINY, Path("unused"), team=team.Team(0, 3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "synthetic-3", "--out", "x", "--minuts", "3"], "--minutes"),
        (["--scenario", "synthetic-3", "--out", "x", "--minutes", "0"], "--minutes"),
        (["--scenario", "synthetic-3"], "--out"),
        (["--out", "x"], "--scenario"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_with_what_can(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(train_command, arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_a_checkpoint_that_is_there_is_not_overwritten_unasked(whole) -> None:
    before = checkpoint.describe(whole[0])
    done = CliRunner().invoke(train_command, ["--scenario", "synthetic-3", "--out", str(whole[0])])
    assert done.exit_code == 2
    assert "--resume" in done.output
    assert checkpoint.describe(whole[0]) == before


def test_a_course_begins_with_the_weights_of_a_checkpoint_of_the_same_size_alone(whole, tmp_path: Path) -> None:
    import msgspec

    still = msgspec.structs.replace(TINY, iterations=1, imitation_rate=0.0, imitation=1.0, save_every=10)
    course.train(still, tmp_path / "on", start=whole[0])
    for name, values in checkpoint.read(whole[0])[0].items():
        np.testing.assert_allclose(checkpoint.read(tmp_path / "on")[0][name], values, rtol=1e-6, err_msg=name)
    wider = msgspec.structs.replace(TINY, network=NetworkConfig(hidden=16, heads=2, rounds=1))
    with pytest.raises(CheckpointError, match="of another network"):
        course.train(wider, tmp_path / "wider", start=whole[0])


def _command(out: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "tapfinger_hpc.cli", "train", "--scenario", "synthetic-3"]
    return [*program, "--iterations", "8", "--out", str(out), *more]


@pytest.mark.slow
def test_the_command_killed_at_any_time_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    subprocess.run(_command(tmp_path / "whole"), check=True, capture_output=True, timeout=280)
    out = tmp_path / "killed"
    running = subprocess.Popen(_command(out), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / course.STATE).exists():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    time.sleep(1.5)  # somewhere within the sixth iteration
    os.kill(running.pid, signal.SIGKILL)
    running.wait(timeout=10)
    subprocess.run(_command(out, "--resume"), check=True, capture_output=True, timeout=280)
    assert checkpoint.describe(out).fingerprint == checkpoint.describe(tmp_path / "whole").fingerprint
    assert list((out / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_two_workers_train_one_network(tmp_path: Path) -> None:
    command = [*_command(tmp_path), "--workers", "2"]
    command[command.index("8")] = "2"
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    assert checkpoint.load(tmp_path)[1].training.workers == 2
