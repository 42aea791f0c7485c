"""How much memory a class needs."""

import math
import random

import pytest

from tapfinger_hpc.state import Resources
from trace_tools.peaks import Need, below
from trace_tools.records import EndedJob
from trace_tools.seen import Seen


def seen_of(*peaks_mb: int, gpus: int = 1, granted_mb: int = 64_000) -> Seen:
    seen = Seen("c")
    for peak_mb in peaks_mb:
        seen.add(ended("COMPLETED", granted_mb, gpus, peak_mb))
    return seen


def ended(state: str, granted_mb: int, gpus: int = 1, peak_mb: int | None = None) -> EndedJob:
    amounts = Resources(4, gpus, granted_mb)
    return EndedJob(job_id="1", state=state, elapsed_s=60.0, granted=amounts, requested=amounts, max_rss_mb=peak_mb)


def test_the_distribution_function_is_that_of_the_normal():
    for deviation in (-3.0, -1.0, 0.0, 0.5, 2.0):
        assert float(below(deviation)) == pytest.approx(0.5 * (1 + math.erf(deviation / math.sqrt(2))), abs=1e-6)


@pytest.mark.parametrize(("count", "spread"), [(3, 0.05), (3, 0.3), (10, 0.15), (50, 0.05), (50, 0.3)])
def test_nearly_all_further_jobs_stay_below_the_need(count, spread):
    draw = random.Random(f"{count} {spread}")
    over = 0
    for _ in range(60):
        centre = draw.uniform(1000, 20_000)
        need_mb = Need(seen_of(*(round(draw.lognormvariate(math.log(centre), spread)) for _ in range(count)))).mem_mb(1)
        over += sum(draw.lognormvariate(math.log(centre), spread) > need_mb for _ in range(50))
    assert over / 3000 <= 0.03


def test_the_margin_narrows_with_the_jobs_that_were_seen():
    few, many = Need(seen_of(4000, 4100)), Need(seen_of(*(4000 + number % 100 for number in range(100))))
    assert few.mem_mb(1) > many.mem_mb(1) > 4099
    assert many.mem_mb(1) < 4099 * 1.25
    assert few.mem_mb(1) < 4100 * 2.5


def test_a_job_that_ran_out_of_memory_raises_the_need():
    seen = seen_of(3000, 3100, 2900)
    before_mb = Need(seen).mem_mb(1)
    for _ in range(2):
        seen.add(ended("OUT_OF_MEMORY", 4000))
    assert Need(seen).mem_mb(1) > max(before_mb, 4000)


def test_jobs_that_had_enough_hold_the_need_down():
    free, held = seen_of(3000, 3300), seen_of(3000, 3300, granted_mb=3600)
    assert Need(held).mem_mb(1) < Need(free).mem_mb(1)


def test_the_need_grows_with_the_gpus_as_the_peaks_do():
    seen = seen_of(*(2000 + number for number in range(10)))
    for number in range(10):
        seen.add(ended("COMPLETED", 64_000, 4, 8000 + number))
    need = Need(seen)
    assert 8000 < need.mem_mb(4) < 10_500
    assert 2000 < need.mem_mb(1) < need.mem_mb(2) < need.mem_mb(4) < need.mem_mb(8)


def test_without_a_peak_it_is_what_was_enough_and_as_much_for_each_further_gpu():
    seen = Seen("c")
    seen.add(ended("COMPLETED", 6000, 2))
    assert [Need(seen).mem_mb(gpus) for gpus in (1, 2, 4)] == [6000, 6000, 12_000]
    assert Need(Seen("c")).mem_mb(1) == 1
