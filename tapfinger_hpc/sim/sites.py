"""Clusters as sites have them, drawn anew for every seed, for the scenario "cluster": partitions of several nodes that
may share some, three resources, event time, jobs of others, and a scheduler that is seen late and may refuse.

The ranges follow ``random_clusters`` and ``workload.random_knobs``, which say where they come from; lengths are in
seconds. A policy knows what a kind of job takes at the mean; how a single job departs from it the workload alone knows.
"""

import math
import random
import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tapfinger_hpc.sim.curves import CPU_AXIS, random_class
from tapfinger_hpc.sim.scenarios import Scenario, TaskType, Workload
from tapfinger_hpc.speed import SpeedModel
from tapfinger_hpc.state import Resources

NODES = (
    (4, 1, 8_000),
    (8, 1, 16_000),
    (8, 2, 32_000),
    (16, 1, 64_000),
    (16, 2, 64_000),
    (16, 4, 64_000),
    (24, 4, 96_000),
    (32, 4, 128_000),
    (32, 8, 256_000),
    (64, 8, 256_000),
)
"""CPUs, GPUs, MiB: single-board computers with a GPU, and servers of 1 to 8. CPUs per GPU go from 4 to 16, as on the
GPU nodes of Alibaba's 2023 cluster."""
_WEIGHTS = (1, 1, 1, 1, 1, 4, 2, 2, 1, 1)
WITHOUT_GPUS = (16, 0, 32_000)
PARTITIONS = (1, 2, 2, 3, 3, 3, 4, 5, 6)
GPU_SHARES = ((1, 2, 4, 8), (0.70, 0.05, 0.20, 0.05))
"""GPUs that jobs of others ask for; ``workload.GPU_SHARES`` says where the shares are from."""
CPUS_PER_GPU = (2, 4, 8)
LIMIT_FACTORS = (1.5, 6.0)
"""Time limit over true time: users over-estimate several times (Mu'alem & Feitelson 2001)."""
BASIC, OURS_FIRST, OTHERS_FIRST = "basic", "ours first", "others first"
"""Whom Slurm serves first: who came first, or one of the two sides."""


@dataclass(frozen=True, eq=False)
class SiteType(TaskType):
    """A kind of job in event time; ``rate`` is progress in a second on the amounts of the usual grid."""

    floors_mb: tuple[int, ...] = ()
    """[GPUs] MiB without which it cannot run on so many GPUs."""
    spread: float = 0.0

    @cached_property
    def slots(self) -> np.ndarray:
        """[CPUs + 1, GPUs + 1] seconds from start to end; infinite where it cannot run."""
        with np.errstate(divide="ignore"):
            return 1.0 / self.rate

    @property
    def mem_mb(self) -> np.ndarray:
        return np.array(self.floors_mb, dtype=np.int64)

    @property
    def log_std(self) -> float:
        return self.spread


@dataclass(frozen=True, eq=False)
class Site(Scenario):
    """What is drawn from. ``capacities`` are the nodes' CPUs and GPUs, ``arrivals`` counts jobs in a second."""

    memories: tuple[int, ...] = ()
    """MiB of each node."""
    partitions: tuple[tuple[int, ...], ...] = ()
    """Positions of each partition's nodes."""
    others: float = 0.0
    """Share of jobs that are not ours: they have fixed amounts, and Slurm starts them."""
    serves: str = BASIC
    several: float = 0.0
    """Share of jobs that name more than one partition."""
    bursts: float = 0.0
    """Share of jobs that come together with the one before."""
    late_s: float = 0.0
    """How old what is seen of the cluster is by the time a decision about it takes effect."""
    refusal: float = 0.0
    """Share of placements that are refused without a reason."""

    @property
    def slot(self) -> float:
        return 0.0

    @cached_property
    def unit(self) -> float:
        """A third of the time that jobs take at best, at the mean: a slot of the paper's scenarios is that."""
        return float(np.mean([kind.slots.min() for kind in self.types])) / 3

    @cached_property
    def nodes(self) -> np.ndarray:
        return np.array([(*pair, mem) for pair, mem in zip(self.capacities, self.memories, strict=True)], np.int64)

    @cached_property
    def member(self) -> np.ndarray:
        found = np.zeros((len(self.partitions), len(self.capacities)), np.bool_)
        for partition, nodes in enumerate(self.partitions):
            found[partition, list(nodes)] = True
        return found


