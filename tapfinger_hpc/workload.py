"""Workloads drawn from a seed: the demo's, and random ones to train and to tune on.

What users ask for follows real traces, not what would make a scheduler look good or bad: the shares, the over-estimated
limits and the CPUs per GPU are named below with where they come from. The load of a workload is that of its
*requests*: GPU-seconds on the requested amounts, as a share of what the cluster has while jobs arrive.
"""

import math
import random
from collections.abc import Sequence
from itertools import accumulate
from statistics import stdev

import msgspec
from msgspec.structs import replace

from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.curves import measured_classes, random_class
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Partition, PendingJob, Resources
from tapfinger_hpc.trace import Trace, TraceJob

Shares = tuple[tuple[int, float], ...]
"""Amounts with their shares."""
GPU_SHARES: Shares = ((1, 0.73), (2, 0.03), (4, 0.24))
"""Requests among jobs of at most 4 GPUs: the mean of three job lists made from Microsoft's Philly clusters.

Philly's first 20,000 jobs ask for 1 / 2 / 4 GPUs in 96 / 2 / 2 % of cases, Muri's two lists in 56 / 0 / 44 % and
68 / 5 / 27 %. (Alibaba's 2023 pods: over 99 % one GPU.)
"""
CPUS_PER_GPU: Shares = ((2, 0.2), (4, 0.6), (8, 0.2))
"""Around a node's own 4 CPUs per GPU. Alibaba's 2023 pods ask for 3 to 19, most often 3, 4, 8 or 11."""
LIMIT_FACTORS = (1.5, 6.0)
"""Time limit over true time on the requested amounts: users over-estimate several times (Mu'alem & Feitelson 2001)."""
MINUTE_S = 60


class WorkloadKnobs(msgspec.Struct, frozen=True):
    """What a random workload is like; ``random_knobs`` draws one."""

    jobs: int = 100
    load: float = 0.8
    classes: int = 6
    mean_s: float = 600.0
    """Mean time of a job on what it asks for."""
    class_spread: float = 0.8
    """Standard deviation of the logarithm of the classes' lengths (all Philly jobs together: 2.0)."""
    job_spread: float = 0.3
    """The same between jobs of one class; policies are told it (``log_std``), not a job's own length."""
    several_partitions: float = 0.3
    """Share of jobs that name more than one partition."""
    foreign: float = 0.0
    """Share of jobs that are not ours."""
    fixed: float = 0.0
    """Share of our jobs that declare no range."""
    bursts: float = 0.0
    """Share of jobs that arrive together with the one before."""
    size_follows_request: float = 0.5
    """0: a job of 4 GPUs has as much to compute as one of 1; 1: as many times more as its class gains by them."""
    gpu_shares: Shares = GPU_SHARES


def demo_trace(
    seed: int,
    n_jobs: int = 48,
    *,
    load: float = 0.8,
    mean_s: float = 24.0,
    spec: ClusterSpec | None = None,
    job_spread: float = 0.3,
    foreign: float = 0.0,
) -> Trace:
    """The demo's stream of jobs: six measured classes, scaled to tens of seconds, every job with ranges.

    ``foreign`` is the share of jobs that are submitted without the mark. Half of the jobs name one partition, half two
    or three: on stock Slurm too, each starts where there is room first.
    """
    draw = random.Random(f"demo {seed}")
    cluster = spec or ClusterSpec.uniform()
    classes = measured_classes(mean_s, job_spread, _largest(cluster))
    knobs = WorkloadKnobs(
        jobs=n_jobs, load=load, mean_s=mean_s, job_spread=job_spread, several_partitions=0.5, foreign=foreign
    )
    return _trace(draw, cluster, classes, knobs, f"demo seed={seed} jobs={n_jobs} load={load:g}")


def random_trace(seed: int, spec: ClusterSpec, knobs: WorkloadKnobs | None = None) -> Trace:
    """A workload of random classes for this cluster; the same seed, cluster and knobs give the same workload."""
    draw = random.Random(f"workload {seed}")
    knobs = knobs or random_knobs(draw)
    largest = _largest(spec)
    classes = tuple(
        random_class(
            draw,
            f"class{number}",
            knobs.mean_s * math.exp(draw.gauss(-(knobs.class_spread**2) / 2, knobs.class_spread)),
            knobs.job_spread,
            largest,
        )
        for number in range(knobs.classes)
    )
    return _trace(draw, spec, classes, knobs, f"random seed={seed} jobs={knobs.jobs} load={knobs.load:g}")


