"""The environments for other learners: PettingZoo's own tests, what agents see and may do, many side by side."""

import warnings
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_reference import PaperEnvironment
from pettingzoo.test import parallel_api_test, parallel_seed_test

from tapfinger_hpc import cli
from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.sim import core, observation, scenarios
from tapfinger_hpc.sim.bench import LEAST, RANDOM, SimulatorFigures, act
from tapfinger_hpc.sim.core import Sizes
from tapfinger_hpc.sim.pettingzoo_env import RANDOM_ROOM, RANDOM_ROWS, parallel_env
from tapfinger_hpc.sim.vector import VectorEnv

SEEDS = st.integers(0, 2**31)
TABLE = "\n".join(
    f"{task},{cpus},{gpus},{seconds / (cpus + gpus)}"
    for task, seconds in (("mnist", 200), ("lm", 400), ("audio", 300))
    for cpus in range(1, 17)
    for gpus in range(1, 9)
)


@pytest.fixture
def table(tmp_path):
    """Measurements of a made-up test-bed."""
    file = tmp_path / "table.csv"
    file.write_text(TABLE, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "name", [name for name in scenarios.NAMES if name not in scenarios.DRAWN and "000" not in name]
)
def test_every_scenario_passes_the_tests_of_pettingzoo(name, table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(name, table, tasks=30), num_cycles=300)
        parallel_seed_test(lambda: parallel_env(name, table, tasks=30), num_cycles=20)


def test_random_clusters_pass_the_tests_of_pettingzoo():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A small cluster has fewer agents than the greatest: PettingZoo asks whether that is meant. It is.
        warnings.filterwarnings("ignore", message="No agents present but not all possible_agents")
        parallel_api_test(parallel_env("random"), num_cycles=300)
        parallel_seed_test(lambda: parallel_env("random"), num_cycles=20)


def test_an_unknown_scenario_names_the_known_ones():
    for make in (parallel_env, VectorEnv):
        with pytest.raises(ScenarioError, match=r"'hetero-7' is not known; known: hetero-6, .*random"):
            make("hetero-7")


def test_numbers_that_make_no_environment_are_refused():
    with pytest.raises(ScenarioError, match="0 slots"):
        parallel_env("hetero-6", max_slots=0)
    with pytest.raises(ScenarioError, match="making 0 environments"):
        VectorEnv("hetero-6", 0)
    with pytest.raises(ScenarioError, match="'random' with 5 tasks"):
        parallel_env("random", tasks=5)


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(("hetero-6", "order-3", "random")), seed=SEEDS)
def test_masked_actions_can_be_done_unless_another_agent_has_the_task(name, seed):
    env = parallel_env(name)
    seen, _ = env.reset(seed=seed)
    for number, agent in enumerate(env.agents):
        env.action_space(agent).seed(seed + number)
    for _ in range(40):
        actions = {agent: env.action_space(agent).sample(seen[agent]["action_mask"]) for agent in env.agents}
        wanted = {}
        for agent, (place, cpus, gpus) in actions.items():
            if place:
                features = seen[agent]["observation"]["window"][place - 1]
                assert features[0] == 1
                if cpus <= features[3] and gpus <= features[4] and cpus >= features[1] and gpus >= features[2]:
                    wanted[agent] = env._truth.window[0, int(agent.removeprefix("agent_")), place - 1]
        seen, _, terminations, _, infos = env.step(actions)
        assert next(iter(infos.values()))["placed"] == len(set(wanted.values()))
        if any(terminations.values()):
            break


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(("hetero-6", "order-3", "synthetic-3")), seed=SEEDS)
def test_agents_see_the_state_of_the_paper(name, seed):
    workload = scenarios.draw(replace(scenarios.scenario(name), tasks=40, arrivals=20), seed)
    env, reference = parallel_env(name, tasks=40), PaperEnvironment(workload)
    seen, _ = env.reset(options={"workload": workload})
    kinds, source = workload.scenario.types, np.random.default_rng(seed)
    for _ in range(40):
        for number, agent in enumerate(env.agents):
            own = seen[agent]["observation"]
            assert env.observation_space(agent).contains(seen[agent])
            running = [task for task in reference.running if task.agent == number]
            window, queue = reference.windows[number], reference.queues[number]
            standing = sum(task is not None for task in window)
            capacity = workload.scenario.capacities[number]
            assert own["agent"].tolist() == [*reference.free[number], *capacity, len(queue), standing, len(running)]
            for place, task in enumerate(window):
                row = own["window"][place].tolist()
                if task is None:
                    assert not any(row)
                    continue
                who = sum(task in other for other in reference.windows)
                one_hot = [float(kind is task.kind) for kind in kinds]
                assert (row[:3], row[5:]) == ([1, *task.kind.minimum], [task.age, who, *one_hot])
            rows = sorted(row.tolist() for row in own["running"] if row.any())
            assert rows == sorted(
                [*task.amounts, task.age - task.waited, *(float(kind is task.kind) for kind in kinds)]
                for task in running
            )
        actions = {}
        for agent in env.agents:
            places = np.flatnonzero(seen[agent]["action_mask"][0])
            place = int(source.choice(places)) if source.random() < 0.6 else 0
            row = seen[agent]["observation"]["window"][place - 1]
            actions[agent] = (place, int(source.integers(row[1], row[3] + 1)), int(row[2])) if place else (0, 0, 0)
        order = [actions[agent] for agent in env.agents]
        reference.step([(place - 1, cpus, gpus) if place else None for place, cpus, gpus in order])
        seen, rewards, *_ = env.step(actions)
        assert list(rewards.values()) == reference.rewards
        if reference.over:
            break


