"""The network without torch: the same weights and the same answers, from numpy and compiled loops.

One state is a graph of a hundred nodes, on which nearly all of torch's time goes into its many small calls, and
importing torch and torch-geometric takes seconds and 300 MB. Here what a kind of graph node tells and asks in all its
edges is one product, and what does not change from round to round of a decision is worked out once. Tests hold this
equal to ``policy_network.PolicyNetwork``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from tapfinger_hpc.features.graph import COLUMNS, EDGES, KINDS, Graphs
from tapfinger_hpc.features.options import AGENT_COLUMNS, PLACE_COLUMNS, TASK_COLUMNS
from tapfinger_hpc.features.rows import Rows
from tapfinger_hpc.nets.config import NetworkConfig

Array = np.ndarray
LISTENING = tuple(kind for kind in KINDS if any(edge[2] == kind for edge in EDGES))
"""Kinds that hear others; what a running job is does not depend on what waits."""
# Sums may be taken in any order, so that several are under way at once.
_fast: Any = numba.njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz"},
)
_SLOPE = np.float32(0.2)
"""Of the leaky ReLU in GATv2Conv."""
_EPSILON = np.float32(1e-5)
"""Of LayerNorm."""


@dataclass(frozen=True)
class Encoded:
    """A state as the network sees it, and those parts of the pointers' sums that hold for the whole decision."""

    nodes: dict[str, Array]
    """Kind -> float32 [graph nodes of that kind, hidden]."""
    of_partitions: Array  # float32 [partition, 3 * hidden] for tasks, waiting and places
    of_pending: Array  # float32 [pending, 2 * hidden] as what tasks are chosen from, and as what a place is chosen for
    of_nodes: Array  # float32 [node, hidden]


class CompiledNetwork:
    """A network of these weights (by name, as in ``PolicyNetwork.state_dict``); later changes to them do not reach it.

    Raises:
        ValueError: names the weight that is missing, of another shape, or one too many.
    """

    def __init__(self, config: NetworkConfig, weights: Mapping[str, Array]) -> None:
        # One decision is too small to share out; more threads only make it wait for them.
        threadpool_limits(limits=1, user_api="blas")
        self.config = config
        hidden, agent = config.hidden, len(AGENT_COLUMNS)
        taken = _Weights(dict(weights))
        encoder = taken.below("encoder")
        self._enter = {kind: _Entry(encoder.below(f"enter.{kind}"), len(COLUMNS[kind]), hidden) for kind in KINDS}
        self._rounds = [_Round(encoder.below(f"rounds.{number}"), config) for number in range(config.rounds)]
        self._task = _Pointer(taken.below("task"), hidden + agent, len(TASK_COLUMNS), hidden)
        self._place = _Pointer(taken.below("place"), 2 * hidden + agent, len(PLACE_COLUMNS), hidden)
        wait, wait_bias = taken.layer("wait.0", hidden + agent, hidden)
        self._wait = _Score(taken, "wait.2", "wait_direct", wait_bias, agent)
        taken.check_all_taken()
        self._of_partitions = _beside(self._task.row[:hidden], wait[:hidden], self._place.row[:hidden])
        self._of_pending = _beside(self._task.pointed, self._place.row[hidden : 2 * hidden])
        self._agents = _beside(self._task.row[hidden:], wait[hidden:])
        self._place_agents = np.ascontiguousarray(self._place.row[2 * hidden :])

    def encode(self, graphs: Graphs) -> Encoded:
        """Once per decision."""
        nodes = {kind: self._enter[kind](values) for kind, values in graphs.features.items()}
        for attention_round in self._rounds:
            nodes = attention_round(nodes, graphs)
        return Encoded(
            nodes,
            nodes["partition"] @ self._of_partitions,
            nodes["pending"] @ self._of_pending,
            nodes["node"] @ self._place.pointed,
        )

    def log_probabilities(self, encoded: Encoded, rows: Rows) -> tuple[Array, Array]:
        """Of every option [option] and, where tasks are chosen, of waiting [row] (otherwise empty)."""
        hidden = self.config.hidden
        if rows.task:
            known = rows.agents @ self._agents  # [row, for tasks + for waiting]
            _add_rows(known, 0, encoded.of_partitions, 0, rows.partitions, 2 * hidden)
            waiting = self._wait(known, hidden, rows.agents)
            logits = self._task(known, rows, encoded.of_pending)
        else:
            known = rows.agents @ self._place_agents
            _add_rows(known, 0, encoded.of_partitions, 2 * hidden, rows.partitions, hidden)
            _add_rows(known, 0, encoded.of_pending, hidden, rows.jobs, hidden)
            waiting = np.empty(0, np.float32)
            logits = self._place(known, rows, encoded.of_nodes)
        _log_softmax(logits, rows.row_of, waiting, rows.count)
        return logits, waiting


