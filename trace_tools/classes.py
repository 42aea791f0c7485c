"""Which jobs are of one class: those that say so, else those of one user and account with the same plain name. Pure."""

import re

from trace_tools.records import EndedJob

LONGEST = 256
_UNIQUE = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b")
_HASH = re.compile(r"(?<![0-9a-z])(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{7,}(?![0-9a-z])|0x[0-9a-f]+")
_MONTH = re.compile(
    r"(?<![a-z])(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)(?=[-_ .:]*\d)"
    r"|(?<=\d)[-_ .:]*(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)(?![a-z])"
)
_NUMBER = re.compile(r"\d+(?:[.]\d+)*(?:e[-+]?\d+)?")
_NUMBERS = re.compile(r"#(?:[-_.:,/+t\[\]% ]*#)+")
_ANONYMOUS = re.compile(r"name-[0-9a-f]{12}")
"""What `trace convert --anonymize` writes: a hash of a plain name, which tells kinds of jobs apart."""
_ENDING = re.compile(r"[.](?:sh|bash|sbatch|slurm|job|py)$")


def class_of(job: EndedJob) -> str:
    """The name of the job's class: ``class=`` of its mark, or user, account and plain name; "" of one that has none."""
    if job.mark is not None and job.mark.job_class:
        return job.mark.job_class
    if not (job.user or job.account or job.name):
        return ""
    return class_name(job.user, job.account, job.name)


def class_name(user: str, account: str, name: str) -> str:
    """The class of jobs that declare none. No declared class holds a slash, so the two never meet."""
    return f"{user}/{account}/{plain_name(name)}"[:LONGEST]


def is_declared(class_of_job: str) -> bool:
    """Whether a class was declared, rather than made of user, account and name."""
    return "/" not in class_of_job


def plain_name(name: str) -> str:
    """A job name without what changes from run to run: numbers, dates, hashes and array indices become ``#``.

    ``train_lr0.01_seed3`` and ``train_lr1e-4_seed12`` are alike, as are ``eval-2024-05-01`` and ``eval-2024-11-23``;
    ``resnet18`` and ``resnet50`` too: who wants them apart declares ``class=``.
    """
    if _ANONYMOUS.fullmatch(name):
        return name
    plain = _ENDING.sub("", name.strip().lower())
    for pattern in (_UNIQUE, _HASH, _MONTH, _NUMBER):
        plain = pattern.sub("#", plain)
    plain = _NUMBERS.sub("#", plain)
    return " ".join(plain.split()).strip("-_.: ")[:LONGEST]
