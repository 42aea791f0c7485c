"""Speed models of job classes: what they foretell, how unsure they are, and what they may never say."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from trace_tools import prior, speeds
from trace_tools.records import EndedJob
from trace_tools.seen import Seen
from trace_tools.speeds import Belief

MEM_MB = 8000
PLENTY_MB = 16 * MEM_MB


def ended(elapsed_s: float, cpus: int, gpus: int, mem_mb: int = MEM_MB, **fields) -> EndedJob:
    amounts = Resources(cpus, gpus, mem_mb)
    values = {"job_id": "1", "state": "COMPLETED", "elapsed_s": elapsed_s}
    return EndedJob(granted=amounts, requested=amounts, **(values | fields))


def seen_of(*jobs: EndedJob) -> Seen:
    seen = Seen("c")
    for job in jobs:
        seen.add(job)
    return seen


def model_of(*jobs: EndedJob) -> JobClass:
    made = speeds.fit(seen_of(*jobs))
    assert made is not None
    return made


def seconds(made: JobClass, cpus: int, gpus: int, mem_mb: int = PLENTY_MB) -> float:
    return made.speed.duration_s(Resources(cpus, gpus, mem_mb))


def unsure(made: JobClass, cpus: int, gpus: int) -> float:
    return made.speed.log_std_at(Resources(cpus, gpus, MEM_MB))


def test_a_class_of_which_nothing_was_seen_has_no_model():
    assert speeds.fit(Seen("c")) is None
    assert speeds.fit(seen_of(ended(5.0, 1, 1, state="BOOT_FAIL"))) is None


def test_one_job_says_how_long_the_class_takes_where_it_ran():
    made = model_of(ended(600.0, 4, 1))
    assert seconds(made, 4, 1) == pytest.approx(600, rel=0.25)
    assert made.observations == 1


def test_the_doubt_is_least_where_jobs_ran_and_shrinks_with_them():
    one, four = (model_of(*(ended(600.0, 4, 1) for _ in range(count))) for count in (1, 4))
    assert unsure(four, 4, 1) < unsure(one, 4, 1)
    assert unsure(four, 4, 1) < unsure(four, 4, 4)
    assert unsure(four, 4, 1) < unsure(four, 16, 1)


def test_what_a_job_of_one_gpu_says_of_four_is_a_gain_and_unsure():
    made = model_of(ended(600.0, 8, 1))
    assert 600 / 4 < seconds(made, 8, 4) < 600
    assert unsure(made, 8, 4) > 0.15


def test_more_gpus_make_a_class_slower_that_was_seen_to_be():
    runs = ((1, 60.0), (2, 65.0), (3, 73.0), (4, 76.0))
    made = model_of(*(ended(elapsed_s, 8, gpus) for gpus, elapsed_s in runs for _ in range(2)))
    assert seconds(made, 8, 4) > seconds(made, 8, 1) * 1.15


def test_a_curve_seen_at_few_points_is_foretold_between_them():
    def true(cpus: int, gpus: int) -> float:
        return 200 * (0.1 + 0.9 / gpus) * max(1.0, 2 * gpus / cpus)

    made = model_of(*(ended(true(cpus, gpus), cpus, gpus) for cpus in (1, 4, 16) for gpus in (1, 2, 4)))
    errors = [abs(seconds(made, cpus, gpus) / true(cpus, gpus) - 1) for cpus in (2, 3, 8, 12) for gpus in (1, 2, 3, 4)]
    assert np.median(errors) < 0.15


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1.0, 1e5), st.integers(1, 64), st.integers(0, 8), st.integers(1000, 50_000)),
        min_size=1,
        max_size=8,
    )
)
def test_more_cpus_and_more_memory_never_make_a_job_slower(runs):
    made = model_of(*(ended(*run) for run in runs))
    speed = made.speed
    shape = (len(speed.cpus), len(speed.gpus), len(speed.mem_mb))
    grid = np.array([math.inf if one is None else one for one in speed.seconds]).reshape(shape)
    finite = np.where(np.isfinite(grid), grid, 1e300)
    assert (np.diff(finite, axis=0) <= 1e-3 * finite[:-1]).all()
    assert (np.diff(finite, axis=2) <= 1e-3 * finite[:, :, :-1]).all()
    assert all(one > 0 for one in speed.log_std)


def test_what_was_seen_stands_in_the_grid():
    """A step between 4 and 6 CPUs is nowhere between them."""
    made = model_of(*(ended(400.0 if cpus < 6 else 200.0, cpus, 7) for cpus in (3, 4, 5, 6, 7) for _ in range(4)))
    assert {3, 4, 5, 6, 7} <= set(made.speed.cpus)
    assert 7 in made.speed.gpus
    assert seconds(made, 5, 7) == pytest.approx(400, rel=0.05)
    assert seconds(made, 7, 7) == pytest.approx(200, rel=0.05)


def test_a_job_that_timed_out_is_thought_to_take_longer_than_its_limit():
    made = model_of(*(ended(900.0, 4, 1, state="TIMEOUT") for _ in range(3)))
    assert seconds(made, 4, 1) > 900
    assert unsure(made, 4, 1) > 0.5
    assert made.observations == 0


def test_time_limits_that_ended_jobs_move_the_model_up_and_those_far_below_do_not():
    alone = model_of(ended(600.0, 4, 1), ended(620.0, 4, 1))
    ended_late = model_of(
        ended(600.0, 4, 1), ended(620.0, 4, 1), *(ended(700.0, 4, 1, state="TIMEOUT") for _ in range(6))
    )
    ended_early = model_of(ended(600.0, 4, 1), ended(620.0, 4, 1), ended(60.0, 4, 1, state="CANCELLED"))
    assert seconds(ended_late, 4, 1) > seconds(alone, 4, 1) * 1.03
    assert seconds(ended_early, 4, 1) == pytest.approx(seconds(alone, 4, 1), rel=0.02)


def test_one_job_that_hung_does_not_spoil_what_many_say():
    many = [ended(600.0 + number, 4, 1) for number in range(12)]
    hung = model_of(*many, ended(86_400.0, 4, 1, state="TIMEOUT"))
    assert seconds(hung, 4, 1) == pytest.approx(seconds(model_of(*many), 4, 1), rel=0.1)


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.8])
def test_how_far_jobs_of_a_class_differ_is_learned_from_them(spread):
    draw = random.Random(f"spread {spread}")
    made = model_of(*(ended(600 * math.exp(draw.gauss(0, spread)), 4, 1) for _ in range(60)))
    assert unsure(made, 4, 1) == pytest.approx(spread, rel=0.3)


def test_the_seconds_are_those_of_the_mean_job():
    draw = random.Random("mean")
    times = [600 * math.exp(draw.gauss(0, 0.5)) for _ in range(150)]
    assert seconds(model_of(*(ended(one, 4, 1) for one in times)), 4, 1) == pytest.approx(np.mean(times), rel=0.12)


def test_jobs_on_another_type_of_gpu_do_not_blur_the_usual_one():
    usual = [ended(600.0, 4, 1, gpu_type="t4") for _ in range(5)]
    made = model_of(*usual, ended(200.0, 4, 1, gpu_type="a100"))
    assert seconds(made, 4, 1) == pytest.approx(600, rel=0.1)


def test_a_class_without_gpus_has_a_grid_without_gpus():
    made = model_of(ended(100.0, 1, 0), ended(55.0, 2, 0), ended(30.0, 4, 0))
    assert made.speed.gpus == (0,)
    assert 15 < seconds(made, 8, 0) < 28


def test_below_the_memory_that_the_class_needs_it_cannot_run():
    made = model_of(*(ended(600.0, 4, 1, max_rss_mb=3000 + number) for number in range(20)))
    assert math.isinf(seconds(made, 4, 1, 2900))
    assert math.isfinite(seconds(made, 4, 1, 4500))


def test_the_interval_holds_what_the_prior_itself_would_draw():
    """Curves drawn from the mixture, observed at four points: nine in ten others lie within the interval."""
    draw = np.random.default_rng(3)
    believed = prior.shipped()
    stack = prior.stacked(believed.shapes)
    weights = np.array(believed.weights)
    cells = np.array([[cpus, gpus, MEM_MB] for cpus in (1, 2, 4, 8, 16) for gpus in (1, 2, 4)], float)
    at = prior.points(cells, MEM_MB)
    inside = []
    for _ in range(60):
        shape, noise = divmod(int(draw.choice(weights.size, p=weights.ravel() / weights.sum())), weights.shape[1])
        one = stack.taking(np.array([shape]))
        covariance = one.covariances(at, at)[0] + 1e-9 * np.eye(len(cells))
        curve = 6 + draw.multivariate_normal(one.means(at)[0], covariance)
        logs = curve + prior.NOISES[noise] * draw.normal(size=len(cells))
        chosen = set(draw.choice(len(cells), 4, replace=False).tolist())
        jobs = [ended(float(np.exp(logs[i])), *map(int, cells[i])) for i in chosen]
        rest = [i for i in range(len(cells)) if i not in chosen]
        means, _, deviations = Belief(seen_of(*jobs)).predicted(cells[rest])
        inside.extend((np.abs(logs[rest] - means) <= 1.645 * deviations).tolist())
    assert 0.82 <= np.mean(inside) <= 0.97


def test_the_shipped_prior_has_weights_that_are_shares():
    believed = prior.shipped()
    weights = np.array(believed.weights)
    assert weights.shape == (len(believed.shapes), len(prior.NOISES))
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    assert believed.shapes == prior.drawn()


def test_of_jobs_that_somebody_ran_one_says_less_than_of_measurements():
    seen = seen_of(ended(600.0, 4, 1))
    measured = prior.shipped()
    named, declared = (prior.of_jobs(measured, one) for one in (prior.NOISES_OF_NAMES, prior.NOISES_OF_DECLARED))
    deviations = [unsure(speeds.fit(seen, one), 4, 1) for one in (declared, named)]
    assert deviations[0] < deviations[1]
    assert deviations[1] > 0.5
    for one in (named, declared):
        assert sum(map(sum, one.weights)) == pytest.approx(1)


def test_how_far_jobs_of_a_site_differ_is_believed_of_its_further_classes():
    before = prior.NOISES_OF_NAMES
    steady = prior.noises_of([(10.0, 10 * 0.03**2)] * 30, before)
    wild = prior.noises_of([(10.0, 10 * 1.2**2)] * 30, before)
    assert steady[1] > 0.5 > before[1]
    assert wild[5] > 0.5
    for believed in (steady, wild, prior.noises_of([], before), prior.noises_of([(0.0, 0.0)], before)):
        assert sum(believed) == pytest.approx(1)
        assert min(believed) > 0
    assert prior.noises_of([], before) == pytest.approx(before)


def test_a_slope_of_contradicting_jobs_does_not_lead_anywhere():
    jobs = [ended(1.0, 1, 0, state="TIMEOUT")] * 4 + [ended(1.0, 1, 0)] * 5 + [ended(15035.0, 3, 8)]
    assert max(one for one in model_of(*jobs).speed.seconds if one is not None) < 15035 * 1000


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1.0, 1e6), st.integers(1, 64), st.integers(0, 8), st.booleans(), st.integers(1, 12)),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_was_seen_the_model_stays_near_it(runs):
    """Also with lower bounds far above and far below what finished, many times over."""
    jobs = [
        ended(elapsed_s, cpus, gpus, state="COMPLETED" if finished else "TIMEOUT")
        for elapsed_s, cpus, gpus, finished, times in runs
        for _ in range(times)
    ]
    made = model_of(*jobs)
    least, most = min(run[0] for run in runs), max(run[0] for run in runs)
    known = [one for one in made.speed.seconds if one is not None]
    assert known
    assert all(least / 1000 <= one <= most * 1000 for one in known)
    assert all(0 < one < 10 for one in made.speed.log_std)
