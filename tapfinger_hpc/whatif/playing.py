"""Replays a plan: stock Slurm first, then each policy with the amounts as they were, and with those that may change."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from tapfinger_hpc import config
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.policies import registry
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.whatif.preparation import Plan
from tapfinger_hpc.whatif.report import CHANGED, EASY, KEPT, Replayed
from tapfinger_hpc.whatif.straying import strayed

INTERVAL_S = 300.0
"""Longest time between two looks: a job that comes or ends brings one at once, and little else changes."""
LEASE_S = 3600
"""Leases only cost renewals here: nothing of ours dies in a replay."""


@dataclass(frozen=True)
class Contender:
    """A policy of the live system, under a name."""

    name: str
    policy: str
    checkpoint: Path | None = None
    prices: Prices | None = None
    """Constants of the price heuristic; None: those that ship."""

    def made(self):
        """The policy; None for stock Slurm.

        Raises:
            ConfigError: it is not known.
            CheckpointError: its weights cannot be used.
        """
        if self.policy == EASY:
            return None
        if self.policy not in registry.NAMES:
            known = ", ".join((EASY, *registry.NAMES))
            raise ConfigError(f"policy {self.policy!r} cannot be replayed on a trace; those that can: {known}")
        return registry.make(self.policy, checkpoint=self.checkpoint, prices=self.prices)


def with_constants(one: Contender, prices: Prices) -> Contender:
    """The same with other constants of the price heuristic."""
    return dataclasses.replace(one, name=f"{one.name}+constants", prices=prices)


def replays(
    plan: Plan,
    spec: ClusterSpec,
    contenders: Sequence[Contender],
    *,
    amounts: Sequence[str] = (KEPT, CHANGED),
    draws: int = 0,
    report: Callable[[str, int], None] = lambda name, ended: None,
) -> Iterator[Replayed]:
    """Stock Slurm's replay, then those of the others.

    Args:
        draws: how often those with amounts that may change are replayed again with other speed curves.
        report: told what is replayed, and how many jobs have ended in it.
    """
    yield _replayed(Contender(EASY, EASY), KEPT, plan, spec, report)
    for contender in contenders:
        if contender.policy == EASY:
            continue
        for choice in amounts:
            if choice == KEPT or plan.changed is not None:
                one = _replayed(contender, choice, plan, spec, report)
                again = range(draws if choice == CHANGED else 0)
                yield replace(
                    one,
                    strayed=tuple(
                        _replayed(contender, choice, plan, spec, report, draw=draw).records for draw in again
                    ),
                )


def count(plan: Plan, contenders: Sequence[Contender], amounts: Sequence[str], draws: int = 0) -> int:
    """How many replays that are."""
    changed = plan.changed is not None
    each = sum((1 if choice == KEPT else (1 + draws) * changed) for choice in amounts)
    return 1 + each * sum(contender.policy != EASY for contender in contenders)


def _replayed(
    contender: Contender,
    amounts: str,
    plan: Plan,
    spec: ClusterSpec,
    report: Callable[[str, int], None],
    *,
    draw: int | None = None,
) -> Replayed:
    trace = plan.kept if amounts == KEPT else plan.changed
    assert trace is not None
    name = contender.name if amounts == KEPT else f"{contender.name}, {amounts}"
    if draw is not None:
        trace, name = strayed(trace, draw), f"{name} (curves {draw + 1})"
    begun = time.monotonic()
    records = replay(
        trace,
        spec,
        contender.made(),
        classes=plan.told,
        interval_s=INTERVAL_S,
        lease_s=LEASE_S,
        max_hold_s=float(config.AgentConfig().max_hold_s),
        report=lambda ended: report(name, ended),
    )
    return Replayed(contender.name, amounts, records, time.monotonic() - begun)