def random_knobs(draw: random.Random, jobs: int = 100) -> WorkloadKnobs:
    """Knobs over the whole spread on which a policy should do well."""
    shares: Shares = draw.choice(
        (
            GPU_SHARES,
            ((1, 0.96), (2, 0.02), (4, 0.02)),  # Philly
            ((1, 0.4), (2, 0.03), (4, 0.22), (8, 0.35)),  # Muri's two lists, more than 8 GPUs counted as 8
            ((1, 0.5), (2, 0.25), (4, 0.25)),
        )
    )
    return WorkloadKnobs(
        jobs=jobs,
        load=draw.uniform(0.3, 1.2),
        classes=draw.randint(2, 8),
        mean_s=math.exp(draw.uniform(math.log(20), math.log(7200))),
        class_spread=draw.uniform(0.3, 1.2),
        job_spread=draw.choice((0.0, 0.2, 0.4, 0.6)),
        several_partitions=draw.choice((0.0, 0.2, 0.5, 1.0)),
        foreign=draw.choice((0.0, 0.0, 0.0, 0.15, 0.3)),
        fixed=draw.choice((0.0, 0.0, 0.2, 0.5)),
        bursts=draw.choice((0.0, 0.0, 0.3, 0.6)),
        size_follows_request=draw.choice((0.0, 0.5, 1.0)),
        gpu_shares=shares,
    )


def requested_load(trace: Trace, spec: ClusterSpec, over_s: float | None = None) -> tuple[float, float]:
    """Load of the requests on CPUs and on GPUs: true seconds on what is asked for, as a share of the whole cluster's.

    Args:
        over_s: the time in which the jobs arrive; None takes it from the trace.
    """
    span_s = arrival_span_s(trace) if over_s is None else over_s
    cpus = gpus = 0.0
    for item in trace.jobs:
        lasts_s = _running_s(trace, item)
        cpus += item.job.requested.cpus * lasts_s
        gpus += item.job.requested.gpus * lasts_s
    capacity = spec.capacity
    return cpus / (span_s * max(1, capacity.cpus)), gpus / (span_s * max(1, capacity.gpus))


def arrival_span_s(trace: Trace) -> float:
    """The time in which the jobs of a trace arrive: as many gaps as jobs, each as long as those between them."""
    times = [item.job.submit_time_s for item in trace.jobs]
    if len(times) < 2:
        return 1.0
    return max(1.0, (max(times) - min(times)) * len(times) / (len(times) - 1))


def _running_s(trace: Trace, item: TraceJob) -> float:
    true_s = trace.true_duration_s(item, item.job.requested)
    return min(true_s, math.inf if item.job.time_limit_s is None else item.job.time_limit_s)


def _trace(
    draw: random.Random,
    spec: ClusterSpec,
    classes: tuple[JobClass, ...],
    knobs: WorkloadKnobs,
    source: str,
) -> Trace:
    """Draws the jobs, then as much time for their arrivals as gives the load."""
    jobs = [_job(draw, spec, draw.choice(classes), knobs, str(number)) for number in range(1, knobs.jobs + 1)]
    classes = tuple(_as_learned(job_class, jobs) for job_class in classes)
    over_s = max(requested_load(Trace(source, classes, tuple(jobs)), spec, over_s=1.0)) / knobs.load
    times = _arrivals(draw, knobs, over_s)
    timed = (
        TraceJob(replace(item.job, submit_time_s=int(time_s)), item.scale)
        for item, time_s in zip(jobs, times, strict=True)
    )
    return Trace(source, classes, tuple(timed))


def _as_learned(job_class: JobClass, jobs: Sequence[TraceJob]) -> JobClass:
    """The class with the deviation that its jobs show: what one would learn from such jobs once they have ended."""
    logs = [math.log(item.scale) for item in jobs if item.job.job_class == job_class.name]
    if len(logs) < 2:
        return job_class
    deviation = max(stdev(logs), *job_class.speed.log_std)
    return replace(job_class, speed=replace(job_class.speed, log_std=(round(deviation, 3),)))


def _arrivals(draw: random.Random, knobs: WorkloadKnobs, over_s: float) -> list[float]:
    """Poisson arrivals, given how many there are and in which time; some come together with the one before."""
    gaps = [0.0 if draw.random() < knobs.bursts else draw.expovariate(1.0) for _ in range(knobs.jobs - 1)]
    each_s = over_s * (knobs.jobs - 1) / knobs.jobs / sum(gaps) if sum(gaps) > 0 else 0.0
    return list(accumulate((gap * each_s for gap in gaps), initial=0.0))


