"""Small states for tests, and hypothesis strategies that draw any."""

from hypothesis import strategies as st

from tapfinger_hpc import fit
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import ClusterState, Node, Partition, PendingJob, Resources, RunningJob, Share

NODE = Resources(16, 4, 64000)


def node(name: str, free: Resources = NODE, *, capacity: Resources = NODE, **fields) -> Node:
    """A node of the sandbox's size."""
    return Node(name, capacity, free, **fields)


def job(job_id: str, submit_time_s: int = 0, **fields) -> PendingJob:
    """A managed job of partition pa that asks for 1 GPU and may have 1-4."""
    values: dict = {
        "partitions": ("pa",),
        "requested": Resources(4, 1, 8000),
        "minimum": Resources(1, 1, 4000),
        "maximum": Resources(16, 4, 32000),
        "time_limit_s": 3600,
        "priority": 1000,
        "managed": True,
        "lease_until_s": 10_000,
    }
    return PendingJob(job_id=job_id, submit_time_s=submit_time_s, **(values | fields))


def fixed(job_id: str, amounts: Resources, submit_time_s: int = 0, **fields) -> PendingJob:
    """A job without ranges."""
    return job(job_id, submit_time_s, **({"requested": amounts, "minimum": amounts, "maximum": amounts} | fields))


def foreign(job_id: str, amounts: Resources, submit_time_s: int = 0, **fields) -> PendingJob:
    """A job that is not ours."""
    return fixed(job_id, amounts, submit_time_s, **({"managed": False, "lease_until_s": None} | fields))


def running(job_id: str, where: str, amounts: Resources, **fields) -> RunningJob:
    """A job that holds amounts on one node."""
    values: dict = {"submit_time_s": 0, "partition": "pa", "start_time_s": 0, "end_limit_s": 1000}
    return RunningJob(job_id=job_id, shares=(Share(where, amounts),), **(values | fields))


def state(*pending: PendingJob, nodes=None, partitions=None, time_s: float = 100.0, **fields) -> ClusterState:
    """One partition pa of two idle nodes, unless told otherwise."""
    nodes = nodes or (node("n1"), node("n2"))
    partitions = partitions or (Partition("pa", tuple(each.name for each in nodes)),)
    return ClusterState(time_s, tuple(nodes), tuple(partitions), pending, **fields)


def speed(**per_gpus: float) -> SpeedModel:
    """Seconds by GPUs alone: ``speed(g1=100, g4=40)``."""
    gpus = tuple(int(key[1:]) for key in per_gpus)
    return SpeedModel((1,), gpus, (1,), tuple(per_gpus.values()))


amounts = st.builds(Resources, st.integers(1, 20), st.integers(0, 5), st.integers(1000, 70000))


@st.composite
def pending_jobs(draw, job_id: str) -> PendingJob:
    """Any job: ours or not, with or without ranges, of one or several partitions, tasks and classes."""
    low, high, asked = draw(amounts), draw(amounts), draw(amounts)
    minimum = Resources(min(low.cpus, high.cpus), min(low.gpus, high.gpus), min(low.mem_mb, high.mem_mb))
    maximum = Resources(max(low.cpus, high.cpus), max(low.gpus, high.gpus), max(low.mem_mb, high.mem_mb))
    is_ours = draw(st.booleans())
    return PendingJob(
        job_id=job_id,
        submit_time_s=draw(st.integers(0, 900)),
        partitions=draw(st.sampled_from([("pa",), ("pb",), ("pa", "pb"), ("pz",)])),
        requested=asked,
        minimum=minimum if is_ours else asked,
        maximum=maximum if is_ours else asked,
        tasks=draw(st.sampled_from([1, 1, 1, 2, 3])),
        nodes_wanted=1 if is_ours else draw(st.sampled_from([1, 1, 2])),
        job_class=draw(st.sampled_from(["", "known", "hungry", "nobody knows"])),
        gpu_type=draw(st.sampled_from(["", "", "", "a100"])),
        time_limit_s=draw(st.sampled_from([None, 60, 600, 7200])),
        priority=draw(st.integers(0, 3)),
        managed=is_ours,
        eligible=draw(st.sampled_from([True, True, True, False])),
        lease_until_s=draw(st.sampled_from([None, 500, 2000])) if is_ours else None,
    )


@st.composite
def states(draw, jobs: int = 8) -> ClusterState:
    """Any state that a cluster of a few nodes could be in; its running jobs hold what its nodes lack."""
    nodes, holding = [], []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        capacity = draw(st.sampled_from([NODE, Resources(8, 2, 32000), Resources(32, 0, 128000)]))
        free = capacity
        step = draw(st.sampled_from([1, 1, 2]))
        kind = Node(
            f"n{number}", capacity, free, draw(st.sampled_from([True, True, False])), cpu_step=step,
            gpu_type=draw(st.sampled_from(["", "a100"])),
        )  # fmt: skip
        for count in range(draw(st.integers(0, 3))):
            held = draw(amounts)
            if not kind.free.covers(fit.granted(kind, held)):
                continue
            kind = Node(kind.name, capacity, kind.free - fit.granted(kind, held), kind.available, kind.gpu_type, step)
            limit = draw(st.sampled_from([None, 900, 1100, 5000]))
            holding.append(
                running(f"{number}{count}", kind.name, held, start_time_s=800, end_limit_s=limit, job_class="known")
            )
        nodes.append(kind)
    names = [each.name for each in nodes]
    half = draw(st.integers(0, len(names)))
    partitions = (
        Partition("pa", tuple(names[: half + 1])),
        Partition("pb", tuple(names[half:]), max_time_s=draw(st.sampled_from([None, 1800]))),
        Partition("pz", tuple(names), up=False),
    )
    known = JobClass("known", SpeedModel((1, 16), (0, 1, 4), (1000,), (90.0, 50.0, 20.0, 80.0, 40.0, 15.0), (0.3,)))
    hungry = JobClass("hungry", SpeedModel((1,), (1, 2), (4000, 16000), (None, 30.0, None, 20.0), (0.1,)))
    pending = [draw(pending_jobs(f"{1000 + number}")) for number in range(draw(st.integers(0, jobs)))]
    return ClusterState(1000.0, tuple(nodes), partitions, tuple(pending), tuple(holding), (known, hungry))