class _Weights:
    """Weights by name, each of which is taken once."""

    def __init__(self, values: dict[str, Array], prefix: str = "") -> None:
        self._values, self._prefix = values, prefix

    def below(self, name: str) -> "_Weights":
        return _Weights(self._values, f"{self._prefix}{name}.")

    def take(self, name: str, *shape: int) -> Array:
        full = f"{self._prefix}{name}"
        value = self._values.pop(full, None)
        if value is None:
            raise ValueError(f"{full} is missing")
        if value.shape != shape:
            raise ValueError(f"{full} has shape {value.shape}, expected {shape}")
        return np.array(value, np.float32)

    def matrix(self, name: str, width_in: int, width_out: int) -> Array:
        """[in, out]: torch keeps them the other way round."""
        return np.ascontiguousarray(self.take(f"{name}.weight", width_out, width_in).T)

    def layer(self, name: str, width_in: int, width_out: int) -> tuple[Array, Array]:
        return self.matrix(name, width_in, width_out), self.take(f"{name}.bias", width_out)

    def check_all_taken(self) -> None:
        if self._values:
            raise ValueError(f"{next(iter(self._values))} is not a weight of this network")


def _beside(*matrices: Array) -> Array:
    return np.ascontiguousarray(np.concatenate(matrices, axis=1))


class _Entry:
    """Features of one kind to its first embedding."""

    def __init__(self, weights: _Weights, columns: int, hidden: int) -> None:
        self._first, self._first_bias = weights.layer("0", columns, hidden)
        self._second, self._second_bias = weights.layer("2", hidden, hidden)

    def __call__(self, features: Array) -> Array:
        inner = features @ self._first
        _add_gelu(inner, self._first_bias)
        entered: Array = inner @ self._second
        entered += self._second_bias
        return entered