def _job(draw: random.Random, spec: ClusterSpec, job_class: JobClass, knobs: WorkloadKnobs, job_id: str) -> TraceJob:
    """One job as a user would submit it; when it comes is decided later."""
    partitions = _partitions(draw, spec, knobs)
    largest = _largest_of(spec, partitions)
    requested = _request(draw, job_class, knobs, largest)
    managed = draw.random() >= knobs.foreign
    minimum, maximum = requested, requested
    if managed and draw.random() >= knobs.fixed:
        minimum, maximum = _range(draw, job_class, requested, largest)
    scale = math.exp(draw.gauss(-(knobs.job_spread**2) / 2, knobs.job_spread))
    one = Resources(requested.cpus, min(1, requested.gpus), requested.mem_mb)
    on_request_s = job_class.speed.duration_s(requested)
    scale *= max(1.0, job_class.speed.duration_s(one) / on_request_s) ** knobs.size_follows_request
    limit_s = math.ceil(scale * on_request_s * draw.uniform(*LIMIT_FACTORS) / MINUTE_S) * MINUTE_S
    job = PendingJob(
        job_id=job_id,
        submit_time_s=0,
        partitions=tuple(partition.name for partition in partitions),
        requested=requested,
        minimum=minimum,
        maximum=maximum,
        user=f"user{min(int(draw.paretovariate(1.0)), 9)}",
        job_class=job_class.name,
        time_limit_s=limit_s,
        managed=managed,
    )
    return TraceJob(job, scale)


def _partitions(draw: random.Random, spec: ClusterSpec, knobs: WorkloadKnobs) -> list[Partition]:
    """One partition, the larger the likelier, or a random set of them."""
    weights = [len(partition.nodes) for partition in spec.partitions]
    first = draw.choices(spec.partitions, weights)[0]
    if draw.random() >= knobs.several_partitions:
        return [first]
    others = [partition for partition in spec.partitions if partition is not first]
    return [first, *draw.sample(others, draw.randint(min(1, len(others)), len(others)))]


def _request(draw: random.Random, job_class: JobClass, knobs: WorkloadKnobs, largest: Resources) -> Resources:
    """What the user asks for: GPUs by the shares, CPUs by them, and some memory more than is needed."""
    if job_class.speed.gpus == (0,):
        gpus, cpus = 0, draw.choice((1, 2, 4, 8))
    else:
        gpus = min(largest.gpus, _pick(draw, knobs.gpu_shares))
        cpus = gpus * _pick(draw, CPUS_PER_GPU)
    needed_mb = _floor_mb(job_class, gpus)
    mem_mb = min(largest.mem_mb, max(needed_mb, math.ceil(needed_mb * draw.uniform(1.0, 2.5) / 1000) * 1000))
    return Resources(min(largest.cpus, cpus), gpus, mem_mb)


def _range(
    draw: random.Random, job_class: JobClass, requested: Resources, largest: Resources
) -> tuple[Resources, Resources]:
    """``gpus=1-4 cpus=1-16 mem=4G-32G``: around the request, mostly all that a node has."""
    wide = draw.random() < 0.7
    most_gpus = largest.gpus if wide else min(largest.gpus, 2 * requested.gpus)
    most = Resources(
        largest.cpus if wide else min(largest.cpus, 2 * requested.cpus),
        most_gpus if requested.gpus else 0,
        min(largest.mem_mb, max(requested.mem_mb, 2 * _floor_mb(job_class, most_gpus if requested.gpus else 0))),
    )
    least = Resources(
        1 if wide else max(1, requested.cpus // 2),
        min(1, requested.gpus) if wide else max(min(1, requested.gpus), requested.gpus // 2),
        min(requested.mem_mb, _floor_mb(job_class, min(1, requested.gpus))),
    )
    return least if requested.gpus or not least.gpus else requested, most


def _pick(draw: random.Random, shares: Shares) -> int:
    return draw.choices([amount for amount, _ in shares], [share for _, share in shares])[0]


def _floor_mb(job_class: JobClass, gpus: int) -> int:
    """The least memory on which the class runs with so many GPUs."""
    model = job_class.speed
    for mem_mb in model.mem_mb:
        if math.isfinite(model.duration_s(Resources(model.cpus[0], gpus, mem_mb))):
            return mem_mb
    return model.mem_mb[-1]


def _largest(spec: ClusterSpec) -> Resources:
    return _largest_of(spec, spec.partitions)


def _largest_of(spec: ClusterSpec, partitions: Sequence[Partition]) -> Resources:
    """The most that a job can get wherever it lands: the least, over partitions, of what one of their nodes has."""
    nodes = {node.name: node for node in spec.nodes}
    most = []
    for partition in partitions:
        most.append(
            max((nodes[name].capacity for name in partition.nodes), key=lambda amounts: (amounts.gpus, amounts))
        )
    return Resources(
        min(amounts.cpus for amounts in most),
        min(amounts.gpus for amounts in most),
        min(amounts.mem_mb for amounts in most),
    )
