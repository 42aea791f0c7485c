"""Clusters in event time: what is drawn, what runs, what is shown, who is served first."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from tapfinger_hpc import reserve
from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.frame import DONE, RUNNING, WAITING
from tapfinger_hpc.sim import core, dump, episodes, others, players, scenarios, sites
from tapfinger_hpc.sim.bound import alone, bound
from tapfinger_hpc.sim.cli import simulate
from tapfinger_hpc.sim.episodes import play
from tapfinger_hpc.sim.pettingzoo_env import parallel_env
from tapfinger_hpc.state import ClusterState, Node, Partition, PendingJob, Resources, RunningJob, Share

SEEDS = range(24)


def short(seed: int, **site) -> sites.SiteWorkload:
    """Of some 40 jobs, a third of them of others where not said otherwise."""
    drawn = sites.random_site(np.random.default_rng(seed), tasks=40)
    return sites.draw(replace(drawn, **({"others": 0.35} | site)), seed)


def greedy(frame, truth, env: int, source: np.random.Generator) -> list[tuple]:
    """Some of the waiting jobs on the first amounts that look free; what was asked for, and whether it was granted."""
    asked = []
    for job in frame.waiting[env, : frame.waiting_count[env]].tolist():
        kind = frame.kind[env, job]
        ways = [
            (partition, node, *frame.menu[env, kind, choice].tolist())
            for choice in range(frame.choices[env, kind])
            for partition in range(frame.partitions[env])
            for node in range(frame.nodes[env])
            if core.fits(frame, env, job, partition, node, *frame.menu[env, kind, choice])
        ]
        if ways and source.random() < 0.8:
            way = ways[source.integers(len(ways))]
            asked.append((job, way, core.place(frame, truth, env, job, *way)))
    return asked


@pytest.mark.parametrize("seed", SEEDS)
def test_every_job_of_a_drawn_site_can_run_on_a_node_of_each_partition_that_it_reaches(seed):
    workload = scenarios.workload("cluster", seed)
    site = workload.scenario
    assert 1 <= site.agents <= 6
    assert all(1 <= len(own) <= 8 for own in site.partitions)
    assert site.member.any(axis=0).all()
    assert 0.4 <= site.load <= 1.1
    assert workload.ours.any()
    assert (np.diff(workload.arrival) >= 0).all()
    for job, kind in enumerate(workload.type.tolist()):
        least = (*site.types[kind].menu[0], site.types[kind].mem_mb[site.types[kind].menu[0, 1]])
        assert workload.reachable[job].any()
        for partition in np.flatnonzero(workload.reachable[job]):
            assert (site.nodes[list(site.partitions[partition])] >= least).all(axis=1).any()
    for job in np.flatnonzero(workload.others):
        nodes = site.nodes[site.member[workload.reachable[job]].any(axis=0)]
        assert (nodes >= workload.asked[job]).all(axis=1).any()
        kind = site.types[workload.type[job]]
        lasts = workload.pace[job] * kind.slots[tuple(workload.asked[job, :2])]
        assert lasts <= workload.limit[job] < np.inf


def test_a_seed_gives_the_same_workload_again_and_a_load_only_moves_the_arrivals():
    one, again = scenarios.workload("cluster", 5), scenarios.workload("cluster", 5)
    heavier = scenarios.workload("cluster", 5, load=1.0)
    assert one.arrival.tolist() == again.arrival.tolist()
    assert one.pace.tolist() == again.pace.tolist()
    assert heavier.type.tolist() == one.type.tolist()
    assert heavier.scenario.load == pytest.approx(1.0)
    assert heavier.arrival[-1] == pytest.approx(one.arrival[-1] * one.scenario.load)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["price", "srtf", "min", "random"])
def test_no_node_is_over_filled_and_every_job_lasts_as_long_as_the_truth_says(policy, seed):
    workload = short(seed)
    (episode,) = play([workload], players.make(policy, seed=1, scenario=workload.scenario))
    line = json.loads(json.dumps(dump.record(episode, policy)))
    kinds = {kind["name"]: kind for kind in line["cluster"]["types"]}
    ends = {entry["task"]: entry["time"] for entry in line["completions"]}
    changes = []
    for entry in line["placements"]:
        task = line["tasks"][entry["task"]]
        kind = kinds[task["type"]]
        assert task["arrival"] <= entry["time"]
        assert entry["agent"] in task["reachable"]
        assert entry["node"] in line["cluster"]["partitions"][entry["agent"]]
        amounts = np.array([entry["cpu"], entry["gpu"], entry["mem_mb"]])
        assert "others" not in task or task["others"] == amounts.tolist()
        assert entry["mem_mb"] >= kind["mem_mb"][entry["gpu"]]
        end = entry["time"] + task["pace"] / kind["rate"][entry["cpu"]][entry["gpu"]]
        if entry["task"] in ends:
            assert ends[entry["task"]] == pytest.approx(end)
        changes += [(entry["time"], 1, entry["node"], amounts), (end, 0, entry["node"], -amounts)]
    held = np.zeros((len(line["cluster"]["nodes"]), 3), int)
    for _, _, node, amounts in sorted(changes, key=lambda change: (round(change[0], 6), change[1])):
        held[node] += amounts
        assert (held[node] <= line["cluster"]["nodes"][node]).all()
    ours = [task["id"] for task in line["tasks"] if "others" not in task]
    assert line["mean_jct"] == pytest.approx(np.mean([ends[task] - line["tasks"][task]["arrival"] for task in ours]))
    assert (episode.completion_times >= alone(workload)[workload.ours] * (1 - 1e-9)).all()


@pytest.mark.parametrize("seed", range(6))
def test_waiting_and_running_make_up_completion_times(seed):
    workload = short(seed, refusal=0.1)
    frame, truth = core.environments([workload])
    source, area = np.random.default_rng(seed), 0.0
    while not core.over(truth, 0):
        greedy(frame, truth, 0, source)
        area += core.advance(frame, truth, 0)
    actual, count = int(truth.look["actual"][0]), len(workload.arrival)
    end, start = truth.end[actual, :count], frame.start[actual, :count]
    assert core.mean_completion_time(frame, truth, 0) == pytest.approx((end - workload.arrival)[workload.ours].mean())
    assert area == pytest.approx((end - workload.arrival)[workload.ours].sum())
    assert truth.look["waited"][0] == pytest.approx((start - workload.arrival)[workload.ours].sum())


def state_of(frame, truth, env: int) -> ClusterState:
    """The environment as the live system would describe it. Names keep the order of numbers."""
    nodes = range(int(frame.nodes[env]))
    running, pending = [], []
    for job in frame.running[env, : frame.running_count[env]].tolist():
        end = frame.start[env, job] + truth.job["limit"][env, job]
        running.append(
            RunningJob(
                job_id=str(job),
                submit_time_s=0,
                partition=f"p{frame.partition[env, job]}",
                shares=(Share(f"n{frame.node[env, job]:02}", Resources(*frame.amounts[env, job].tolist())),),
                start_time_s=0,
                end_limit_s=int(end),
            )
        )
    for position in range(truth.look["lined"][env]):
        job = truth.job["line"][env, position]
        entry = truth.job[env, job]
        asked = Resources(int(entry["cpus"]), int(entry["gpus"]), int(entry["mem_mb"]))
        pending.append(
            PendingJob(
                job_id=str(job),
                submit_time_s=int(job),
                partitions=tuple(f"p{number}" for number in np.flatnonzero(frame.reach[env, job])),
                requested=asked,
                minimum=asked,
                maximum=asked,
                priority=int(entry["priority"]) + 1000,
                time_limit_s=int(entry["limit"]),
                managed=False,
            )
        )
    return ClusterState(
        time_s=float(frame.now[env]),
        nodes=tuple(
            Node(
                f"n{node:02}",
                Resources(*frame.capacity[env, node].tolist()),
                Resources(*frame.free[env, node].tolist()),
            )
            for node in nodes
        ),
        partitions=tuple(
            Partition(f"p{number}", tuple(f"n{node:02}" for node in np.flatnonzero(frame.member[env, number])))
            for number in range(frame.partitions[env])
        ),
        pending=tuple(pending),
        running=tuple(running),
    )


def compare_with_reserve(seed: int) -> tuple[int, int]:
    """Plays a while; how many starts were planned, and how many placements would have delayed one."""
    workload = short(seed, others=0.5, late_s=0.0, refusal=0.0, serves=sites.BASIC)
    workload = replace(workload, arrival=np.floor(workload.arrival / 4))
    frame, truth = core.environments([workload])
    actual, source = int(truth.look["actual"][0]), np.random.default_rng(seed)
    planned = delayed = 0
    for _ in range(60):
        # Whole seconds, as the live system counts them.
        frame.start[actual] = np.floor(frame.start[actual])
        state = state_of(frame, truth, actual)
        jobs, count = reserve.waiting_in_order(state), int(truth.look["lined"][actual])
        assert [job.job_id for job in jobs] == [str(job) for job in truth.job["line"][actual, :count]]
        others.plan(frame, truth, actual, count)
        for position, reservation in enumerate(reserve.plan(state, jobs, reserve.Profile(state))):
            planned += 1
            assert truth.job["start"][actual, position] == pytest.approx(reservation.start_s)
            assert f"n{truth.job['node'][actual, position]:02}" == reservation.nodes[0]
        protection = reserve.Protection(state)
        for job in frame.waiting[0, : frame.waiting_count[0]].tolist():
            amounts = frame.menu[0, frame.kind[0, job], source.integers(frame.choices[0, frame.kind[0, job]])]
            for node in range(frame.nodes[0]):
                if not (amounts <= frame.free[actual, node]).all():
                    continue
                own = PendingJob(
                    job_id="own",
                    submit_time_s=0,
                    partitions=("p0",),
                    requested=Resources(*amounts.tolist()),
                    minimum=Resources(*amounts.tolist()),
                    maximum=Resources(*amounts.tolist()),
                    priority=int(truth.job["priority"][0, job]) + 1000,
                    time_limit_s=int(truth.job["limit"][0, job]),
                    managed=True,
                )
                why = protection.would_delay(own, state.node(f"n{node:02}"), Resources(*amounts.tolist()))
                assert others.would_delay(frame, truth, actual, job, node, *amounts) == (why is not None)
                delayed += why is not None
        greedy(frame, truth, 0, source)
        core.advance(frame, truth, 0)
    return planned, delayed


@pytest.mark.slow
def test_jobs_of_others_are_planned_and_protected_as_the_guard_of_the_live_system_does():
    found = np.sum([compare_with_reserve(seed) for seed in range(8)], axis=0)
    assert (found > 20).all()


def test_jobs_of_others_never_wait_with_ours_and_start_by_themselves():
    workload = short(3, others=0.6)
    frame, truth = core.environments([workload])
    started = set()
    for _ in range(200):
        waiting = frame.waiting[0, : frame.waiting_count[0]]
        assert not workload.others[waiting].any()
        started |= {job for job in frame.running[0, : frame.running_count[0]].tolist() if workload.others[job]}
        core.advance(frame, truth, 0)
    assert started == set(np.flatnonzero(workload.others).tolist())
    assert not core.over(truth, 0)


@pytest.mark.parametrize("late_s", [0.0, 7.0])
def test_what_is_shown_is_as_old_as_the_site_says_by_the_time_it_is_decided_on(late_s):
    workload = short(2, late_s=late_s)
    frame, truth = core.environments([workload])
    actual, source, differs = int(truth.look["actual"][0]), np.random.default_rng(0), 0
    while not core.over(truth, 0):
        for job, (_, node, *amounts), granted in greedy(frame, truth, 0, source):
            if granted:
                assert frame.status[actual, job] == RUNNING
                assert frame.start[actual, job] == frame.now[actual]
                assert frame.amounts[actual, job].tolist() == amounts
                assert frame.node[actual, job] == node
        assert (frame.free[actual] >= 0).all()
        core.advance(frame, truth, 0)
        assert frame.now[actual] - frame.now[0] == pytest.approx(late_s)
        differs += (frame.status[actual] != frame.status[0]).any()
    assert (differs > 0) == (late_s > 0)


def test_a_refused_placement_changes_nothing_and_the_job_is_seen_again_at_the_next_look():
    workload = short(4, refusal=1.0, others=0.0, late_s=0.0)
    frame, truth = core.environments([workload])
    actual = int(truth.look["actual"][0])
    before = frame.free[actual].copy()
    asked = greedy(frame, truth, 0, np.random.default_rng(0))
    assert asked
    assert not any(granted for _, _, granted in asked)
    for job, way, _ in asked:
        assert not frame.seen[0, job].any()
        assert not core.place(frame, truth, 0, job, *way)
    assert (frame.free[actual] == before).all()
    assert (frame.free[0] == before).all()
    core.advance(frame, truth, 0)
    assert 0 < frame.now[0] <= core.RETRY_S
    for job, _, _ in asked:
        assert frame.status[0, job] == WAITING
        assert frame.seen[0, job].tolist() == frame.reach[0, job].tolist()


def test_what_changed_since_it_was_shown_is_refused():
    workload = short(2, late_s=1e6, others=0.0, refusal=0.0)
    frame, truth = core.environments([workload])
    actual = int(truth.look["actual"][0])
    while frame.waiting_count[0] == 0:
        core.advance(frame, truth, 0)
    frame.free[actual] = 0  # someone else was faster
    asked = greedy(frame, truth, 0, np.random.default_rng(1))
    assert asked
    assert not any(granted for _, _, granted in asked)


def test_policies_are_not_told_what_a_job_takes_beyond_its_kind():
    workload = short(6, others=0.0, refusal=0.0, late_s=0.0)
    assert workload.pace.std() > 0
    frame, truth = core.environments([workload])
    for job, (_, _, cpus, gpus, _), granted in greedy(frame, truth, 0, np.random.default_rng(2)):
        if granted:
            believed = workload.scenario.types[workload.type[job]].slots[cpus, gpus]
            assert frame.expected_end[0, job] == pytest.approx(believed)
            assert truth.end[int(truth.look["actual"][0]), job] == pytest.approx(believed * workload.pace[job])


def test_slotted_and_timed_environments_stand_side_by_side():
    slotted, timed = scenarios.workload("synthetic-3", 1), short(1)
    together = play([slotted, timed, slotted], players.make("srtf"))
    for workload, episode in zip((slotted, timed, slotted), together, strict=True):
        (single,) = play([workload], players.make("srtf"))
        assert episode.end.tolist() == single.end.tolist()
    assert episodes.pass_slot(*core.environments([slotted]), np.arange(1)).tolist() == [0]


def test_an_episode_begun_anew_is_the_same_again():
    workload = short(5, refusal=0.0)
    frame, truth = core.environments([workload])
    runs = []
    for _ in range(2):
        source = np.random.default_rng(1)
        while not core.over(truth, 0):
            greedy(frame, truth, 0, source)
            core.advance(frame, truth, 0)
        runs.append(truth.end[int(truth.look["actual"][0]), : len(workload.arrival)].tolist())
        assert (frame.status[int(truth.look["actual"][0]), np.flatnonzero(workload.ours)] == DONE).all()
        core.restart(frame, truth, 0)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("knowledge", ["types", "curves", "oracle"])
def test_policies_play_clusters_whatever_they_know(knowledge, tmp_path):
    lines = tmp_path / "lines.jsonl"
    options = ["--scenario", "cluster", "--policy", "srtf", "--seed", "1", "--knowledge", knowledge]
    done = CliRunner().invoke(simulate, [*options, "--dump", str(lines)])
    assert done.exit_code == 0, done.output
    assert " s of 1 episodes" in done.output
    assert json.loads(lines.read_text())["scenario"] == "cluster"


def test_what_needs_slots_says_that_a_cluster_has_none():
    with pytest.raises(ScenarioError, match="no slots and no windows"):
        parallel_env("cluster")
    with pytest.raises(ScenarioError, match="event time"):
        bound(short(1))
    with pytest.raises(ScenarioError, match="slotted time"):
        play([short(1)], players.make("tiresias"))
