"""Rows of options together with the graph nodes that they are about: what a network scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapfinger_hpc.features.graph import Graphs
from tapfinger_hpc.features.options import Options


@dataclass(frozen=True)
class Rows:
    """Each row is one choice of one agent among options of its own; positions are those among the graph nodes."""

    task: bool
    """Whether tasks are chosen (and waiting may be)."""
    partitions: np.ndarray  # int64 [row]
    jobs: np.ndarray  # int64 [row] pending graph node; of no use where the task is what is chosen
    agents: np.ndarray  # float32 [row, AGENT_COLUMNS]
    row_of: np.ndarray  # int64 [option] ascending
    pointed: np.ndarray  # int64 [option] pending graph node, or node
    features: np.ndarray  # float32 [option, TASK_COLUMNS or PLACE_COLUMNS]

    @property
    def count(self) -> int:
        return len(self.partitions)

    @classmethod
    def of(cls, graphs: Graphs, envs: np.ndarray, options: Options, *, task: bool) -> "Rows":
        """``envs``: the environments that the graphs are of."""
        first = graphs.first[options.env]  # [row, 4]
        if task:
            jobs = np.full(len(options.env), -1)
            pointed = graphs.pending_of[envs[options.env[options.row_of]], options.value]
        else:
            jobs = graphs.pending_of[envs[options.env], options.job]
            pointed = first[options.row_of, 1] + options.value
        return cls(
            task, first[:, 0] + options.partition, jobs, options.agents, options.row_of, pointed, options.features
        )

    @classmethod
    def together(cls, several: Sequence["Rows"], first: Sequence[tuple[int, int, int]]) -> "Rows":
        """Several of one head as one; ``first`` are the positions of the graphs' first partition, node, pending."""
        task = several[0].task
        rows = np.cumsum([0, *(each.count for each in several[:-1])])
        return cls(
            task,
            np.concatenate([each.partitions + start[0] for each, start in zip(several, first, strict=True)]),
            np.concatenate([each.jobs + start[2] for each, start in zip(several, first, strict=True)]),
            np.concatenate([each.agents for each in several]),
            np.concatenate([each.row_of + begun for each, begun in zip(several, rows, strict=True)]),
            np.concatenate(
                [each.pointed + start[2 if task else 1] for each, start in zip(several, first, strict=True)]
            ),
            np.concatenate([each.features for each in several]),
        )
