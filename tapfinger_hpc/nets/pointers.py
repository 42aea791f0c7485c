"""The pointers: which task, which node, how much of each resource; each scores any number of options.

All agents share the weights; none of their sizes depends on how many partitions, nodes, jobs or amounts there are. Rows
of options of any number of states go through together, and each gets the probabilities that it would get alone.
"""

import msgspec
import torch
from torch import Tensor, nn

from tapfinger_hpc.nets.tensors import OptionTensors, log_softmax
from tapfinger_hpc.room import AGENT_COLUMNS, AMOUNT_HEADS, OPTION_COLUMNS


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the network; they are part of a checkpoint."""

    hidden: int = 64
    rounds: int = 2
    """Rounds of attention."""
    heads: int = 4


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


class Pointers(nn.Module):
    """The task pointer with "wait", the node pointer, and a pointer for each resource in turn."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        hidden, agent = config.hidden, len(AGENT_COLUMNS)
        self.wait = nn.Sequential(nn.Linear(hidden + agent, hidden), nn.GELU(), nn.Linear(hidden, 1))
        widths = {"task": (hidden, hidden), "node": (2 * hidden, hidden)}
        self.pointers = nn.ModuleDict(
            {
                head: Pointer(row + agent, pointed, len(OPTION_COLUMNS[head]), hidden)
                for head in ("task", "node", *AMOUNT_HEADS)
                for row, pointed in [widths.get(head, (3 * hidden, 0))]
            }
        )

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
