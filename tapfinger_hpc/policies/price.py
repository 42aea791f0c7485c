"""The price heuristic on a live cluster: ``compiled.price`` on a ``View``, and its reasons in words.

The same compiled code serves simulation and training; the constants are the site's own, or those of the scenario
"cluster".
"""

import math

import numpy as np

from tapfinger_hpc.decision import Alternative, Decision
from tapfinger_hpc.live import ENV, View
from tapfinger_hpc.policies.compiled import price, tuned
from tapfinger_hpc.policies.compiled.price import Layout, Prices
from tapfinger_hpc.sim.scenarios import CLUSTER
from tapfinger_hpc.state import ClusterState

RUNNERS_UP = 4
PATIENCE = 9.0
"""A job that has waited this many times its least cost is served before all others."""


class PricePolicy:
    """Deterministic; knows of a class what the state says of it, and the prior where it says nothing."""

    name = "price"

    def __init__(self, prices: Prices | None = None, patience: float = PATIENCE) -> None:
        self._parameters = (prices or tuned.prices(CLUSTER)).array()
        self._patience = patience

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        """Placements first, in the order in which they are to be carried out; then the jobs that wait."""
        view = View(state)
        while True:
            placed, layout = price.lay_out(view.frame, ENV, self._parameters, self._patience, RUNNERS_UP + 1)
            if self._carry_out(view, placed, layout) or view.exhausted:
                break
        self._leave(view, layout)
        return view.decisions()

    def _carry_out(self, view: View, placed: int, layout: Layout) -> bool:
        """Whether the guard refused nothing; if it did, what is left is to be decided anew."""
        refused = False
        for row in range(placed):
            if view.exhausted or view.refusal(layout.rows[row]) is not None:
                refused = True
                continue
            others = int(view.frame.waiting_count[ENV]) - 1
            company = f"with {others} other jobs waiting" if others else "with no other job waiting"
            reason = f"expected to take {span(layout.lasts[row])} so; {company} this costs least of what is free"
            runners_up = self._runners_up(view, layout, row)
            later = float(layout.waiting[row]) * (1.0 + float(self._parameters[price.MARGIN]))
            if math.isfinite(later):
                runners_up.append(Alternative(None, -later))
            runners_up.sort(key=lambda alternative: -alternative.score)
            view.place(layout.rows[row], reason, -float(layout.cost[row]), runners_up[:RUNNERS_UP])
        return not refused

    def _leave(self, view: View, layout: Layout) -> None:
        row_of = {int(job): row for row, job in enumerate(layout.rows[:, 0])}
        for job in view.frame.waiting[ENV, : view.frame.waiting_count[ENV]].tolist():
            row = row_of.get(job)
            reason = view.why_refused(job) or "no room on any node that it may use"
            if view.exhausted and view.why_refused(job) is None:
                reason = f"{view.refusals} placements were refused for the sake of jobs of others; no more were tried"
            if row is None or not 0.0 < layout.start[row] < math.inf or not view.stands(layout.rows[row]):
                view.wait(job, reason)
                continue
            where = view.placement(layout.rows[row])
            expected = f"{where.amounts} are expected on {where.node} in {span(layout.start[row])}"
            runners_up = self._runners_up(view, layout, row)
            if runners_up:
                reason = f"worth waiting: {expected} (then {span(layout.lasts[row])} to run)"
            else:
                reason = f"{reason}; {expected}"
            view.wait(job, reason, -float(layout.cost[row]), runners_up)

    def _runners_up(self, view: View, layout: Layout, row: int) -> list[Alternative]:
        """The cheapest other nodes and amounts of those that are free now."""
        found = []
        for other, cost in zip(layout.others[row], layout.other_cost[row], strict=True):
            if math.isfinite(cost) and not np.array_equal(other, layout.rows[row]) and view.stands(other):
                found.append(Alternative(view.placement(other), -float(cost)))
        return found[:RUNNERS_UP]


def span(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
