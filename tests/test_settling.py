"""Settling in on a cluster: from a portfolio of constants to those that serve it, never to worse ones than before."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tapfinger_hpc import checkpoint
from tapfinger_hpc.policies import constants, settling
from tapfinger_hpc.policies.compiled import price, tune_price, tuned
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.policies.learned_player import AgentsPlayer
from tapfinger_hpc.sim import players, scenarios
from tapfinger_hpc.sim.episodes import CompiledPlayer

SCENARIO = replace(scenarios.scenario("hetero-6"), name="random", tasks=40)
THOUGHTLESS = Prices(base=20.0, backlog=10.0, load=3.0, cpu=0.02, patience=4.0, size=1.5, length=4.0, age=0.0)
"""Gives everybody the least."""
SHIPPED = settling.portfolio
REFINED = settling._refined


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One set, few workloads, nothing settled before."""
    monkeypatch.setattr(settling, "ROUNDS", ((2, 1),))
    monkeypatch.setattr(settling, "HELD_OUT", 4)
    monkeypatch.setattr(settling, "_refined", lambda _, start: start)
    monkeypatch.setattr(settling, "CONTEST", 4)
    monkeypatch.setattr(settling, "_settled", {})
    monkeypatch.setattr(settling, "_chosen", {})
    monkeypatch.setattr(settling, "portfolio", lambda: (THOUGHTLESS,))


def test_what_does_not_serve_the_cluster_is_not_taken() -> None:
    workloads = [scenarios.draw(SCENARIO, seed) for seed in range(8)]
    usual, thoughtless = np.log(tune_price.scores(workloads, [Prices(), THOUGHTLESS])).mean(axis=1)
    assert thoughtless > usual + 0.05
    assert settling.settle(SCENARIO) == Prices()


def test_what_serves_it_better_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "prices", lambda *_: THOUGHTLESS)  # as if those were the usual ones
    monkeypatch.setattr(settling, "portfolio", lambda: (Prices(),))
    assert settling.settle(SCENARIO) == Prices()


def test_a_short_search_goes_on_from_the_best_of_the_portfolio(monkeypatch: pytest.MonkeyPatch) -> None:
    """From constants that are far off any search of a few generations gains, the same each time."""
    monkeypatch.setattr(settling, "GENERATIONS", 2)
    found = REFINED(SCENARIO, THOUGHTLESS)
    assert found == REFINED(SCENARIO, THOUGHTLESS) != THOUGHTLESS
    workloads = [scenarios.draw(SCENARIO, seed) for seed in range(8)]
    refined, before = np.log(tune_price.scores(workloads, [found, THOUGHTLESS])).mean(axis=1)
    assert refined < before


def test_what_was_lucky_in_the_choice_must_beat_the_usual_ones_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, lucky = tune_price.scores, []

    def scores(workloads: list, candidates: list) -> np.ndarray:
        found = seen(workloads, candidates)
        if workloads[0].seed == settling._SEED:  # in the round of the choice
            lucky.append(candidates.index(THOUGHTLESS))
            found[lucky] = 1.0
        return found

    monkeypatch.setattr(tune_price, "scores", scores)
    assert settling.settle(SCENARIO) == Prices()
    assert lucky


def test_a_cluster_is_settled_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settling.settle(SCENARIO)
    monkeypatch.setattr(tune_price, "scores", None)
    assert settling.settle(replace(SCENARIO)) is first
    for other in (replace(SCENARIO, arrivals=1.5), replace(SCENARIO, types=SCENARIO.types[:1])):
        with pytest.raises(TypeError):
            settling.settle(other)


def test_a_scenario_with_constants_of_its_own_has_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_price, "scores", None)
    assert settling.settle(scenarios.scenario("order-3")) == tuned.SCENARIOS["order-3"]


def test_weights_for_any_cluster_hear_the_constants_that_were_settled_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "settle", lambda _: THOUGHTLESS)
    monkeypatch.setattr(settling, "better", lambda _scenario, agents, _heuristic, _key: agents)
    assert np.array_equal(heard(players.make("tapfinger", scenario=SCENARIO)), THOUGHTLESS.array())
    kept = np.array(checkpoint.describe(checkpoint.DEFAULT).advice)
    for more in ({"settles": False}, {"knowledge": "curves"}):
        assert np.array_equal(heard(players.make("tapfinger", scenario=SCENARIO, **more)), kept)
    assert np.array_equal(heard(players.make("tapfinger")), kept)
    assert np.array_equal(players.make("price-settled", scenario=SCENARIO)._parameters, THOUGHTLESS.array())


def test_weights_of_a_scenario_do_not_settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, info = checkpoint.read(checkpoint.DEFAULT)
    training = msgspec.structs.replace(info.training, scenario="hetero-6")
    checkpoint.save(tmp_path, info.network, weights, training, info.advice)
    monkeypatch.setattr(settling, "settle", None)
    assert np.array_equal(heard(players.make("tapfinger", scenario=SCENARIO, checkpoint=tmp_path)), info.advice)


def test_of_two_players_the_one_plays_that_ends_tasks_earlier() -> None:
    thoughtful, thoughtless = (
        CompiledPlayer(name, price.decide, prices.array())
        for name, prices in (("thoughtful", Prices()), ("thoughtless", THOUGHTLESS))
    )
    for first, second in ((thoughtful, thoughtless), (thoughtless, thoughtful)):
        assert settling.better(SCENARIO, first, second, f"{first.name} first") is thoughtful
    assert settling.better(SCENARIO, thoughtless, thoughtful, "thoughtful first") is thoughtless  # as it was kept


def heard(player: AgentsPlayer) -> np.ndarray:
    assert player._prices is not None
    return player._prices


def test_the_portfolio_that_ships_keeps_the_bounds_of_the_search() -> None:
    sets = SHIPPED()
    assert len(set(sets)) == len(sets) > 5
    for name, (low, high, _) in constants.WITH_MEMORY.items():
        assert all(low <= getattr(each, name) <= high for each in sets)
