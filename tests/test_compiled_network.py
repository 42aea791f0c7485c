"""The network that decides, without torch, is the one that is trained: the same numbers and the same decisions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc import checkpoint
from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.features.graph import Graphs
from tapfinger_hpc.features.rows import Rows
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.nets import compiled
from tapfinger_hpc.nets.compiled import CompiledNetwork, Encoded
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.policy_network import Embeddings, GraphTensors, PolicyNetwork
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.policies.decoding import WAIT, Decoder, Draw, Simulated, most_probable
from tapfinger_hpc.sim import core, scenarios

SEEDS = st.integers(0, 10_000)
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
"""float32 has 1e-7; sums of hundreds of products through some ten layers are taken in another order."""
torch.set_num_threads(1)


class WithTorch:
    """The network that is trained, as what decides."""

    def __init__(self, network: PolicyNetwork) -> None:
        self._network = network

    @torch.no_grad()
    def encode(self, graphs: Graphs) -> Embeddings:
        return self._network.encode(GraphTensors.of(graphs))

    @torch.no_grad()
    def log_probabilities(self, embeddings: Embeddings, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        of_options, of_waiting = self._network.log_probabilities(embeddings, rows)
        return of_options.numpy(), of_waiting.numpy()


def network(seed: int, hidden: int = 64, rounds: int = 2) -> PolicyNetwork:
    """Weights of another size for every part, so that no part is lost in the others."""
    torch.manual_seed(seed)
    made = PolicyNetwork(NetworkConfig(hidden=hidden, rounds=rounds)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(float(torch.rand(()) + 0.5)).add_(0.05 * torch.randn_like(parameter))
    return made


def some_way_in(seed: int, slots: int, names: tuple[str, ...], full: bool = False) -> tuple[Frame, core.Truth]:
    """Environments after a few slots in which tasks were placed at random, or (``full``) none was."""
    frame, truth = core.environments([scenarios.workload(name, seed + number) for number, name in enumerate(names)])
    envs, draw = np.arange(len(names)), Draw(np.random.default_rng(seed))

    def anything(offered, _of_options, _of_waiting):
        return draw(offered, np.zeros(len(offered.value)), None if offered.job[0] >= 0 else np.zeros(len(offered.env)))

    decoder = Decoder(None, frame)
    for _ in range(slots):
        if not full:
            decoder.decide(Simulated(frame, truth), envs, anything)
        for env in envs.tolist():
            core.advance(frame, truth, env)
    return frame, truth


def compare(trained: PolicyNetwork, frame: Frame, first: int | None = None) -> None:
    """Embeddings and probabilities of both forms on the states of a frame, or of the ``first`` so many."""
    served, scratch = trained.compiled(), measures.allocate(frame)
    envs = np.arange(len(frame.partitions) if first is None else first)
    advice = options.no_advice(frame)
    seen = graph.build(frame, envs, scratch)
    reference = WithTorch(trained)
    expected, found = reference.encode(seen), served.encode(seen)
    for kind in graph.KINDS:
        np.testing.assert_allclose(found.nodes[kind], expected[kind].numpy(), **CLOSE, err_msg=kind)
    offered = options.tasks(frame, envs, np.zeros(frame.member.shape[:2], bool), 0, scratch, advice)
    first = np.searchsorted(offered.row_of, np.arange(len(offered.env)))
    places = options.places(frame, envs, offered.env, offered.partition, offered.value[first], scratch, advice)
    for head, task in ((offered, True), (places, False)):
        rows = Rows.of(seen, envs, head, task=task)
        ours, theirs = served.log_probabilities(found, rows), reference.log_probabilities(expected, rows)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, other, **CLOSE)
    assert (len(offered.env) > 0) == bool(len(places.env))


@given(seed=SEEDS, slots=st.integers(0, 14), full=st.booleans(), rounds=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_the_network_that_is_served_is_the_one_that_is_trained(seed: int, slots: int, full: bool, rounds: int) -> None:
    frame, _ = some_way_in(seed, slots, ("random", "hetero-6", "random", "uniform-3"), full)
    compare(network(seed, rounds=rounds), frame)


@given(seed=SEEDS, slots=st.integers(0, 14), full=st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_weights_that_ship_are_served_as_they_were_trained(seed: int, slots: int, full: bool) -> None:
    weights, info = checkpoint.read(checkpoint.DEFAULT)
    trained = PolicyNetwork(info.network)
    trained.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    frame, _ = some_way_in(seed, slots, ("cluster", "hetero-6", "random", "cluster"), full)
    compare(trained.eval(), frame, first=4)


def test_graphs_without_waiting_or_running_tasks_are_served_as_well() -> None:
    frame, _ = some_way_in(1, 6, ("random", "hetero-6"))
    empty = frame.running_count.copy()
    for counts in ((frame.waiting_count,), (frame.running_count,), (frame.waiting_count, frame.running_count)):
        kept = [count.copy() for count in counts]
        for count in counts:
            count[:] = 0
        compare(network(2), frame)
        for count, before in zip(counts, kept, strict=True):
            count[:] = before
    assert (empty > 0).all()


class Both:
    """Decides with the served form, and notes what the trained one makes of the same options."""

    def __init__(self, network: PolicyNetwork) -> None:
        self._served, self._trained = network.compiled(), WithTorch(network)
        self.trained: list[tuple[np.ndarray, np.ndarray]] = []

    def encode(self, graphs: Graphs) -> tuple[Encoded, Embeddings]:
        return self._served.encode(graphs), self._trained.encode(graphs)

    def log_probabilities(self, embeddings: tuple[Encoded, Embeddings], rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        self.trained.append(self._trained.log_probabilities(embeddings[1], rows))
        return self._served.log_probabilities(embeddings[0], rows)


@pytest.mark.parametrize("name", ["hetero-6", "uniform-3", "random"])
@pytest.mark.parametrize("heeding", [False, True])
def test_both_forms_decide_alike_through_whole_episodes(name: str, heeding: bool) -> None:
    trained = network(5, hidden=32)
    if heeding:
        trained.heed(3.0)
    frame, truth = core.environments([scenarios.workload(name, seed) for seed in range(3)])
    both = Both(trained)
    decided = 0

    def choose(offered, of_options, of_waiting):
        nonlocal decided
        chosen = most_probable(offered, of_options, of_waiting)
        theirs = most_probable(offered, both.trained[-1][0], of_waiting if of_waiting is None else both.trained[-1][1])
        for row in np.flatnonzero(chosen != theirs):
            # Two options that are as good as each other may be told apart by the last digit.
            assert WAIT not in (chosen[row], theirs[row])
            np.testing.assert_allclose(of_options[chosen[row]], of_options[theirs[row]], **CLOSE)
        decided += len(chosen)
        return chosen

    decoder = Decoder(both, frame, price.DEFAULT if heeding else None)
    for _ in range(30):
        decoder.decide(Simulated(frame, truth), np.arange(3), choose)
        for env in range(3):
            core.advance(frame, truth, env)
    assert decided > 200


def test_the_smooth_step_of_both_forms_is_the_same() -> None:
    given_ = np.concatenate([np.linspace(-12, 12, 4_001), [-1e30, 1e30, 0.0]]).astype(np.float32)
    found = given_[:, None].copy()
    compiled._add_gelu(found, np.zeros(1, np.float32))
    expected = torch.nn.functional.gelu(torch.from_numpy(given_).double()).float().numpy()
    np.testing.assert_allclose(found[:, 0], expected, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("name", ["encoder.rounds.1.own.node.weight", "wait.0.bias", "encoder.enter.running.2.bias"])
def test_weights_that_are_missing_too_many_or_of_another_shape_are_not_served(name: str) -> None:
    trained = network(0, hidden=16)
    whole = trained.weights()
    for wrong in (
        {key: value for key, value in whole.items() if key != name},
        whole | {name: whole[name][:-1]},
        whole | {name + ".more": whole[name]},
    ):
        with pytest.raises(ValueError, match=name):
            CompiledNetwork(trained.config, wrong)


def test_what_is_learned_later_does_not_reach_a_network_that_is_served() -> None:
    frame, _ = some_way_in(4, 3, ("hetero-6",))
    trained = network(0, hidden=16)
    served = trained.compiled()
    seen = graph.build(frame, np.array([0]), measures.allocate(frame))
    before = served.encode(seen).nodes["node"]
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(served.encode(seen).nodes["node"], before)
