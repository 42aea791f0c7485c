"""How long job classes take: a few measured ones, and families to draw others from.

All are SpeedModels on a grid, made from one shape: the time that the GPUs need, the time that the CPUs need to feed
them, what memory must be there, and what more of it saves. Sources of the numbers stand beside them.
"""

import math
import random
from collections.abc import Callable, Sequence

from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import Resources

CPU_AXIS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
GPU_AXIS = (1, 2, 3, 4, 6, 8)
SHARPNESS = 4.0
"""How sharply the slower of GPUs and CPUs sets the pace: 1 adds their times, infinity takes the greater."""


def measured_classes(scale_s: float, log_std: float, largest: Resources) -> tuple[JobClass, ...]:
    """Six classes with measured gains by GPU, each ``scale_s`` times its relative length on one GPU.

    GPU gains: step times on one node in Pollux's measurements (Qiao et al., OSDI'21, T4 GPUs), read at 1, 2, 3 and 4
    GPUs with the whole batch kept (bert 12, cifar10 512, deepspeech2 40, imagenet 200, ncf 8207, yolov3 16 samples), so
    a job computes the same on any number. CPUs per GPU that keep a class fed: image and speech models need several,
    language models hardly any (Mohan et al., Synergy, OSDI'22). Memory floors and relative lengths are our own.
    """
    # Name, length on one GPU, time on 1-4 GPUs against one, CPUs that feed one GPU, MiB for the job and per GPU.
    rows = (
        ("bert-squad", 1.1, (1.0, 0.64, 0.54, 0.52), 1.0, 6000, 1500),
        ("deepspeech2", 1.2, (1.0, 0.64, 0.58, 0.57), 2.5, 5000, 1500),
        ("ncf-movielens", 0.5, (1.0, 1.07, 1.22, 1.26), 1.5, 3000, 500),
        ("resnet18-cifar10", 0.7, (1.0, 0.59, 0.41, 0.31), 2.0, 2500, 1000),
        ("resnet50-imagenet", 1.8, (1.0, 0.54, 0.41, 0.33), 3.0, 6000, 2000),
        ("yolov3-voc", 1.3, (1.0, 0.62, 0.76, 0.80), 2.5, 5000, 1500),
    )
    gpus = tuple(range(1, min(4, largest.gpus) + 1))
    return tuple(
        JobClass(
            name,
            grid(
                cpus=tuple(cpus for cpus in CPU_AXIS if cpus <= largest.cpus),
                gpus=gpus,
                floors_mb={count: base_mb + count * each_mb for count in gpus},
                seconds=_by_table(scale_s * length, table, feed),
                log_std=log_std,
            ),
            observations=30,
        )
        for name, length, table, feed, base_mb, each_mb in rows
    )


def random_class(draw: random.Random, name: str, base_s: float, log_std: float, largest: Resources) -> JobClass:
    """A class of a random family, ``base_s`` seconds on one GPU that is well fed (or on one CPU, without GPUs)."""
    cpus = tuple(count for count in CPU_AXIS if count <= largest.cpus)
    counts = tuple(count for count in GPU_AXIS if count <= largest.gpus)
    without_gpus = not counts or draw.random() < 0.08
    gpus = (0,) if without_gpus else counts
    base_mb = round(largest.mem_mb * math.exp(draw.uniform(math.log(0.015), math.log(0.15))))
    each_mb = round(base_mb * draw.uniform(0.0, 0.6))
    floors_mb = {count: min(largest.mem_mb, base_mb + count * each_mb) for count in gpus}
    saves = draw.uniform(0.05, 0.4) if draw.random() < 0.2 else 0.0
    shape = _cpu_only(draw, base_s) if without_gpus else _fed(draw, base_s)
    model = grid(
        cpus, gpus, floors_mb, shape, log_std, roomy=draw.uniform(1.3, 3.0), saves=saves, most_mb=largest.mem_mb
    )
    return JobClass(name, model, observations=draw.randint(3, 200))


