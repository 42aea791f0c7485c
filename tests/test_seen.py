"""What is kept of the jobs of a class."""

import copy
import math
import random
from statistics import fmean

import msgspec
import pytest

from tapfinger_hpc.state import Resources
from trace_tools.records import EndedJob
from trace_tools.seen import LASTING, MOST_BOUNDS, MOST_CELLS, Seen, Sums, stepped


def job(elapsed_s: float = 100.0, cpus: int = 4, gpus: int = 1, mem_mb: int = 8000, **fields) -> EndedJob:
    values = {"job_id": "1", "state": "COMPLETED", "elapsed_s": elapsed_s}
    amounts = Resources(cpus, gpus, mem_mb)
    return EndedJob(granted=amounts, requested=amounts, **(values | fields))


def test_sums_are_those_of_all_values():
    values = [math.log(seconds) for seconds in (80.0, 100.0, 130.0, 95.0)]
    sums = Sums()
    for value in values:
        sums.add(value)
    assert sums.count == 4
    assert sums.mean == pytest.approx(fmean(values))
    assert sums.squares == pytest.approx(sum((value - fmean(values)) ** 2 for value in values))


def test_of_very_many_jobs_the_older_ones_fade():
    sums = Sums()
    for _ in range(1000):
        sums.add(1.0)
    for _ in range(3 * int(LASTING)):
        sums.add(2.0)
    assert sums.count == LASTING
    assert 1.9 < sums.mean <= 2.0


def test_jobs_on_the_same_amounts_are_one_cell_and_types_of_gpus_are_kept_apart():
    seen = Seen("c")
    for elapsed_s in (90.0, 110.0):
        seen.add(job(elapsed_s))
    seen.add(job(50.0, gpus=2))
    seen.add(job(30.0, gpu_type="a100"))
    assert sorted((cell.gpus, cell.gpu_type, cell.log_s.count) for cell in seen.cells) == [
        (1, "", 2),
        (1, "a100", 1),
        (2, "", 1),
    ]
    assert seen.finished == 4


def test_a_job_that_did_not_finish_is_a_bound_and_no_duration():
    seen = Seen("c")
    for state in ("TIMEOUT", "CANCELLED", "PREEMPTED", "NODE_FAIL"):
        seen.add(job(3600.0, state=state))
    seen.add(job(60.0, state="FAILED"))
    assert seen.cells == []
    assert [bound.log_s for bound in seen.bounds] == [pytest.approx(math.log(3600))]
    assert seen.bounds[0].count == 4
    assert (seen.finished, seen.unfinished) == (0, 5)


def test_jobs_whose_work_never_ran_or_ran_on_several_nodes_are_counted_and_teach_nothing():
    seen = Seen("c")
    seen.add(job(5.0, state="LAUNCH_FAILED"))
    seen.add(job(500.0, nodes=2))
    assert (seen.unfinished, seen.several_nodes) == (1, 1)
    assert not seen.cells
    assert not seen.bounds
    assert not seen.enough


def test_what_is_kept_does_not_grow_with_the_jobs():
    draw = random.Random(1)
    seen = Seen("c")
    for _ in range(3000):
        state = draw.choice(("COMPLETED", "TIMEOUT", "OUT_OF_MEMORY"))
        seen.add(
            job(draw.uniform(1, 1e5), draw.randint(1, 256), draw.randint(0, 8), draw.randint(1, 10**6), state=state)
        )
    assert len(seen.cells) <= MOST_CELLS
    assert len(seen.bounds) <= MOST_BOUNDS
    assert seen.finished + seen.unfinished == 3000


def test_memory_is_kept_as_peaks_enough_and_too_little():
    seen = Seen("c")
    seen.add(job(mem_mb=8000, max_rss_mb=3000))
    seen.add(job(mem_mb=6000, max_rss_mb=3500))
    seen.add(job(mem_mb=2000, max_rss_mb=1999, state="OUT_OF_MEMORY"))
    assert (seen.peaks[0].log_mb.count, seen.peaks[0].greatest_mb) == (2, 3500)
    assert seen.enough[0].mem_mb == 6000
    assert seen.short[0].mem_mb == 2000


def test_what_is_kept_goes_to_a_file_and_on_from_there():
    jobs = [job(50.0 + number, cpus=1 + number % 3, max_rss_mb=1000 + number) for number in range(40)]
    at_once, in_two = Seen("c"), Seen("c")
    for one in jobs:
        at_once.add(one)
    for one in jobs[:20]:
        in_two.add(one)
    in_two = msgspec.json.decode(msgspec.json.encode(in_two), type=Seen)
    for one in copy.copy(jobs[20:]):
        in_two.add(one)
    assert in_two == at_once


@pytest.mark.parametrize("mem_mb", [1, 7, 4096, 5000, 10**6])
def test_memory_in_steps_is_within_a_tenth(mem_mb):
    assert stepped(mem_mb) == pytest.approx(mem_mb, rel=0.1, abs=0.5)
    assert stepped(0) == 0
