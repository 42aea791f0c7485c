"""Policies by name, as configuration and command line say it; each module is imported when it is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.policies.base import Policy

if TYPE_CHECKING:
    from tapfinger_hpc.policies.compiled.price import Prices

PRICED = ("price", "tapfinger")
"""Policies that go by the price heuristic's constants, or hear the advice of it."""


def make(name: str, *, checkpoint: Path | None = None, seed: int = 0, prices: "Prices | None" = None) -> Policy:
    """The policy of this name.

    Args:
        checkpoint: folder of a checkpoint, for ``tapfinger`` only; None is the one that ships with the package.
        seed: for policies that draw at random.
        prices: constants of the price heuristic, for those in ``PRICED``; None: those for any live cluster.

    Raises:
        ConfigError: no policy has this name.
        CheckpointError: the checkpoint cannot be used.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        raise ConfigError(f"policy {name!r} is not known; known: {', '.join(NAMES)}")
    return maker(checkpoint, seed, prices)


def _fifo(_checkpoint: Path | None, _seed: int, _prices: "Prices | None") -> Policy:
    from tapfinger_hpc.policies.fifo import FifoPolicy

    return FifoPolicy()


def _min(_checkpoint: Path | None, _seed: int, _prices: "Prices | None") -> Policy:
    from tapfinger_hpc.policies.minimum import MinimumPolicy

    return MinimumPolicy()


def _random(_checkpoint: Path | None, seed: int, _prices: "Prices | None") -> Policy:
    from tapfinger_hpc.policies.random_ import RandomPolicy

    return RandomPolicy(seed)


def _price(_checkpoint: Path | None, _seed: int, prices: "Prices | None") -> Policy:
    from tapfinger_hpc.policies.price import PricePolicy

    return PricePolicy(prices)


def _tapfinger(checkpoint: Path | None, _seed: int, prices: "Prices | None") -> Policy:
    from tapfinger_hpc.policies.learned import LearnedPolicy

    return LearnedPolicy.load(checkpoint, prices)


_MAKERS: dict[str, Callable[[Path | None, int, "Prices | None"], Policy]] = {
    "fifo": _fifo,
    "min": _min,
    "price": _price,
    "random": _random,
    "tapfinger": _tapfinger,
}
NAMES = tuple(_MAKERS)