def grid(
    cpus: Sequence[int],
    gpus: Sequence[int],
    floors_mb: dict[int, int],
    seconds: Callable[[int, int], float],
    log_std: float,
    *,
    roomy: float = 1.0,
    saves: float = 0.0,
    most_mb: int = 2**40,
) -> SpeedModel:
    """A model that needs ``floors_mb[gpus]`` and, with ``saves``, runs that much shorter on ``roomy`` times as much."""
    axis_mb = set(floors_mb.values())
    if saves:
        axis_mb |= {min(most_mb, round(floor * roomy)) for floor in floors_mb.values()}
    mem_mb = tuple(sorted(axis_mb))
    points = []
    for cpu in cpus:
        for gpu in gpus:
            full_mb = min(most_mb, round(floors_mb[gpu] * roomy))
            for mem in mem_mb:
                pays = saves if saves and mem < full_mb else 0.0
                points.append(None if mem < floors_mb[gpu] else round(seconds(cpu, gpu) * (1 + pays), 3))
    return SpeedModel(tuple(cpus), tuple(gpus), mem_mb, tuple(points), (log_std,))


def _pace(gpu_time: float, cpu_time: float) -> float:
    return (gpu_time**SHARPNESS + cpu_time**SHARPNESS) ** (1 / SHARPNESS)


def _by_table(base_s: float, table: Sequence[float], feed: float) -> Callable[[int, int], float]:
    def seconds(cpus: int, gpus: int) -> float:
        # The CPUs' work is the same on any number of GPUs: faster ones need more CPUs to be fed.
        return base_s * _pace(table[gpus - 1], feed / cpus)

    return seconds


def _fed(draw: random.Random, base_s: float) -> Callable[[int, int], float]:
    """GPUs that are fed by CPUs: of a GPU family, and with hunger for CPUs from almost none to CPU-bound."""
    by_gpus = draw.choices(
        [_power, _amdahl, _communicating, _flat, _hurting, _saturating], weights=[25, 25, 25, 8, 7, 10]
    )[0](draw)
    feed = math.exp(draw.uniform(math.log(0.2), math.log(8.0)))
    # TapFinger's test-bed table: with few CPUs, more GPUs slow mnist down (102 s on 1 GPU, 245 s on 8, with 1 CPU).
    crowding = draw.uniform(0.05, 0.2) if draw.random() < 0.2 else 0.0

    def seconds(cpus: int, gpus: int) -> float:
        crowded = 1 + crowding * max(0.0, gpus / cpus - 1)
        return base_s * crowded * _pace(by_gpus(gpus), feed / cpus)

    return seconds


def _cpu_only(draw: random.Random, base_s: float) -> Callable[[int, int], float]:
    """Amdahl on CPUs. TapFinger's audio task is one such: 67 s on 1 CPU, 23 s on 16, whatever the GPUs."""
    serial = draw.uniform(0.02, 0.5)
    return lambda cpus, _gpus: base_s * (serial + (1 - serial) / cpus)


def _power(draw: random.Random) -> Callable[[int], float]:
    exponent = draw.uniform(0.4, 1.0)
    return lambda gpus: gpus**-exponent


def _amdahl(draw: random.Random) -> Callable[[int], float]:
    serial = draw.uniform(0.02, 0.5)
    return lambda gpus: serial + (1 - serial) / gpus


def _communicating(draw: random.Random) -> Callable[[int], float]:
    """Computing shrinks, synchronising grows with the GPUs: the form that Pollux fits to its measurements."""
    start, each = draw.uniform(0.01, 0.15), draw.uniform(0.0, 0.06)
    return lambda gpus: 1.0 if gpus == 1 else 1 / gpus + start + each * (gpus - 2)


def _flat(_draw: random.Random) -> Callable[[int], float]:
    return lambda _gpus: 1.0


def _hurting(draw: random.Random) -> Callable[[int], float]:
    """Pollux's NCF: 1.07, 1.22, 1.26 times the time of one GPU on 2, 3 and 4."""
    each = draw.uniform(0.02, 0.2)
    return lambda gpus: 1 + each * (gpus - 1)


def _saturating(draw: random.Random) -> Callable[[int], float]:
    """Linear gains that end all at once: Gavel's small language models, or a fixed number of parallel parts."""
    most = draw.randint(2, 4)
    return lambda gpus: 1 / min(gpus, most)
