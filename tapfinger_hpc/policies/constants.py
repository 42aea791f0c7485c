"""The price heuristic's constants in a file, as ``tapfinger tune`` writes it and a server reads it.

Read with suspicion: a file that lacks a constant, has one that this program does not know, or one that is no number in
its range is refused, with what is wrong. How the constants were found stands beside them, for people.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.policies.compiled.price import Prices

Space = dict[str, tuple[float, float, bool]]
SPACE: Space = {
    "base": (0.01, 20.0, True),
    "backlog": (0.05, 10.0, True),
    "load": (0.01, 3.0, True),
    "local": (0.0, 1.0, False),
    "cpu": (0.02, 3.0, True),
    "adapt": (0.0, 3.0, False),
    "scarcest": (0.0, 1.0, False),
    "size": (0.0, 1.5, False),
    "age": (0.0, 2.0, False),
    "reach": (0.0, 5.0, False),
    "length": (0.0, 4.0, False),
    "patience": (0.5, 4.0, True),
    "margin": (0.0, 0.3, False),
    "packing": (-0.8, 0.6, False),
    "reserve": (0.0, 1.0, False),
    "keepers": (0.0, 64.0, False),
    "room": (0.0, 6.0, False),
    "later": (0.0, 1.5, False),
    "soon": (0.1, 3.0, True),
    "idle": (0.0, 3.0, False),
    "retries": (0.0, 3.99, False),
    "ease": (0.0, 0.5, False),
    "crowd": (0.0, 0.5, False),
    "reveal": (0.0, 5.0, False),
}
"""Where each constant is looked for: from, to, and whether steps are factors."""
WITH_MEMORY: Space = {**SPACE, "mem": (0.02, 3.0, True)}
"""Slotted scenarios know no memory: there its weight stays."""


def write(path: Path, prices: Prices, found: Mapping[str, Any]) -> None:
    """Writes them, whole or not at all; ``found`` says how they were found.

    Raises:
        ConfigError: it cannot be written.
    """
    text = json.dumps({**found, "prices": prices._asdict()}, indent=2) + "\n"
    with whole_or_not_at_all(path, ConfigError) as partial:
        partial.write_text(text, encoding="utf-8")


def read(path: Path) -> Prices:
    """The constants of a file.

    Raises:
        ConfigError: it cannot be read, or does not hold them; and what is wrong.
    """
    try:
        values = _values(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _refusal(path, str(error)) from error
    return Prices(**values)


def _values(text: str) -> dict[str, float]:
    """Raises ValueError with what is wrong."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    values = content.get("prices") if isinstance(content, dict) else None
    if not isinstance(values, dict):
        raise ValueError('expected {"prices": {...}}')
    unknown, missing = sorted(values.keys() - set(Prices._fields)), sorted(set(Prices._fields) - values.keys())
    if unknown:
        raise ValueError(f"prices.{unknown[0]} is not a constant of this program")
    if missing:
        raise ValueError(f"prices.{missing[0]} is missing")
    for name, (low, high, _) in WITH_MEMORY.items():
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"prices.{name}: expected a number, seen {value!r}")
        if not low <= value <= high:
            raise ValueError(f"prices.{name}: expected a number from {low:g} to {high:g}, seen {value!r}")
    return {name: float(values[name]) for name in Prices._fields}


def _refusal(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"constants of the price heuristic {str(path)!r}: {why}; `tapfinger tune` makes such files, and "
        'server.constants = "" takes those that ship'
    )
