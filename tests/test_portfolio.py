"""The portfolio of constants: few sets that serve many clusters."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tapfinger_hpc.policies.compiled import tune_portfolio
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim.scenarios import Scenario


def test_sets_are_kept_that_serve_clusters_which_the_others_do_not() -> None:
    gains = np.array(
        [
            # set 0 is good everywhere, 1 nearly as good and of no further use, 2 serves the last cluster alone, 3 harms
            [-0.10, -0.09, 0.10, 0.01],
            [-0.10, -0.09, 0.10, 0.01],
            [0.05, 0.05, -0.30, 0.01],
        ]
    )
    assert tune_portfolio.cover(gains, 3) == [2, 0]
    assert tune_portfolio.cover(gains, 1) == [2]
    assert tune_portfolio.cover(gains[:2], 3) == [0]
    assert tune_portfolio.cover(gains[:, 3:], 3) == []


def test_it_is_made_of_what_was_found_on_drawn_clusters_and_compared_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, compared = [], []

    def tune(scenario: Scenario, minutes: float, seed: int, *, start: Prices, **_) -> SimpleNamespace:
        searched.append(scenario)
        return SimpleNamespace(prices=start._replace(base=float(len(searched))) if len(searched) < 3 else start)

    def scores(workloads: list, candidates: list) -> np.ndarray:
        compared.extend(each.scenario for each in workloads)
        return np.array([[1.0 if each.base == 2.0 else 2.0] * len(workloads) for each in candidates])

    clock = itertools.count()
    monkeypatch.setattr(tune_portfolio.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(tune_portfolio.tune_price, "tune", tune)
    monkeypatch.setattr(tune_portfolio.tune_price, "scores", scores)
    made = tune_portfolio.make(["random", "cluster"], 4, 0.3)
    assert [each.base for each in made] == [2.0]
    assert [each.name for each in searched[:4]] == ["random", "cluster"] * 2
    assert compared and not {id(each) for each in compared} & {id(each) for each in searched}
    tune_portfolio.save(made, tmp_path / "portfolio.json")
    assert [Prices(**each) for each in json.loads((tmp_path / "portfolio.json").read_text())] == made