@dataclass(frozen=True, eq=False)
class SiteWorkload(Workload):
    """The jobs of one episode on a site; arrivals are float64 seconds."""

    pace: np.ndarray  # float64 [job] its seconds over those of its kind, on any amounts
    others: np.ndarray  # bool [job] not ours
    asked: np.ndarray  # int64 [job, 3] what Slurm starts a job of others with
    limit: np.ndarray  # float64 [job] seconds after which Slurm would end it; none comes to that
    priority: np.ndarray  # int64 [job]

    @property
    def ours(self) -> np.ndarray:
        return ~self.others

    @property
    def work(self) -> np.ndarray:
        return self.pace

    def begin(self, tasks: int) -> "SiteWorkload":
        """The jobs up to the one with which so many of ours have come."""
        count = int(np.searchsorted(np.cumsum(~self.others), tasks)) + 1
        parts = ("arrival", "type", "reachable", "pace", "others", "asked", "limit", "priority")
        return replace(self, **{part: getattr(self, part)[:count] for part in parts})


def workload(seed: int, *, load: float | None = None, tasks: int | None = None) -> SiteWorkload:
    """The workload of this seed, on a site of its own.

    Args:
        load: instead of one between 0.4 and 1.1.
        tasks: jobs of the episode, with those of others; about 20 for each node where not given.
    """
    site = random_site(np.random.default_rng((seed, zlib.crc32(b"site"))), load=load, tasks=tasks)
    return draw(site, seed)


def alone(workload: SiteWorkload) -> np.ndarray:
    """float64 [job] seconds from arrival to end with the cluster to itself; the best of the nodes that it can reach."""
    site = workload.scenario
    least = np.full((len(site.types), site.agents), np.inf)
    for number, kind in enumerate(site.types):
        runs = np.argwhere(np.isfinite(kind.slots))
        needs = np.column_stack((runs, kind.mem_mb[runs[:, 1]]))
        able = (needs[:, None] <= site.nodes).all(axis=2) @ site.member.T  # [amounts, partition]
        seconds = kind.slots[runs[:, 0], runs[:, 1]]
        least[number] = np.where(able, seconds[:, None], np.inf).min(axis=0)
    return np.where(workload.reachable, least[workload.type], np.inf).min(axis=1) * workload.pace


def random_site(source: np.random.Generator, *, load: float | None = None, tasks: int | None = None) -> Site:
    """1 to 6 partitions of 1 to 4 nodes, a load of 0.4 to 1.1 on the jobs' thriftiest amounts, 2 to 6 kinds of jobs."""
    nodes, partitions = _cluster(source)
    kinds = tuple(_kind(source, f"kind{number}", nodes) for number in range(source.integers(2, 7)))
    count = tasks or int(np.clip(20 * len(nodes), 60, 192))
    site = Site(
        name="cluster",
        capacities=tuple((cpus, gpus) for cpus, gpus, _ in nodes),
        arrivals=1.0,
        tasks=count,
        types=_of_one_scale(source, kinds),
        window=0,
        memories=tuple(mem for _, _, mem in nodes),
        partitions=partitions,
        others=float(source.choice((0.0, 0.0, 0.15, 0.3))),
        serves=str(source.choice((BASIC, BASIC, BASIC, OURS_FIRST, OTHERS_FIRST))),
        several=float(source.choice((0.0, 0.2, 0.5, 1.0))),
        bursts=float(source.choice((0.0, 0.0, 0.3, 0.6))),
        late_s=float(np.exp(source.uniform(np.log(0.5), np.log(15)))) if source.random() < 0.7 else 0.0,
        refusal=float(source.choice((0.0, 0.0, 0.02, 0.1))),
    )
    return replace(site, arrivals=(source.uniform(0.4, 1.1) if load is None else load) / site.load)


