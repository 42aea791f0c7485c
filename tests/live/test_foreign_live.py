"""Jobs that are not ours, on real clusters: the demo's two, with a third of the jobs submitted without the mark."""

import pytest

from slurm_plugin.demo import report, run
from tapfinger_hpc import workload

pytestmark = pytest.mark.slurm


def test_others_jobs_wait_no_longer_beside_ours_than_on_stock_slurm(release):
    trace = workload.demo_trace(seed=3, n_jobs=60, load=1.1, mean_s=10.0, foreign=0.3)
    stock, ours = run.on_slurm(trace, trace.classes, "price", lambda sides, elapsed_s, hint: None, release=release)
    # Jobs without the mark got exactly what they asked for, on both sides.
    for record in (*stock, *(record for record in ours if not record.managed)):
        assert record.amounts == record.requested
    assert any(record.amounts != record.requested for record in ours if record.managed)
    waits = report.foreign_waits(stock, ours)
    assert waits is not None
    before_s, after_s = waits
    assert before_s > 1.0  # there is something to lose
    assert after_s <= 1.10 * before_s
