"""What a policy is told of the speed of tasks: frames say that and no more, and the truth decides when they end."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc import evaluate
from tapfinger_hpc.frame import RUNNING
from tapfinger_hpc.policies.compiled import price, tuned
from tapfinger_hpc.sim import cli, core, experience, knowledge, players, scenarios
from tapfinger_hpc.sim.episodes import play
from tapfinger_hpc.sim.knowledge import Belief
from tapfinger_hpc.sim.levels import LEVELS

SEEDS = st.integers(0, 2**31)
ASKING = ("fifo", "easy", "srtf", "tetris", "price")
"""Policies that ask for times."""


def belief_of(scenario: scenarios.Scenario) -> Belief:
    """What would be believed if that scenario were the true one."""
    return Belief(tuple(kind.slots for kind in scenario.types), (0.1,) * len(scenario.types))


def slowed(workload: scenarios.Workload, factor: float) -> scenarios.Workload:
    """The same tasks, which take so many times as long."""
    types = tuple(replace(kind, rate=kind.rate / factor) for kind in workload.scenario.types)
    return replace(workload, scenario=replace(workload.scenario, types=types))


def learned_player(**needs):
    torch = pytest.importorskip("torch")
    from tapfinger_hpc.nets.policy_network import NetworkConfig, PolicyNetwork
    from tapfinger_hpc.policies.learned_player import AgentsPlayer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    prices = tuned.prices("uniform-3").array()
    return AgentsPlayer(PolicyNetwork(NetworkConfig(hidden=8, heads=2)).compiled(), prices, **needs)


@pytest.mark.parametrize("name", [*players.NAMES[:6], "price", "tapfinger"])
def test_no_policy_sees_a_truth_that_is_not_believed(name):
    """Two worlds in which nothing ends for long and all is believed alike: all policies do the same in both."""
    workload = scenarios.workload("uniform-3", 5)
    worlds = [slowed(workload, factor) for factor in (40.0, 90.0)]
    frame, truth = core.environments(worlds, beliefs=[belief_of(workload.scenario)] * 2)
    make = learned_player if name == "tapfinger" else partial(players.make, name)
    player = make()
    for _ in range(30):
        player.play_slot(frame, truth, np.arange(2))
        core.advance(frame, truth, 0)
        core.advance(frame, truth, 1)
        for values, field in zip(frame, frame._fields, strict=True):
            assert np.array_equal(values[0], values[1]), field
    assert frame.running_count[0] > 0
    assert not np.array_equal(truth.end[0], truth.end[1])


@given(seed=SEEDS, level=st.sampled_from(LEVELS), name=st.sampled_from(("hetero-6", "synthetic-3", "random")))
@settings(max_examples=6, deadline=None)
def test_no_end_is_expected_in_the_past_and_what_runs_has_its_least_amounts(seed, level, name):
    workload = scenarios.workload(name, seed)
    workload = replace(workload, **{part: getattr(workload, part)[:40] for part in ("arrival", "type", "reachable")})
    frame, truth = core.environments([workload], beliefs=experience.beliefs([workload], level))
    player = players.make("price", scenario=workload.scenario, knowledge=level)
    while not core.over(truth, 0):
        player.play_slot(frame, truth, np.array([0]))
        running = frame.running[0, : frame.running_count[0]]
        assert (frame.expected_end[0, running] > frame.now[0]).all()
        assert (frame.amounts[0, running] >= truth.minimum[0, frame.kind[0, running]]).all()
        if level == "oracle":
            assert np.array_equal(frame.expected_end[0, running], truth.end[0, running])
        core.advance(frame, truth, 0)


def test_a_task_ends_when_it_does_whatever_was_expected():
    workload = scenarios.workload("order-3", 0)
    quick = replace(workload.scenario, types=scenarios.scenario("hetero-6").types)
    frame, truth = core.environments([workload], beliefs=[belief_of(quick)])
    job = next(job for job in frame.waiting[0, : frame.waiting_count[0]] if frame.kind[0, job] == 1)
    agent = int(np.flatnonzero(frame.seen[0, job])[0])
    assert core.place(frame, truth, 0, job, agent, agent, 3, 3, 0)
    assert (frame.expected_end[0, job], truth.end[0, job]) == (7, 11)
    for slot in range(1, 11):
        core.advance(frame, truth, 0)
        # Log times are thought to be right to 0.1, so of 7 and more slots a twentieth is to come: a whole one.
        assert (frame.status[0, job], frame.expected_end[0, job]) == (RUNNING, max(7, slot + 1))
    core.advance(frame, truth, 0)
    assert frame.status[0, job] != RUNNING


def test_amounts_that_are_believed_to_do_but_do_not_are_not_placed():
    workload = scenarios.workload("order-3", 0)
    frame, truth = core.environments([workload], beliefs=[belief_of(scenarios.scenario("hetero-6"))])
    job = int(frame.waiting[0, 0])
    agent = int(np.flatnonzero(frame.seen[0, job])[0])
    least = frame.menu[0, frame.kind[0, job], 0]
    assert least.tolist() == [2, 1, 0]
    assert not core.place(frame, truth, 0, job, agent, agent, *least.tolist())
    assert core.place(frame, truth, 0, job, agent, agent, 3, 3, 0)


@pytest.mark.slow
def test_estimates_are_off_by_as_much_as_they_say():
    found = []
    for seed in range(200):
        workload = scenarios.workload("random" if seed % 2 else "hetero-6", seed)
        belief = knowledge.estimated(workload)
        assert len(set(belief.log_std)) == len(belief.log_std)
        for kind, slots, log_std, menu in zip(
            workload.scenario.types, belief.slots, belief.log_std, belief.menus, strict=True
        ):
            able = np.isfinite(kind.slots)
            assert np.array_equal(able, np.isfinite(slots))
            assert tuple(menu[0]) == kind.minimum
            found.append((np.log(slots[able] / kind.slots[able]) / log_std).tolist())
    assert np.mean([np.mean(np.square(each)) for each in found]) == pytest.approx(1.0, abs=0.12)
    assert np.mean([np.mean(each) for each in found]) == pytest.approx(0.0, abs=0.1)


def test_an_estimate_is_the_same_for_every_policy_and_another_for_every_episode():
    one, again, other = (scenarios.workload("hetero-6", seed) for seed in (1, 1, 2))
    slots = [knowledge.estimated(workload).slots[1] for workload in (one, again, other)]
    assert np.array_equal(slots[0], slots[1])
    assert not np.array_equal(slots[0], slots[2])


@pytest.mark.parametrize("name", ["hetero-6", "random"])
def test_what_is_learned_nears_the_truth_with_every_episode(name):
    scenario = scenarios.workload(name, 2).scenario

    def error(episodes: int) -> float:
        """Of log times, on amounts that some node has: others are never tried."""
        belief = experience.learn(scenario, episodes).belief()
        off = []
        for learned, kind in zip(belief.slots, scenario.types, strict=True):
            amounts = np.moveaxis(np.indices(kind.slots.shape), 0, -1)
            there = np.any([(amounts <= capacity).all(axis=-1) for capacity in scenario.capacities], axis=0)
            tried = there & np.isfinite(kind.slots)
            off.append(np.log(learned[tried] / kind.slots[tried]))
        return float(np.sqrt(np.mean(np.concatenate(off) ** 2)))

    few, many = error(1), error(16)
    assert many < max(0.005, 0.5 * few)


def test_a_task_of_which_nothing_was_seen_is_unknown():
    able = np.zeros((3, 3), bool)
    able[1:, 1:] = True
    slots, log_std = experience.fit(np.zeros((0, 3)), able)
    assert np.array_equal(np.isfinite(slots), able)
    assert log_std == experience.UNKNOWN


def test_noisy_times_are_averaged_and_their_spread_is_told():
    source = np.random.default_rng(0)
    cpus, gpus = source.integers(1, 9, size=(2, 2000))
    seen = np.column_stack((cpus, gpus, 40 / gpus**0.7 * np.exp(0.3 * source.standard_normal(2000))))
    able = np.zeros((9, 9), bool)
    able[1:, 1:] = True
    slots, log_std = experience.fit(seen, able)
    true = 40 / np.arange(1, 9) ** 0.7 * np.exp(0.3**2 / 2)
    assert np.sqrt(np.mean(np.log(slots[1:, 1:] / true) ** 2)) < 0.08
    assert log_std == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", ["hetero-6", "uniform-3"])
def test_with_the_types_alone_price_is_within_three_percent_of_the_oracle(name):
    workloads = [scenarios.workload(name, seed) for seed in range(4)]
    means = {
        level: np.mean(
            [
                e.mean_jct
                for e in play(workloads, players.make("price", scenario=workloads[0].scenario, knowledge=level))
            ]
        )
        for level in ("oracle", "types", "curves")
    }
    assert means["types"] < 1.03 * means["oracle"]
    assert means["curves"] > 1.001 * means["oracle"]


def test_every_policy_that_asks_for_times_says_what_it_was_told():
    for name in ASKING:
        assert [players.make(name, knowledge=level).knowledge for level in LEVELS] == list(LEVELS)
    told = {name: players.make(name, knowledge="types").knowledge for name in ("min", "tiresias", "optimus")}
    assert told == {"min": "", "tiresias": "", "optimus": "oracle"}


def test_dumps_and_reports_say_what_was_known_and_the_oracle_is_what_there_was_before(tmp_path: Path):
    def lines(*more: str) -> list[dict]:
        file = tmp_path / "dump.jsonl"
        call = ["--scenario", "synthetic-3", "--policy", "price", "--episodes", "2", "--dump", str(file), *more]
        done = CliRunner().invoke(cli.simulate, call, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in file.read_text().splitlines()]

    plain, oracle, curves = lines(), lines("--knowledge", "oracle"), lines("--knowledge", "curves")
    assert plain == oracle
    assert [line["knowledge"] for line in (*oracle, *curves)] == ["oracle"] * 2 + ["curves"] * 2
    assert oracle[0]["tasks"] == curves[0]["tasks"]
    assert oracle[0]["placements"] != curves[0]["placements"]
    file = tmp_path / "report.json"
    call = ["--scenario", "synthetic-3", "--policies", "price,min", "--seeds", "2", "--knowledge", "types"]
    done = CliRunner().invoke(cli.evaluate, [*call, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (contest,) = msgspec.json.decode(file.read_bytes(), type=evaluate.Report).contests
    assert [row.knowledge for row in contest.policies] == ["types", ""]


def test_what_was_learned_serves_its_own_scenario_alone():
    hetero, order = (scenarios.workload(name, 0) for name in ("hetero-6", "order-3"))
    wrong = experience.Experience(
        "hetero-6",
        0,
        tuple(
            experience.LearnedType(kind.name, 0, tuple((9.0,) * 17 for _ in range(17)), 0.5)
            for kind in hetero.scenario.types
        ),
    )
    own, others = experience.beliefs([hetero, order], "types", wrong)
    assert own is not None and others is not None
    assert own.log_std == (0.5, 0.5)
    assert others.slots[1][3, 3] == pytest.approx(11, rel=0.02)


@pytest.mark.slow
def test_a_course_with_types_keeps_what_it_learned_and_evaluation_plays_with_it(tmp_path: Path):
    pytest.importorskip("torch")
    from tapfinger_hpc import checkpoint
    from tapfinger_hpc.errors import ConfigError
    from tapfinger_hpc.nets.policy_network import NetworkConfig
    from tapfinger_hpc.policies.learned_player import AgentsPlayer
    from tapfinger_hpc.training import course
    from tapfinger_hpc.training.ppo import PPOConfig

    config = course.CourseConfig(
        "synthetic-3",
        knowledge="types",
        iterations=2,
        imitation=0.5,
        network=NetworkConfig(hidden=8, heads=2, rounds=1),
        ppo=PPOConfig(workloads=1, siblings=2, slots=16, repeats=1),
    )
    course.train(config, tmp_path)
    info = checkpoint.describe(tmp_path)
    assert info.training.knowledge == "types"
    assert info.experience == experience.learn(scenarios.scenario("synthetic-3"))
    player = AgentsPlayer.load(tmp_path)
    assert (player.knowledge, player.experience) == ("types", info.experience)
    assert AgentsPlayer.load(tmp_path, knowledge="oracle").knowledge == "oracle"
    with pytest.raises(ConfigError, match="known: types, curves, oracle"):
        course.train(msgspec.structs.replace(config, knowledge="guesses"), tmp_path / "other")


def test_price_with_rough_estimates_takes_the_constants_for_any_cluster():
    assert tuned.prices("hetero-6", "curves") == price.Prices() != tuned.prices("hetero-6", "types")
