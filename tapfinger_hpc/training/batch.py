"""Decisions as they were made, put side by side for learning from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tapfinger_hpc.nets.policy_network import Embeddings, GraphTensors, PolicyNetwork
from tapfinger_hpc.policies.decoding import WAIT, Decision, Step
from tapfinger_hpc.training.team import Team


class Batch:
    """Several decisions as one: to learn from them takes few large products instead of many small ones."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.graphs = GraphTensors.together([decision.graphs for decision in decisions])
        self.steps: list[Step] = []
        """One for each head that has rows."""
        sizes = np.array([(*decision.graphs.first[-1, :3], len(decision.envs)) for decision in decisions])
        starts = np.cumsum(sizes, axis=0) - sizes
        for task in (True, False):
            found = [
                (step, (int(start[0]), int(start[1]), int(start[2]), int(start[3])))
                for decision, start in zip(decisions, starts, strict=True)
                for step in decision.steps
                if step.rows.task == task
            ]
            if found:
                self.steps.append(Step.together([step for step, _ in found], [start for _, start in found]))

    @property
    def rows(self) -> int:
        return sum(len(step.chosen) for step in self.steps)


def log_probability_of_chosen(
    network: PolicyNetwork, embeddings: Embeddings, step: Step
) -> tuple[Tensor, Tensor, Tensor]:
    """[row] of what was chosen; with those of all options and of waiting."""
    of_options, of_waiting = network.log_probabilities(embeddings, step.rows)
    chosen = torch.from_numpy(step.chosen)
    found = of_options[chosen.clamp(min=0)]
    if len(of_waiting):
        found = torch.where(chosen == WAIT, of_waiting, found)
    return found, of_options, of_waiting


def take_step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, norm: float, team: Team) -> None:
    """A step of the optimiser along the team's mean gradient, which is made no longer than ``norm``.

    Raises:
        RuntimeError: a gradient is not a number ("non-finite").
    """
    parameters = list(module.parameters())
    team.average(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, norm, error_if_nonfinite=True)
    optimizer.step()
