"""Learning on clusters in event time: what a decision is paid, discounted and measured by is time, not a count."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tapfinger_hpc.nets.config import NetworkConfig  # noqa: E402
from tapfinger_hpc.nets.policy_network import PolicyNetwork  # noqa: E402
from tapfinger_hpc.sim import sites  # noqa: E402
from tapfinger_hpc.training import course, ppo  # noqa: E402
from tapfinger_hpc.training.course import CourseConfig  # noqa: E402
from tapfinger_hpc.training.ppo import Collected, Events, PPOConfig, advantages  # noqa: E402

NETWORK = NetworkConfig(hidden=16, heads=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def workload(seed: int) -> sites.SiteWorkload:
    site = sites.random_site(np.random.default_rng(seed), tasks=16)
    return sites.draw(replace(site, others=0.3, refusal=0.1, late_s=2.0), seed)


def test_the_rewards_of_an_episode_add_up_to_what_its_jobs_take_beyond_their_best_times() -> None:
    torch.manual_seed(0)
    some = [workload(seed) for seed in (1, 2, 3)]
    found = ppo.collect(PolicyNetwork(NETWORK), some, PPOConfig(), np.random.default_rng(0))
    for env, each in enumerate(some):
        types = each.scenario.types
        usual = np.mean([kind.slots.min() for kind in types]) * each.scenario.arrivals * each.scenario.unit
        best = np.array([kind.slots[tuple(kind.menu.T)].min() for kind in types])[each.type] * each.pace
        ours = each.ours
        assert -found.rewards[:, env].sum() * usual == pytest.approx(
            found.mean_jct[env] * ours.sum() - best[ours].sum()
        )
    assert 0.01 < -found.rewards[found.alive].mean() < 10  # in units of what a usual slot costs, whatever the scale
    events = found.events
    assert events is not None
    assert events.timed.all()
    for env, each in enumerate(some):
        alive = found.alive[:, env]
        assert (np.diff(events.time[alive, env]) >= 0).all()
        passed = np.diff(events.time[alive, env]) / each.scenario.unit
        np.testing.assert_allclose(events.passed[alive, env][:-1], passed, atol=1e-9)
        best_s = 3 * each.scenario.unit
        discount = PPOConfig().overloaded_discount if each.scenario.load >= 1 else PPOConfig().discount
        np.testing.assert_allclose(
            found.discount[alive, env],
            discount ** (events.passed[alive, env] * each.scenario.unit / best_s),
        )


def collected(times: list[list[float]], rewards: list[list[float]]) -> Collected:
    """Episodes of one workload that decide at these times."""
    most = max(map(len, times))
    shape = (most, len(times))
    alive, time, paid, passed = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for env, own in enumerate(times):
        alive[: len(own), env] = True
        time[: len(own), env] = own
        paid[: len(own), env] = rewards[env]
        passed[: len(own) - 1, env] = np.diff(own)
    return Collected(
        [], paid, alive, np.ones(shape), np.zeros(len(times)), Events(np.ones(len(times), bool), time, passed)
    )


def test_siblings_that_wait_alike_are_alike_however_often_they_look() -> None:
    """Both pay 1 for each unit of time until 8; that one of them decides thrice as often is no merit."""
    often, seldom = [0.0, 1, 2, 3, 4, 5, 6, 7, 8], [0.0, 4, 8]
    found, returns = advantages(
        collected([often, seldom], [[-1.0] * 8 + [0.0], [-4.0, -4.0, 0.0]]), np.zeros((9, 2)), 2, 1.0
    )
    np.testing.assert_allclose(found, 0, atol=1e-6)
    assert returns[0].tolist() == [-8, -8]


def test_what_one_sibling_does_better_is_its_merit_from_then_on_backwards() -> None:
    times = [[0.0, 2, 4, 6], [0.0, 3, 6]]
    found, _ = advantages(collected(times, [[-2.0, -2.0, 0.0, 0.0], [-3.0, -3.0, 0.0]]), np.zeros((4, 2)), 2, 1.0)
    assert (found[:2, 0] > 0).all()
    assert (found[:2, 1] < 0).all()


def test_the_trace_fades_with_time_and_not_with_the_number_of_decisions() -> None:
    """Decisions at which nothing happens must not shorten how far back a reward is felt."""
    few = collected([[0.0, 4]], [[0.0, -1.0]])
    many = collected([[0.0, 1, 2, 3, 4]], [[0.0, 0.0, 0.0, 0.0, -1.0]])
    felt = [advantages(each, np.zeros(each.rewards.shape), 1, 0.9)[1][0, 0] for each in (few, many)]
    assert felt[0] == pytest.approx(-(0.9**4))
    assert felt[1] == pytest.approx(felt[0])


class Interrupted(Exception):
    """Stands for a kill between two saved states."""


def interrupt(progress: course.Progress) -> None:
    if progress.iteration == 2:
        raise Interrupted


@pytest.mark.slow
def test_a_course_on_clusters_that_was_interrupted_and_resumed_makes_the_same_weights(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sites, "workload", partial(sites.workload, tasks=20))
    config = CourseConfig(
        "cluster", iterations=3, network=NETWORK, ppo=PPOConfig(workloads=1, siblings=2, repeats=1), save_every=1
    )
    whole = course.train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        course.train(config, tmp_path / "parts", report=interrupt)
    assert course.train(config, tmp_path / "parts", resume=True).fingerprint == whole.fingerprint
    assert whole.training.scenario == "cluster"
