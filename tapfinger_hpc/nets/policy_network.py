"""The actor: graph encoder, task pointer with "wait", and a pointer at a node with amounts.

All agents share the weights; none of their sizes depends on how many partitions, nodes, tasks or amounts there are.
Rows of options of any number of environments go through together, and each gets the probabilities that it would get
alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tapfinger_hpc.features.graph import COLUMNS, EDGES, KINDS, Graphs
from tapfinger_hpc.features.options import (
    ADVISED_PLACE,
    ADVISED_TASK,
    ADVISED_TO_WAIT,
    AGENT_COLUMNS,
    PLACE_COLUMNS,
    TASK_COLUMNS,
)
from tapfinger_hpc.features.rows import Rows
from tapfinger_hpc.nets.compiled import CompiledNetwork
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.encoder import Encoder

Embeddings = dict[str, Tensor]
_USUAL_SIZE = 8.0
"""Sums over graph nodes are divided by so much, to be of the size of one."""


class Pointer(nn.Module):
    """Scores options of a row from what the row knows, what each option is, and its features."""

    def __init__(self, row_width: int, feature_width: int, hidden: int) -> None:
        super().__init__()
        self.row = nn.Linear(row_width, hidden)
        self.pointed = nn.Linear(hidden, hidden, bias=False)
        self.features = nn.Linear(feature_width, hidden, bias=False)
        self.inner = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        self.direct = nn.Linear(feature_width, 1, bias=False)

    def forward(self, rows: Tensor, row_of: Tensor, pointed: Tensor, features: Tensor) -> Tensor:
        """[option] logits."""
        mixed = self.row(rows)[row_of] + self.features(features) + self.pointed(pointed)
        inner = nn.functional.gelu(self.inner(nn.functional.gelu(mixed)))
        scores: Tensor = (self.score(inner) + self.direct(features)).squeeze(-1)
        return scores


@dataclass(frozen=True)
class GraphTensors:
    """Graphs side by side, as tensors."""

    features: dict[str, Tensor]
    edges: dict[tuple[str, str, str], Tensor]
    owner: dict[str, Tensor]
    """Kind -> int64 [graph nodes of that kind] the graph that each belongs to."""
    count: int

    @classmethod
    def of(cls, graphs: Graphs) -> "GraphTensors":
        return cls.together([graphs])

    @classmethod
    def together(cls, several: Sequence[Graphs]) -> "GraphTensors":
        """Several, one after the other."""
        sizes = np.array([[len(graphs.features[kind]) for kind in KINDS] for graphs in several])
        before = dict(zip(KINDS, (np.cumsum(sizes, axis=0) - sizes).T, strict=True))  # kind -> [graphs]
        edges = {
            edge: np.concatenate(
                [
                    graphs.edges[edge] + np.array([[before[edge[0]][number]], [before[edge[2]][number]]])
                    for number, graphs in enumerate(several)
                ],
                axis=1,
            )
            for edge in EDGES
        }
        owner = {
            kind: np.concatenate(
                [
                    np.repeat(np.arange(len(graphs.coordinator)), np.diff(graphs.first[:, column]))
                    + before["coordinator"][number]
                    for number, graphs in enumerate(several)
                ]
            )
            for column, kind in enumerate(KINDS[:-1])
        }
        return cls(
            {kind: torch.from_numpy(np.concatenate([graphs.features[kind] for graphs in several])) for kind in KINDS},
            {edge: torch.from_numpy(pairs) for edge, pairs in edges.items()},
            {kind: torch.from_numpy(owners) for kind, owners in owner.items()},
            int(sizes[:, -1].sum()),
        )


class PolicyNetwork(nn.Module):
    """Encodes graphs, and points."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetworkConfig()
        hidden = self.config.hidden
        agent = len(AGENT_COLUMNS)
        self.encoder = Encoder(hidden, self.config.rounds, self.config.heads)
        self.wait = nn.Sequential(nn.Linear(hidden + agent, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.wait_direct = nn.Linear(agent, 1, bias=False)
        self.task = Pointer(hidden + agent, len(TASK_COLUMNS), hidden)
        self.place = Pointer(2 * hidden + agent, len(PLACE_COLUMNS), hidden)

    def heed(self, strength: float) -> None:
        """Adds so much to the logits of what a heuristic advises; what else was learned stays."""
        with torch.no_grad():
            self.task.direct.weight[0, ADVISED_TASK] += strength
            self.place.direct.weight[0, ADVISED_PLACE] += strength
            self.wait_direct.weight[0, ADVISED_TO_WAIT] += strength

    def silence(self, unseen: Mapping[str, np.ndarray]) -> None:
        """Forgets what random weights make of numbers that are always 0 in training, as they may be something else
        where the network serves.

        Args:
            unseen: bool [column] by kind of graph node, and for "agent", "task" and "place".
        """
        hidden, agent = self.config.hidden, torch.from_numpy(unseen["agent"])
        columns = {kind: torch.from_numpy(unseen[kind]) for kind in (*COLUMNS, "task", "place")}
        with torch.no_grad():
            for kind in COLUMNS:
                self.get_parameter(f"encoder.enter.{kind}.0.weight")[:, columns[kind]] = 0.0
            for head, pointer, known in (("task", self.task, hidden), ("place", self.place, 2 * hidden)):
                pointer.features.weight[:, columns[head]] = 0.0
                pointer.direct.weight[:, columns[head]] = 0.0
                pointer.row.weight[:, known:][:, agent] = 0.0
            self.get_parameter("wait.0.weight")[:, hidden:][:, agent] = 0.0
            self.wait_direct.weight[:, agent] = 0.0

    def encode(self, graphs: GraphTensors) -> Embeddings:
        """Kind -> [graph nodes of that kind, hidden]; once per decision."""
        embeddings: Embeddings = self.encoder(graphs.features, graphs.edges)
        return embeddings

    def log_probabilities(self, embeddings: Embeddings, rows: Rows) -> tuple[Tensor, Tensor]:
        """Of every option [option] and, where tasks are chosen, of waiting [row] (otherwise empty)."""
        partitions, row_of, pointed = (torch.from_numpy(each) for each in (rows.partitions, rows.row_of, rows.pointed))
        agents, features = torch.from_numpy(rows.agents), torch.from_numpy(rows.features)
        known = embeddings["partition"][partitions]
        if not rows.task:
            known = torch.cat([known, embeddings["pending"][torch.from_numpy(rows.jobs)], agents], dim=1)
            logits = self.place(known, row_of, embeddings["node"][pointed], features)
            return log_softmax(logits, row_of, rows.count), logits.new_empty(0)
        known = torch.cat([known, agents], dim=1)
        logits = self.task(known, row_of, embeddings["pending"][pointed], features)
        both = torch.cat([logits, (self.wait(known) + self.wait_direct(agents)).squeeze(-1)])
        log_probabilities = log_softmax(both, torch.cat([row_of, torch.arange(rows.count)]), rows.count)
        return log_probabilities[: len(logits)], log_probabilities[len(logits) :]

    def compiled(self) -> CompiledNetwork:
        """The form that decides, with the weights of this moment."""
        return CompiledNetwork(self.config, self.weights())

    def weights(self) -> dict[str, np.ndarray]:
        """By name, as a checkpoint holds them and ``CompiledNetwork`` takes them; they share memory with these."""
        return {name: tensor.detach().numpy() for name, tensor in self.state_dict().items()}


def log_softmax(logits: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """[option] logarithms of probabilities within each row; options of a row may stand anywhere."""
    greatest = logits.new_full((rows,), -torch.inf).scatter_reduce(0, row_of, logits.detach(), "amax")
    shifted = logits - greatest[row_of]
    return shifted - logits.new_zeros(rows).index_add(0, row_of, shifted.exp()).log()[row_of]


class Critic(nn.Module):
    """What the rest of an episode is expected to cost, from sums over the graph's nodes; apart from the actor."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.enter = nn.ModuleDict(
            {
                kind: nn.Sequential(nn.Linear(len(columns), hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
                for kind, columns in COLUMNS.items()
            }
        )
        self.out = nn.Sequential(
            nn.Linear(hidden * len(COLUMNS), 2 * hidden),
            nn.GELU(),
            nn.Linear(2 * hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, graphs: GraphTensors) -> Tensor:
        """[graph] values."""
        parts = []
        for kind, values in graphs.features.items():
            entered = self.enter[kind](values)
            if kind in graphs.owner:
                summed = entered.new_zeros(graphs.count, entered.shape[1]).index_add(0, graphs.owner[kind], entered)
                entered = summed / _USUAL_SIZE
            parts.append(entered)
        value: Tensor = self.out(torch.cat(parts, dim=1)).squeeze(-1)
        return value
