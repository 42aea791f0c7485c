"""Whether TapFinger can do its work on this site: ``tapfinger doctor`` gathers facts once, and judges them.

Changes nothing. facts.py looks at the world, the checks are pure; a check says one line, and one line what to do.
"""

from pathlib import Path

import msgspec

from slurm_plugin.doctor import hook_checks, own_checks, slurm_checks
from slurm_plugin.doctor.check import Check
from slurm_plugin.doctor.facts import Facts, gather
from tapfinger_hpc.config import Config

CHECKS = (*own_checks.BEFORE, *slurm_checks.ALL, *hook_checks.ALL, *own_checks.AFTER)
"""In the order in which they are told: what others stand on comes first."""


class Diagnosis(msgspec.Struct, frozen=True):
    """What was found."""

    healthy: bool
    """Nothing fails; there may be warnings."""
    checks: tuple[Check, ...]


def judge(facts: Facts) -> Diagnosis:
    """All checks on these facts."""
    checks = tuple(check(facts) for check in CHECKS)
    return Diagnosis(all(check.status != "fail" for check in checks), checks)


def examine(config: Config, path: Path, *, named: bool) -> Diagnosis:
    """Looks at the site, and says what is well and what is not."""
    return judge(gather(config, path, named=named))
