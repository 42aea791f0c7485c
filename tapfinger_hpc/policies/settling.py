"""Settling in: which constants of the price heuristic serve one cluster, found by playing drawn futures of it.

No single set serves every cluster: ones tuned for a cluster are some percent better there than those for any. A full
search (``compiled.tune_price``) takes minutes; here a portfolio of sets, each of which was found for one drawn cluster,
plays the same few workloads of this one, the better of them some more, until one is left, from which a short search
goes on. What it finds is taken only if it beats the usual constants on workloads that had no part in the choice. Agents
that depart from advice do so to their gain on most clusters and to their loss on some: so whether they or their advice
alone decide is settled too, by a contest of both. The same scenario always settles on the same.
"""

import dataclasses
import hashlib
import json
import math
from functools import cache
from pathlib import Path

import numpy as np

from tapfinger_hpc.policies.compiled import tune_price, tuned
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim.episodes import Player, play
from tapfinger_hpc.sim.scenarios import DRAWN, Scenario, draw

PORTFOLIO = Path(__file__).parent / "portfolio.json"
ROUNDS = ((4, 5), (8, 2), (16, 1))
"""How many workloads each round plays, and how many sets are left after it."""
GENERATIONS, POPULATION, EPISODES = 6, 12, 6
"""Of the search that follows; on 12 clusters 6 generations brought as much as 20."""
HELD_OUT = 24
CONTEST = 8
"""Workloads on which two players are compared."""
TASKS = 200
"""Longer episodes are cut to so many tasks: most of what constants are worth shows in them."""
_SEED = 8_000_000
"""Of the workloads that are played; neither evaluations nor training nor tuning have these."""
_FOR_PLAYERS = 1_000
_settled: dict[bytes, Prices] = {}
_chosen: dict[tuple[bytes, str], bool] = {}


@cache
def portfolio() -> tuple[Prices, ...]:
    """Sets of constants."""
    found = json.loads(PORTFOLIO.read_text(encoding="utf-8"))
    return tuple(Prices(**{name: float(value) for name, value in each.items()}) for each in found)


def settle(scenario: Scenario) -> Prices:
    """The constants for this scenario; those that were tuned for it, where it has some. Kept: it takes some seconds."""
    if scenario.name in tuned.SCENARIOS and scenario.name not in DRAWN:
        return tuned.SCENARIOS[scenario.name]
    key = _fingerprint(scenario)
    if key not in _settled:
        _settled[key] = _search(scenario, tuned.prices(scenario.name))
    return _settled[key]


def better(scenario: Scenario, first: Player, second: Player, key: str) -> Player:
    """The one of the two that ends tasks earlier on a few workloads of the scenario.

    Args:
        key: what says which two they are; the choice is kept.
    """
    contest = _fingerprint(scenario), key
    if contest not in _chosen:
        shorter = _short(scenario)
        workloads = [draw(shorter, _SEED + _FOR_PLAYERS + number) for number in range(CONTEST)]
        ours, theirs = (np.log([each.mean_jct for each in play(workloads, player)]) for player in (first, second))
        _chosen[contest] = bool(ours.mean() < theirs.mean())
    return first if _chosen[contest] else second


def _short(scenario: Scenario) -> Scenario:
    return dataclasses.replace(scenario, tasks=min(scenario.tasks, TASKS))


def _search(scenario: Scenario, usual: Prices) -> Prices:
    scenario = _short(scenario)
    left = [usual, *portfolio()]
    first = _SEED
    totals = np.zeros(len(left))
    for count, kept in ROUNDS:
        workloads = [draw(scenario, first + number) for number in range(count)]
        first += count
        totals = totals + np.log(tune_price.scores(workloads, left)).sum(axis=1)
        order = np.argsort(totals, kind="stable")[:kept]
        left, totals = [left[position] for position in order], totals[order]
    left = [_refined(scenario, left[0]), usual]
    workloads = [draw(scenario, first + number) for number in range(HELD_OUT)]
    found, before = np.log(tune_price.scores(workloads, left)).mean(axis=1)
    return left[0] if found < before else usual


def _refined(scenario: Scenario, start: Prices) -> Prices:
    """What a short search from there finds, if it is better."""
    found = tune_price.tune(
        scenario,
        math.inf,
        start=start,
        population=POPULATION,
        episodes=EPISODES,
        generations=GENERATIONS,
        held_out=HELD_OUT,
    )
    return found.prices


def _fingerprint(scenario: Scenario) -> bytes:
    """Of all that workloads are drawn from."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(scenario):
        if field.name != "types":
            digest.update(f"{field.name}={getattr(scenario, field.name)!r};".encode())
    for kind in scenario.types:
        digest.update(f"{kind.minimum};{kind.log_std};".encode())
        for part in (kind.rate, kind.mem_mb):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()
