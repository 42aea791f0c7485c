"""How wrong speed models may be: the same jobs, with curves about as likely as those that were fitted. Pure.

Of each class the fitted curve is tilted about the amounts at which it is known best, by as much as it is in doubt on
the others; each job still takes on its own amounts what it took.
"""

import math
import random
from itertools import product

from msgspec.structs import replace

from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from tapfinger_hpc.trace import Trace, TraceJob


def strayed(trace: Trace, seed: int) -> Trace:
    """The trace with tilted classes; the same seed tilts alike."""
    draw = random.Random(f"curves {seed}")
    tilted = {one.name: _tilted(one, draw.gauss(0.0, 1.0), draw.gauss(0.0, 1.0)) for one in trace.classes}
    before = {one.name: one for one in trace.classes}
    jobs = tuple(_as_it_ran(item, before, tilted) for item in trace.jobs)
    return replace(trace, classes=tuple(tilted.values()), jobs=jobs)


def _tilted(one: JobClass, over_cpus: float, over_gpus: float) -> JobClass:
    speed = one.speed
    grid = list(product(speed.cpus, speed.gpus, speed.mem_mb))
    deviations = speed.log_std if len(speed.log_std) > 1 else speed.log_std * len(grid)
    surest = min(range(len(grid)), key=lambda point: deviations[point])
    cpus, gpus, _ = grid[surest]
    seconds = []
    for (cpu, gpu, _), usual_s, deviation in zip(grid, speed.seconds, deviations, strict=True):
        away = math.log(cpu / cpus), math.log(max(gpu, 0.5) / max(gpus, 0.5))
        # How far jobs of the class differ is in all deviations; what is more of it is doubt of the curve.
        doubt = math.sqrt(max(0.0, deviation**2 - deviations[surest] ** 2))
        lean = (over_cpus * away[0] + over_gpus * away[1]) / (math.hypot(*away) or 1.0)
        seconds.append(None if usual_s is None else usual_s * math.exp(doubt * lean))
    return replace(one, speed=replace(speed, seconds=tuple(seconds)))


def _as_it_ran(item: TraceJob, before: dict[str, JobClass], tilted: dict[str, JobClass]) -> TraceJob:
    """With the scale that gives it its own time on its own amounts again."""
    name, held = item.job.job_class, Resources(item.job.requested.cpus, item.job.requested.gpus)
    if name not in before:
        return item
    ratio = before[name].speed.duration_s(held) / tilted[name].speed.duration_s(held)
    return replace(item, scale=item.scale * ratio)
