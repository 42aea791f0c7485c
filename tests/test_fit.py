"""The one definition of "fits"."""

import pytest
from cluster_states import NODE, fixed, job, node, state, states
from hypothesis import given

from tapfinger_hpc import fit
from tapfinger_hpc.state import Partition, Resources


def test_a_job_fits_where_every_resource_is_free():
    roomy, asked = node("n1", Resources(4, 1, 8000)), Resources(4, 1, 8000)
    assert fit.fits_node(job("1"), roomy, asked)
    for short in (Resources(3, 1, 8000), Resources(4, 0, 8000), Resources(4, 1, 7999)):
        assert not fit.fits_node(job("1"), node("n1", short), asked)


def test_nothing_fits_on_a_node_that_is_not_available():
    assert not fit.fits_node(job("1"), node("n1", available=False), Resources(1, 1, 1000))
    assert not fit.could_fit_node(job("1"), node("n1", available=False), Resources(1, 1, 1000))


def test_a_job_that_asks_for_a_gpu_type_fits_only_where_it_is():
    typed = job("1", gpu_type="a100")
    assert fit.fits_node(typed, node("n1", gpu_type="a100"), NODE)
    assert not fit.fits_node(typed, node("n1", gpu_type="v100"), NODE)
    assert fit.fits_node(job("2"), node("n1", gpu_type="v100"), NODE)


def test_slurm_takes_whole_cores():
    two_threads = node("n1", Resources(4, 4, 64000), cpu_step=2)
    assert fit.granted(two_threads, Resources(3, 1, 1000)) == Resources(4, 1, 1000)
    assert fit.fits_node(job("1"), two_threads, Resources(3, 1, 1000))
    assert not fit.fits_node(job("1"), node("n1", Resources(3, 4, 64000), cpu_step=2), Resources(3, 1, 1000))


def test_cpus_are_shared_evenly_by_tasks():
    three = job("1", tasks=3)
    assert fit.allowed(three, Resources(6, 1, 8000))
    assert not fit.allowed(three, Resources(4, 1, 8000))
    assert fit.smallest(three) == Resources(3, 1, 4000)


def test_a_range_without_a_multiple_of_the_tasks_allows_nothing():
    impossible = job("1", tasks=5, minimum=Resources(6, 1, 1000), maximum=Resources(9, 1, 1000))
    assert fit.smallest(impossible) is None
    assert fit.reachable(state(impossible), impossible) == []


def test_amounts_outside_the_range_are_not_allowed():
    ranged = job("1")
    assert fit.allowed(ranged, ranged.minimum)
    assert fit.allowed(ranged, ranged.maximum)
    assert not fit.allowed(ranged, Resources(4, 5, 8000))
    assert not fit.allowed(ranged, Resources(4, 1, 3999))


def test_a_job_reaches_the_nodes_of_its_partitions_that_could_run_it():
    small = node("n3", Resources(2, 0, 1000), capacity=Resources(2, 0, 1000))
    busy = node("n1", Resources())
    parts = (Partition("pa", ("n1", "n3")), Partition("pb", ("n2",)), Partition("down", ("n2",), up=False))
    seen = state(nodes=(busy, node("n2"), small), partitions=parts)
    assert [(p.name, n.name) for p, n in fit.reachable(seen, job("1", partitions=("pb", "down", "pa")))] == [
        ("pa", "n1"),
        ("pb", "n2"),
    ]


@pytest.mark.parametrize(("limit_s", "reaches"), [(600, True), (601, False), (None, True)])
def test_a_partition_is_open_to_jobs_that_end_within_its_time(limit_s, reaches):
    short = state(partitions=(Partition("pa", ("n1",), max_time_s=600),))
    assert bool(fit.reachable(short, job("1", time_limit_s=limit_s))) == reaches


@given(states())
def test_the_greatest_amounts_fit_and_are_allowed_and_nothing_greater_is(drawn):
    for pending in drawn.pending:
        for where in drawn.nodes:
            most = fit.greatest(pending, where)
            if most is None:
                least = fit.smallest(pending)
                assert least is None or not fit.fits_node(pending, where, least)
                continue
            assert fit.allowed(pending, most)
            assert fit.fits_node(pending, where, most)
            for more in (Resources(pending.tasks, 0, 0), Resources(0, 1, 0), Resources(0, 0, 1)):
                beyond = most + more
                assert not (fit.allowed(pending, beyond) and fit.fits_node(pending, where, beyond))


@given(states())
def test_what_fits_now_could_fit_on_the_empty_node(drawn):
    for pending in drawn.pending:
        for where in drawn.nodes:
            if fit.fits_node(pending, where, pending.requested):
                assert fit.could_fit_node(pending, where, pending.requested)


def test_a_fixed_job_has_one_amount():
    asked = Resources(4, 2, 8000)
    assert fit.greatest(fixed("1", asked), node("n1")) == asked == fit.smallest(fixed("1", asked))
