"""The price heuristic's constants that ship: those for any cluster, and better ones for scenarios that were tuned for.

Each was found by ``tapfinger tune`` (seed and minutes in docs/price.md), then measured on fresh workloads.
"""

from tapfinger_hpc.policies.compiled.price import Prices

SCENARIOS: dict[str, Prices] = {}


def prices(scenario: str = "random") -> Prices:
    """The constants for the scenario of this name; those for any cluster where it has none of its own."""
    return SCENARIOS.get(scenario, Prices())
