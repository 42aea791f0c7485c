"""The compiled core does what the paper's specification says, sub-step by sub-step."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_reference import PaperEnvironment

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.frame import DONE, WAITING
from tapfinger_hpc.sim import core, scenarios

NAMED = ("hetero-6", "uniform-3", "order-3", "synthetic-3", "synthetic-6-l2", "synthetic-6-l3", "synthetic-6-l4")
SEEDS = st.integers(0, 2**31)
workloads = st.builds(
    lambda name, seed, tasks, window: short_workload(name, seed, tasks, window),
    st.sampled_from((*NAMED, "random")),
    SEEDS,
    st.integers(1, 40),
    st.sampled_from((10, 10, 2, 1)),
)


def short_workload(name: str, seed: int, tasks: int, window: int = scenarios.WINDOW) -> scenarios.Workload:
    """Of few tasks that come fast, so that windows fill up and queues form."""
    if name == "random":
        scenario = scenarios.random_scenario(np.random.default_rng(seed), tasks=tasks)
    else:
        scenario = replace(scenarios.scenario(name), tasks=tasks)
    return scenarios.draw(replace(scenario, window=window, arrivals=1.5 * scenario.arrivals), seed)


class Stage:
    """Buffers of ``core.step`` for one environment among several."""

    def __init__(self, *loaded: scenarios.Workload, env: int = 0) -> None:
        self.frame, self.truth = core.environments(list(loaded))
        self.env = env
        self.actions = np.zeros((*self.frame.member.shape[:2], 4), np.int64)
        self.rewards = np.zeros(self.frame.member.shape[:2])

    def step(self, actions: list[tuple[int, int, int] | None]) -> int:
        self.actions[self.env] = 0
        self.actions[self.env, :, 0] = core.WAIT
        for agent, action in enumerate(actions):
            if action is not None:
                self.actions[self.env, agent, :3] = action
        return core.step(self.frame, self.truth, self.env, self.actions, self.rewards)

    def advance(self) -> float:
        return core.advance(self.frame, self.truth, self.env)


def some_action(
    source: np.random.Generator, reference: PaperEnvironment, agent: int, eager: float
) -> tuple[int, int, int] | None:
    """Mostly one that can be carried out, now and then any."""
    if source.random() > eager:
        return None
    if source.random() < 0.2:
        return tuple(source.integers(-2, 20, size=3).tolist())
    window = reference.windows[agent]
    places = [place for place, task in enumerate(window) if task]
    if not places:
        return None
    place = int(source.choice(places))
    cpus, gpus = (
        int(source.integers(least, max(least, min(free, 16)) + 1))
        for least, free in zip(window[place].kind.minimum, reference.free[agent], strict=True)
    )
    return place, cpus, gpus


def assert_same(stage: Stage, reference: PaperEnvironment) -> None:
    frame, truth, env = stage.frame, stage.truth, stage.env
    assert frame.now[env] == reference.slot
    assert frame.free[env, list(reference.agents), :2].tolist() == reference.free
    for agent in reference.agents:
        window = [task.number if task else -1 for task in reference.windows[agent]]
        assert truth.window[env, agent, : len(window)].tolist() == window
        behind = truth.queue[env, agent, truth.queue_first[env, agent] : truth.queue_last[env, agent]].tolist()
        queue = [task.number for task in reference.queues[agent]]
        assert [number for number in behind if frame.status[env, number] == WAITING] == queue
        seen = [number for number in range(frame.seen.shape[1]) if frame.seen[env, number, agent]]
        assert seen == sorted(number for number in window if number >= 0)
    running = frame.running[env, : frame.running_count[env]].tolist()
    assert sorted(running) == sorted(task.number for task in reference.running)
    assert frame.waiting[env, : frame.waiting_count[env]].tolist() == [task.number for task in reference.waiting]
    for task in reference.running:
        assert frame.amounts[env, task.number, :2].tolist() == list(task.amounts)
        assert (frame.partition[env, task.number], frame.node[env, task.number]) == (task.agent, task.node)
        assert core.progress_of(frame, truth, env, task.number) == pytest.approx(task.progress, abs=1e-12)
    for task in reference.done:
        assert truth.end[env, task.number] - frame.arrival[env, task.number] == task.completion_time
    assert truth.finished[env] == len(reference.done)
    assert core.over(truth, env) == reference.over


@settings(max_examples=60, deadline=None)
@given(workload=workloads, seed=SEEDS, eager=st.sampled_from((0.05, 0.5, 0.95)))
def test_every_sub_step_leaves_what_the_paper_says(workload, seed, eager):
    source, stage, reference = np.random.default_rng(seed), Stage(workload), PaperEnvironment(workload)
    assert_same(stage, reference)
    for _ in range(120):
        actions = [some_action(source, reference, agent, eager) for agent in reference.agents]
        assert stage.step(actions) == reference.step(actions)
        assert stage.rewards[0, list(reference.agents)].tolist() == reference.rewards
        assert_same(stage, reference)
        if reference.over:
            break


@settings(max_examples=40, deadline=None)
@given(workload=workloads, seed=SEEDS, weight=st.sampled_from((1.0, 0.5, 0.0)))
def test_changed_amounts_cost_the_switch_weight_and_none_at_all_stand_still(workload, seed, weight):
    workload = replace(workload, scenario=replace(workload.scenario, switch_weight=weight))
    source, stage, reference = np.random.default_rng(seed), Stage(workload), PaperEnvironment(workload)
    for _ in range(80):
        actions = [some_action(source, reference, agent, 0.5) for agent in reference.agents]
        assert stage.step(actions) == reference.step(actions)
        for task in list(reference.running):
            if source.random() < 0.3:
                node = task.node if source.random() < 0.7 else int(source.integers(-1, len(reference.agents) + 1))
                cpus, gpus = (0, 0) if source.random() < 0.3 else source.integers(-1, 17, size=2).tolist()
                changed = core.reallocate(stage.frame, stage.truth, 0, task.number, node, cpus, gpus)
                assert changed == reference.change(task, node, cpus, gpus)
        assert_same(stage, reference)
        if reference.over:
            break


@pytest.mark.parametrize("job", [-1, 0, 5, 10_000])
def test_a_task_that_does_not_run_is_given_no_other_amounts(job):
    stage = Stage(short_workload("uniform-3", 1, 6))
    assert not core.reallocate(stage.frame, stage.truth, 0, job, 0, 2, 1)


@pytest.mark.parametrize(
    "choice",
    [
        {"job": -1},
        {"job": 10_000},
        {"partition": -1},
        {"partition": 3},
        {"node": -1},
        {"node": 3},
        {"cpus": -1},
        {"gpus": 0},
        {"mem_mb": -1},
        {"mem_mb": 1},
    ],
    ids=str,
)
def test_a_placement_that_names_nothing_or_too_little_changes_nothing(choice):
    stage = Stage(short_workload("uniform-3", 1, 6))
    job = int(stage.truth.window[0, 0, 0])
    valid = {"job": job, "partition": 0, "node": 0, "cpus": 2, "gpus": 1, "mem_mb": 0}
    before = copies(stage)
    assert not core.place(stage.frame, stage.truth, 0, *(valid | choice).values())
    assert_equal(copies(stage), before)
    assert core.place(stage.frame, stage.truth, 0, *valid.values())


@pytest.mark.parametrize(
    ("scenario", "kind", "gpus", "slots"),
    [("hetero-6", 0, 1, 4), ("hetero-6", 0, 16, 4), ("order-3", 0, 3, 1), ("order-3", 1, 16, 11)]
    + [
        ("hetero-6", 1, gpus, slots)
        for gpus, slots in enumerate((21, 10, 7, 5, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2), start=1)
    ],
)
def test_tasks_last_as_many_slots_as_the_paper_counts(scenario, kind, gpus, slots):
    source = replace(scenarios.scenario(scenario), tasks=1, capacities=((32, 32),))
    workload = replace(scenarios.draw(source, 0), arrival=np.zeros(1, np.int64), type=np.array([kind]))
    stage = Stage(workload)
    assert stage.step([(0, 3, gpus)]) == 1
    rewards = 0.0
    while not core.over(stage.truth, 0):
        assert stage.step([None]) == 0
        rewards += stage.rewards[0, 0]
    assert core.mean_completion_time(stage.frame, stage.truth, 0) == -rewards == slots


def copies(stage: Stage) -> dict[str, np.ndarray]:
    """What there is to read of the environment: of each list only the part in use, no room for working."""
    frame, truth, env = stage.frame, stage.truth, stage.env
    arrays = {name: array[env].copy() for name, array in (*frame._asdict().items(), *truth._asdict().items())}
    arrays["waiting"] = arrays["waiting"][: frame.waiting_count[env]]
    arrays["running"] = arrays["running"][: frame.running_count[env]]
    first, last = truth.queue_first[env].tolist(), truth.queue_last[env].tolist()
    arrays["queue"] = np.concatenate([row[a:b] for row, a, b in zip(truth.queue[env], first, last, strict=True)])
    return {name: array for name, array in arrays.items() if name not in ("choice", "claim")}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)


def play_some(stage: Stage, workload: scenarios.Workload, seed: int, sub_steps: int = 60) -> list:
    """Plays eagerly from the start and returns all rewards."""
    source, reference = np.random.default_rng(seed), PaperEnvironment(workload)
    rewards = []
    for _ in range(sub_steps):
        actions = [some_action(source, reference, agent, 0.7) for agent in reference.agents]
        stage.step(actions)
        reference.step(actions)
        rewards.append(stage.rewards[stage.env, list(reference.agents)].tolist())
    return rewards


@settings(max_examples=15, deadline=None)
@given(workload=workloads, seed=SEEDS)
def test_an_episode_begun_anew_is_as_the_first_time(workload, seed):
    stage = Stage(workload)
    fresh = copies(stage)
    first = play_some(stage, workload, seed)
    core.restart(stage.frame, stage.truth, 0)
    assert_equal(copies(stage), fresh)
    assert play_some(stage, workload, seed) == first


@settings(max_examples=25, deadline=None)
@given(before=workloads, after=workloads, seed=SEEDS)
def test_an_environment_keeps_nothing_of_the_workload_before(before, after, seed):
    used, fresh = Stage(before, after), Stage(after, before)
    play_some(used, before, seed)
    core.load(used.frame, used.truth, 0, after)
    assert_equal(copies(used), copies(fresh))


@settings(max_examples=15, deadline=None)
@given(one=workloads, other=workloads, seed=SEEDS)
def test_environments_of_different_scenarios_leave_each_other_alone(one, other, seed):
    together, alone = Stage(other, one, other, env=1), Stage(one)
    neighbours = [copies(neighbour(together, env)) for env in (0, 2)]
    assert play_some(together, one, seed) == play_some(alone, one, seed)
    assert [copies(neighbour(together, env)).keys() for env in (0, 2)] == [before.keys() for before in neighbours]
    for env, before in zip((0, 2), neighbours, strict=True):
        assert_equal(copies(neighbour(together, env)), before)


def neighbour(stage: Stage, env: int) -> Stage:
    """The same environments with an eye on another of them."""
    other = object.__new__(Stage)
    other.__dict__ = stage.__dict__ | {"env": env}
    return other


def test_a_workload_that_needs_more_room_is_refused_with_what_it_lacks():
    stage = Stage(short_workload("uniform-3", 1, 6))
    with pytest.raises(ScenarioError, match=r"'hetero-6': .* 6 agents, but .* made for 3"):
        core.load(stage.frame, stage.truth, 0, short_workload("hetero-6", 1, 6))
    with pytest.raises(ScenarioError, match=r"7 jobs, but .* made for 6"):
        core.load(stage.frame, stage.truth, 0, short_workload("uniform-3", 1, 7))


def batch(names: tuple[str, ...], tasks: int = 12):
    loaded = [short_workload(name, seed, tasks) for seed, name in enumerate(names)]
    frame, truth = core.environments(loaded)
    size = frame.member.shape[:2]
    return frame, truth, np.zeros(size), np.zeros(len(names), np.int64), np.zeros(len(names), np.bool_)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize(
    "step_all", [core.step_all, pytest.param(core.step_all_threaded, marks=pytest.mark.slow)], ids=("one", "threads")
)
def test_a_step_of_all_is_a_step_of_each(step_all, again):
    names = ("hetero-6", "order-3", "random", "synthetic-3", "random")
    frame, truth, rewards, placed, ended = batch(names)
    single_frame, single_truth, single_rewards, _, _ = batch(names)
    source = np.random.default_rng(5)
    endings = 0
    for _ in range(150):
        actions = source.integers(-1, 6, size=(*rewards.shape, 4))
        actions[..., 3] = 0
        step_all(frame, truth, actions, again, rewards, placed, ended)
        for env in range(len(names)):
            if core.over(single_truth, env):
                assert (placed[env], ended[env], rewards[env].any()) == (0, True, False)
                continue
            assert placed[env] == core.step(single_frame, single_truth, env, actions, single_rewards)
            agents = single_frame.partitions[env]
            assert rewards[env, :agents].tolist() == single_rewards[env, :agents].tolist()
            assert ended[env] == core.over(single_truth, env)
            endings += ended[env]
            if again and ended[env]:
                core.restart(single_frame, single_truth, env)
        assert frame.now.tolist() == single_frame.now.tolist()
        assert frame.free.tolist() == single_frame.free.tolist()
    assert endings > 2


def event_time(seed: int, tasks: int):
    """Environments whose clock goes from event to event, and the times at which tasks come."""
    stage = Stage(short_workload("random", seed, tasks, window=3))
    arrivals = np.sort(np.random.default_rng(seed).uniform(0, 2 * tasks, size=tasks))
    stage.frame.slot[0] = 0.0
    stage.frame.arrival[0, :tasks] = arrivals
    core.restart(stage.frame, stage.truth, 0)
    return stage, arrivals


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, tasks=st.integers(1, 20))
def test_event_time_goes_from_arrival_to_end_to_arrival(seed, tasks):
    stage, arrivals = event_time(seed, tasks)
    frame, truth = stage.frame, stage.truth
    source = np.random.default_rng(seed + 1)
    ends: dict[int, float] = {}
    area = 0.0
    for _ in range(10 * tasks):
        now = frame.now[0]
        came = {job for job in range(tasks) if arrivals[job] <= now}
        running = {job for job, end in ends.items() if end > now}
        assert set(frame.waiting[0, : frame.waiting_count[0]].tolist()) == came - ends.keys()
        assert set(frame.running[0, : frame.running_count[0]].tolist()) == running
        held = sum((frame.amounts[0, job, :2] for job in running), np.zeros(2, np.int64))
        assert (frame.free[0].sum(axis=0)[:2] + held == frame.capacity[0].sum(axis=0)[:2]).all()
        for agent in range(frame.partitions[0]):
            for job in np.flatnonzero(frame.seen[0, :, agent]).tolist():
                cpus, gpus = frame.menu[0, frame.kind[0, job], 0, :2].tolist()
                if source.random() < 0.7 and core.place(frame, truth, 0, job, agent, agent, cpus, gpus, 0):
                    ends[job] = now + 1.0 / truth.rate[0, frame.kind[0, job], cpus, gpus]
                    break
        coming = [arrival for arrival in arrivals if arrival > now] + [end for end in ends.values() if end > now]
        passed = core.advance(frame, truth, 0)
        if not coming:
            assert passed == 0.0
            continue
        assert frame.now[0] == pytest.approx(min(coming))
        assert passed == pytest.approx((min(coming) - now) * len(came - {job for job in ends if ends[job] <= now}))
        area += passed
    assert core.over(truth, 0) == (len(ends) == tasks)
    if core.over(truth, 0):
        assert area == pytest.approx(sum(ends[job] - arrivals[job] for job in ends))
        assert core.mean_completion_time(frame, truth, 0) == pytest.approx(area / tasks)


@pytest.mark.parametrize("name", [*NAMED, "random"])
def test_the_rewards_of_an_episode_count_its_completion_times_where_every_task_has_one_agent(name):
    workload = short_workload(name, 3, 30)
    only = np.zeros_like(workload.reachable)
    only[np.arange(30), np.random.default_rng(1).integers(workload.scenario.agents, size=30)] = True
    stage, reference = Stage(replace(workload, reachable=only)), PaperEnvironment(replace(workload, reachable=only))
    total = 0.0
    for _ in range(2000):
        actions = [first_task(reference, agent) for agent in reference.agents]
        assert stage.step(actions) == reference.step(actions)
        total += stage.rewards.sum()
        if reference.over:
            break
    assert -total == pytest.approx(30 * core.mean_completion_time(stage.frame, stage.truth, 0))
    assert (stage.frame.status[0] == DONE).all()


def first_task(reference: PaperEnvironment, agent: int) -> tuple[int, int, int] | None:
    """The first of the window, on its minimum."""
    for place, task in enumerate(reference.windows[agent]):
        if task:
            return place, *task.kind.minimum
    return None


@pytest.mark.parametrize("name", ["hetero-6", "synthetic-6-l2", "random"])
def test_tasks_drawn_anew_are_distributed_like_those_of_a_workload(name):
    workload = scenarios.workload(name, 4)
    scenario, agents = workload.scenario, workload.scenario.agents
    stage = Stage(workload)
    frame, count = stage.frame, len(workload.arrival)
    ends, kinds, reached, sizes = [], [], [], []
    for _ in range(60):
        core.redraw(frame, stage.truth, 0)
        arrival, reach = frame.arrival[0, :count], frame.reach[0, :count, :agents]
        assert (np.diff(arrival) >= 0).all()
        ends.append(arrival[-1])
        kinds.append(np.bincount(frame.kind[0, :count], minlength=len(scenario.types)))
        reached.append(reach.mean(axis=0))
        sizes.append(np.bincount(reach.sum(axis=1), minlength=agents + 1))
    assert np.mean(ends) == pytest.approx(count / scenario.arrivals, rel=0.05)
    assert np.mean(kinds, axis=0) / count == pytest.approx(1 / len(scenario.types), rel=0.1)
    assert np.mean(reached, axis=0) == pytest.approx((agents + 1) / 2 / agents, rel=0.05)
    assert np.sum(sizes, axis=0)[0] == 0
    assert np.mean(sizes, axis=0)[1:] / count == pytest.approx(1 / agents, rel=0.15)


def test_random_numbers_of_an_environment_follow_from_its_seed_alone():
    one, same = Stage(short_workload("hetero-6", 4, 20)), Stage(short_workload("hetero-6", 4, 20))
    for _ in range(2):
        core.redraw(one.frame, one.truth, 0)
        core.redraw(same.frame, same.truth, 0)
        assert_equal(copies(one), copies(same))
    before = one.frame.reach.copy()
    core.redraw(one.frame, one.truth, 0)
    assert (before != one.frame.reach).any()
