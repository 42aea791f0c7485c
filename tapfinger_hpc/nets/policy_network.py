"""The actor: graph encoder, task pointer with "wait", and a pointer at a node with amounts.

All agents share the weights; none of their sizes depends on how many partitions, nodes, tasks or amounts there are.
Rows of options of any number of environments go through together, and each gets the probabilities that it would get alone.
"""

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from tapfinger_hpc.features.graph import Graphs
from tapfinger_hpc.features.options import AGENT_COLUMNS, PLACE_COLUMNS, TASK_COLUMNS, Options
from tapfinger_hpc.nets.encoder import Encoder
from tapfinger_hpc.nets.tensors import log_softmax

Embeddings = dict[str, Tensor]


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the network; they are part of a checkpoint."""

    hidden: int = 64
    rounds: int = 2
    """Rounds of attention."""
    heads: int = 4


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


class Rows:
    """Options as tensors, with the positions of what they are about among the graph nodes."""

    def __init__(self, graphs: Graphs, envs: np.ndarray, options: Options) -> None:
        first = graphs.first[options.env]  # [row, 4]
        task = len(options.job) > 0 and options.job[0] < 0
        option_env = options.env[options.row_of]
        pointed = (
            graphs.pending_of[envs[option_env], options.value] if task else first[options.row_of, 1] + options.value
        )
        self.task = task
        self.count = len(options.env)
        self.partitions = torch.from_numpy(first[:, 0] + options.partition)
        self.jobs = None if task else torch.from_numpy(graphs.pending_of[envs[options.env], options.job])
        self.agents = torch.from_numpy(options.agents)
        self.row_of = torch.from_numpy(options.row_of)
        self.pointed = torch.from_numpy(pointed)
        self.features = torch.from_numpy(options.features)


class PolicyNetwork(nn.Module):
    """Encodes graphs, and points."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetworkConfig()
        hidden = self.config.hidden
        agent = len(AGENT_COLUMNS)
        self.encoder = Encoder(hidden, self.config.rounds, self.config.heads)
        self.wait = nn.Sequential(nn.Linear(hidden + agent, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.task = Pointer(hidden + agent, len(TASK_COLUMNS), hidden)
        self.place = Pointer(2 * hidden + agent, len(PLACE_COLUMNS), hidden)

    def encode(self, graphs: Graphs) -> Embeddings:
        """Kind -> [graph nodes of that kind, hidden]; once per decision."""
        embeddings: Embeddings = self.encoder(
            {kind: torch.from_numpy(values) for kind, values in graphs.features.items()},
            {edge: torch.from_numpy(np.ascontiguousarray(pairs)) for edge, pairs in graphs.edges.items()},
        )
        return embeddings

    def log_probabilities(self, embeddings: Embeddings, rows: Rows) -> tuple[Tensor, Tensor]:
        """Of every option [option] and, where tasks are chosen, of waiting [row] (otherwise empty)."""
        known = embeddings["partition"][rows.partitions]
        if rows.jobs is not None:
            known = torch.cat([known, embeddings["pending"][rows.jobs]], dim=1)
        known = torch.cat([known, rows.agents], dim=1)
        if not rows.task:
            logits = self.place(known, rows.row_of, embeddings["node"][rows.pointed], rows.features)
            return log_softmax(logits, rows.row_of, rows.count), logits.new_empty(0)
        logits = self.task(known, rows.row_of, embeddings["pending"][rows.pointed], rows.features)
        both = torch.cat([logits, self.wait(known).squeeze(-1)])
        row_of = torch.cat([rows.row_of, torch.arange(rows.count)])
        log_probabilities = log_softmax(both, row_of, rows.count)
        return log_probabilities[: len(logits)], log_probabilities[len(logits) :]


class Critic(nn.Module):
    """What the rest of an episode is expected to cost, from sums over the graph's nodes; apart from the actor."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        from tapfinger_hpc.features.graph import COLUMNS

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

    def forward(self, graphs: Graphs) -> Tensor:
        """[environment] values."""
        count = len(graphs.coordinator)
        parts = []
        for number, (kind, values) in enumerate(graphs.features.items()):
            entered = self.enter[kind](torch.from_numpy(values))
            if kind == "coordinator":
                parts.append(entered)
                continue
            sizes = np.diff(graphs.first[:, number])
            owner = torch.from_numpy(np.repeat(np.arange(count), sizes))
            parts.append(entered.new_zeros(count, entered.shape[1]).index_add(0, owner, entered) / 8)
        value: Tensor = self.out(torch.cat(parts, dim=1)).squeeze(-1)
        return value
