"""The network on frames: what it sees, what it may choose, and how its agents come to one decision."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.features.rows import Rows
from tapfinger_hpc.nets.config import NetworkConfig, Without
from tapfinger_hpc.nets.policy_network import GraphTensors, PolicyNetwork
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.policies.decoding import WAIT, Decoder, Draw, Simulated, most_probable, settle
from tapfinger_hpc.policies.learned_player import AgentsPlayer
from tapfinger_hpc.sim import core, episodes, scenarios
from tapfinger_hpc.training import following
from tapfinger_hpc.training.batch import Batch, log_probability_of_chosen

SEEDS = st.integers(0, 10_000)
torch.set_num_threads(1)  # several of these tests run side by side


def network(seed: int = 0) -> PolicyNetwork:
    torch.manual_seed(seed)
    return PolicyNetwork(NetworkConfig(hidden=16, heads=2)).eval()


def some_way_in(seed: int, slots: int, names: tuple[str, ...] = ("random", "hetero-6", "uniform-3")):
    """Environments of several scenarios after a few slots in which tasks were placed at random."""
    workloads = [scenarios.workload(name, seed + number) for number, name in enumerate(names)]
    frame, truth = core.environments(workloads)
    source = np.random.default_rng(seed)
    decoder = Decoder(None, frame)
    envs = np.arange(len(workloads))

    draw = Draw(source)

    def anything(offered, _of_options, _of_waiting):
        return draw(offered, np.zeros(len(offered.value)), None if offered.job[0] >= 0 else np.zeros(len(offered.env)))

    for _ in range(slots):
        decoder.decide(Simulated(frame, truth), envs, anything)
        for env in envs.tolist():
            core.advance(frame, truth, env)
    return frame, truth, envs


@given(seed=SEEDS, slots=st.integers(0, 12))
@settings(max_examples=15, deadline=None)
def test_features_are_finite_and_of_the_size_of_one(seed: int, slots: int) -> None:
    frame, _, envs = some_way_in(seed, slots)
    scratch = measures.allocate(frame)
    seen = graph.build(frame, envs, scratch)
    for kind, values in seen.features.items():
        assert values.shape[1] == len(graph.COLUMNS[kind])
        assert np.isfinite(values).all()
        assert np.abs(values).max(initial=0) <= 16, kind
    offered = options.tasks(frame, envs, np.zeros(frame.member.shape[:2], bool), 0, scratch, options.no_advice(frame))
    assert np.isfinite(offered.features).all()
    assert np.abs(offered.features).max(initial=0) <= 8


@given(seed=SEEDS, slots=st.integers(0, 12))
@settings(max_examples=15, deadline=None)
def test_every_option_fits_and_every_task_that_fits_is_an_option(seed: int, slots: int) -> None:
    frame, _, envs = some_way_in(seed, slots)
    scratch = measures.allocate(frame)
    offered = options.tasks(frame, envs, np.zeros(frame.member.shape[:2], bool), 0, scratch, options.no_advice(frame))
    found = {
        (envs[offered.env[row]], offered.partition[row], job)
        for row, job in zip(offered.row_of, offered.value, strict=True)
    }
    wanted = set()
    for env in envs.tolist():
        for job in frame.waiting[env, : frame.waiting_count[env]].tolist():
            kind = frame.kind[env, job]
            menu = frame.menu[env, kind, : frame.choices[env, kind]]
            for agent in range(frame.partitions[env]):
                if frame.seen[env, job, agent] and (menu <= frame.free[env, agent]).all(axis=1).any():
                    wanted.add((env, agent, job))
    assert found == wanted
    firsts = np.flatnonzero(np.diff(offered.row_of, prepend=-1))
    places = options.places(
        frame, envs, offered.env, offered.partition, offered.value[firsts], scratch, options.no_advice(frame)
    )
    for row, node, choice in zip(places.row_of, places.value, places.choice, strict=True):
        env, job = envs[places.env[row]], places.job[row]
        amounts = frame.menu[env, frame.kind[env, job], choice]
        assert core.fits(frame, env, job, places.partition[row], node, *amounts.tolist())
    assert set(places.row_of.tolist()) == set(range(len(places.env)))


def test_a_graph_beside_others_is_encoded_and_decided_as_if_it_were_alone() -> None:
    frame, _, envs = some_way_in(3, 8)
    scratch, net = measures.allocate(frame), network()
    together = graph.build(frame, envs, scratch)
    embedded = net.encode(GraphTensors.of(together))
    offered = options.tasks(frame, envs, np.zeros(frame.member.shape[:2], bool), 0, scratch, options.no_advice(frame))
    everyone = net.log_probabilities(embedded, Rows.of(together, envs, offered, task=True))
    found, waiting = [], []
    for env in envs:
        own = np.array([env])
        alone = graph.build(frame, own, scratch)
        offered_here = options.tasks(
            frame, own, np.zeros(frame.member.shape[:2], bool), 0, scratch, options.no_advice(frame)
        )
        of_options, of_waiting = net.log_probabilities(
            net.encode(GraphTensors.of(alone)), Rows.of(alone, own, offered_here, task=True)
        )
        found.append(of_options)
        waiting.append(of_waiting)
    torch.testing.assert_close(torch.cat(found), everyone[0])
    torch.testing.assert_close(torch.cat(waiting), everyone[1])


def test_decisions_learned_together_have_the_probabilities_they_had_when_made() -> None:
    frame, truth, envs = some_way_in(5, 4)
    net = network()
    decoder, draw = Decoder(net.compiled(), frame), Draw(np.random.default_rng(0))
    decisions = []
    for _ in range(3):
        decisions.append(decoder.decide(Simulated(frame, truth), envs, draw, record=True))
        for env in envs.tolist():
            core.advance(frame, truth, env)
    batch = Batch(decisions)
    embeddings = net.encode(batch.graphs)
    assert batch.rows == sum(len(step.chosen) for decision in decisions for step in decision.steps)
    for step in batch.steps:
        found, _, _ = log_probability_of_chosen(net, embeddings, step)
        np.testing.assert_allclose(found.detach().numpy(), step.log_probability, atol=1e-5)


def test_two_tasks_that_one_agent_alone_can_reach_do_not_look_the_same_to_it() -> None:
    """The authors' encoder gave them identical embeddings, as no graph node heard itself."""
    types = scenarios.scenario("uniform-3").types
    scenario = scenarios.Scenario("pair", ((16, 16), (16, 16)), 1.0, 2, types)
    reachable = np.array([[True, False], [True, False]])
    workload = scenarios.Workload(scenario, 0, np.zeros(2, np.int64), np.array([0, 1]), reachable)
    frame, _ = core.environments([workload])
    envs = np.array([0])
    seen = graph.build(frame, envs, measures.allocate(frame))
    embedded = network().encode(GraphTensors.of(seen))["pending"]
    assert (embedded[0] - embedded[1]).abs().max() > 0.01


