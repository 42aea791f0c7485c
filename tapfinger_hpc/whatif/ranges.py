"""Amounts on which a job of the past may be replayed: those at which the model of its class knows something. Pure.

Memory is never changed: what a job needs of it is known too badly to take any away.
"""

import math

from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import Resources

ENOUGH_JOBS = 5
"""Jobs of a class that finished, with fewer of which its amounts are left as they were."""
UNSURE = 0.25
"""How much less sure a class's log seconds may be on other amounts than on those that the job had."""
FARTHEST = 4
"""Amounts are at most so many times those that the job had, or that part of them."""


def without_memory(job_class: JobClass) -> JobClass:
    """The class as if there were always memory enough: a job that ran had enough, whatever its class needs."""
    speed = job_class.speed
    most = len(speed.mem_mb)
    last = slice(most - 1, None, most)
    log_std = speed.log_std if len(speed.log_std) == 1 else speed.log_std[last]
    return JobClass(
        job_class.name,
        SpeedModel(speed.cpus, speed.gpus, (0,), speed.seconds[last], log_std),
        job_class.observations,
    )


def known_range(job_class: JobClass, held: Resources, largest: Resources) -> tuple[Resources, Resources]:
    """Least and greatest amounts on which the class's time is known about as well as on what the job held.

    Args:
        largest: what the largest node has.
    """
    speed = job_class.speed
    if job_class.observations < ENOUGH_JOBS or not math.isfinite(_lasts_s(speed, held)):
        return held, held
    most_gpus = _with_memory(speed, held, largest.gpus)
    gpus = _around(speed.gpus, held.gpus, most_gpus) if held.gpus else [held.gpus]
    cpus = _around(speed.cpus, held.cpus, largest.cpus)
    few_g = _farthest(speed, held, [Resources(held.cpus, gpu) for gpu in reversed(gpus) if gpu <= held.gpus]).gpus
    many_g = _farthest(speed, held, [Resources(held.cpus, gpu) for gpu in gpus if gpu >= held.gpus]).gpus
    # CPUs as far as they are known with the fewest GPUs and with the most.
    down = [cpu for cpu in reversed(cpus) if cpu <= held.cpus]
    up = [cpu for cpu in cpus if cpu >= held.cpus]
    few_c = max(_farthest(speed, held, [Resources(cpu, gpu) for cpu in down]).cpus for gpu in (few_g, many_g))
    many_c = min(_farthest(speed, held, [Resources(cpu, gpu) for cpu in up]).cpus for gpu in (few_g, many_g))
    return Resources(few_c, few_g, held.mem_mb), Resources(many_c, many_g, held.mem_mb)


def _around(axis: tuple[int, ...], amount: int, most: int) -> list[int]:
    """The amounts of an axis near this one, ascending, with itself."""
    near = {count for count in axis if count and amount <= FARTHEST * count and count <= min(FARTHEST * amount, most)}
    return sorted(near | {amount})


def _with_memory(speed: SpeedModel, held: Resources, most: int) -> int:
    """The most GPUs for which the class's memory is not more than the job had; all, where it is on its own GPUs too."""
    if not math.isfinite(speed.duration_s(held)):
        return most
    enough = [gpu for gpu in speed.gpus if math.isfinite(speed.duration_s(Resources(held.cpus, gpu, held.mem_mb)))]
    return min(most, max(enough, default=held.gpus))


def _farthest(speed: SpeedModel, held: Resources, path: list[Resources]) -> Resources:
    """The last of these amounts, which lead away from what was held, up to which the class is known well enough."""
    found = path[0]
    for amounts in path:
        if not _is_known(speed, held, amounts):
            break
        found = amounts
    return found


def _is_known(speed: SpeedModel, held: Resources, amounts: Resources) -> bool:
    more = speed.log_std_at(_bare(amounts)) ** 2 - speed.log_std_at(_bare(held)) ** 2
    return math.isfinite(_lasts_s(speed, amounts)) and more <= UNSURE**2


def _lasts_s(speed: SpeedModel, amounts: Resources) -> float:
    return speed.duration_s(_bare(amounts))


def _bare(amounts: Resources) -> Resources:
    """Without memory: as much as is needed."""
    return Resources(amounts.cpus, amounts.gpus)
