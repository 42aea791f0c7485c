"""Jobs that are not ours, over many simulated workloads; tests/live holds the same on a real Slurm."""

from statistics import fmean

import pytest

from tapfinger_hpc import workload
from tapfinger_hpc.policies import registry
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.run import replay


@pytest.mark.slow
def test_others_jobs_wait_no_longer_beside_ours_than_on_stock_slurm():
    spec, price = ClusterSpec.uniform(), registry.make("price")
    stock_waits, our_waits = [], []
    for seed in range(8):
        trace = workload.demo_trace(seed, 60, load=1.0, foreign=0.3)
        others = {item.job.job_id for item in trace.jobs if not item.job.managed}
        assert 5 <= len(others) <= 35
        stock_waits += [record.waiting_s for record in replay(trace, spec) if record.job_id in others]
        our_waits += [record.waiting_s for record in replay(trace, spec, price) if record.job_id in others]
    assert fmean(stock_waits) > 3.0  # there is something to lose
    assert fmean(our_waits) <= 1.10 * fmean(stock_waits)