def test_the_seed_of_a_reset_is_that_of_the_workload():
    env = parallel_env("synthetic-3")
    env.reset(seed=17)
    drawn = scenarios.workload("synthetic-3", 17)
    assert env._frame.arrival[0].tolist() == drawn.arrival.tolist()
    assert env._frame.reach[0].tolist() == drawn.reachable.tolist()
    env.reset()
    second = env._frame.reach[0].tolist()
    assert second != drawn.reachable.tolist()
    env.reset(seed=17)
    env.reset()
    assert env._frame.reach[0].tolist() == second


def test_an_episode_in_which_nobody_acts_is_cut_off():
    env = parallel_env("uniform-3", tasks=5, max_slots=7)
    env.reset(seed=1)
    for _ in range(7):
        _, _, terminations, truncations, _ = env.step({})
    assert not any(terminations.values())
    assert truncations == {"agent_0": True, "agent_1": True, "agent_2": True}
    assert env.agents == []
    assert env.step({}) == ({}, {}, {}, {}, {})


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS)
def test_every_random_cluster_fits_into_the_room_for_them(seed):
    workload = scenarios.workload("random", seed)
    assert np.max([Sizes.of(workload), RANDOM_ROOM], axis=0).tolist() == list(RANDOM_ROOM)
    assert observation.most_running(workload.scenario) <= RANDOM_ROWS


def masked_actions(seen: observation.Observation) -> np.ndarray:
    """The first task that fits, on its minimum."""
    may = seen.place_mask[..., 1:] > 0
    actions = np.zeros((*may.shape[:2], 3), np.int64)
    actions[..., 0] = np.where(may.any(axis=-1), 1 + may.argmax(axis=-1), 0)
    rows = np.take_along_axis(seen.window, np.maximum(actions[..., :1] - 1, 0)[..., None], axis=2)[:, :, 0]
    actions[..., 1:] = rows[..., 1:3]
    return actions


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_environments_side_by_side_are_each_that_of_pettingzoo(threads):
    many = VectorEnv("hetero-6", 3, tasks=25, threads=threads)
    singles = [parallel_env("hetero-6", tasks=25) for _ in range(3)]
    seen, _ = many.reset(seed=5)
    for number, single in enumerate(singles):
        single.reset(seed=5 + number)
    finished = np.zeros(3, np.bool_)
    for _ in range(150):
        actions = masked_actions(seen)
        seen, rewards, terminations, truncations, infos = many.step(actions)
        assert not truncations.any()
        for number in np.flatnonzero(~finished):
            single = singles[number]
            names = list(single.agents)
            own, single_rewards, ended, _, info = single.step(dict(zip(names, actions[number], strict=True)))
            assert rewards[number].tolist() == list(single_rewards.values())
            assert terminations[number] == ended["agent_0"]
            assert infos["placed"][number] == info["agent_0"]["placed"]
            if terminations[number]:
                assert infos["mean_completion_time"][number] == info["agent_0"]["mean_completion_time"]
                assert many.frame.now[number] == 0.0
                continue
            for place, name in enumerate(names):
                np.testing.assert_array_equal(seen.window[number, place], own[name]["observation"]["window"])
                np.testing.assert_array_equal(seen.place_mask[number, place], own[name]["action_mask"][0])
        finished |= terminations
        if finished.all():
            break
    assert finished.all()


