"""Makes the portfolio from which ``policies.settling`` chooses: constants for drawn clusters, few that serve many.

For so long clusters are drawn, and constants are searched for on each of them alone. Then all that was found, and the
usual constants, play on other clusters; those sets are kept, one after the other, with which the best choice for each
of these clusters improves the most.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.policies.compiled import tune_price, tuned
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim import scenarios
from tapfinger_hpc.sim.scenarios import Scenario, draw

SEARCHING = 0.65
"""Share of the time in which sets are made; the rest is for choosing among them."""
SEARCH_MINUTES = 0.4
"""For each cluster."""
WORKLOADS = 6
"""Of each cluster on which the sets are compared."""
_FIRST_SEED, _SEEDS_OF_A_RUN, _SEEDS_OF_A_CLUSTER = 50_000_000, 1_000_000, 1_000


def make(
    names: list[str],
    sets: int,
    minutes: float,
    seed: int = 0,
    *,
    search_minutes: float = SEARCH_MINUTES,
    progress: Callable[[str, float], None] = lambda doing, elapsed_s: None,
) -> list[Prices]:
    """At most so many sets.

    Args:
        names: of ``scenarios.DRAWN``; clusters of each take turns.
        progress: told what is being done, and the seconds passed.
    """
    began = time.monotonic()

    def passed() -> float:
        return time.monotonic() - began

    first = _FIRST_SEED + seed * _SEEDS_OF_A_RUN
    found: list[Prices] = []
    number = 0
    while passed() < 60 * minutes * SEARCHING or not number:
        scenario = _scenario(names, first + number)
        start = tuned.prices(scenario.name)
        best = tune_price.tune(scenario, search_minutes, first + number, start=start, episodes=8, held_out=16).prices
        if best != start and best not in found:
            found.append(best)
        number += 1
        progress(f"{len(found)} sets from {number} clusters", passed())
    gains: list[np.ndarray] = []
    while (passed() < 60 * minutes or not gains) and found:
        scenario = _scenario(names, first + number)
        workloads = [draw(scenario, scenario_seed) for scenario_seed in _seeds(first + number)]
        logarithms = np.log(tune_price.scores(workloads, [tuned.prices(scenario.name), *found])).mean(axis=1)
        gains.append(logarithms[1:] - logarithms[0])
        number += 1
        progress(f"{len(found)} sets compared on {len(gains)} clusters", passed())
    return [found[position] for position in cover(np.array(gains), sets)] if found else []


def cover(gains: np.ndarray, sets: int) -> list[int]:
    """Which sets to keep, the most useful first; none that improves nothing.

    Args:
        gains: float64 [cluster, set] logarithm of the completion time over that of the usual constants.
    """
    kept: list[int] = []
    best = np.zeros(len(gains))
    while len(kept) < min(sets, gains.shape[1]):
        means = np.minimum(best[:, None], gains).mean(axis=0)
        position = int(means.argmin())
        if means[position] >= best.mean():
            break
        kept.append(position)
        best = np.minimum(best, gains[:, position])
    return kept


def save(portfolio: list[Prices], path: Path) -> None:
    """As ``settling`` reads it."""
    with whole_or_not_at_all(path, ConfigError) as partial:
        partial.write_text(json.dumps([prices._asdict() for prices in portfolio], indent=1) + "\n", encoding="utf-8")


def _scenario(names: list[str], seed: int) -> Scenario:
    return scenarios.workload(names[seed % len(names)], seed).scenario


def _seeds(cluster: int) -> range:
    return range(cluster * _SEEDS_OF_A_CLUSTER, cluster * _SEEDS_OF_A_CLUSTER + WORKLOADS)
