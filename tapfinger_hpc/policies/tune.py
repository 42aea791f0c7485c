"""Random search for the constants of the price heuristic, over many random clusters and workloads. Seeded.

A candidate's score is the mean over scenarios of the logarithm of its mean completion time, less that of the constants
it started from: every scenario counts alike, whether its jobs take seconds or hours. ``python -m
tapfinger_hpc.policies.tune`` prints what it found.
"""

import math
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean

import msgspec

from tapfinger_hpc.policies.price import PricePolicy, Prices
from tapfinger_hpc.sim.cluster import ClusterSpec
from tapfinger_hpc.sim.random_clusters import random_cluster
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.trace import Trace
from tapfinger_hpc.workload import demo_trace, random_knobs, random_trace

MOST_GPUS = 48
SHORT_LIST = 12
"""Scenarios on which a candidate must beat the best so far, before it is tried on all."""


FIXED = {"starving"}
"""A promise to the jobs that wait longest; a search for the best mean would give it up."""


class Tuned(msgspec.Struct, frozen=True):
    """What a search found."""

    prices: Prices
    gain: float
    """By how much the mean completion time fell on the scenarios of the search, as a geometric mean."""
    held_out: float
    """The same on scenarios that the search never saw."""
    tried: int


def tune(seed: int, candidates: int, scenarios: int, start: Prices | None = None, workers: int = 1) -> Tuned:
    """Perturbs the best constants so far, by less and less."""
    draw = random.Random(f"tune {seed}")
    first = start or Prices()
    known = [f"{seed} seen {number}" for number in range(scenarios)]
    unseen = [f"{seed} unseen {number}" for number in range(scenarios)]
    with ProcessPoolExecutor(workers) as pool:
        reference = _scores(pool, first, known)
        best, best_scores = first, reference
        for number in range(candidates):
            spread = 0.7 * (1 - number / candidates) + 0.1
            candidate = _perturbed(draw, best, spread)
            scores = _scores(pool, candidate, known[:SHORT_LIST])
            if fmean(scores) >= fmean(best_scores[:SHORT_LIST]):
                continue
            scores += _scores(pool, candidate, known[SHORT_LIST:])
            if fmean(scores) < fmean(best_scores):
                best, best_scores = candidate, scores
                print(f"{number} {fmean(best_scores) - fmean(reference):+.4f} {best}", file=sys.stderr, flush=True)  # noqa: T201
        held_out = fmean(_scores(pool, best, unseen)) - fmean(_scores(pool, first, unseen))
    return Tuned(best, 1 - math.exp(fmean(best_scores) - fmean(reference)), 1 - math.exp(held_out), candidates)


def scenario(name: str) -> tuple[ClusterSpec, Trace]:
    """A random cluster with a random workload; every sixth is the demo's cluster and stream."""
    draw = random.Random(f"scenario {name}")
    if draw.random() < 1 / 6:
        spec = ClusterSpec.uniform()
        return spec, demo_trace(draw.randrange(10**9), draw.choice((48, 96)), load=draw.uniform(0.5, 1.1))
    spec = random_cluster(draw)
    while not 2 <= spec.capacity.gpus <= MOST_GPUS:
        spec = random_cluster(draw)
    jobs = min(200, max(60, 5 * spec.capacity.gpus))
    return spec, random_trace(draw.randrange(10**9), spec, random_knobs(draw, jobs))


def score(prices: Prices, name: str) -> float:
    """Logarithm of the mean completion time of a scenario."""
    spec, trace = scenario(name)
    records = replay(trace, spec, PricePolicy(prices), interval_s=30.0, lease_s=120)
    return math.log(fmean(record.completion_s for record in records))


def _scores(pool: ProcessPoolExecutor, prices: Prices, names: Sequence[str]) -> list[float]:
    return list(pool.map(score, [prices] * len(names), names))


def _perturbed(draw: random.Random, prices: Prices, spread: float) -> Prices:
    """Half of the constants moved by a factor around 1; none becomes negative, and shares stay below 1."""
    values = {
        name: value * math.exp(draw.gauss(0.0, spread)) if name not in FIXED and draw.random() < 0.5 else value
        for name, value in msgspec.structs.asdict(prices).items()
    }
    values["scarcest"] = min(1.0, values["scarcest"])
    return Prices(**{name: round(value, 4) for name, value in values.items()})


if __name__ == "__main__":
    print(tune(seed=int(sys.argv[1]), candidates=int(sys.argv[2]), scenarios=int(sys.argv[3]), workers=2))  # noqa: T201