def test_an_environment_that_ends_begins_anew_with_other_tasks():
    for name, tasks in (("order-3", 6), ("random", None)):
        many = VectorEnv(name, 2, tasks=tasks)
        seen, _ = many.reset(seed=1)
        before = many.frame.reach.copy()
        ended = np.zeros(2, np.bool_)
        for _ in range(2000):
            lacking = np.arange(many.frame.member.shape[1]) >= many.frame.partitions[:, None]
            seen, rewards, terminations, _, _ = many.step(masked_actions(seen))
            assert not rewards[lacking].any()
            ended |= terminations
            if ended.all():
                break
        assert ended.all()
        assert all((many.frame.reach[env] != before[env]).any() for env in range(2))
        assert not any(core.over(many.truth, env) for env in range(2))


def test_environments_that_never_end_are_cut_off_together():
    many = VectorEnv("uniform-3", 2, tasks=5, max_slots=4)
    many.reset(seed=1)
    nothing = np.zeros((2, 3, 3), np.int64)
    cut = [many.step(nothing)[3].tolist() for _ in range(8)]
    assert cut == [[False, False]] * 3 + [[True, True]] + [[False, False]] * 3 + [[True, True]]


def test_the_bench_lists_what_it_measures():
    help_text = CliRunner().invoke(cli.bench, ["--help"]).output
    for name, summary in cli.BENCH_SUMMARIES.items():
        assert name in help_text
        assert summary in help_text
    assert cli.BENCH_SUMMARIES.keys() == cli.BENCHES.keys()


@pytest.mark.slow
def test_the_bench_counts_the_steps_that_it_makes(tmp_path):
    file = tmp_path / "simulator.json"
    options = ["simulator", "--envs", "3", "--steps", "7", "--repeats", "2", "--json", str(file)]
    done = CliRunner().invoke(cli.bench, [*options, "--scenario", "order-3"])
    assert done.exit_code == 0, done.output
    figures = msgspec.json.decode(file.read_bytes(), type=SimulatorFigures)
    assert figures.scenario == "order-3"
    assert {(pace.observing, pace.threads) for pace in figures.paces} == {(False, 1), (True, 1)}
    for pace in figures.paces:
        assert (pace.environments, pace.steps, pace.repetitions) == (3, 21, 2)
        assert 0 < pace.worst <= pace.median <= pace.best
        assert pace.running > 0


@pytest.mark.slow
@pytest.mark.parametrize("sort", [LEAST, RANDOM])
def test_what_the_bench_does_is_always_possible(sort):
    frame, truth = core.environments([scenarios.workload(name, 1) for name in ("hetero-6", "random")])
    actions = np.zeros((*frame.member.shape[:2], 4), np.int64)
    rewards = np.zeros(frame.member.shape[:2])
    total = 0
    for _ in range(300):
        for env in range(2):
            act(frame, truth, env, sort, actions)
            wanted = {
                int(truth.window[env, agent, actions[env, agent, 0]])
                for agent in range(frame.partitions[env])
                if actions[env, agent, 0] != core.WAIT
            }
            placed = core.step(frame, truth, env, actions, rewards)
            assert placed == len(wanted)
            total += placed
    assert total > 100
