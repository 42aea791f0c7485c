"""Nodes that a kind of jobs may not use: nobody proposes them, nobody is offered them, and the others go on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc.features import measures, options
from tapfinger_hpc.frame import DONE
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.sim import core, players, scenarios
from tapfinger_hpc.sim.observation import something_fits

SEEDS = st.integers(0, 2**31)
POLICIES = ("random", "min", "fifo", "easy", "srtf", "tetris", "price", "tiresias", "optimus")


def barred(seed: int, name: str = "uniform-3"):
    """An environment in which each kind is kept from about half of the nodes."""
    workload = scenarios.workload(name, seed)
    frame, truth = core.environments([workload])
    frame.usable[0] = np.random.default_rng(seed).random(frame.usable.shape[1:]) < 0.5
    return workload, frame, truth


def running_where_they_may(frame) -> bool:
    running = frame.running[0, : frame.running_count[0]]
    return bool(frame.usable[0, frame.kind[0, running], frame.node[0, running]].all())


@pytest.mark.parametrize("policy", POLICIES)
@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_no_policy_proposes_a_barred_node(policy: str, seed: int) -> None:
    workload, frame, truth = barred(seed)
    frame.usable[0, :, 0] = True
    player = players.make(policy, seed=seed, scenario=workload.scenario)
    for _ in range(12):
        player.play_slot(frame, truth, np.array([0]))
        assert running_where_they_may(frame)
        core.advance(frame, truth, 0)
    assert (frame.status[0] == DONE).any()


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_a_barred_node_is_not_among_the_options(seed: int) -> None:
    _, frame, _ = barred(seed, "random")
    scratch, envs = measures.allocate(frame), np.array([0])
    offered = options.tasks(frame, envs, np.zeros(frame.member.shape[:2], bool), 0, scratch, options.no_advice(frame))
    for row, job in zip(offered.row_of, offered.value, strict=True):
        assert frame.usable[0, frame.kind[0, job], offered.partition[row]]
    if not len(offered.env):
        return
    firsts = np.flatnonzero(np.diff(offered.row_of, prepend=-1))
    places = options.places(
        frame, envs, offered.env, offered.partition, offered.value[firsts], scratch, options.no_advice(frame)
    )
    assert len(places.value)
    for row, node in zip(places.row_of, places.value, strict=True):
        assert frame.usable[0, frame.kind[0, places.job[row]], node]


def test_a_job_that_is_barred_everywhere_waits_and_a_job_of_another_kind_starts() -> None:
    _, frame, truth = barred(1)
    frame.usable[0, 0], frame.usable[0, 1] = False, True
    for _ in range(4):
        core.advance(frame, truth, 0)
    waiting = frame.waiting[0, : frame.waiting_count[0]]
    kinds = frame.kind[0, waiting].copy()
    assert {0, 1} <= set(kinds.tolist())
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    placed = out[: price.decide(frame, 0, price.DEFAULT, out), 0]
    assert len(placed)
    assert (frame.kind[0, placed] == 1).all()
    job = int(waiting[kinds == 0][0])
    agent = int(np.flatnonzero(frame.seen[0, job])[0])
    least = frame.menu[0, 0, 0].tolist()
    assert not core.place(frame, truth, 0, job, agent, agent, *least)
    assert not something_fits(frame, 0, agent, 0)
    frame.usable[0, 0, agent] = True
    assert something_fits(frame, 0, agent, 0)
    assert core.place(frame, truth, 0, job, agent, agent, *least)


def test_another_workload_in_the_same_environment_bars_nothing() -> None:
    workload, frame, truth = barred(2)
    core.load(frame, truth, 0, workload)
    assert frame.usable.all()
