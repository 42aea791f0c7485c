"""From the accounts of single jobs to what all of it was worth, with intervals and with those that lost. Pure."""

import math
import random
from collections.abc import Callable, Sequence

import msgspec

from slurm_plugin.worth.accounts import Account, Way
from tapfinger_hpc.stats import percentile

RESAMPLES = 1000
BLOCKS = (12, 60)
"""Stretches of time that are resampled, a day each in between: jobs near in time share a queue."""
FEWEST_FOR_AN_INTERVAL = 10
MOST_LOSERS = 10
_LOSS_S, _LOSS = 2.0, 0.02
"""A job has lost where it took at least so much longer, and by such a share; Slurm's times are whole seconds."""


class Estimate(msgspec.Struct, frozen=True):
    """By how much something fell against stock Slurm, as a share; below 0 it rose."""

    value: float
    low: float | None = None
    """95 % interval; None where there are too few jobs for one."""
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.1%} to {self.high:.1%})"
        return f"{self.value:.1%}{interval}"


class Loser(msgspec.Struct, frozen=True):
    """A job that took longer with TapFinger."""

    job_id: str
    user: str
    job_class: str
    lost_s: float
    stock_s: float
    tapfinger_s: float
    why: str


class Sum(msgspec.Struct, frozen=True):
    """What the jobs of one way say together. Times in seconds, from submission to the end unless said."""

    way: Way
    jobs: int
    """With an account whose both ways are known."""
    placed: int
    changed: int
    """On other amounts than stock Slurm gave or would have given."""
    from_prior: int
    """Of those: jobs of whose class nothing is known."""
    contested: int
    stock_mean_s: float
    tapfinger_mean_s: float
    completion: Estimate
    """All decisions taken at their word."""
    completion_uncontested: Estimate | None
    """Only where watched: decisions for room that an earlier one had taken count as no change."""
    waiting_saved_s: float
    """In the mean."""
    running_saved_s: float
    stock_gpu_hours: float
    tapfinger_gpu_hours: float
    lost: int
    losers: tuple[Loser, ...]
    """The worst of them."""
    waiting_unknown: int = 0
    """Enforced jobs left out, because how long they would have waited is not known."""


def total(accounts: Sequence[Account], way: Way, *, seed: int = 0) -> Sum | None:
    """The sum of one way; None where no job went it."""
    mine = [one for one in accounts if one.way == way]
    known = [one for one in mine if one.stock_s is not None]
    if not mine:
        return None
    losers = sorted((loser for one in known if (loser := _loser(one))), key=lambda loser: -loser.lost_s)
    changed = [one for one in known if one.stock_amounts != one.tapfinger_amounts]
    return Sum(
        way=way,
        jobs=len(known),
        placed=sum(one.placed for one in known),
        changed=len(changed),
        from_prior=sum(one.basis == "prior" for one in changed),
        contested=sum(one.contested for one in known),
        stock_mean_s=_mean([one.stock_s or 0.0 for one in known]),
        tapfinger_mean_s=_mean([one.tapfinger_s for one in known]),
        completion=_estimate(known, lambda one: True, seed),
        completion_uncontested=_estimate(known, lambda one: not one.contested, seed) if way == "watched" else None,
        waiting_saved_s=_mean([(one.stock_waited_s or 0.0) - one.tapfinger_waited_s for one in known]),
        running_saved_s=_mean([one.stock_ran_s - one.tapfinger_ran_s for one in known]),
        stock_gpu_hours=sum(one.stock_amounts.gpus * one.stock_ran_s for one in known) / 3600,
        tapfinger_gpu_hours=sum(one.tapfinger_amounts.gpus * one.tapfinger_ran_s for one in known) / 3600,
        lost=len(losers),
        losers=tuple(losers[:MOST_LOSERS]),
        waiting_unknown=len(mine) - len(known),
    )


def _estimate(accounts: Sequence[Account], counts: Callable[[Account], bool], seed: int) -> Estimate:
    """By how much the mean fell. Resampled are stretches of time, and with them what the models are unsure of: the
    error of a class is one and the same for all of its jobs.
    """
    pairs = [_pair(one, 0.0, counts) for one in accounts]
    value = _fall(pairs)
    if len(accounts) < FEWEST_FOR_AN_INTERVAL:
        return Estimate(value)
    blocks = _blocks(accounts)
    draw = random.Random(seed)
    drawn = []
    for _ in range(RESAMPLES):
        errors: dict[str, float] = {}
        picked = []
        for block in draw.choices(blocks, k=len(blocks)):
            for one in block:
                if one.job_class not in errors:
                    errors[one.job_class] = draw.gauss(0.0, 1.0)
                picked.append(_pair(one, errors[one.job_class], counts))
        drawn.append(_fall(picked))
    return Estimate(value, percentile(drawn, 2.5), percentile(drawn, 97.5))


def _pair(one: Account, error: float, counts: Callable[[Account], bool]) -> tuple[float, float]:
    """Stock's time and TapFinger's, where the models are wrong by so many standard deviations."""
    factor = math.exp(error * one.log_doubt)
    if one.way == "enforced":
        return (one.stock_waited_s or 0.0) + one.stock_ran_s * factor, one.tapfinger_s
    stock_s = one.stock_s or 0.0
    return stock_s, one.tapfinger_waited_s + one.tapfinger_ran_s * factor if counts(one) else stock_s


def _blocks(accounts: Sequence[Account]) -> list[list[Account]]:
    first_s = min(one.submit_time_s for one in accounts)
    span_s = max(one.submit_time_s for one in accounts) - first_s + 1
    count = max(BLOCKS[0], min(BLOCKS[1], round(span_s / 86400)))
    found: dict[int, list[Account]] = {}
    for one in accounts:
        found.setdefault((one.submit_time_s - first_s) * count // span_s, []).append(one)
    return list(found.values())


def _fall(pairs: Sequence[tuple[float, float]]) -> float:
    stock_s = sum(pair[0] for pair in pairs)
    return 1 - sum(pair[1] for pair in pairs) / stock_s if stock_s > 0 else 0.0


def _loser(one: Account) -> Loser | None:
    stock_s = one.stock_s or 0.0
    lost_s = one.tapfinger_s - stock_s
    if lost_s < max(_LOSS_S, _LOSS * stock_s):
        return None
    waited_s = one.tapfinger_waited_s - (one.stock_waited_s or 0.0)
    ran_s = one.tapfinger_ran_s - one.stock_ran_s
    parts = []
    if waited_s > 0:
        parts.append(f"waits {waited_s:.0f} s longer")
    if ran_s > 0:
        parts.append(f"runs {ran_s:.0f} s longer on {one.tapfinger_amounts} than on {one.stock_amounts}")
    return Loser(one.job_id, one.user, one.job_class, lost_s, stock_s, one.tapfinger_s, "; ".join(parts))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
