"""What `tapfinger bench decision` measures: states of the size that it says, and figures that hang together."""

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from tapfinger_hpc import checkpoint
from tapfinger_hpc.policies import bench
from tapfinger_hpc.policies.bench import DecisionFigures, Pace
from tapfinger_hpc.policies.learned import LearnedPolicy


def holds(pace: Pace, count: int) -> None:
    assert pace.count == count
    assert pace.placed > 0
    assert 0 < pace.best_ms <= pace.median_ms <= pace.p95_ms
    assert pace.median_cpu_ms > 0


def test_in_a_crowded_slot_each_of_six_agents_has_ten_tasks_and_something_can_be_placed() -> None:
    for frame, truth in bench._crowded(3):
        assert frame.seen[0].sum(axis=0).tolist() == [10] * 6
        assert (frame.free[0, :, 1] > 0).any()
        assert truth.windowed[0].tolist() == [10] * 6


def test_a_busy_cluster_holds_what_its_nodes_lack_and_has_as_many_jobs_as_asked_for() -> None:
    state = bench._busy(3, 2, 7, 1)
    assert (len(state.partitions), len(state.nodes), len(state.pending)) == (3, 6, 7)
    held = {node.name: node.free for node in state.nodes}
    for running in state.running:
        for share in running.shares:
            held[share.node] = held[share.node] + share.amounts
    assert all(held[node.name] == node.capacity for node in state.nodes)
    assert bench._busy(3, 2, 7, 1) == state


def test_decisions_are_measured_without_the_first() -> None:
    network, info = checkpoint.load(checkpoint.DEFAULT)
    holds(bench.simulated(network, info, 2), 2)
    holds(bench.live(LearnedPolicy(network, info=info), 3, 1, 12, 2), 2)


@pytest.mark.slow
def test_the_command_writes_what_it_shows(tmp_path) -> None:
    file = tmp_path / "decision.json"
    done = CliRunner().invoke(bench.decision, ["--states", "2", "--json", str(file)])
    assert done.exit_code == 0, done.output
    figures = msgspec.json.decode(file.read_bytes(), type=DecisionFigures)
    assert figures.weights == checkpoint.describe(checkpoint.DEFAULT).fingerprint
    assert figures.weights in done.output
    assert len(figures.paces) == 3
    assert np.all([pace.count == 2 for pace in figures.paces])
