"""How good a policy is: what counts is the mean completion time, on workloads that it was not trained on.

Policies are compared on the same workloads, many of them, and a ratio comes with its interval over workloads.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import torch

from tapfinger_hpc.nets.network import Network
from tapfinger_hpc.policies.base import Policy
from tapfinger_hpc.stats import percentile
from tapfinger_hpc.training.checkpoint import Validation
from tapfinger_hpc.training.episodes import Scenario, play
from tapfinger_hpc.training.examples import HEADS, WAIT, Example, collate

RESAMPLES = 4000
STOCK = "stock Slurm"


def mean_completion_s(scenario: Scenario, policy: Policy | None) -> float:
    """Mean completion time of the jobs that are ours to place; None is stock Slurm."""
    records = play(scenario, policy)
    ours = {item.job.job_id for item in scenario.trace.jobs if item.job.managed}
    return fmean(record.completion_s for record in records if record.job_id in ours)


def compare(
    policy: Policy,
    others: Sequence[Policy | None],
    scenarios: Iterable[Scenario],
    workloads: str,
    each: Callable[[], None] = lambda: None,
) -> tuple[Validation, ...]:
    """Mean completion time of a policy over that of each of the others, on the same scenarios.

    Args:
        others: None is stock Slurm.
        workloads: what the scenarios are, in words.
        each: called after every scenario.
    """
    logs: list[list[float]] = [[] for _ in others]
    for scenario in scenarios:
        own = mean_completion_s(scenario, policy)
        for ratios, other in zip(logs, others, strict=True):
            ratios.append(math.log(own / mean_completion_s(scenario, other)))
        each()
    return tuple(
        _validation(STOCK if other is None else other.name, workloads, ratios)
        for other, ratios in zip(others, logs, strict=True)
    )


def _validation(against: str, workloads: str, logs: Sequence[float]) -> Validation:
    draw = random.Random(0)
    means = [fmean(draw.choices(logs, k=len(logs))) for _ in range(RESAMPLES)]
    return Validation(
        against=against,
        workloads=workloads,
        seeds=len(logs),
        ratio=math.exp(fmean(logs)),
        low=math.exp(percentile(means, 2.5)),
        high=math.exp(percentile(means, 97.5)),
    )


@torch.inference_mode()
def agreement(network: Network, examples: Sequence[Example], size: int = 64) -> dict[str, float]:
    """Share of choices, by head, in which the network chooses as the teacher did; waiting counts as a choice."""
    same, total = dict.fromkeys(HEADS, 0), dict.fromkeys(HEADS, 0)
    for start in range(0, len(examples), size):
        batch = collate(examples[start : start + size])
        embeddings = network.encode(batch.graph)
        for head, labelled in batch.heads.items():
            options, labels = labelled.options, labelled.labels
            of_options, of_waiting = network.log_probabilities(embeddings, options)
            best = _best(of_options, options.row_of, len(labels))
            if head == "task":
                best = torch.where(of_waiting.exp() >= 0.5, WAIT, best)
            same[head] += int((best == labels).sum())
            total[head] += len(labels)
    return {head: same[head] / total[head] for head in HEADS if total[head]}


def _best(values: torch.Tensor, row_of: torch.Tensor, rows: int) -> torch.Tensor:
    """Position of the greatest value of each row; the first of equals."""
    greatest = values.new_full((rows,), -torch.inf).scatter_reduce(0, row_of, values, "amax")
    position = torch.where(values == greatest[row_of], torch.arange(len(values)), len(values))
    return torch.full((rows,), len(values)).scatter_reduce(0, row_of, position, "amin")