class _Round:
    """One round of attention: for every kind of graph node one product with the weights of all edges it is part of."""

    def __init__(self, weights: _Weights, config: NetworkConfig) -> None:
        hidden = config.hidden
        layers: dict[str, list[tuple[Array, Array]]] = {kind: [] for kind in KINDS}
        for kind in LISTENING:
            layers[kind].append(weights.layer(f"own.{kind}", hidden, hidden))
        self._attention: dict[tuple[str, str, str], tuple[int, int, Array]] = {}
        for edge in EDGES:
            convolution = weights.below(f"attention.{edge[1]}")
            told_at, asking_at = len(layers[edge[0]]) * hidden, len(layers[edge[2]]) * hidden
            layers[edge[0]].append(convolution.layer("lin_l", hidden, hidden))
            layers[edge[2]].append(convolution.layer("lin_r", hidden, hidden))
            # The bias of each attention comes to its target once, whatever it hears.
            layers[edge[2]][0][1][:] += convolution.take("bias", hidden)
            attention = convolution.take("att", 1, config.heads, hidden // config.heads)[0]
            self._attention[edge] = (told_at, asking_at, np.ascontiguousarray(attention))
        self._layers = {
            kind: (_beside(*(matrix for matrix, _ in parts)), np.concatenate([bias for _, bias in parts]))
            for kind, parts in layers.items()
        }
        norms = {kind: weights.below(f"norm.{kind}") for kind in LISTENING}
        self._norms = {kind: (norm.take("weight", hidden), norm.take("bias", hidden)) for kind, norm in norms.items()}

    def __call__(self, nodes: dict[str, Array], graphs: Graphs) -> dict[str, Array]:
        parts = {}
        for kind, (matrix, bias) in self._layers.items():
            parts[kind] = nodes[kind] @ matrix  # [graph node, own + what it tells and asks in each kind of edge]
            parts[kind] += bias
        edges = graphs.edges
        for edge, (told_at, asking_at, attention) in self._attention.items():
            source, target = edges[edge]
            _attend(parts[edge[2]], asking_at, parts[edge[0]], told_at, target, source, attention)
        return nodes | {kind: _renewed(nodes[kind], parts[kind], *norm) for kind, norm in self._norms.items()}


class _Score:
    """A number for each row: of what is known of it, through one more layer of units, and directly of its features."""

    def __init__(self, weights: _Weights, name: str, direct: str, inner_bias: Array, features: int) -> None:
        matrix, self._bias = weights.layer(name, len(inner_bias), 1)
        self._inner_bias, self._weight = inner_bias, np.ascontiguousarray(matrix[:, 0])
        self._direct = np.ascontiguousarray(weights.matrix(direct, features, 1)[:, 0])

    def __call__(self, inner: Array, at: int, features: Array) -> Array:
        """[row] of ``inner`` from column ``at`` on."""
        scores: Array = _scores(inner, at, self._inner_bias, self._weight, features, self._direct, self._bias)
        return scores


class _Pointer:
    """Scores options of a row from what the row knows, what each option is, and its features."""

    def __init__(self, weights: _Weights, row_width: int, feature_width: int, hidden: int) -> None:
        self.row, self._row_bias = weights.layer("row", row_width, hidden)
        self.pointed = weights.matrix("pointed", hidden, hidden)
        self._features = weights.matrix("features", feature_width, hidden)
        self._inner, inner_bias = weights.layer("inner", hidden, hidden)
        self._score = _Score(weights, "score", "direct", inner_bias, feature_width)

    def __call__(self, known: Array, rows: Rows, of_pointed: Array) -> Array:
        """[option] logits; ``known`` [row, hidden or more], ``of_pointed`` [graph node, hidden or more]."""
        mixed = rows.features @ self._features
        _mix(mixed, self._row_bias, known, rows.row_of, of_pointed, rows.pointed)
        return self._score(mixed @ self._inner, 0, rows.features)


_ONE, _HALF, _FOUR, _ROOT_HALF = (np.float32(value) for value in (1.0, 0.5, 4.0, np.sqrt(0.5)))
_O0, _O1, _O2, _O3, _O4, _O5, _O6 = (
    np.float32(value)
    for value in (
        -1.60960333262415e-02,
        -2.95459980854025e-03,
        -7.34990630326855e-04,
        -5.69250639462346e-05,
        -2.10102402082508e-06,
        2.77068142495902e-08,
        -2.72614225801306e-10,
    )
)
_U0, _U1, _U2, _U3, _U4 = (
    np.float32(value)
    for value in (
        -1.42647390514189e-02,
        -7.37332916720468e-03,
        -1.68282697438203e-03,
        -2.13374055278905e-04,
        -1.45660718464996e-05,
    )
)


@_fast
def _gelu(value: np.floating) -> np.floating:
    """value * Phi(value), with the rational approximation of erf that Eigen and XLA use for float32: it is as exact as
    float32 is, and unlike the library's worked out for many values at once.
    """
    bounded = min(max(value * _ROOT_HALF, -_FOUR), _FOUR)
    square = bounded * bounded
    over = (((((_O6 * square + _O5) * square + _O4) * square + _O3) * square + _O2) * square + _O1) * square + _O0
    under = (((_U4 * square + _U3) * square + _U2) * square + _U1) * square + _U0
    return _HALF * value * (_ONE + bounded * over / under)


@_fast
def _add_gelu(values: Array, bias: Array) -> None:
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            values[row, column] = _gelu(values[row, column] + bias[column])


@_fast
def _attend(
    heard: Array, asking_at: int, told: Array, told_at: int, target: Array, source: Array, attention: Array
) -> None:
    """GATv2: adds to the first columns of every row of ``heard`` what its edges tell it, each by its share."""
    edges, (heads, width) = len(target), attention.shape
    shares = np.empty((edges, heads), np.float32)
    greatest = np.full((len(heard), heads), -np.inf, np.float32)
    total = np.zeros((len(heard), heads), np.float32)
    for edge in range(edges):
        to, of = target[edge], source[edge]
        for head in range(heads):
            score = np.float32(0)
            for place in range(width):
                column = head * width + place
                mixed = told[of, told_at + column] + heard[to, asking_at + column]
                score += attention[head, place] * max(mixed, _SLOPE * mixed)
            shares[edge, head] = score
            greatest[to, head] = max(greatest[to, head], score)
    for edge in range(edges):
        for head in range(heads):
            shares[edge, head] = np.exp(shares[edge, head] - greatest[target[edge], head])
            total[target[edge], head] += shares[edge, head]
    for edge in range(edges):
        to, of = target[edge], source[edge]
        for head in range(heads):
            share = shares[edge, head] / total[to, head]
            for column in range(head * width, (head + 1) * width):
                heard[to, column] += share * told[of, told_at + column]


@_fast
def _renewed(nodes: Array, heard: Array, weight: Array, bias: Array) -> Array:
    """What graph nodes are after a round: the LayerNorm of what they were and what they heard."""
    count, hidden = nodes.shape
    renewed = np.empty((count, hidden), np.float32)
    for row in range(count):
        mean, spread = np.float32(0), np.float32(0)
        for column in range(hidden):
            value = nodes[row, column] + _gelu(heard[row, column])
            renewed[row, column] = value
            mean += value
        mean /= np.float32(hidden)
        for column in range(hidden):
            away = renewed[row, column] - mean
            spread += away * away
        scale = _ONE / np.sqrt(spread / np.float32(hidden) + _EPSILON)
        for column in range(hidden):
            renewed[row, column] = (renewed[row, column] - mean) * scale * weight[column] + bias[column]
    return renewed


@_fast
def _add_rows(into: Array, at: int, table: Array, table_at: int, index: Array, width: int) -> None:
    """Adds to every row of ``into`` the row of the table that ``index`` names; so many columns, from these on."""
    for row in range(len(index)):
        for column in range(width):
            into[row, at + column] += table[index[row], table_at + column]


@_fast
def _mix(mixed: Array, bias: Array, known: Array, row_of: Array, of_pointed: Array, pointed: Array) -> None:
    for option in range(mixed.shape[0]):
        for column in range(mixed.shape[1]):
            value = mixed[option, column] + bias[column] + known[row_of[option], column]
            mixed[option, column] = _gelu(value + of_pointed[pointed[option], column])


@_fast
def _scores(
    inner: Array, at: int, inner_bias: Array, weight: Array, features: Array, direct: Array, bias: Array
) -> Array:
    scores = np.empty(len(inner), np.float32)
    for row in range(len(inner)):
        score = bias[0]
        for column in range(len(weight)):
            score += weight[column] * _gelu(inner[row, at + column] + inner_bias[column])
        for column in range(len(direct)):
            score += direct[column] * features[row, column]
        scores[row] = score
    return scores


@_fast
def _log_softmax(logits: Array, row_of: Array, waiting: Array, rows: int) -> None:
    """Turns logits into log probabilities within each row, together with waiting where there is such."""
    greatest = np.full(rows, -np.inf, np.float32)
    total = np.zeros(rows, np.float32)
    for row in range(len(waiting)):
        greatest[row] = waiting[row]
    for option in range(len(logits)):
        greatest[row_of[option]] = max(greatest[row_of[option]], logits[option])
    for row in range(len(waiting)):
        total[row] = np.exp(waiting[row] - greatest[row])
    for option in range(len(logits)):
        total[row_of[option]] += np.exp(logits[option] - greatest[row_of[option]])
    for row in range(rows):
        greatest[row] += np.log(total[row])
    for row in range(len(waiting)):
        waiting[row] -= greatest[row]
    for option in range(len(logits)):
        logits[option] -= greatest[row_of[option]]
