"""What differs between releases of Slurm, in one table: whoever asks names the version and reads a field.

Measured on 22.05.8 (Debian 12), 24.11.5 (Debian 13) and 26.05 (Debian sid); docs/compatibility.md says what was run.
"""

import re
from collections.abc import Mapping

import msgspec

Version = tuple[int, int]
"""Year and month: (22, 5)."""

UNKNOWN: Version = (0, 0)
"""Of a Slurm that does not say."""

OLDEST: Version = (22, 5)
"""The oldest whose squeue has every column that is read."""

TRIED: tuple[Version, ...] = ((22, 5), (24, 11), (26, 5))
"""On which the live tests run."""

PYSLURM_NEWEST: Version = (24, 11)
"""Newest release whose pyslurm still has the form of jobs that is read here."""

EXCLUSIVE = frozenset({"USER", "MCS", "TOPO"})
"""Values of OverSubscribe with which a job has its nodes to itself, whatever the release."""


class Differences(msgspec.Struct, frozen=True):
    """What holds for one release."""

    cgroups_off: str
    """CgroupPlugin without cgroups. Where "disabled" is not known yet, v1 does nothing unless a plugin uses it."""
    exclusive_words: frozenset[str]
    """Values of OverSubscribe with which a job has its nodes to itself. Up to 24.11 NO is such a one (ordinary jobs say
    OK); in 26.05 ordinary jobs say NO, and squeue does not show it."""
    gpus_come_and_go: bool
    """Whether a waiting job can be left without any GPU. In 24.11 the request vanishes from sight, and the job starts
    with its GPUs all the same: so it must keep one, and a job without must not be given its first."""
    usage_must_be_there: bool
    """Whether slurmctld refuses to start where it crashed before it had first written down the usage of associations,
    which takes it minutes; it starts with -i."""


_SINCE: tuple[tuple[Version, Mapping[str, object]], ...] = (
    (
        UNKNOWN,
        {
            "cgroups_off": "cgroup/v1",
            "exclusive_words": EXCLUSIVE | {"NO"},
            "gpus_come_and_go": True,
            "usage_must_be_there": False,
        },
    ),
    # From what release on is not known; better too early.
    ((22, 6), {"gpus_come_and_go": False}),
    ((24, 5), {"cgroups_off": "disabled"}),
    ((25, 5), {"exclusive_words": EXCLUSIVE, "usage_must_be_there": True}),
    ((26, 5), {"gpus_come_and_go": True}),
)
"""Release, and what is new from it on."""

TRES_OF_A_JOB = ("TRES", "AllocTRES", "ReqTRES")
"""Keys of ``scontrol show job``: the first that is given says what a job has, or asks for. 24.11 has no TRES."""

ENDED_STATES: tuple[tuple[str, Version], ...] = (
    ("BF", (14, 0)), ("CA", (14, 0)), ("CD", (14, 0)), ("DL", (16, 5)), ("F", (14, 0)), ("NF", (14, 0)),
    ("OOM", (18, 8)), ("PR", (14, 0)), ("TO", (14, 0)),
)  # fmt: skip
"""States of jobs that have ended, with the release since which sacct knows them."""


def of(version: Version) -> Differences:
    """What holds for this release; for an unknown one what held first."""
    fields: dict[str, object] = {}
    for since, news in _SINCE:
        if version >= since:
            fields |= news
    return msgspec.convert(fields, Differences)


def read(text: str) -> Version:
    """Year and month in Slurm's words, such as ``slurm 22.05.8`` or ``22.05.8``; UNKNOWN where there is none."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else UNKNOWN


def ended_states(version: Version) -> str:
    """The states of ended jobs as sacct of this release takes them; of an unknown one all."""
    return ",".join(state for state, since in ENDED_STATES if version >= since or version == UNKNOWN)
