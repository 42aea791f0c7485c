"""Workloads and clusters drawn from a seed."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tapfinger_hpc import fit, workload
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.curves import measured_classes, random_class
from tapfinger_hpc.sim.random_clusters import random_cluster
from tapfinger_hpc.state import ClusterState, Resources
from tapfinger_hpc.workload import WorkloadKnobs, demo_trace, random_knobs, random_trace, requested_load

SANDBOX = ClusterSpec.uniform()
seeds = st.integers(0, 10**9)


def test_the_demo_has_the_jobs_that_users_submit():
    jobs = [item.job for seed in range(20) for item in demo_trace(seed).jobs]
    assert len(jobs) == 20 * 48
    assert len({job.job_class for job in jobs}) == 6
    asked = Counter(job.requested.gpus for job in jobs)
    assert set(asked) == {1, 2, 4}
    assert asked[1] / len(jobs) == pytest.approx(0.73, abs=0.05)
    assert all(job.managed and job.minimum != job.maximum for job in jobs)
    assert all(job.time_limit_s is not None and job.time_limit_s % 60 == 0 for job in jobs)


@pytest.mark.parametrize("seed", range(5))
def test_the_demos_requests_load_the_cluster_as_asked(seed):
    for load in (0.5, 0.8):
        busiest = max(requested_load(demo_trace(seed, 100, load=load), SANDBOX))
        assert busiest == pytest.approx(load, rel=0.02)  # arrivals are whole seconds


def test_the_same_seed_gives_the_same_workload_and_another_seed_another():
    assert demo_trace(3) == demo_trace(3)
    assert demo_trace(3) != demo_trace(4)
    assert random_trace(3, SANDBOX) == random_trace(3, SANDBOX)
    assert random_trace(3, SANDBOX) != random_trace(4, SANDBOX)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_on_any_cluster_every_job_could_run_as_requested_and_within_its_limit(seed):
    draw = random.Random(seed)
    spec = random_cluster(draw)
    drawn = random_trace(seed, spec, random_knobs(draw, jobs=30))
    state = ClusterState(0.0, spec.nodes, spec.partitions)
    assert [item.job.submit_time_s for item in drawn.jobs] == sorted(item.job.submit_time_s for item in drawn.jobs)
    for item in drawn.jobs:
        job = item.job
        true_s = drawn.true_duration_s(item, job.requested)
        assert 0 < true_s < math.inf
        assert job.time_limit_s is not None
        assert true_s <= job.time_limit_s
        assert fit.allowed(job, job.requested)
        for name in job.partitions:
            alone = replace(job, partitions=(name,))
            nodes = [node for _, node in fit.reachable(state, alone)]
            assert any(fit.could_fit_node(job, node, job.requested) for node in nodes)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_random_clusters_have_partitions_of_nodes_that_exist(seed):
    spec = random_cluster(random.Random(seed))
    assert spec == random_cluster(random.Random(seed))
    state = ClusterState(0.0, spec.nodes, spec.partitions)
    assert 1 <= len(state.partitions) <= 9
    assert {name for partition in state.partitions for name in partition.nodes} == {node.name for node in state.nodes}


def test_shares_of_others_and_of_fixed_jobs_are_as_asked():
    jobs = [item.job for item in random_trace(1, SANDBOX, WorkloadKnobs(jobs=1000, foreign=0.3, fixed=0.5)).jobs]
    ours = [job for job in jobs if job.managed]
    assert len(ours) / len(jobs) == pytest.approx(0.7, abs=0.05)
    assert sum(job.minimum == job.maximum for job in ours) / len(ours) == pytest.approx(0.5, abs=0.08)
    assert all(job.minimum == job.maximum == job.requested for job in jobs if not job.managed)


def test_bursts_bring_jobs_together():
    def moments(bursts: float) -> int:
        jobs = random_trace(1, SANDBOX, WorkloadKnobs(jobs=200, bursts=bursts)).jobs
        return len({item.job.submit_time_s for item in jobs})

    assert moments(bursts=0.6) < 100 < moments(bursts=0.0)


def test_a_class_is_known_as_well_as_its_jobs_are_alike():
    for job_class in random_trace(1, SANDBOX, WorkloadKnobs(jobs=400, job_spread=0.4)).classes:
        assert job_class.speed.log_std[0] >= 0.4
    alike = WorkloadKnobs(jobs=400, job_spread=0.0, size_follows_request=0.0)
    for job_class in random_trace(1, SANDBOX, alike).classes:
        assert job_class.speed.log_std == (0.0,)


# Curves.


def test_measured_classes_gain_by_gpus_as_pollux_measured():
    fed = {each.name: each.speed for each in measured_classes(100.0, 0.3, Resources(16, 4, 64000))}

    def gain(name: str, gpus: int) -> float:
        return fed[name].duration_s(Resources(16, 1, 64000)) / fed[name].duration_s(Resources(16, gpus, 64000))

    assert gain("resnet50-imagenet", 4) > 2.5
    assert 1.5 < gain("bert-squad", 4) < 2.2
    assert gain("ncf-movielens", 2) < 1
    assert gain("yolov3-voc", 2) > gain("yolov3-voc", 4)


def test_a_class_that_is_not_fed_gains_nothing_by_gpus():
    (resnet,) = (each for each in measured_classes(100.0, 0.3, Resources(16, 4, 64000)) if "resnet50" in each.name)
    starved = resnet.speed.duration_s(Resources(1, 1, 64000)) / resnet.speed.duration_s(Resources(1, 4, 64000))
    assert starved < 1.1


@given(seeds)
def test_random_classes_run_on_a_whole_node_and_never_for_less_than_nothing(seed):
    largest = random.Random(seed).choice([Resources(16, 4, 64000), Resources(8, 1, 16000), Resources(64, 8, 256000)])
    made = random_class(random.Random(seed), "drawn", 100.0, 0.3, largest)
    whole = made.speed.duration_s(largest)
    assert 0 < whole < math.inf
    assert made.speed.duration_s(Resources(1, 1, largest.mem_mb)) < math.inf
    assert math.isinf(made.speed.duration_s(Resources(1, 1, 1))) or made.speed.mem_mb[0] <= 1


def test_random_classes_differ_in_kind():
    gains = []
    for seed in range(200):
        made = random_class(random.Random(seed), "drawn", 100.0, 0.0, Resources(64, 4, 64000)).speed
        gains.append(made.duration_s(Resources(64, 1, 64000)) / made.duration_s(Resources(64, 4, 64000)))
    assert sum(gain > 3 for gain in gains) > 10
    assert sum(1.2 < gain < 3 for gain in gains) > 50
    assert sum(gain <= 1.001 for gain in gains) > 10


def test_the_load_of_an_empty_trace_is_nothing():
    assert requested_load(workload.Trace("none", (), ()), SANDBOX) == (0.0, 0.0)
