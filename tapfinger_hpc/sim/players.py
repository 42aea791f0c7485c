"""Policies for the simulator by name; each module is imported when it is asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.sim.episodes import CompiledPlayer, Player
from tapfinger_hpc.sim.levels import CURVES, ORACLE
from tapfinger_hpc.sim.scenarios import DRAWN, Scenario
from tapfinger_hpc.speed import JobClass


def make(name: str, *, seed: int = 0, **needs: Any) -> Player:
    """The policy of this name.

    Args:
        seed: for policies that draw at random.
        needs: what some policies need beyond that; the others ignore it. ``random`` takes ``scenario``, for the most
            amounts that a task may be given (16 of each where it is not given; in event time those of the menu).
            Policies that ask for times take ``knowledge``; not so the two of Optimus, which always know the truth.
            ``price`` takes ``classes`` where those are what it will be told. ``price-settled`` settles in on
            ``scenario``, and so does ``tapfinger`` where its weights are for any cluster and ``settles`` is not False.

    Raises:
        ConfigError: no policy has this name.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        raise ConfigError(f"policy {name!r} is not known; known: {', '.join(NAMES)}")
    return maker(seed=seed, **needs)


def _random(*, seed: int, scenario: Scenario | None = None, **_: Any) -> Player:
    from tapfinger_hpc.policies.compiled import random_

    most = np.array([16, 16])
    if scenario is not None and scenario.slot == 0:
        most[:] = 0
    elif scenario is not None:
        most = np.max([kind.rate.shape for kind in scenario.types], axis=0) - 1
    return CompiledPlayer("random", random_.decide, np.array([seed, *most]))


def _min(*, seed: int, **_: Any) -> Player:
    from tapfinger_hpc.policies.compiled import minimum

    return CompiledPlayer("min", minimum.decide, np.array([seed]))


def _fifo(*, knowledge: str = ORACLE, **_: Any) -> Player:
    from tapfinger_hpc.policies.compiled import asking, fifo

    return CompiledPlayer("fifo", fifo.decide, np.array([asking.EFFICIENCY]), knowledge=knowledge)


def _easy(*, knowledge: str = ORACLE, **_: Any) -> Player:
    from tapfinger_hpc.policies.compiled import asking, easy

    return CompiledPlayer("easy", easy.decide, np.array([asking.EFFICIENCY]), knowledge=knowledge)


def _srtf(*, knowledge: str = ORACLE, **_: Any) -> Player:
    from tapfinger_hpc.policies.compiled import srtf

    return CompiledPlayer("srtf", srtf.decide, knowledge=knowledge)


def _tetris(*, knowledge: str = ORACLE, **_: Any) -> Player:
    from tapfinger_hpc.policies.compiled import asking, tetris

    return CompiledPlayer("tetris", tetris.decide, np.array([asking.EFFICIENCY]), knowledge=knowledge)


def _tiresias(**_: Any) -> Player:
    from tapfinger_hpc.policies.compiled.tiresias import TiresiasPlayer

    return TiresiasPlayer()


def _optimus(**_: Any) -> Player:
    from tapfinger_hpc.policies.compiled.optimus import OptimusPlayer

    return OptimusPlayer()


def _optimus_published(**_: Any) -> Player:
    from tapfinger_hpc.policies.compiled.optimus import OptimusPlayer

    return OptimusPlayer(published=True)


def _price(
    *, scenario: Scenario | None = None, knowledge: str = ORACLE, classes: Sequence[JobClass] = (), **_: Any
) -> Player:
    from tapfinger_hpc.policies.compiled import price, tuned

    # Times that were learned of these very types are trusted in; those of drawn estimates are too rough for that.
    constants = tuned.prices(scenario.name if scenario is not None else "random", ORACLE if classes else knowledge)
    return CompiledPlayer("price", price.decide, constants.array(), knowledge=knowledge)


def _price_settled(*, scenario: Scenario | None = None, knowledge: str = ORACLE, **needs: Any) -> Player:
    if scenario is None or knowledge == CURVES:
        return _price(scenario=scenario, knowledge=knowledge, **needs)
    from tapfinger_hpc.policies import settling
    from tapfinger_hpc.policies.compiled import price

    return CompiledPlayer("price-settled", price.decide, settling.settle(scenario).array(), knowledge=knowledge)


def _tapfinger(
    *,
    checkpoint: Path | None = None,
    single_task: bool = False,
    knowledge: str = "",
    scenario: Scenario | None = None,
    settles: bool = True,
    **_: Any,
) -> Player:
    from tapfinger_hpc import checkpoint as checkpoints
    from tapfinger_hpc.policies.learned_player import AgentsPlayer

    folder = checkpoint or checkpoints.DEFAULT
    agents = AgentsPlayer.load(folder, single_task=single_task, knowledge=knowledge)
    info = checkpoints.describe(folder)
    anywhere = set(info.training.scenario.split(",")) <= set(DRAWN)
    if not (settles and scenario is not None and anywhere and info.advice) or agents.knowledge == CURVES:
        return agents
    from tapfinger_hpc.policies import settling
    from tapfinger_hpc.policies.compiled import price

    constants = settling.settle(scenario).array()
    agents.hear(constants)
    heuristic = CompiledPlayer(agents.name, price.decide, constants, knowledge=agents.knowledge)
    return settling.better(scenario, agents, heuristic, f"{info.fingerprint} {single_task} {agents.knowledge}")


_MAKERS: dict[str, Callable[..., Player]] = {
    "random": _random,
    "min": _min,
    "fifo": _fifo,
    "easy": _easy,
    "srtf": _srtf,
    "tetris": _tetris,
    "tiresias": _tiresias,
    "optimus": _optimus,
    "optimus-published": _optimus_published,
    "price": _price,
    "price-settled": _price_settled,
    "tapfinger": _tapfinger,
}
NAMES = tuple(_MAKERS)
