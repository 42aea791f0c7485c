"""The network: tasks stay different, order and batch make no difference, one set of weights for any size."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster_states import job, node, running, speed, state
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.features.graph import COLUMNS, Graphs
from tapfinger_hpc.features.options import Options
from tapfinger_hpc.features.rows import Rows
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.live import ENV, View
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.policy_network import Embeddings, GraphTensors, PolicyNetwork, log_softmax
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.policies.decoding import WAIT, Decoder, Simulated
from tapfinger_hpc.sim import core, scenarios
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import ClusterState, Partition, Resources
from tapfinger_hpc.training import following
from tapfinger_hpc.training.batch import Batch, log_probability_of_chosen

torch.set_num_threads(1)  # as the policy and the training do
CLASSES = (JobClass("flat", speed(g1=100, g4=90)), JobClass("steep", speed(g1=400, g4=100)))
ONE = np.array([ENV])


@lru_cache
def network(rounds: int = 2) -> PolicyNetwork:
    """Weights that are never trained, and never changed by a test."""
    torch.manual_seed(3)
    return PolicyNetwork(NetworkConfig(hidden=32, rounds=rounds)).eval()


def busy(partitions: int = 3, jobs: int = 8) -> ClusterState:
    """Partitions of two nodes each, one of them half taken, and jobs of two classes."""
    nodes, parts, holding = [], [], []
    for number in range(partitions):
        first, second = f"n{2 * number:02}", f"n{2 * number + 1:02}"
        held = Resources(4 + number % 3, 1 + number % 3, 9000)
        nodes += [node(first), node(second, node(second).capacity - held)]
        parts.append(Partition(f"p{number:02}", (first, second)))
        holding.append(running(str(900 + number), second, held, job_class="flat", start_time_s=60 + number))
    waiting = [
        job(
            str(number),
            number,
            partitions=tuple(
                parts[(number + step) % partitions].name for step in range(1 + number % min(3, partitions))
            ),
            job_class=("flat", "steep", "")[number % 3],
        )
        for number in range(jobs)
    ]
    return state(*waiting, nodes=nodes, partitions=parts, running=tuple(holding), classes=CLASSES)


def graph_of(given: ClusterState) -> tuple[Frame, Graphs]:
    frame = View(given).frame
    return frame, graph.build(frame, ONE, measures.allocate(frame))


@torch.no_grad()
def encoded(net: PolicyNetwork, given: ClusterState) -> Embeddings:
    return net.encode(GraphTensors.of(graph_of(given)[1]))


def offered(frame: Frame) -> Options:
    waits = np.zeros(frame.member.shape[:2], np.bool_)
    return options.tasks(frame, ONE, waits, 0, measures.allocate(frame), options.no_advice(frame))


@torch.no_grad()
def task_log_probabilities(net: PolicyNetwork, given: ClusterState) -> tuple[Options, torch.Tensor, torch.Tensor]:
    frame, graphs = graph_of(given)
    here = offered(frame)
    found = net.log_probabilities(net.encode(GraphTensors.of(graphs)), Rows.of(graphs, ONE, here, task=True))
    return here, *found


def test_two_tasks_that_the_same_one_agent_can_reach_have_different_embeddings() -> None:
    given = state(job("1", job_class="flat"), job("2", job_class="steep"), classes=CLASSES)
    flat, steep = encoded(network(), given)["pending"]
    assert (flat - steep).norm() > 0.1 * flat.norm()


def test_many_rounds_of_attention_do_not_make_tasks_alike() -> None:
    spread = encoded(network(rounds=8), busy(jobs=20))["pending"].std(dim=0).mean()
    assert spread > 0.1


def test_a_task_hears_of_what_waits_and_runs_elsewhere() -> None:
    given = busy()
    changed = replace(given, running=given.running[:-1])
    before, after = encoded(network(), given)["pending"], encoded(network(), changed)["pending"]
    assert (before - after).abs().max() > 1e-4


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_embeddings_move_with_the_graph_nodes_when_these_are_listed_in_another_order(seed: int) -> None:
    net, built = network(), GraphTensors.of(graph_of(busy())[1])
    draw = np.random.default_rng(seed)
    order = {kind: torch.from_numpy(draw.permutation(len(values))) for kind, values in built.features.items()}
    place = {kind: torch.argsort(moved) for kind, moved in order.items()}
    shuffled = GraphTensors(
        {kind: values[order[kind]] for kind, values in built.features.items()},
        {
            edge: torch.stack([place[edge[0]][pairs[0]], place[edge[2]][pairs[1]]])[:, draw.permutation(pairs.shape[1])]
            for edge, pairs in built.edges.items()
        },
        built.owner,
        1,
    )
    with torch.no_grad():
        straight, moved = net.encode(built), net.encode(shuffled)
    for kind in COLUMNS:
        assert torch.allclose(straight[kind][order[kind]], moved[kind], atol=1e-5)


@pytest.mark.parametrize("partitions", [1, 2, 6, 24])
@pytest.mark.parametrize("jobs", [1, 40])
def test_one_set_of_weights_serves_any_number_of_partitions_and_jobs(partitions: int, jobs: int) -> None:
    _, of_options, of_waiting = task_log_probabilities(network(), busy(partitions, jobs))
    assert torch.isfinite(of_options).all()
    assert 1 <= len(of_waiting) <= partitions


def test_tasks_and_waiting_share_the_whole_probability_of_an_agent() -> None:
    here, of_options, of_waiting = task_log_probabilities(network(), busy())
    total = of_waiting.exp().index_add(0, torch.from_numpy(here.row_of), of_options.exp())
    assert torch.allclose(total, torch.ones(len(total)), atol=1e-5)


def test_the_amounts_depend_on_the_task_they_are_for() -> None:
    frame, graphs = graph_of(state(job("1", job_class="flat"), job("2", job_class="steep"), classes=CLASSES))
    zero = np.zeros(2, np.int64)
    places = options.places(frame, ONE, zero, zero, np.arange(2), measures.allocate(frame), options.no_advice(frame))
    with torch.no_grad():
        embeddings = network().encode(GraphTensors.of(graphs))
        of_places, _ = network().log_probabilities(embeddings, Rows.of(graphs, ONE, places, task=False))
    flat, steep = of_places[places.row_of == 0], of_places[places.row_of == 1]
    assert len(flat) != len(steep) or not torch.allclose(flat, steep, atol=1e-3)


@pytest.mark.slow
def test_torch_geometric_leaves_no_files_behind(tmp_path: Path) -> None:
    code = "from tapfinger_hpc.nets.policy_network import PolicyNetwork; PolicyNetwork()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("torch_geometric*")) == []


def test_log_probabilities_of_rows_are_those_of_torch() -> None:
    logits, row_of = torch.randn(7), torch.tensor([0, 2, 0, 2, 2, 0, 2])
    found = log_softmax(logits, row_of, 3)
    for row in (0, 2):
        assert torch.allclose(found[row_of == row], torch.log_softmax(logits[row_of == row], 0))


def test_the_loss_reaches_every_kind_of_graph_node_and_every_pointer() -> None:
    frame, truth = core.environments([scenarios.workload("hetero-6", seed) for seed in range(2)])
    decoder, envs, taught = Decoder(None, frame), np.arange(2), []
    for _ in range(8):
        follow = following.Follow(price.decide, price.DEFAULT, frame, envs)
        taught.append(decoder.decide(Simulated(frame, truth), envs, follow, record=True))
        for env in range(2):
            core.advance(frame, truth, env)
    net, batch = PolicyNetwork(NetworkConfig(hidden=16, heads=2)), Batch(taught)
    assert WAIT in batch.steps[0].chosen
    embeddings = net.encode(batch.graphs)
    sum(-log_probability_of_chosen(net, embeddings, step)[0].sum() for step in batch.steps).backward()
    parts = [f"encoder.enter.{kind}.0" for kind in COLUMNS] + ["task.row", "place.row", "task.pointed", "wait.0"]
    for part in parts:
        weight = net.get_parameter(f"{part}.weight")
        assert weight.grad is not None, part
        assert weight.grad.abs().sum() > 0, part


def test_numbers_that_training_never_shows_do_not_speak_when_the_network_serves() -> None:
    workloads = [scenarios.workload("hetero-6", seed) for seed in range(2)]
    net = PolicyNetwork(NetworkConfig(hidden=16, heads=2))
    taught = following.lessons(net, price.decide, price.DEFAULT, workloads, 0.0, np.random.default_rng(0))
    unseen = following.unseen(taught)
    assert unseen["node"].tolist() == ["mem" in name for name in COLUMNS["node"]]
    frame, graphs = graph_of(busy())
    silent = PolicyNetwork(NetworkConfig(hidden=16, heads=2))
    silent.silence(unseen)
    without = graphs._replace(
        **{kind: np.where(unseen[kind], np.float32(0), graphs.features[kind]) for kind in COLUMNS}
    )
    here = offered(frame)
    blanked = here._replace(
        agents=np.where(unseen["agent"], np.float32(0), here.agents),
        features=np.where(unseen["task"], np.float32(0), here.features),
    )
    found = []
    for seen, head in ((graphs, here), (without, blanked)):
        with torch.no_grad():
            embeddings = silent.encode(GraphTensors.of(seen))
            found.append(silent.log_probabilities(embeddings, Rows.of(seen, ONE, head, task=True)))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)
    assert not np.array_equal(graphs.node, without.node)