def draw(site: Site, seed: int) -> SiteWorkload:
    """The workload of this seed: the same for every policy."""
    source = np.random.default_rng((seed, zlib.crc32(site.name.encode())))
    count = site.tasks
    gaps = np.where(source.random(count) < site.bursts, 0.0, source.exponential(1.0, count))
    gaps[0] = 0.0
    # As many jobs in the same time, whatever share of them comes in bursts.
    arrival = np.cumsum(gaps) * (count / site.arrivals / max(1e-9, gaps.sum()))
    kinds = source.integers(len(site.types), size=count)
    spread = np.array([kind.log_std for kind in site.types])[kinds]
    pace = np.exp(source.normal(-(spread**2) / 2, spread))
    others = source.random(count) < site.others
    others[0] = False
    reachable = np.zeros((count, site.agents), np.bool_)
    asked = np.zeros((count, 3), np.int64)
    limit = np.zeros(count)
    for job, kind in enumerate(kinds.tolist()):
        reachable[job] = _reach(source, site, site.types[kind])
        lasts = site.types[kind].slots
        if others[job]:
            asked[job] = _request(source, site, site.types[kind], reachable[job])
            longest = lasts[asked[job, 0], asked[job, 1]]
        else:
            longest = lasts[np.isfinite(lasts)].max()
        limit[job] = 60.0 * math.ceil(pace[job] * longest * source.uniform(*LIMIT_FACTORS) / 60.0)
    first = {BASIC: 0, OURS_FIRST: -count, OTHERS_FIRST: count}[site.serves]
    priority = count - np.arange(count) + first * others
    return SiteWorkload(site, seed, arrival, kinds, reachable, pace, others, asked, limit, priority)


def _cluster(source: np.random.Generator) -> tuple[list[tuple[int, int, int]], tuple[tuple[int, ...], ...]]:
    """Nodes, and the nodes of each partition."""
    shapes = [NODES[number] for number in source.choice(len(NODES), size=3, p=np.array(_WEIGHTS) / sum(_WEIGHTS))]
    mixed, overlapping = source.random() < 0.4, source.random() < 0.3
    without = source.random() < 0.15
    nodes: list[tuple[int, int, int]] = []
    partitions: list[tuple[int, ...]] = []
    for partition in range(int(source.choice(PARTITIONS))):
        shape = shapes[source.integers(3)] if mixed else shapes[0]
        begun = len(nodes)
        for _ in range(source.integers(1, 5)):
            nodes.append(shapes[source.integers(3)] if mixed and source.random() < 0.3 else shape)
        if without and partition > 0 and source.random() < 0.5:
            nodes[begun:] = [WITHOUT_GPUS] * (len(nodes) - begun)
        own = set(range(begun, len(nodes)))
        if overlapping and partitions:
            before = partitions[-1]
            shared = source.permutation(len(before))[: source.integers(len(before) + 1)]
            own |= {before[position] for position in shared}
        partitions.append(tuple(sorted(own)))
    return nodes, tuple(partitions)


