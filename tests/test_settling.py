"""Settling in on a cluster: from a portfolio of constants to those that serve it, never to worse ones than before."""

from dataclasses import replace

import numpy as np
import pytest

from tapfinger_hpc import checkpoint
from tapfinger_hpc.policies import settling
from tapfinger_hpc.policies.compiled import tune_price
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.policies.learned_player import AgentsPlayer
from tapfinger_hpc.sim import players, scenarios

SCENARIO = replace(scenarios.scenario("synthetic-3"), tasks=24)
GREEDY = Prices(base=0.01, backlog=0.05, load=0.01, patience=0.5, room=0.0, reserve=0.0, length=0.0)
"""Grants as much as there is."""
SHIPPED = settling.portfolio


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets, few workloads, nothing settled before."""
    monkeypatch.setattr(settling, "ROUNDS", ((2, 2),))
    monkeypatch.setattr(settling, "HELD_OUT", 4)
    monkeypatch.setattr(settling, "_settled", {})
    monkeypatch.setattr(settling, "portfolio", lambda: (Prices(), GREEDY))


def means(*sets: Prices) -> list[float]:
    workloads = [scenarios.draw(SCENARIO, seed) for seed in range(8)]
    return [float(np.log(row).mean()) for row in tune_price.scores(workloads, list(sets))]


def test_what_does_not_serve_the_cluster_is_not_taken() -> None:
    usual, greedy = means(Prices(), GREEDY)
    assert greedy > usual + 0.05
    assert settling.settle(SCENARIO) == Prices()


def test_what_serves_it_better_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "Prices", lambda: GREEDY)  # as if those were the constants for any cluster
    assert settling.settle(SCENARIO) == Prices()


def test_what_was_lucky_in_the_choice_must_beat_the_usual_ones_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tune_price.scores

    def lucky(workloads: list, candidates: list) -> np.ndarray:
        found = seen(workloads, candidates)
        if workloads[0].seed == settling._SEED:  # in the round of the choice
            found[[each == GREEDY for each in candidates]] = 1.0
        return found

    monkeypatch.setattr(tune_price, "scores", lucky)
    assert settling.settle(SCENARIO) == Prices()


def test_a_scenario_is_settled_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settling.settle(SCENARIO)
    monkeypatch.setattr(tune_price, "scores", None)
    assert settling.settle(replace(SCENARIO)) is first
    for other in (replace(SCENARIO, arrivals=1.5), replace(SCENARIO, types=SCENARIO.types[:1])):
        with pytest.raises(TypeError):
            settling.settle(other)


def test_weights_for_any_cluster_hear_the_constants_that_were_settled_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "settle", lambda _: GREEDY)
    told = {"scenario": SCENARIO}
    assert np.array_equal(prices_of(players.make("tapfinger", **told)), GREEDY.array())
    kept = np.array(checkpoint.describe(checkpoint.DEFAULT).advice)
    for more in ({"settles": False}, {"knowledge": "curves"}):
        assert np.array_equal(prices_of(players.make("tapfinger", **told, **more)), kept)
    assert np.array_equal(prices_of(AgentsPlayer.load(checkpoint.DEFAULT)), kept)
    assert np.array_equal(players.make("price-settled", **told)._parameters, GREEDY.array())


def prices_of(player: AgentsPlayer) -> np.ndarray:
    assert player._prices is not None
    return player._prices


def test_the_portfolio_that_ships_keeps_the_bounds_of_the_search() -> None:
    sets = SHIPPED()
    assert sets[0] == Prices() and len(set(sets)) == len(sets) > 5
    for name, (low, high, _) in tune_price.WITH_MEMORY.items():
        assert all(low <= getattr(each, name) <= high for each in sets[1:])
