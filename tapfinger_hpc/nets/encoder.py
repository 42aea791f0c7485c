"""The encoder: a heterogeneous graph attention network over partitions, nodes, jobs and a coordinator.

Plain torch-geometric, one GATv2 attention for each kind of edge. Every graph node that others tell something hears
itself beside them and keeps a residual path, so different tasks stay different however few neighbours tell them apart;
two rounds carry what waits and what runs over the partitions to the coordinator and back.
"""

import sys
import tempfile
from pathlib import Path

from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

from tapfinger_hpc.features.graph import COLUMNS, EDGES

Edges = dict[tuple[str, str, str], Tensor]
LISTENING = tuple(kind for kind in COLUMNS if any(edge[2] == kind for edge in EDGES))
"""Kinds that hear others; what a running job is does not depend on what waits."""


class AttentionRound(nn.Module):
    """One exchange of messages along every kind of edge."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {edge[1]: GATv2Conv((hidden, hidden), hidden // heads, heads=heads, add_self_loops=False) for edge in EDGES}
        )
        self.own = nn.ModuleDict({kind: nn.Linear(hidden, hidden) for kind in LISTENING})
        self.norm = nn.ModuleDict({kind: nn.LayerNorm(hidden) for kind in LISTENING})

    def forward(self, nodes: dict[str, Tensor], edges: Edges) -> dict[str, Tensor]:
        heard = {kind: self.own[kind](nodes[kind]) for kind in LISTENING}
        for edge in EDGES:
            source, name, target = edge
            heard[target] = heard[target] + self.attention[name]((nodes[source], nodes[target]), edges[edge])
        return {
            kind: self.norm[kind](own + nn.functional.gelu(heard[kind])) if kind in heard else own
            for kind, own in nodes.items()
        }


class Encoder(nn.Module):
    """Features of every graph node to an embedding of it."""

    def __init__(self, hidden: int, rounds: int, heads: int) -> None:
        super().__init__()
        self.enter = nn.ModuleDict(
            {
                kind: nn.Sequential(nn.Linear(len(columns), hidden), nn.GELU(), nn.Linear(hidden, hidden))
                for kind, columns in COLUMNS.items()
            }
        )
        self.rounds = nn.ModuleList(AttentionRound(hidden, heads) for _ in range(rounds))
        _remove_generated_files()

    def forward(self, features: dict[str, Tensor], edges: Edges) -> dict[str, Tensor]:
        """Kind -> [graph nodes of that kind, hidden]. ``edges`` names every kind of edge, if only with no pairs."""
        nodes = {kind: self.enter[kind](values) for kind, values in features.items()}
        for attention_round in self.rounds:
            nodes = attention_round(nodes, edges)
        return nodes


def _remove_generated_files() -> None:
    """Torch-geometric loads code that it writes into the temporary folder, and leaves the files there."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith(f"{GATv2Conv.__module__}_") and file and Path(file).parent == Path(tempfile.gettempdir()):
            Path(file).unlink(missing_ok=True)
