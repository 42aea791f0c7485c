"""The price heuristic's constants that ship: those for any cluster, and better ones for scenarios that were tuned for.

Each was found by ``tapfinger tune`` (seed and minutes in docs/price.md), then measured on fresh workloads.
"""

from tapfinger_hpc.policies.compiled.price import Prices

SCENARIOS: dict[str, Prices] = {
    "hetero-6": Prices(
        base=0.021,
        backlog=0.123,
        load=0.052,
        local=0.441,
        cpu=0.033,
        mem=0.5,
        adapt=2.711,
        scarcest=0.43,
        size=0.026,
        age=0.296,
        reach=1.998,
        length=1.052,
        patience=1.175,
        margin=0.086,
        packing=0.011,
        reserve=0.969,
        room=0.24,
        later=0.097,
        soon=0.31,
        idle=0,
        retries=2,
    ),
    "uniform-3": Prices(
        base=0.413,
        backlog=3.915,
        load=0.423,
        local=0.003,
        cpu=0.182,
        mem=0.5,
        adapt=0.017,
        scarcest=0.612,
        size=0.808,
        age=0.714,
        reach=2.623,
        length=0.936,
        patience=1.577,
        margin=0.042,
        packing=0.044,
        reserve=0.959,
        room=0.427,
        later=0.245,
        soon=0.208,
        idle=0,
        retries=3,
    ),
    "order-3": Prices(
        base=0.251,
        backlog=2.259,
        load=0.064,
        local=0.025,
        cpu=2.042,
        mem=0.5,
        adapt=0.52,
        scarcest=0.397,
        size=0.381,
        age=0.789,
        reach=4.271,
        length=0.837,
        patience=2.806,
        margin=0.036,
        packing=-0.191,
        reserve=0.574,
        room=1.108,
        later=1.19,
        soon=0.356,
        idle=0,
        retries=3,
    ),
}


def prices(scenario: str = "random") -> Prices:
    """The constants for the scenario of this name; those for any cluster where it has none of its own."""
    return SCENARIOS.get(scenario, Prices())
