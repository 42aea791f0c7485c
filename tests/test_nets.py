"""The network: tasks stay different, order and batch make no difference, one set of weights for any size."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster_states import job, node, running, speed, state, states
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tapfinger_hpc import graph
from tapfinger_hpc.graph import COLUMNS, Graph
from tapfinger_hpc.nets.network import Network, NetworkConfig
from tapfinger_hpc.nets.served import ServedNetwork
from tapfinger_hpc.nets.tensors import GraphTensors, graph_tensors, log_softmax, option_tensors, side_by_side
from tapfinger_hpc.policies.minimum import MinimumPolicy
from tapfinger_hpc.policies.price import PricePolicy
from tapfinger_hpc.room import Pick, Room
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import ClusterState, Partition, Resources
from tapfinger_hpc.training.examples import WAIT, collate, label
from tapfinger_hpc.training.imitation import loss_of

torch.set_num_threads(1)  # as the policy and the training do
CLASSES = (JobClass("flat", speed(g1=100, g4=90)), JobClass("steep", speed(g1=400, g4=100)))


@lru_cache
def network(rounds: int = 2) -> Network:
    """Weights that are never trained, and never changed by a test."""
    torch.manual_seed(3)
    return Network(NetworkConfig(hidden=32, rounds=rounds)).eval()


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


def encoded(net: Network, *given: ClusterState) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return net.encode(side_by_side([graph_tensors(graph.build(each)) for each in given]))


def task_log_probabilities(net: Network, built: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    options = Room(built).tasks()
    assert options is not None
    with torch.inference_mode():
        return net.log_probabilities(net.encode(graph_tensors(built)), option_tensors(built, options))


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
    net, built = network(), graph_tensors(graph.build(busy()))
    draw = np.random.default_rng(seed)
    order = {kind: torch.from_numpy(draw.permutation(len(values))) for kind, values in built.features.items()}
    place = {kind: torch.argsort(moved) for kind, moved in order.items()}
    shuffled = GraphTensors(
        {kind: values[order[kind]] for kind, values in built.features.items()},
        {
            edge: torch.stack([place[edge[0]][pairs[0]], place[edge[2]][pairs[1]]])[:, draw.permutation(pairs.shape[1])]
            for edge, pairs in built.edges.items()
        },
    )
    with torch.inference_mode():
        straight, moved = net.encode(built), net.encode(shuffled)
    for kind in COLUMNS:
        assert torch.allclose(straight[kind][order[kind]], moved[kind], atol=1e-5)


def test_a_batch_of_graphs_gives_every_row_the_probabilities_that_it_gets_alone() -> None:
    net, teacher = network(), MinimumPolicy()
    given = [busy(1, 3), busy(4, 15), busy(2, 1), busy(3, 30)]
    examples = [label(each, teacher.decide(each)) for each in given]
    batch = collate([example for example in examples if example is not None])
    with torch.inference_mode():
        embeddings = net.encode(batch.graph)
        for head, together in batch.heads.items():
            one_by_one = [
                net.log_probabilities(net.encode(each.graph), each.heads[head].options)
                for each in examples
                if each is not None
            ]
            of_options, of_waiting = net.log_probabilities(embeddings, together.options)
            assert torch.allclose(of_options, torch.cat([each[0] for each in one_by_one]), atol=1e-5), head
            assert torch.allclose(of_waiting, torch.cat([each[1] for each in one_by_one]), atol=1e-5), head


@pytest.mark.parametrize("partitions", [1, 2, 6, 24])
@pytest.mark.parametrize("jobs", [1, 40])
def test_one_set_of_weights_serves_any_number_of_partitions_and_jobs(partitions: int, jobs: int) -> None:
    of_options, of_waiting = task_log_probabilities(network(), graph.build(busy(partitions, jobs)))
    assert torch.isfinite(of_options).all()
    assert 1 <= len(of_waiting) <= partitions


def test_tasks_and_waiting_share_the_whole_probability_of_an_agent() -> None:
    built = graph.build(busy())
    options = Room(built).tasks()
    assert options is not None
    of_options, of_waiting = task_log_probabilities(network(), built)
    total = of_waiting.exp().index_add(0, torch.from_numpy(options.row_of), of_options.exp())
    assert torch.allclose(total, torch.ones(len(total)), atol=1e-5)


def test_the_amounts_depend_on_the_task_they_are_for() -> None:
    net, built = network(), graph.build(state(job("1", job_class="flat"), job("2", job_class="steep"), classes=CLASSES))
    with torch.inference_mode():
        options = option_tensors(built, Room(built).amounts_for("gpus", [Pick(0, 0, 0), Pick(0, 1, 0)]))
        of_options, _ = net.log_probabilities(net.encode(graph_tensors(built)), options)
    flat, steep = of_options[options.row_of == 0], of_options[options.row_of == 1]
    assert len(flat) != len(steep) or not torch.allclose(flat, steep, atol=1e-3)


@given(states())
@settings(max_examples=40, deadline=None)
def test_the_network_that_is_served_is_the_one_that_is_trained(given: ClusterState) -> None:
    net, built = network(rounds=3), graph.build(given)
    served, tensors, options = ServedNetwork(net.config, net.state_dict()), graph_tensors(built), Room(built).tasks()
    with torch.inference_mode():
        trained, same = net.encode(tensors), served.encode(tensors)
        for kind in COLUMNS:
            assert torch.allclose(trained[kind], same[kind], atol=1e-5), kind
        if options is not None:
            offered = option_tensors(built, options)
            for ours, theirs in zip(
                net.log_probabilities(trained, offered), served.log_probabilities(same, offered), strict=True
            ):
                assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["encoder.rounds.1.own.node.weight", "wait.0.bias", "encoder.enter.running.2.bias"])
def test_weights_that_are_missing_too_many_or_of_another_shape_are_not_served(name: str) -> None:
    whole = network().state_dict()
    for wrong in (
        {key: value for key, value in whole.items() if key != name},
        whole | {name: whole[name][:-1]},
        whole | {name + ".more": whole[name]},
    ):
        with pytest.raises(ValueError, match=name):
            ServedNetwork(network().config, wrong)


@pytest.mark.slow
def test_serving_needs_no_torch_geometric_and_training_leaves_no_files_of_it(tmp_path: Path) -> None:
    code = """
import sys
from tapfinger_hpc.policies.learned import LearnedPolicy
assert not {"torch_geometric", "scipy"} & set(sys.modules)
from tapfinger_hpc.nets.network import Network
Network()
"""
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
    given, teacher, net = busy(6, 12), PricePolicy(), network()
    example = label(given, teacher.decide(given))
    assert example is not None
    assert WAIT in example.heads["task"].labels.tolist()
    net.zero_grad()
    loss_of(net, collate([example])).backward()
    parts = [f"encoder.enter.{kind}.0" for kind in COLUMNS] + [f"pointers.{head}.row" for head in example.heads]
    for part in [*parts, "wait.0"]:
        weight = net.get_parameter(f"{part}.weight")
        assert weight.grad is not None, part
        assert weight.grad.abs().sum() > 0 or part == "pointers.mem.row", part
