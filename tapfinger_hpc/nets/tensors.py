"""Graphs and options as tensors: of one state, or of several side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tapfinger_hpc.graph import Graph
from tapfinger_hpc.room import Options

Edges = dict[tuple[str, str, str], Tensor]


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


def graph_tensors(graph: Graph) -> GraphTensors:
    """One graph."""
    return GraphTensors(
        {kind: torch.from_numpy(values) for kind, values in graph.features.items()},
        {edge: torch.from_numpy(pairs) for edge, pairs in graph.edges.items()},
    )


def side_by_side(graphs: Sequence[GraphTensors]) -> GraphTensors:
    """Several graphs as one; positions of the graph nodes of each follow those of the one before."""
    features = {kind: torch.cat([graph.features[kind] for graph in graphs]) for kind in graphs[0].features}
    edges: Edges = {}
    for edge in graphs[0].edges:
        source, _, target = edge
        starts = [(0, 0)] + [(len(graph.features[source]), len(graph.features[target])) for graph in graphs[:-1]]
        first = torch.tensor(starts).cumsum(dim=0)  # [graph, (source, target)]
        edges[edge] = torch.cat(
            [graph.edges[edge] + start[:, None] for graph, start in zip(graphs, first, strict=True)], dim=1
        )
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
