"""The fields that are asked of sacct. Pure.

Asking for a field that the installed version does not know is fatal to sacct, so only those are asked for that
``sacct --helpformat`` lists. What a job is made of has substitutes in older releases.
"""

import re

DELIMITER = "\x1f"
"""Nobody writes it into the name of a job."""
FIELDS = (
    "JobID", "Cluster", "User", "Account", "Partition", "QOS", "State", "Submit", "Eligible", "Start", "End",
    "ElapsedRaw", "TimelimitRaw", "NNodes", "NCPUS", "ReqCPUS", "ReqMem", "ReqTRES", "AllocTRES", "MaxRSS", "NTasks",
    "NodeList", "Priority", "Comment", "SubmitLine", "JobName",
)  # fmt: skip
_SUBSTITUTES = {
    "ElapsedRaw": ("Elapsed",),  # before 17.02
    "TimelimitRaw": ("Timelimit",),  # before 18.08
    "ReqTRES": ("ReqGRES",),  # a site that tracks no GPUs as TRES shows them here, before 20.11
    "AllocTRES": ("AllocGRES",),
}
_ALSO = ("ReqGRES", "AllocGRES")


def known_fields(helpformat: str) -> frozenset[str]:
    """The fields that ``sacct --helpformat`` lists."""
    return frozenset(re.findall(r"[A-Za-z]+", helpformat))


def fields_to_ask(known: frozenset[str]) -> tuple[str, ...]:
    """Of the fields that are of use those that this sacct knows, in order, with substitutes for those it does not."""
    by_lower = {name.lower(): name for name in known}
    asked = []
    for name in (*FIELDS[:-1], *_ALSO, FIELDS[-1]):
        for candidate in (name, *_SUBSTITUTES.get(name, ())):
            if candidate.lower() in by_lower:
                if candidate not in asked:
                    asked.append(candidate)
                break
    return tuple(asked)
