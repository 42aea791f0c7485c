"""Users, accounts and names of jobs without who they are: salted hashes, the same for the same text and salt.

Names of jobs are hashed without their numbers, so that the runs of one kind of job still belong together. Partitions,
amounts and times are kept. Whoever has the salt can find out whether a given name was meant; whoever has not cannot.
"""

import hmac
from dataclasses import replace

from tapfinger_hpc.units import Mark
from trace_tools.assemble import Jobs
from trace_tools.classes import plain_name
from trace_tools.coded import Coded


def without_identities(jobs: Jobs, salt: bytes) -> Jobs:
    """The same jobs with hashes in place of user, account, name and class."""

    def hashed(kind: str, text: str) -> str:
        return f"{kind}-{hmac.digest(salt, text.encode(), 'sha256').hex()[:12]}" if text else ""

    def mark(declared: Mark | None) -> Mark | None:
        if declared is None or not declared.job_class:
            return declared
        return Mark(
            declared.gpus, declared.cpus, declared.mem_mb, hashed("class", declared.job_class), declared.lease_s
        )

    return replace(
        jobs,
        user=jobs.user.each(lambda text: hashed("user", text)),
        account=jobs.account.each(lambda text: hashed("account", text)),
        name=jobs.name.each(lambda text: hashed("name", plain_name(text))),
        comment=Coded(jobs.comment.codes, [""] * len(jobs.comment.spellings)),
        marks=[mark(declared) for declared in jobs.marks],
    )
