"""Workloads to train on, made of a site's own jobs: its nodes, its job classes as they were learned, its arrivals.

Each is a stretch of the trace that comes somewhat faster or slower than it did, with jobs that take a little more or
less: next month is like the last, and not the same.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tapfinger_hpc import reserve
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.curves import CPU_AXIS
from tapfinger_hpc.sim.sites import Site, SiteType, SiteWorkload
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from tapfinger_hpc.trace import Trace, TraceJob

FEWEST_JOBS = 50
"""Managed jobs with fewer of which there is nothing to learn."""
JOBS = (60, 192)
"""Of a workload at least and at most; some 20 for each node."""
PACE = (0.6, 1.5)
"""Arrivals come so many times as fast as they did."""
STRAY = 0.2
"""Standard deviation by which the log seconds of a job stray from what they were."""
UNKNOWN_STD = 1.0
"""Of the log seconds of jobs of no known class, as ``speed.prior`` has it."""


@dataclass(frozen=True, eq=False)
class PastSite(Site):
    """A site whose jobs are those of a stretch of its past."""

    held: float = 0.0
    """CPUs or GPUs, whichever is scarcer, that the jobs held as they were, as a share of those that there are."""

    @property
    def load(self) -> float:
        """Of the jobs themselves: their kinds are not equally frequent."""
        return self.held


class SiteWorkloads:
    """Draws workloads of a site; the same seed gives the same."""

    def __init__(self, trace: Trace, spec: ClusterSpec) -> None:
        """``trace`` has the jobs as they are to be managed, with their ranges and classes.

        Raises:
            TraceError: too few of its jobs are managed.
        """
        self._spec = spec
        self._columns = {node.name: number for number, node in enumerate(spec.nodes)}
        jobs = sorted(trace.jobs, key=lambda item: item.job.submit_time_s)
        likes = _likes(trace, jobs)
        numbers = {like: number for number, like in enumerate(dict.fromkeys(likes))}
        self._types = tuple(like.made() for like in numbers)
        self._past = _past(trace, jobs, likes, numbers, self._types, spec)
        ours = int((~self._past.others).sum())
        if ours < FEWEST_JOBS:
            raise TraceError(
                f"trace {trace.source!r}: {ours} of the jobs to train on are managed; at least {FEWEST_JOBS} are "
                "needed: take a longer trace, or --manage all"
            )

    def __call__(self, seed: int) -> SiteWorkload:
        """The workload of this seed."""
        source, past = np.random.default_rng((seed, 0x517E)), self._past
        count = min(len(past.arrival), int(np.clip(20 * len(self._spec.nodes), *JOBS)))
        # Each begins with a job of ours, and is as long as the others where the trace is.
        begins = np.flatnonzero(~past.others)
        begins = begins[begins <= max(int(begins[0]), len(past.arrival) - count)]
        taken = np.arange(first := int(source.choice(begins)), min(first + count, len(past.arrival)))
        arrival = (past.arrival[taken] - past.arrival[first]) / math.exp(source.uniform(*np.log(PACE)))
        capacity = np.array([self._spec.capacity.cpus, self._spec.capacity.gpus], float)
        held = past.work[taken].sum(axis=0) / np.maximum(capacity, 1.0) / max(float(arrival[-1]), 1.0)
        used, kind = np.unique(past.like[taken], return_inverse=True)
        stray = np.exp(source.normal(-(STRAY**2) / 2, STRAY, len(taken)))
        return SiteWorkload(
            scenario=self._site(tuple(self._types[number] for number in used), arrival, float(held.max())),
            seed=seed,
            arrival=arrival,
            type=kind.astype(np.int64),
            reachable=past.reachable[taken],
            pace=past.pace[taken] * stray,
            others=past.others[taken],
            asked=past.asked[taken],
            limit=past.limit[taken] * np.maximum(1.0, stray),
            priority=np.arange(len(taken), 0, -1),
        )

    def _site(self, types: tuple[SiteType, ...], arrival: np.ndarray, held: float) -> PastSite:
        nodes, count = self._spec.nodes, len(arrival)
        return PastSite(
            name="site",
            capacities=tuple((node.capacity.cpus, node.capacity.gpus) for node in nodes),
            arrivals=count / max(float(arrival[-1]), 1.0),
            held=held,
            tasks=count,
            types=types,
            window=0,
            memories=tuple(node.capacity.mem_mb for node in nodes),
            partitions=tuple(
                tuple(self._columns[name] for name in partition.nodes) for partition in self._spec.partitions
            ),
        )


@dataclass(frozen=True)
class _Like:
    """Jobs with the same choices: of one class within the same range, or of none on the same amounts."""

    known: JobClass | None
    least: Resources
    greatest: Resources
    usual_s: float = 0.0
    """Of those of no class: the middle of their seconds."""

    def made(self) -> SiteType:
        """The kind of job that it is in a scenario."""
        least, greatest = self.least, self.greatest
        rate = np.zeros((greatest.cpus + 1, greatest.gpus + 1))
        for cpus in {least.cpus, greatest.cpus, *(each for each in CPU_AXIS if least.cpus <= each <= greatest.cpus)}:
            for gpus in range(least.gpus, greatest.gpus + 1):
                rate[cpus, gpus] = 1.0 / self.seconds(Resources(cpus, gpus))
        std = UNKNOWN_STD if self.known is None else self.known.speed.log_std_at(Resources(least.cpus, least.gpus))
        return SiteType(
            name=self.known.name if self.known else "unknown",
            minimum=(least.cpus, least.gpus),
            rate=rate,
            floors_mb=(least.mem_mb,) * (greatest.gpus + 1),
            spread=std,
        )

    def seconds(self, amounts: Resources) -> float:
        """Of a job of pace 1."""
        return self.usual_s if self.known is None else self.known.speed.duration_s(amounts)


@dataclass(frozen=True, eq=False)
class _Past:
    """The jobs of the trace; one of several nodes is as many of others."""

    arrival: np.ndarray  # float64 [job]
    like: np.ndarray  # int64 [job]
    reachable: np.ndarray  # bool [job, partition]
    pace: np.ndarray  # float64 [job]
    others: np.ndarray  # bool [job]
    asked: np.ndarray  # int64 [job, 3]
    limit: np.ndarray  # float64 [job]
    work: np.ndarray  # float64 [job, 2] CPU seconds and GPU seconds that it held


def _likes(trace: Trace, jobs: list[TraceJob]) -> list[_Like]:
    """What each job is like."""
    known = {one.name: one for one in trace.classes}
    logs: dict[Resources, list[float]] = defaultdict(list)
    classed = [_is_classed(item, known) for item in jobs]
    for item, of_class in zip(jobs, classed, strict=True):
        if not of_class:
            logs[_share(item)].append(math.log(_lasted_s(trace, item)))
    middles = {share: math.exp(float(np.mean(values))) for share, values in logs.items()}
    return [
        _Like(known[item.job.job_class], item.job.minimum, item.job.maximum)
        if of_class
        else _Like(None, _share(item), _share(item), middles[_share(item)])
        for item, of_class in zip(jobs, classed, strict=True)
    ]


def _is_classed(item: TraceJob, known: Mapping[str, JobClass]) -> bool:
    job = item.job
    return job.managed and job.nodes_wanted == 1 and job.job_class in known


def _past(
    trace: Trace,
    jobs: list[TraceJob],
    likes: list[_Like],
    numbers: Mapping[_Like, int],
    types: tuple[SiteType, ...],
    spec: ClusterSpec,
) -> _Past:
    of_item = [number for number, item in enumerate(jobs) for _ in range(item.job.nodes_wanted)]
    number = np.array([numbers[like] for like in likes], np.int64)
    pace = np.array(
        [
            item.scale if like.known else (item.ran.elapsed_s if item.ran else like.usual_s) / like.usual_s
            for item, like in zip(jobs, likes, strict=True)
        ]
    )
    slowest = np.array([1.0 / kind.rate[kind.rate > 0].min() for kind in types])[number] * pace
    limit = np.array([math.inf if item.job.time_limit_s is None else item.job.time_limit_s for item in jobs])
    columns = {
        "arrival": np.array([float(item.job.submit_time_s) for item in jobs]),
        "like": number,
        "reachable": np.array([[part.name in item.job.partitions for part in spec.partitions] for item in jobs]),
        "pace": pace,
        "others": np.array([not item.job.managed or item.job.nodes_wanted > 1 for item in jobs]),
        "asked": np.array([(share.cpus, share.gpus, share.mem_mb) for share in map(_share, jobs)], np.int64),
        "limit": np.maximum(limit, slowest),
        "work": np.array([(share.cpus, share.gpus) for share in map(_share, jobs)], float)
        * np.array([_lasted_s(trace, item) for item in jobs])[:, None],
    }
    return _Past(**{name: values[of_item] for name, values in columns.items()})


def _lasted_s(trace: Trace, item: TraceJob) -> float:
    return item.ran.elapsed_s if item.ran else trace.true_duration_s(item, item.job.requested)


def _share(item: TraceJob) -> Resources:
    """What it holds on each of its nodes."""
    return reserve.per_node(item.job)
