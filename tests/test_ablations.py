"""What agents go without: each switch leaves out what it names and nothing else, and a checkpoint remembers it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace

from tapfinger_hpc import checkpoint
from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.features.rows import Rows
from tapfinger_hpc.nets.config import ABLATIONS, NetworkConfig, Without
from tapfinger_hpc.nets.policy_network import PolicyNetwork
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.policies.decoding import WAIT, Decoder, Draw, Simulated, lots, most_probable
from tapfinger_hpc.policies.learned_player import AgentsPlayer
from tapfinger_hpc.sim import core, episodes, players, scenarios
from tapfinger_hpc.training import cli, course, following, ppo
from tapfinger_hpc.training.course import CourseConfig
from tapfinger_hpc.training.ppo import Collected, PPOConfig, advantages

torch.set_num_threads(1)
SMALL = NetworkConfig(hidden=16, heads=2)
NAMES = ("hetero-6", "uniform-3")


def network(config: NetworkConfig = SMALL) -> PolicyNetwork:
    torch.manual_seed(0)
    return PolicyNetwork(config)


def crowded(seed: int = 0, slots: int = 3):
    """Environments in which tasks run, wait and do not all fit."""
    workloads = [scenarios.workload(name, seed) for name in NAMES]
    frame, truth = core.environments(workloads)
    envs = np.arange(len(workloads))
    decoder = Decoder(network().compiled(), frame)
    for _ in range(slots):
        decoder.decide(Simulated(frame, truth), envs, Draw(np.random.default_rng(seed)))
        for env in envs.tolist():
            core.advance(frame, truth, env)
    for env in envs.tolist():
        core.advance(frame, truth, env)
    return frame, truth, envs


def beginning(workload: scenarios.Workload, tasks: int) -> scenarios.Workload:
    """Its first tasks alone."""
    parts = (part[:tasks] for part in (workload.arrival, workload.type, workload.reachable))
    return scenarios.Workload(workload.scenario, workload.seed, *parts)


def offered_in(frame, envs, **how) -> options.Options:
    waits = np.zeros(frame.member.shape[:2], bool)
    return options.tasks(frame, envs, waits, 0, measures.allocate(frame), options.no_advice(frame), **how)


@pytest.mark.parametrize(("rounds", "hears"), [(0, False), (2, True)])
def test_without_attention_logits_depend_on_an_agent_s_own_part_of_the_graph_alone(rounds, hears):
    frame, _, envs = crowded()
    net = network(NetworkConfig(hidden=16, heads=2, rounds=rounds)).compiled()
    seen = graph.build(frame, envs, measures.allocate(frame))
    rows = Rows.of(seen, envs, offered_in(frame, envs), task=True)
    before, _ = net.log_probabilities(net.encode(seen), rows)
    for kind in ("node", "running", "coordinator"):
        seen.features[kind][:] += 1.0
    mine = rows.row_of == 0
    for other in np.delete(np.arange(len(seen.features["partition"])), rows.partitions[0]):
        seen.features["partition"][other] += 1.0
    after, _ = net.log_probabilities(net.encode(seen), rows)
    assert (not np.allclose(before[mine], after[mine], atol=1e-6)) == hears


def test_without_the_pointer_an_agent_is_offered_its_oldest_task_that_fits():
    frame, _, envs = crowded()
    every = offered_in(frame, envs)
    first = options.first_of_rows(every)
    assert len(every.value) > len(first.value) == len(every.env)
    for row in range(len(every.env)):
        env = envs[every.env[row]]
        fitting = [
            job
            for job in frame.waiting[env, : frame.waiting_count[env]].tolist()
            if frame.seen[env, job, every.partition[row]]
            and (
                frame.menu[env, frame.kind[env, job], : frame.choices[env, frame.kind[env, job]]]
                <= frame.free[env, every.partition[row]]
            )
            .all(axis=1)
            .any()
        ]
        assert first.value[row] == fitting[0]
        same = np.flatnonzero((every.row_of == row) & (every.value == fitting[0]))[0]
        assert np.array_equal(first.features[row], every.features[same])
    recorded = Decoder(network().compiled(), frame, without=Without(pointer=True)).decide(
        Simulated(*crowded()[:2]), envs, most_probable, record=True
    )
    for step in recorded.steps:
        if step.rows.task:
            assert len(step.rows.row_of) == step.rows.count


@pytest.mark.slow
def test_without_bayes_the_winner_is_drawn_by_lot_and_the_same_state_draws_the_same():
    def winners(without: Without, seed: int) -> list[tuple[int, int]]:
        """(task, agent) of two agents that go for one task, the first of them surer by far."""
        workload = scenarios.workload("uniform-3", seed)
        frame, truth = core.environments([workload])
        wanted = [job for job in frame.waiting[0, : frame.waiting_count[0]] if frame.seen[0, job].sum() > 1]

        def both(offered, of_options, of_waiting):
            if of_waiting is None:
                return np.flatnonzero(np.diff(offered.row_of, prepend=-1))
            of_options[:] = -5.0 - 5.0 * offered.partition[offered.row_of]
            chosen = np.full(len(offered.env), WAIT)
            for option in np.flatnonzero(offered.value == wanted[0]):
                chosen[offered.row_of[option]] = option
            return chosen

        if not wanted:
            return []
        decoder = Decoder(network().compiled(), frame, without=without)
        decoder.decide(Simulated(frame, truth), np.array([0]), both, max_rounds=1)
        agents = np.flatnonzero(frame.reach[0, wanted[0]]).tolist()
        return [(len(agents), agents.index(int(frame.partition[0, wanted[0]])))]

    seeds = range(60)
    sure = Counter(pair for seed in seeds for pair in winners(Without(), seed))
    drawn = [winners(Without(bayes=True), seed) for seed in seeds]
    assert drawn == [winners(Without(bayes=True), seed) for seed in seeds]
    assert {place for _, place in sure} == {0}
    of_two = Counter(place for pairs in drawn for agents, place in pairs if agents == 2)
    assert min(of_two[0], of_two[1]) > 0.25 * of_two.total()


def test_lots_of_one_state_differ_between_agents_and_lie_above_zero():
    frame, _, _ = crowded()
    drawn = lots(frame, np.zeros(50, np.int64), np.arange(50) % 6, np.arange(50) // 6)
    assert len(set(drawn.tolist())) == 50
    assert ((drawn > 0) & (drawn <= 1)).all()


def full():
    """The same where some agents have no room left for any task."""
    frame, truth = core.environments([scenarios.workload(name, 0) for name in NAMES])
    envs = np.arange(len(NAMES))
    for _ in range(24):
        players.make("min").play_slot(frame, truth, envs)
        for env in envs.tolist():
            core.advance(frame, truth, env)
    return frame, truth, envs


def test_without_masks_what_is_not_free_is_offered_does_nothing_and_costs_a_penalty():
    frame, truth, envs = full()
    few, many = offered_in(frame, envs), offered_in(frame, envs, masked=False)
    assert len(few.value) < len(many.value)
    assert np.isfinite(many.features).all()
    assert np.abs(many.features).max() <= 8
    free, waiting = frame.free.copy(), frame.waiting_count.copy()
    tried: list[tuple[int, int]] = []

    def impossible(offered, of_options, of_waiting):
        """One agent of each environment goes for a task for which it has no room; the others wait."""
        if of_waiting is None:
            assert np.isfinite(offered.features).all()
            return np.flatnonzero(np.diff(offered.row_of, prepend=-1))
        chosen = np.full(len(offered.env), WAIT)
        for option, row in enumerate(offered.row_of):
            env, job = int(envs[offered.env[row]]), int(offered.value[option])
            least = frame.menu[env, frame.kind[env, job], 0]
            if env not in dict(tried) and (least > frame.free[env, offered.partition[row]]).any():
                tried.append((env, job))
                chosen[row] = option
        return chosen

    decoder = Decoder(network().compiled(), frame, without=Without(masks=True))
    decision = decoder.decide(Simulated(frame, truth), envs, impossible, max_rounds=1)
    assert [env for env, _ in tried] == envs.tolist()
    assert np.array_equal(free, frame.free)
    assert np.array_equal(waiting, frame.waiting_count)
    best = [frame.seconds[env, frame.kind[env, job]].min() for env, job in tried]
    assert decision.excess.tolist() == best


def test_with_masks_nothing_that_was_chosen_fails():
    frame, truth, envs = crowded()
    draw = Draw(np.random.default_rng(0))
    decision = Decoder(network().compiled(), frame).decide(Simulated(frame, truth), envs, draw, record=True)
    tried = sum(len(step.chosen) for step in decision.steps if not step.rows.task)
    assert decision.placed.sum() == tried > 0


def test_an_agent_that_chose_what_is_not_free_has_done_for_this_decision():
    """A network that always goes for the most on the menu comes to an end, and fails once for each agent at most."""
    frame, truth, envs = full()

    def greedy(offered, of_options, of_waiting):
        if of_waiting is not None:
            return np.flatnonzero(np.diff(offered.row_of, prepend=-1))
        return np.flatnonzero(np.diff(offered.row_of, append=len(offered.env)))

    decoder = Decoder(network().compiled(), frame, without=Without(masks=True))
    decision = decoder.decide(Simulated(frame, truth), envs, greedy, record=True)
    tried = sum(len(step.chosen) for step in decision.steps if not step.rows.task)
    failed = tried - decision.placed.sum()
    assert 0 < failed <= frame.partitions.sum()


def test_task_by_task_training_decides_until_nobody_takes_a_task_and_time_passes_once():
    workloads = [beginning(scenarios.workload("synthetic-3", seed), 30) for seed in (1, 2)]
    config = PPOConfig(workloads=2, siblings=1)
    found = {}
    for single in (False, True):
        net = network(replace(SMALL, without=Without(multi_task=single)))
        collected = ppo.collect(net, workloads, config, np.random.default_rng(0))
        found[single] = collected
        for decision, here, discount in zip(collected.decisions, collected.alive, collected.discount, strict=True):
            assert np.array_equal(np.flatnonzero(here), decision.envs)
            assert np.array_equal(np.flatnonzero(discount < 1), decision.envs[decision.last])
            if single:
                rounds = [step for step in decision.steps if step.rows.task]
                assert len(rounds) <= 1
                assert np.array_equal(decision.last, decision.placed == 0)
            else:
                assert decision.last.all()
        # The team's reward is only moved in time: its sum is the tasks' time in the system, less the least possible.
        best = np.array([kind.slots.min() for kind in workloads[0].scenario.types])
        usual = best.mean() * workloads[0].scenario.arrivals
        for env, workload in enumerate(workloads):
            least = best[workload.type].mean()
            assert -collected.rewards[:, env].sum() * usual / 30 == pytest.approx(collected.mean_jct[env] - least)
    assert len(found[True].decisions) > len(found[False].decisions)


def test_a_decision_in_which_an_environment_has_no_part_leaves_its_returns_alone():
    rewards = np.array([[-1.0, -1.0], [0.0, -2.0], [-4.0, -4.0]])
    alive = np.array([[True, True], [False, True], [True, True]])
    discount = np.array([[1.0, 1.0], [1.0, 0.5], [0.5, 0.5]])
    _, returns = advantages(Collected([], rewards, alive, discount, np.zeros(2)), np.zeros((3, 2)), 1, 1.0)
    np.testing.assert_allclose(returns[0], [-5.0, -5.0])
    np.testing.assert_allclose(returns[1, 1], -4.0)


@pytest.mark.parametrize("without", [Without(), Without(pointer=True), Without(multi_task=True), Without(masks=True)])
def test_a_teacher_s_lessons_come_to_an_end_whatever_is_left_out(without):
    short = beginning(scenarios.workload("hetero-6", 3), 60)
    net = network(replace(SMALL, without=without))
    taught = following.lessons(net, price.decide, price.DEFAULT, [short], 0.0, np.random.default_rng(0))
    assert sum(int(decision.placed.sum()) for decision in taught) == 60
    # 60 tasks arrive in some 10 slots; on the least amounts the longest takes 21.
    assert len([decision for decision in taught if decision.last.all()]) < 30


TINY = CourseConfig(
    "synthetic-3",
    iterations=2,
    imitation=0.5,
    network=NetworkConfig(hidden=8, heads=2, rounds=1),
    ppo=PPOConfig(workloads=1, siblings=2, slots=16, repeats=1),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_a_checkpoint_says_what_its_policy_went_without_and_plays_so(name, tmp_path: Path):
    config = course.ablated(TINY, [name])
    course.train(config, tmp_path)
    info = checkpoint.describe(tmp_path)
    assert info.network == config.network
    said = {
        "attention": info.network.rounds == 0,
        "pointer": info.network.without == Without(pointer=True),
        "bayes": info.network.without == Without(bayes=True),
        "masks": info.network.without == Without(masks=True),
        "multi-task": info.network.without == Without(multi_task=True),
        "imitation": info.training.teacher == "",
        "advice": info.advice == (),
    }
    assert [each for each, true in said.items() if true] == [name]
    player = AgentsPlayer.load(tmp_path)
    (episode,) = episodes.play([scenarios.workload("synthetic-3", 0)], player)
    assert (episode.end > 0).all()
    if name == "multi-task":
        assert player.passes > len(episode.present)


def test_several_parts_can_be_left_out_and_unknown_ones_are_refused(tmp_path: Path):
    config = course.ablated(TINY, ["pointer", "bayes", "attention"])
    assert config.network == NetworkConfig(hidden=8, heads=2, rounds=0, without=Without(pointer=True, bayes=True))
    call = ["--scenario", "synthetic-3", "--out", str(tmp_path / "out"), "--ablate", "luck"]
    done = CliRunner().invoke(cli.train, call)
    assert done.exit_code == 2
    assert "'luck' is not one of 'attention'" in done.output
