"""The encoder once more, for one small graph at a time: same weights, same embeddings, a fraction of the calls.

Torch-geometric makes some 150 small calls for each round of attention, which on a graph of a hundred nodes is nearly
all of its time (3.3 ms against 1.0 ms here). A test holds it equal to ``hgat.Encoder``.
"""

import torch
from torch import Tensor
from torch.nn.functional import gelu, leaky_relu, linear
from torch_geometric.nn import GATv2Conv

from tapfinger_hpc.graph import COLUMNS, EDGES
from tapfinger_hpc.nets.hgat import AttentionRound, Encoder
from tapfinger_hpc.nets.network import GraphTensors, log_softmax

KINDS = tuple(COLUMNS)


class FusedEncoder:
    """Reads the weights of an encoder when it is made; later changes to them do not reach it."""

    def __init__(self, encoder: Encoder) -> None:
        self._enter = encoder.enter
        self._rounds = [_FusedRound(each) for each in encoder.rounds if isinstance(each, AttentionRound)]

    def __call__(self, graph: GraphTensors) -> dict[str, Tensor]:
        """Kind -> [graph nodes of that kind, hidden], as ``Encoder`` gives them."""
        nodes = {kind: self._enter[kind](values) for kind, values in graph.features.items()}
        layout = _Layout(graph)
        for fused_round in self._rounds:
            nodes = fused_round(nodes, layout)
        return nodes


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


class _FusedRound:
    """One round of attention: for every kind of node one product with the weights of all edges it has a part in."""

    def __init__(self, attention_round: AttentionRound) -> None:
        convs: dict[tuple[str, str, str], GATv2Conv] = {edge: attention_round.attention.convs[edge] for edge in EDGES}
        self._norm = attention_round.norm
        self._heads = convs[EDGES[0]].heads
        self._slope = convs[EDGES[0]].negative_slope
        self._attention = torch.cat([convs[edge].att for edge in EDGES]).detach()  # [kind of edge, head, width]
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}
        for kind in KINDS:
            layers = [
                attention_round.own[kind],
                *(convs[edge].lin_l for edge in EDGES if edge[0] == kind),
                *(convs[edge].lin_r for edge in EDGES if edge[2] == kind),
            ]
            weight = torch.cat([layer.weight for layer in layers]).detach()
            bias = torch.cat([layer.bias for layer in layers]).detach()
            # The bias of each attention comes to its target once, whatever it hears.
            for edge in EDGES:
                if edge[2] == kind:
                    bias[: len(convs[edge].bias)] += convs[edge].bias.detach()
            self._weights[kind] = (weight, bias)

    def __call__(self, nodes: dict[str, Tensor], layout: _Layout) -> dict[str, Tensor]:
        hidden = nodes[KINDS[0]].shape[1]
        parts = {kind: iter(linear(nodes[kind], *self._weights[kind]).split(hidden, dim=1)) for kind in KINDS}
        own = {kind: next(parts[kind]) for kind in KINDS}
        told = torch.cat([next(parts[edge[0]]) for edge in EDGES])[layout.source]  # [edge, hidden]
        asked = torch.cat([next(parts[edge[2]]) for edge in EDGES])[layout.target]  # [edge, hidden]
        shape = (len(told), self._heads, hidden // self._heads)
        mixed = leaky_relu(told + asked, self._slope).view(shape)
        scores = (mixed * self._attention[layout.kind]).sum(dim=2)  # [edge, head]
        shares = log_softmax(scores, layout.target, layout.targets).exp()
        messages = (told.view(shape) * shares[:, :, None]).reshape(-1, hidden)
        heard = told.new_zeros(layout.targets, hidden).index_add(0, layout.target, messages)
        for edge, part in zip(EDGES, heard.split(layout.target_sizes), strict=True):
            own[edge[2]] = own[edge[2]] + part
        return {kind: self._norm[kind](nodes[kind] + gelu(own[kind])) for kind in KINDS}
