"""What records of jobs say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapfinger_hpc.state import Resources
from tapfinger_hpc.stats import JobRecord, paired_reduction, percentile, reduction, summarise


def record(job_id: str, submit_s: float, start_s: float, end_s: float, gpus: int = 1, **fields) -> JobRecord:
    held = Resources(4, gpus, 8000)
    return JobRecord(job_id, submit_s, start_s, end_s, "pa", ("n1",), held, held, **fields)


def test_a_run_is_summed_up():
    made = summarise([record("1", 0, 10, 30, gpus=2), record("2", 20, 20, 100, outcome="TIMEOUT")], gpus=4)
    assert (made.jobs, made.not_completed, made.makespan_s) == (2, 1, 100)
    assert (made.mean_completion_s, made.median_completion_s) == (55, 55)
    assert (made.mean_waiting_s, made.mean_running_s) == (5, 50)
    assert made.gpu_use == pytest.approx((2 * 20 + 80) / 400)


def test_no_records_make_a_summary_of_zeros():
    assert summarise([], gpus=4).mean_completion_s == 0.0


def test_percentiles_lie_between_neighbours():
    assert percentile([10, 20, 30, 40, 50], 50) == 30
    assert percentile([10, 20], 95) == pytest.approx(19.5)
    assert percentile([7], 95) == 7


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=30), st.floats(0.1, 2.0))
def test_a_constant_factor_is_a_reduction_without_uncertainty(before, factor):
    made = reduction(before, [value * factor for value in before])
    assert made.value == pytest.approx(1 - factor)
    assert made.low == pytest.approx(made.high)


def test_the_interval_holds_the_value_and_is_wide_where_pairs_disagree():
    made = reduction([100, 100, 100, 100], [50, 60, 20, 90], seed=1)
    assert made.low < made.value < made.high
    assert made == reduction([100, 100, 100, 100], [50, 60, 20, 90], seed=1)


def test_jobs_of_two_runs_are_paired_by_id():
    stock = [record("1", 0, 0, 100), record("2", 0, 0, 50)]
    ours = [record("2", 0, 0, 50), record("1", 0, 0, 40)]
    assert paired_reduction(stock, ours).value == pytest.approx(0.4)


def test_runs_of_different_jobs_are_not_compared():
    with pytest.raises(ValueError, match="different jobs"):
        paired_reduction([record("1", 0, 0, 1)], [record("2", 0, 0, 1)])
    with pytest.raises(ValueError, match="expected as many"):
        reduction([1.0], [])
