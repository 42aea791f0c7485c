"""How long a class takes: reading the grid, and what is believed of jobs of no known class."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapfinger_hpc.speed import SpeedModel, prior
from tapfinger_hpc.state import Resources

GRID = SpeedModel((1, 4), (1, 2), (1000, 4000), (80.0, 70.0, 50.0, 40.0, 40.0, 35.0, 25.0, 20.0))


def test_seconds_stand_in_the_order_cpus_gpus_memory():
    assert GRID.duration_s(Resources(1, 1, 1000)) == pytest.approx(80)
    assert GRID.duration_s(Resources(1, 1, 4000)) == pytest.approx(70)
    assert GRID.duration_s(Resources(1, 2, 1000)) == pytest.approx(50)
    assert GRID.duration_s(Resources(4, 1, 1000)) == pytest.approx(40)


def test_between_grid_points_the_logarithms_are_interpolated():
    assert GRID.duration_s(Resources(2, 1, 1000)) == pytest.approx(math.sqrt(80 * 40))


def test_above_the_grid_more_brings_nothing():
    assert GRID.duration_s(Resources(64, 9, 10**6)) == pytest.approx(20)


@pytest.mark.parametrize("amounts", [Resources(0, 1, 1000), Resources(1, 0, 1000), Resources(1, 1, 999)])
def test_below_the_grid_nothing_is_known_to_run(amounts):
    assert math.isinf(GRID.duration_s(amounts))


def test_between_no_gpu_and_one_gpu_the_share_is_linear():
    model = SpeedModel((1,), (0, 4), (1,), (100.0, 25.0))
    assert model.duration_s(Resources(1, 1, 1)) == pytest.approx(math.exp(0.75 * math.log(100) + 0.25 * math.log(25)))


def test_too_little_memory_takes_for_ever():
    model = SpeedModel((1,), (1, 2), (4000, 8000), (30.0, 30.0, None, 20.0))
    assert model.duration_s(Resources(1, 1, 4000)) == pytest.approx(30)
    assert math.isinf(model.duration_s(Resources(1, 2, 4000)))
    assert math.isinf(model.duration_s(Resources(1, 2, 7999)))
    assert model.duration_s(Resources(1, 2, 8000)) == pytest.approx(20)


def test_one_deviation_holds_everywhere_and_several_are_interpolated():
    assert GRID.log_std_at(Resources(2, 1, 2000)) == 0.0
    varied = SpeedModel((1, 4), (1,), (1,), (1.0, 1.0), (0.2, 0.4))
    assert varied.log_std_at(Resources(2, 1, 1)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cpus": (4, 1)}, "cpus"),
        ({"seconds": (1.0,)}, "seconds"),
        ({"log_std": (0.1, 0.2)}, "log_std"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused_and_names_the_field(fields, named):
    values = {"cpus": (1, 4), "gpus": (1,), "mem_mb": (1,), "seconds": (2.0, 1.0)} | fields
    if named == "log_std":
        values["log_std"] = (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=named):
        SpeedModel(**values)


def test_json_with_seconds_of_zero_or_less_is_refused():
    for seconds in ("0", "-1"):
        text = f'{{"cpus":[1],"gpus":[1],"mem_mb":[1],"seconds":[{seconds}]}}'
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=SpeedModel)


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1000, 10**6))
def test_a_duration_lies_between_the_least_and_the_greatest_of_the_grid(cpus, gpus, mem_mb):
    assert 20 - 1e-9 <= GRID.duration_s(Resources(cpus, gpus, mem_mb)) <= 80 + 1e-9


def test_an_unknown_job_is_thought_to_take_a_third_of_its_limit_as_requested():
    asked = Resources(4, 2, 8000)
    assert prior(asked, 3600).duration_s(asked) == pytest.approx(1200)
    assert prior(asked, None).duration_s(asked) == pytest.approx(1200)


def test_an_unknown_job_is_thought_to_gain_less_than_in_proportion():
    asked = Resources(4, 2, 8000)
    model = prior(asked, 3600)
    twice = model.duration_s(Resources(4, 4, 16000))
    assert 600 < twice < 1200
    assert model.duration_s(Resources(4, 1, 8000)) > 1200
    assert model.log_std_at(asked) >= 0.5


def test_of_an_unknown_job_more_cpus_help_only_with_more_gpus():
    model = prior(Resources(4, 1, 8000), 3600)
    asked = model.duration_s(Resources(4, 1, 8000))
    assert model.duration_s(Resources(16, 1, 8000)) == pytest.approx(asked)
    assert model.duration_s(Resources(2, 1, 8000)) > asked
    assert model.duration_s(Resources(16, 4, 32000)) < model.duration_s(Resources(4, 4, 32000)) < asked


def test_an_unknown_job_is_not_known_to_run_on_less_memory_or_on_more_gpus_with_the_same():
    model = prior(Resources(4, 2, 8000), 3600)
    assert math.isinf(model.duration_s(Resources(4, 2, 7999)))
    assert math.isinf(model.duration_s(Resources(4, 1, 4000)))
    assert math.isinf(model.duration_s(Resources(4, 4, 15999)))
    assert math.isfinite(model.duration_s(Resources(4, 1, 8000)))


def test_where_memory_is_not_counted_there_is_enough():
    assert GRID.duration_s(Resources(1, 1, 0)) == pytest.approx(70)
    needs = SpeedModel((1,), (1,), (4000, 8000), (None, 20.0))
    assert needs.duration_s(Resources(1, 1, 0)) == pytest.approx(20)
    assert prior(Resources(4, 2, 0), 3600).duration_s(Resources(4, 2, 0)) == pytest.approx(1200)


@given(st.integers(1, 256), st.integers(0, 16), st.integers(0, 10**6), st.one_of(st.none(), st.integers(1, 10**6)))
def test_there_is_a_prior_for_any_request(cpus, gpus, mem_mb, limit_s):
    asked = Resources(cpus, gpus, mem_mb)
    assert prior(asked, limit_s).duration_s(asked) > 0
