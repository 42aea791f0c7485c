"""When running jobs are expected to end, and so when a node will have room. Pure.

Of a job that has outlived its expectation, the rest that is expected is that of a log-normal time, given that it has
lasted so long: the longer it runs beyond what its class takes, the longer it is thought to go on.
"""

import math

import numpy as np

from tapfinger_hpc import fit
from tapfinger_hpc.policies.choices import USUAL_LIMIT
from tapfinger_hpc.state import ClusterState, Node, Resources, RunningJob

UNKNOWN_S = 3600.0
UNKNOWN_LOG_STD = 1.0
"""A job of which nothing is known: some such time, and rather uncertain (as ``speed.prior`` says)."""


class Outlook:
    """Free amounts of every node after each expected end, counted in seconds from now."""

    def __init__(self, state: ClusterState) -> None:
        self._nodes = list(state.nodes)
        self._column = {node.name: column for column, node in enumerate(self._nodes)}
        self._releases: list[list[tuple[float, tuple[int, int, int]]]] = [[] for _ in self._nodes]
        for running in state.running:
            rest_s = remaining_s(state, running)
            for share in running.shares:
                if share.node in self._column:
                    node = self._nodes[self._column[share.node]]
                    self._releases[self._column[share.node]].append((rest_s, row_of(fit.granted(node, share.amounts))))
        self._free = np.array([row_of(node.free) for node in self._nodes], dtype=np.int64).reshape(-1, 3)
        self._lay_out()

    def place(self, column: int, seconds: float, taken: Resources) -> None:
        """A job is placed on this node for so long."""
        self._free[column] = np.maximum(self._free[column] - row_of(taken), 0)
        self._releases[column].append((seconds, row_of(taken)))
        self._lay_out()

    def soonest(self, taken: np.ndarray, could: np.ndarray) -> np.ndarray:
        """When amounts are first expected free, [row, node]; infinity where never.

        Args:
            taken: what is taken from each node, [3, row, node].
            could: whether the node could ever have them, [row, node].
        """
        roomy = (taken[:, :, :, None] <= self._steps[:, None, :, :]).all(axis=0)  # [row, node, step]
        moments = np.where(roomy & could[:, :, None], self._times[None, :, :], math.inf)
        return np.asarray(moments.min(axis=2))

    def _lay_out(self) -> None:
        most = 1 + max((len(releases) for releases in self._releases), default=0)
        self._times = np.full((len(self._nodes), most), math.inf)  # [node, step]
        self._steps = np.zeros((3, len(self._nodes), most), dtype=np.int64)  # [3, node, step] free from then on
        for column, releases in enumerate(self._releases):
            free = self._free[column]
            self._times[column, 0] = 0.0
            self._steps[:, column] = free[:, None]
            for step, (rest_s, amounts) in enumerate(sorted(releases), start=1):
                free = free + amounts
                self._times[column, step] = rest_s
                self._steps[:, column, step:] = free[:, None]


def remaining_s(state: ClusterState, running: RunningJob) -> float:
    """How much longer a running job is expected to run."""
    elapsed_s = max(0.0, state.time_s - running.start_time_s)
    left_s = math.inf if running.end_limit_s is None else max(0.0, running.end_limit_s - state.time_s)
    known = state.job_class(running.job_class) if running.job_class else None
    expected_s = known.speed.duration_s(running.amounts) if known is not None else math.inf
    if known is not None and math.isfinite(expected_s):
        log_std = known.speed.log_std_at(running.amounts)
    else:
        expected_s = UNKNOWN_S if math.isinf(left_s) else (left_s + elapsed_s) / USUAL_LIMIT
        log_std = UNKNOWN_LOG_STD
    return min(left_s, _residual_s(expected_s, log_std, elapsed_s))


def row_of(amounts: Resources) -> tuple[int, int, int]:
    """Amounts as one row of an array: CPUs, GPUs, MiB."""
    return amounts.cpus, amounts.gpus, amounts.mem_mb


def capacity_of(nodes: list[Node]) -> Resources:
    """The most of each resource that one of the nodes has."""
    return Resources(
        max(node.capacity.cpus for node in nodes),
        max(node.capacity.gpus for node in nodes),
        max(node.capacity.mem_mb for node in nodes),
    )


def _residual_s(mean_s: float, log_std: float, elapsed_s: float) -> float:
    """Mean rest of a log-normal time with this mean, given that it is longer than ``elapsed_s``."""
    if elapsed_s <= 0:
        return mean_s
    if log_std < 0.01:
        return max(mean_s - elapsed_s, 0.01 * elapsed_s)
    position = (math.log(elapsed_s / mean_s) + log_std**2 / 2) / log_std
    if position > 5:
        return elapsed_s * log_std / position  # both tails vanish; this is their ratio's limit
    longer = math.erfc(position / math.sqrt(2))
    weighted = math.erfc((position - log_std) / math.sqrt(2))
    return max(mean_s * weighted / longer - elapsed_s, 0.0)