def test_bayes_gives_a_task_to_the_agent_it_most_probably_belongs_to() -> None:
    env, job = np.array([0, 0, 0, 1]), np.array([7, 7, 8, 7])
    sure = settle(env, job, np.array([0.9, 0.3, 0.1, 0.2]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert sure.tolist() == [True, False, True, True]
    roomy = settle(env, job, np.array([0.6, 0.5, 0.1, 0.2]), np.array([1.0, 3.0, 1.0, 1.0]))
    assert roomy.tolist() == [False, True, True, True]
    even = settle(env, job, np.array([0.5, 0.5, 0.1, 0.2]), np.array([2.0, 2.0, 1.0, 1.0]))
    assert even.tolist() == [True, False, True, True]


def test_agents_that_each_half_want_a_task_take_it() -> None:
    frame, _, envs = some_way_in(0, 0, ("uniform-3",))
    offered = options.tasks(
        frame, envs, np.zeros(frame.member.shape[:2], bool), 0, measures.allocate(frame), options.no_advice(frame)
    )
    rows = len(offered.env)
    jobs, counts = np.unique(offered.value, return_counts=True)
    shared = jobs[counts.argmax()]
    assert counts.max() > 1
    share = np.where(offered.value == shared, 0.4, 1e-9)
    others = most_probable(offered, np.log(share), np.log(np.full(rows, 0.6)))
    assert (offered.value[others[others != WAIT]] == shared).all()
    assert (others != WAIT).sum() == counts.max()
    alone = np.where(offered.value == shared, 0.9 / counts.max() / 2, 1e-9)
    assert (most_probable(offered, np.log(alone), np.log(np.full(rows, 0.6))) == WAIT).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_an_untrained_network_breaks_no_rule_and_answers_the_same_every_time(seed: int) -> None:
    workloads = [scenarios.workload(name, seed) for name in ("hetero-6", "uniform-3")]
    found = []
    for single in (False, True, False):
        player = AgentsPlayer(network(seed).compiled(), without=Without(multi_task=single))
        frame, truth = core.environments(workloads)
        for _ in range(4):
            envs = np.arange(2)
            player.play_slot(frame, truth, envs)
            assert (frame.free >= 0).all()
            for env in envs.tolist():
                core.advance(frame, truth, env)
        found.append((frame.start.copy(), frame.amounts.copy()))
    np.testing.assert_array_equal(found[0][0], found[2][0])
    np.testing.assert_array_equal(found[0][1], found[2][1])


def test_a_single_task_decision_gives_each_agent_at_most_one_task() -> None:
    frame, truth, envs = some_way_in(1, 3, ("uniform-3", "hetero-6"))
    before = frame.status.copy()
    decision = Decoder(network().compiled(), frame).decide(
        Simulated(frame, truth), envs, Draw(np.random.default_rng(0)), max_rounds=1
    )
    for env in envs.tolist():
        placed = np.flatnonzero(frame.status[env] != before[env])
        assert len(placed) == decision.placed[env]
        assert len(set(frame.partition[env, placed].tolist())) == len(placed)


def test_following_a_teacher_does_what_the_teacher_does() -> None:
    workloads = [scenarios.workload(name, 4) for name in ("uniform-3", "hetero-6", "random")]
    by_teacher = episodes.play(workloads, episodes.CompiledPlayer("price", price.decide, price.DEFAULT))
    frame, truth = core.environments(workloads)
    decoder, envs = Decoder(None, frame), np.arange(len(workloads))
    while len(envs):
        decoder.decide(
            Simulated(frame, truth), envs, following.Follow(price.decide, price.DEFAULT, frame, envs), record=True
        )
        for env in envs.tolist():
            core.advance(frame, truth, env)
        envs = envs[[not core.over(truth, env) for env in envs.tolist()]]
    for env, episode in enumerate(by_teacher):
        count = len(episode.start)
        np.testing.assert_array_equal(frame.start[env, :count], episode.start)
        np.testing.assert_array_equal(frame.amounts[env, :count, :2], episode.amounts)


@pytest.mark.slow
def test_imitation_brings_the_teachers_choices_nearer() -> None:
    from tapfinger_hpc.training.team import Team

    net, source = network(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    workloads = [scenarios.workload("synthetic-3", seed) for seed in range(2)]
    losses = []
    for own_share in (0.0, 0.5):
        taught = following.lessons(net, price.decide, price.DEFAULT, workloads, own_share, source)
        losses.append(following.learn(net, optimizer, taught, source, Team(), slots=4, norm=1.0))
    assert all(after < before for before, after in pairwise(losses))


@pytest.mark.parametrize("number", range(3))
def test_greedy_choices_do_not_depend_on_what_else_is_decided_at_the_same_time(number: int) -> None:
    names = ("hetero-6", "uniform-3", "random")
    frame, truth, envs = some_way_in(9, 5, names)
    other, other_truth, _ = some_way_in(9, 5, names)
    net = network()
    Decoder(net.compiled(), frame).decide(Simulated(frame, truth), envs, most_probable)
    Decoder(net.compiled(), other).decide(Simulated(other, other_truth), np.array([number]), most_probable)
    np.testing.assert_array_equal(frame.amounts[number], other.amounts[number])
    np.testing.assert_array_equal(frame.status[number], other.status[number])


def test_agents_that_heed_the_advice_alone_do_what_the_heuristic_does() -> None:
    workloads = [scenarios.workload(name, 6) for name in ("uniform-3", "hetero-6", "random")]
    heeding = network()
    heeding.heed(1000.0)
    expected = episodes.play(workloads, episodes.CompiledPlayer("price", price.decide, price.DEFAULT))
    found = episodes.play(workloads, AgentsPlayer(heeding.compiled(), price.DEFAULT))
    for heuristic, agents in zip(expected, found, strict=True):
        np.testing.assert_array_equal(agents.start, heuristic.start)
        np.testing.assert_array_equal(agents.amounts, heuristic.amounts)


def test_agents_that_depart_from_the_advice_are_advised_anew() -> None:
    """A teacher of another mind places something else; what is advised afterwards still fits."""
    frame, truth, envs = some_way_in(2, 4, ("hetero-6", "uniform-3"))
    decoder = Decoder(None, frame, price.DEFAULT)
    source = np.random.default_rng(0)
    advised = []

    def contrary(offered, _of_options, of_waiting):
        if offered.job[0] < 0:
            rows = offered.features[:, options.ADVISED_TASK] > 0
            advised.append(int(rows.sum()))
            for env, job, partition in zip(
                envs[offered.env[offered.row_of[rows]]],
                offered.value[rows],
                offered.partition[offered.row_of[rows]],
                strict=True,
            ):
                assert frame.seen[env, job, partition]
        return Draw(source)(
            offered, np.zeros(len(offered.value)), np.full(len(offered.env), -9.0) if offered.job[0] < 0 else None
        )

    decoder.decide(Simulated(frame, truth), envs, contrary)
    assert advised[0] > 0
    assert len(advised) > 2


def test_a_network_that_always_waits_still_brings_every_task_to_its_end() -> None:
    waiting = network()
    with torch.no_grad():
        waiting.wait[2].bias += 1000.0
    workload = scenarios.draw(replace(scenarios.scenario("synthetic-3"), tasks=24), 1)
    (episode,) = episodes.play([workload], AgentsPlayer(waiting.compiled()))
    assert (episode.end > episode.start).all()
    assert episode.present[:, 1].max() <= workload.scenario.agents
