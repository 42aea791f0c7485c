"""The real agent on the simulated cluster: it cannot tell, and the simulator's own loop does as it does."""

from pathlib import Path
from statistics import fmean

import msgspec
import pytest

from slurm_plugin.agent import Agent
from slurm_plugin.classes import ClassesFile
from slurm_plugin.journal import Journal
from tapfinger_hpc import workload
from tapfinger_hpc.config import AgentConfig
from tapfinger_hpc.policies import registry
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.sim.cluster import SimulatedCluster
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.state import ClusterState
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace
from tapfinger_hpc.wire import DecideResponse, PolicyInfo

SPEC = ClusterSpec.uniform()
LATENCY_S = 0.6


def with_agent(trace: Trace, folder: Path, **knobs: float) -> tuple[JobRecord, ...]:
    """The whole workload with the agent of slurm_plugin and the price heuristic in place of the server."""
    clock = SimClock(1_700_000_000.0)
    cluster = SimulatedCluster(SPEC, trace, clock, update_latency_s=LATENCY_S, **knobs)
    policy = registry.make("price")
    classes_file = folder / "classes.json"
    classes_file.write_bytes(msgspec.json.encode(trace.classes))
    config = AgentConfig(mode="enforce", hook_file="", disable_file="", wake_socket="")

    def decide(state: ClusterState) -> DecideResponse:
        return DecideResponse("answer", PolicyInfo(policy.name), policy.decide(state))

    with Journal.open(folder / "journal.sqlite") as journal:
        Agent(cluster, clock, decide, journal, config, classes=ClassesFile(classes_file)).run(lambda: cluster.finished)
    return cluster.records()


def test_the_agent_brings_a_workload_to_its_end_as_well_as_the_simulators_own_loop(tmp_path: Path):
    trace = workload.demo_trace(1)
    records = with_agent(trace, tmp_path)
    assert sorted(record.job_id for record in records) == sorted(item.job.job_id for item in trace.jobs)
    assert {record.outcome for record in records} == {"COMPLETED"}
    own = replay(trace, SPEC, registry.make("price"), update_latency_s=LATENCY_S, interval_s=1.0)
    assert fmean(record.completion_s for record in records) == pytest.approx(
        fmean(record.completion_s for record in own), rel=0.05
    )


def test_refused_updates_cost_the_agent_time_but_no_job(tmp_path: Path):
    trace = workload.demo_trace(2, foreign=0.2)
    records = with_agent(trace, tmp_path, refusal=0.3)
    assert len(records) == len(trace.jobs)
    assert {record.outcome for record in records} == {"COMPLETED"}
