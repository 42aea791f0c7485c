"""When stock Slurm would have started the same jobs: order of submission with backfill, on an otherwise empty cluster.

A short model of what Slurm does, for a figure on the spot: each partition's first job that has to wait keeps the room
that it will have soonest, and later ones may pass it where they do not take that. Time limits are believed as Slurm
believes them. `tapfinger evaluate --trace` replays more faithfully. Pure.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tapfinger_hpc.state import JobKey, Resources

QUEUE_DEPTH = 100
"""How many waiting jobs are looked at each time: Slurm's default_queue_depth."""


class StockJob(msgspec.Struct, frozen=True):
    """A job as stock Slurm would have run it, on one node."""

    key: JobKey
    submit_s: float
    partition: str
    amounts: Resources
    runs_s: float
    limit_s: float = math.inf


class _Running(msgspec.Struct):
    node: str
    amounts: Resources
    until_s: float
    """By its time limit, which is all that Slurm knows."""


class _Kept(msgspec.Struct):
    """The room of a job that has to wait."""

    node: str
    from_s: float
    amounts: Resources
    spare: Resources
    """What will be free beside it then."""


def starts(
    jobs: Iterable[StockJob], nodes: Mapping[str, Resources], partitions: Mapping[str, Sequence[str]]
) -> dict[JobKey, float]:
    """When each job starts; without those that no node could take.

    Args:
        nodes: what each node has.
        partitions: the nodes of each.
    """
    return _Cluster(nodes, partitions).play(jobs)


class _Cluster:
    def __init__(self, nodes: Mapping[str, Resources], partitions: Mapping[str, Sequence[str]]) -> None:
        self._nodes, self._partitions = nodes, partitions
        self._free = dict(nodes)
        self._running: dict[JobKey, _Running] = {}

    def play(self, jobs: Iterable[StockJob]) -> dict[JobKey, float]:
        coming = sorted((job for job in jobs if self._could_run(job)), key=lambda job: (job.submit_s, job.key))
        waiting: list[StockJob] = []
        ends: list[tuple[float, JobKey]] = []
        started: dict[JobKey, float] = {}
        position = 0
        while position < len(coming) or waiting:
            now_s = min(
                coming[position].submit_s if position < len(coming) else math.inf, ends[0][0] if ends else math.inf
            )
            while ends and ends[0][0] <= now_s:
                self._end(heapq.heappop(ends)[1])
            while position < len(coming) and coming[position].submit_s <= now_s:
                waiting.append(coming[position])
                position += 1
            for job in self._pass(waiting, now_s):
                started[job.key] = now_s
                heapq.heappush(ends, (now_s + job.runs_s, job.key))
                waiting.remove(job)
        return started

    def _pass(self, waiting: Sequence[StockJob], now_s: float) -> list[StockJob]:
        """Starts what may start now."""
        kept: dict[str, _Kept] = {}
        placed = []
        for job in waiting[:QUEUE_DEPTH]:
            node = next((name for name in self._partitions[job.partition] if self._fits(job, name, kept, now_s)), None)
            if node is not None:
                self._free[node] -= job.amounts
                self._running[job.key] = _Running(node, job.amounts, now_s + job.limit_s)
                placed.append(job)
            elif job.partition not in kept:
                kept[job.partition] = self._soonest(job, now_s)
        return placed

    def _fits(self, job: StockJob, node: str, kept: Mapping[str, _Kept], now_s: float) -> bool:
        if not self._free[node].covers(job.amounts):
            return False
        return all(
            now_s + job.limit_s <= one.from_s or one.spare.covers(job.amounts)
            for one in kept.values()
            if one.node == node
        )

    def _soonest(self, job: StockJob, now_s: float) -> _Kept:
        """Where and when the job will have room, if everything runs to its limit."""
        best: _Kept | None = None
        for node in self._partitions[job.partition]:
            free, from_s = self._free[node], now_s
            for one in sorted((one for one in self._running.values() if one.node == node), key=lambda one: one.until_s):
                if free.covers(job.amounts):
                    break
                free, from_s = free + one.amounts, one.until_s
            if free.covers(job.amounts) and (best is None or from_s < best.from_s):
                best = _Kept(node, from_s, job.amounts, free - job.amounts)
        assert best is not None, "only jobs that some node could take are played"
        return best

    def _end(self, key: JobKey) -> None:
        gone = self._running.pop(key)
        self._free[gone.node] += gone.amounts

    def _could_run(self, job: StockJob) -> bool:
        return any(self._nodes[name].covers(job.amounts) for name in self._partitions.get(job.partition, ()))
