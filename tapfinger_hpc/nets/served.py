"""The network as it is served: the same weights and the same answers, without torch-geometric.

On a graph of a hundred nodes nearly all of torch-geometric's time goes into its many small calls (3.3 ms against 1.0 ms
here), and importing it takes 2 s and 150 MB more. So one decision sends the edges of all kinds through together. A
test holds this equal to ``network.Network`` for any graph.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, leaky_relu, linear

from tapfinger_hpc.graph import COLUMNS, EDGES
from tapfinger_hpc.nets.pointers import NetworkConfig, Pointers
from tapfinger_hpc.nets.tensors import GraphTensors, log_softmax

KINDS = tuple(COLUMNS)
SLOPE = 0.2
"""Of the leaky ReLU in GATv2Conv."""


class ServedNetwork(Pointers):
    """A network of these weights (a ``Network``'s state dict); later changes to them do not reach it.

    Raises:
        ValueError: names the weight that is missing, of another shape, or one too many.
    """

    def __init__(self, config: NetworkConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__(config)
        encoder = _Weights({name: value for name, value in weights.items() if name.startswith("encoder.")}, "encoder")
        self._enter = {kind: _Entry(encoder.below(f"enter.{kind}"), kind, config.hidden) for kind in KINDS}
        self._rounds = [_Round(encoder.below(f"rounds.{number}"), config) for number in range(config.rounds)]
        encoder.check_all_taken()
        try:
            self.load_state_dict({name: value for name, value in weights.items() if not name.startswith("encoder.")})
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        self.eval()

    def encode(self, graph: GraphTensors) -> dict[str, Tensor]:
        """Kind -> [graph nodes of that kind, hidden]; once per decision."""
        nodes = {kind: self._enter[kind](values) for kind, values in graph.features.items()}
        layout = _Layout(graph)
        for attention_round in self._rounds:
            nodes = attention_round(nodes, layout)
        return nodes


class _Weights:
    """Weights by name, each of which is taken once."""

    def __init__(self, values: dict[str, Tensor], prefix: str) -> None:
        self._values, self._prefix = values, prefix

    def below(self, name: str) -> "_Weights":
        return _Weights(self._values, f"{self._prefix}.{name}")

    def take(self, name: str, *shape: int) -> Tensor:
        full = f"{self._prefix}.{name}"
        value = self._values.pop(full, None)
        if value is None:
            raise ValueError(f"{full} is missing")
        if tuple(value.shape) != shape:
            raise ValueError(f"{full} has shape {tuple(value.shape)}, expected {shape}")
        return value.detach().clone()

    def layer(self, name: str, width_in: int, width_out: int) -> tuple[Tensor, Tensor]:
        return self.take(f"{name}.weight", width_out, width_in), self.take(f"{name}.bias", width_out)

    def check_all_taken(self) -> None:
        if self._values:
            raise ValueError(f"{next(iter(self._values))} is not a weight of this network")


class _Entry:
    """Features of one kind to its first embedding."""

    def __init__(self, weights: _Weights, kind: str, hidden: int) -> None:
        self._first = weights.layer("0", len(COLUMNS[kind]), hidden)
        self._second = weights.layer("2", hidden, hidden)

    def __call__(self, features: Tensor) -> Tensor:
        return linear(gelu(linear(features, *self._first)), *self._second)


class _Layout:
    """All edges as one list; sources and targets are counted through, kind of edge after kind of edge."""

    def __init__(self, graph: GraphTensors) -> None:
        sizes = {kind: len(graph.features[kind]) for kind in KINDS}
        sources, targets, kinds = [], [], []
        source_start = target_start = 0
        for position, edge in enumerate(EDGES):
            pairs = graph.edges[edge]
            sources.append(pairs[0] + source_start)
            targets.append(pairs[1] + target_start)
            kinds.append(torch.full((pairs.shape[1],), position))
            source_start += sizes[edge[0]]
            target_start += sizes[edge[2]]
        self.source = torch.cat(sources)  # int64 [edge]
        self.target = torch.cat(targets)  # int64 [edge]
        self.kind = torch.cat(kinds)  # int64 [edge] position in EDGES
        self.targets = target_start
        self.target_sizes = [sizes[edge[2]] for edge in EDGES]


class _Round:
    """One round of attention: for every kind of node one product with the weights of all edges it has a part in."""

    def __init__(self, weights: _Weights, config: NetworkConfig) -> None:
        self._hidden, self._heads = config.hidden, config.heads
        width = config.hidden // config.heads
        attention: dict[tuple[str, str, str], Tensor] = {}
        layers: dict[str, list[tuple[Tensor, Tensor]]] = {
            kind: [weights.layer(f"own.{kind}", config.hidden, config.hidden)] for kind in KINDS
        }
        asking: dict[str, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in KINDS}
        for edge in EDGES:
            conv = weights.below(f"attention.convs.<{'___'.join(edge)}>")
            attention[edge] = conv.take("att", 1, config.heads, width)
            layers[edge[0]].append(conv.layer("lin_l", config.hidden, config.hidden))
            asking[edge[2]].append(conv.layer("lin_r", config.hidden, config.hidden))
            # The bias of each attention comes to its target once, whatever it hears.
            layers[edge[2]][0][1].add_(conv.take("bias", config.hidden))
        self._attention = torch.cat([attention[edge] for edge in EDGES])  # [kind of edge, head, width]
        self._layers = {
            kind: (torch.cat([layer[0] for layer in both]), torch.cat([layer[1] for layer in both]))
            for kind in KINDS
            for both in [layers[kind] + asking[kind]]
        }
        norms = {kind: weights.below(f"norm.{kind}") for kind in KINDS}
        self._norm = {
            kind: (norm.take("weight", config.hidden), norm.take("bias", config.hidden)) for kind, norm in norms.items()
        }

    def __call__(self, nodes: dict[str, Tensor], layout: _Layout) -> dict[str, Tensor]:
        hidden = self._hidden
        parts: dict[str, Iterator[Tensor]] = {
            kind: iter(linear(nodes[kind], *self._layers[kind]).split(hidden, dim=1)) for kind in KINDS
        }
        own = {kind: next(parts[kind]) for kind in KINDS}
        told = torch.cat([next(parts[edge[0]]) for edge in EDGES])[layout.source]  # [edge, hidden]
        asked = torch.cat([next(parts[edge[2]]) for edge in EDGES])[layout.target]  # [edge, hidden]
        shape = (len(told), self._heads, hidden // self._heads)
        mixed = leaky_relu(told + asked, SLOPE).view(shape)
        scores = (mixed * self._attention[layout.kind]).sum(dim=2)  # [edge, head]
        shares = log_softmax(scores, layout.target, layout.targets).exp()
        messages = (told.view(shape) * shares[:, :, None]).reshape(-1, hidden)
        heard = told.new_zeros(layout.targets, hidden).index_add(0, layout.target, messages)
        for edge, part in zip(EDGES, heard.split(layout.target_sizes), strict=True):
            own[edge[2]] = own[edge[2]] + part
        return {kind: layer_norm(nodes[kind] + gelu(own[kind]), (hidden,), *self._norm[kind]) for kind in KINDS}