def _kind(source: np.random.Generator, name: str, nodes: list[tuple[int, int, int]]) -> SiteType:
    """A kind of a random family, with what its jobs declare: mostly all that a node has."""
    with_gpus = [node for node in nodes if node[1] > 0]
    cpus, gpus, mem_mb = (max(node[resource] for node in with_gpus) for resource in range(3))
    # Its least memory is there on every node that has GPUs, but not always beside others.
    mem_mb = min(mem_mb, 2 * min(node[2] for node in with_gpus))
    draws = random.Random(int(source.integers(2**62)))
    model = random_class(draws, name, 1.0, 0.0, Resources(cpus, gpus, mem_mb)).speed
    if source.random() < 0.3:
        gpus = min(gpus, int(source.choice((1, 2, 4))))
        cpus = min(cpus, 8 * max(1, gpus))
    return _as_type(name, model, cpus, gpus)


def _as_type(name: str, model: SpeedModel, most_cpus: int, most_gpus: int) -> SiteType:
    """The model on the amounts of its own grid, each with the least memory on which it runs."""
    counts = [count for count in model.gpus if count <= most_gpus]
    rate = np.zeros((most_cpus + 1, counts[-1] + 1))
    floors = np.zeros(counts[-1] + 1, np.int64)
    for gpus in counts:
        floors[gpus] = next(mem for mem in model.mem_mb if math.isfinite(model.duration_s(Resources(1, gpus, mem))))
        for cpus in (count for count in CPU_AXIS if count <= most_cpus):
            rate[cpus, gpus] = 1.0 / model.duration_s(Resources(cpus, gpus, int(floors[gpus])))
    return SiteType(name, (1, counts[0]), rate, floors_mb=tuple(floors.tolist()))


def _of_one_scale(source: np.random.Generator, kinds: tuple[SiteType, ...]) -> tuple[SiteType, ...]:
    """Some longer, some shorter, around a mean of half a minute to an hour on what is thriftiest."""
    mean_s, spread = np.exp(source.uniform(np.log(30), np.log(3600))), source.uniform(0.3, 1.2)
    between = float(source.choice((0.0, 0.2, 0.4, 0.6)))
    lengths = mean_s * np.exp(source.normal(-(spread**2) / 2, spread, len(kinds)))
    return tuple(
        replace(kind, rate=kind.rate / length, spread=between) for kind, length in zip(kinds, lengths, strict=True)
    )


def _fitting(site: Site, kind: TaskType) -> np.ndarray:
    """bool [node] nodes that have its least amounts."""
    least = np.array((*kind.menu[0], kind.mem_mb[kind.menu[0, 1]]))
    return np.asarray((site.nodes >= least).all(axis=1))


def _reach(source: np.random.Generator, site: Site, kind: TaskType) -> np.ndarray:
    """One partition, the larger the likelier, or several; of those that have a node for it."""
    fitting = (site.member & _fitting(site, kind)).sum(axis=1)
    able = np.flatnonzero(fitting)
    first = source.choice(able, p=fitting[able] / fitting.sum())
    reach = np.zeros(site.agents, np.bool_)
    reach[first] = True
    left = able[able != first]
    if len(left) and source.random() < site.several:
        reach[source.permutation(left)[: source.integers(1, len(left) + 1)]] = True
    return reach


def _request(source: np.random.Generator, site: Site, kind: TaskType, reach: np.ndarray) -> np.ndarray:
    """What a user asks for, on one node: GPUs by the shares, CPUs by them, and more memory than is needed."""
    able = site.nodes[site.member[reach].any(axis=0) & _fitting(site, kind)]
    node = able[source.integers(len(able))]
    gpus = min(int(source.choice(GPU_SHARES[0], p=GPU_SHARES[1])), int(node[1]))
    cpus = int(source.choice(CPUS_PER_GPU)) * max(1, gpus)
    runs = np.argwhere((kind.rate > 0) & (kind.mem_mb <= node[2]))
    runs = runs[(runs <= node[:2]).all(axis=1)]
    wanted = runs[(np.abs(runs - (cpus, gpus)) * (1, 100)).sum(axis=1).argmin()]
    needed = int(kind.mem_mb[wanted[1]])
    return np.array((*wanted, min(int(node[2]), round(needed * source.uniform(1.0, 2.5)))), np.int64)
