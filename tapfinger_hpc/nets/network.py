"""The whole network: the graph encoder, and one pointer for each part of an agent's action.

All agents share the weights; none of their sizes depends on how many partitions, nodes, jobs or amounts there are. Rows
of options of any number of states go through together, and each gets the logits that it would get alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from tapfinger_hpc.graph import Graph
from tapfinger_hpc.nets.hgat import Edges, Encoder
from tapfinger_hpc.room import AGENT_COLUMNS, AMOUNT_HEADS, OPTION_COLUMNS, Options


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the network; they are part of a checkpoint."""

    hidden: int = 64
    rounds: int = 2
    """Rounds of attention."""
    heads: int = 4


@dataclass(frozen=True)
class GraphTensors:
    """One graph, or several side by side without edges between them."""

    features: dict[str, Tensor]
    edges: Edges


@dataclass(frozen=True)
class OptionTensors:
    """Rows of options; positions are those of the graph nodes in the GraphTensors they belong to."""

    head: str
    partitions: Tensor  # int64 [row]
    jobs: Tensor  # int64 [row]; -1 for head "task"
    nodes: Tensor  # int64 [row]; -1 for heads "task" and "node"
    agents: Tensor  # float32 [row, AGENT_COLUMNS]
    row_of: Tensor  # int64 [option] ascending
    pointed: Tensor  # int64 [option] graph node that the option is: a pending job or a node; -1 for amounts
    features: Tensor  # float32 [option, OPTION_COLUMNS[head]]


class Pointer(nn.Module):
    """Scores options of a row from what the row knows, what each option is, and its features."""

    def __init__(self, row_width: int, pointed_width: int, feature_width: int, hidden: int) -> None:
        super().__init__()
        self.row = nn.Linear(row_width, hidden)
        self.pointed = nn.Linear(pointed_width, hidden, bias=False) if pointed_width else None
        self.features = nn.Linear(feature_width, hidden, bias=False)
        self.inner = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        self.direct = nn.Linear(feature_width, 1, bias=False)

    def forward(self, rows: Tensor, row_of: Tensor, pointed: Tensor | None, features: Tensor) -> Tensor:
        """[option] logits."""
        mixed = self.row(rows)[row_of] + self.features(features)
        if self.pointed is not None:
            assert pointed is not None
            mixed = mixed + self.pointed(pointed)
        inner = nn.functional.gelu(self.inner(nn.functional.gelu(mixed)))
        scores: Tensor = (self.score(inner) + self.direct(features)).squeeze(-1)
        return scores


class Network(nn.Module):
    """Encoder, task pointer with "wait", node pointer, and a pointer for each resource in turn."""

    def __init__(self, config: NetworkConfig = NetworkConfig()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.config = config
        hidden, agent = config.hidden, len(AGENT_COLUMNS)
        self.encoder = Encoder(hidden, config.rounds, config.heads)
        self.wait = nn.Sequential(nn.Linear(hidden + agent, hidden), nn.GELU(), nn.Linear(hidden, 1))
        widths = {"task": (hidden, hidden), "node": (2 * hidden, hidden)}
        self.pointers = nn.ModuleDict(
            {
                head: Pointer(row + agent, pointed, len(OPTION_COLUMNS[head]), hidden)
                for head in ("task", "node", *AMOUNT_HEADS)
                for row, pointed in [widths.get(head, (3 * hidden, 0))]
            }
        )

    def encode(self, graph: GraphTensors) -> dict[str, Tensor]:
        """Embeddings of all graph nodes; once per decision."""
        embeddings: dict[str, Tensor] = self.encoder(graph.features, graph.edges)
        return embeddings

    def log_probabilities(self, embeddings: dict[str, Tensor], options: OptionTensors) -> tuple[Tensor, Tensor]:
        """Of every option [option] and, for head "task", of waiting [row] (otherwise empty)."""
        known = [embeddings["partition"][options.partitions]]
        if options.head != "task":
            known.append(embeddings["pending"][options.jobs])
        if options.head in AMOUNT_HEADS:
            known.append(embeddings["node"][options.nodes])
        rows = torch.cat([*known, options.agents], dim=1)
        pointed = None
        if options.head == "task":
            pointed = embeddings["pending"][options.pointed]
        elif options.head == "node":
            pointed = embeddings["node"][options.pointed]
        logits = self.pointers[options.head](rows, options.row_of, pointed, options.features)
        if options.head != "task":
            return log_softmax(logits, options.row_of, len(rows)), logits.new_empty(0)
        both = torch.cat([logits, self.wait(rows).squeeze(-1)])
        row_of = torch.cat([options.row_of, torch.arange(len(rows))])
        log_probabilities = log_softmax(both, row_of, len(rows))
        return log_probabilities[: len(logits)], log_probabilities[len(logits) :]


def log_softmax(logits: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Logarithms of probabilities within each row; options of a row may stand anywhere.

    Args:
        logits: [option] or [option, any number of independent columns].
        row_of: int64 [option]
        rows: how many rows there are; some may have no option.
    """
    shape = (rows, *logits.shape[1:])
    where = row_of.view(-1, *[1] * (logits.dim() - 1)).expand_as(logits)
    greatest = logits.new_full(shape, -torch.inf).scatter_reduce(0, where, logits.detach(), "amax")
    shifted = logits - greatest[row_of]
    total = logits.new_zeros(shape).index_add(0, row_of, shifted.exp())
    return shifted - total.log()[row_of]


def graph_tensors(graphs: Sequence[Graph]) -> GraphTensors:
    """Graphs side by side; positions of the graph nodes of each follow those of the one before."""
    features = {
        kind: torch.from_numpy(np.concatenate([graph.features[kind] for graph in graphs]))
        for kind in graphs[0].features
    }
    edges: Edges = {}
    for edge in graphs[0].edges:
        source, _, target = edge
        starts = np.array([(0, 0)] + [(len(g.features[source]), len(g.features[target])) for g in graphs[:-1]])
        shifted = [g.edges[edge] + start[:, None] for g, start in zip(graphs, starts.cumsum(axis=0), strict=True)]
        edges[edge] = torch.from_numpy(np.concatenate(shifted, axis=1))
    return GraphTensors(features, edges)


def option_tensors(graph: Graph, options: Options) -> OptionTensors:
    """Options of one graph."""
    position = graph.job_position
    jobs = options.jobs if options.head == "task" else position[options.jobs]
    if options.head == "task":
        pointed = position[options.values]
    else:
        pointed = options.values if options.head == "node" else np.full(len(options.values), -1, dtype=np.int64)
    return OptionTensors(
        head=options.head,
        partitions=torch.from_numpy(options.partitions),
        jobs=torch.from_numpy(jobs),
        nodes=torch.from_numpy(options.nodes),
        agents=torch.from_numpy(options.agents),
        row_of=torch.from_numpy(options.row_of),
        pointed=torch.from_numpy(pointed),
        features=torch.from_numpy(options.features),
    )
