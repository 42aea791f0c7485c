"""Each ended job twice: as it ran, and as it would have run the other way. Pure.

Watched jobs ran as stock Slurm had them, and the other way is what was decided for them. Enforced ones ran as
TapFinger had them, and the other way is stock Slurm. How long a job takes on other amounts is what the model of its
class says, by as much as it says that they differ: what the job itself did beside its class is kept.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from slurm_plugin.journal import Intent, Told
from slurm_plugin.worth import stock
from slurm_plugin.worth.stock import StockJob
from tapfinger_hpc.decision import Placement
from tapfinger_hpc.speed import JobClass, prior
from tapfinger_hpc.state import JobKey, Resources
from trace_tools.classes import class_of
from trace_tools.records import EndedJob

START_S = 0.5
"""From a decision to the job's first line (median, measured)."""
Way = Literal["watched", "enforced"]
Basis = Literal["same amounts", "class", "prior"]


class Seen(msgspec.Struct, frozen=True):
    """An ended job with what the journal has of it, oldest first."""

    job: EndedJob
    told: tuple[Told, ...] = ()
    intents: tuple[Intent, ...] = ()

    @property
    def key(self) -> JobKey:
        return (self.job.job_id, self.job.submit_time_s)


class Shape(msgspec.Struct, frozen=True):
    """The cluster on which stock Slurm is imagined."""

    nodes: dict[str, Resources]
    partitions: dict[str, tuple[str, ...]]


class Account(msgspec.Struct, frozen=True):
    """One job that finished, both ways. Times in seconds."""

    job_id: str
    submit_time_s: int
    user: str
    job_class: str
    way: Way
    """Which of both is measured: stock Slurm where it was watched, TapFinger where it was enforced."""
    placed: bool
    """A placement was decided for it; otherwise both ways are the same but for the room that others take."""
    stock_amounts: Resources
    tapfinger_amounts: Resources
    stock_waited_s: float | None
    """None where it is not known."""
    stock_ran_s: float
    tapfinger_waited_s: float
    tapfinger_ran_s: float
    basis: Basis
    """What the running time that is not measured comes from."""
    log_doubt: float
    """Standard deviation of its logarithm."""
    contested: bool = False
    """Only where it was watched: an earlier decision, which nobody carried out either, had taken this room."""

    @property
    def stock_s(self) -> float | None:
        """From submission to the end."""
        return None if self.stock_waited_s is None else self.stock_waited_s + self.stock_ran_s

    @property
    def tapfinger_s(self) -> float:
        return self.tapfinger_waited_s + self.tapfinger_ran_s


class Book(msgspec.Struct, frozen=True):
    """The accounts, and the jobs of which there can be none."""

    accounts: tuple[Account, ...]
    left_out: dict[str, tuple[str, ...]]
    """Job numbers, by reason."""


def book(seen: Sequence[Seen], classes: Mapping[str, JobClass], shape: Shape | None) -> Book:
    """The accounts of these jobs.

    Args:
        classes: with their speed models, by name.
        shape: None where Slurm does not tell; then it is not known how long enforced jobs would have waited.
    """
    enforced = [one for one in seen if _is_enforced(one)]
    waits = _stock_waits(enforced, classes, shape) if shape else {}
    accounts, left_out = [], dict[str, list[str]]()
    for one in seen:
        why = _why_none(one)
        account = None if why else _account(one, classes, waits)
        if account is None:
            left_out.setdefault(why or "the model of its class has no time for the other amounts", []).append(
                one.job.job_id
            )
        else:
            accounts.append(account)
    return Book(tuple(_contested(accounts, seen)), {why: tuple(ids) for why, ids in left_out.items()})


def decided(one: Seen) -> tuple[float, Placement] | None:
    """When the job was first given a place that the guard let pass, and which; None where it never was."""
    start_s = one.job.start_time_s or 0
    for told in one.told:
        # Later ones are for a job that runs already: they came while the state was read.
        if told.decision.placement is not None and not told.refused and told.at_s <= start_s + 1:
            return told.at_s, told.decision.placement
    return None


def _is_enforced(one: Seen) -> bool:
    return bool(one.intents) or any(told.mode == "enforce" for told in one.told)


def _why_none(one: Seen) -> str:
    if not one.job.finished:
        return f"{one.job.state}: how long all of its work takes is not known"
    if one.job.nodes > 1:
        return "it ran on several nodes"
    if not one.told and not one.intents:
        return "it started before anything was decided"
    return ""


def _account(one: Seen, classes: Mapping[str, JobClass], waits: Mapping[JobKey, float]) -> Account | None:
    """None where it is not known how long the job would have run the other way."""
    made = _enforced(one, classes, waits.get(one.key)) if _is_enforced(one) else _watched(one, classes)
    return made if math.isfinite(made.stock_ran_s) and math.isfinite(made.tapfinger_ran_s) else None


def _enforced(one: Seen, classes: Mapping[str, JobClass], stock_waits_s: float | None) -> Account:
    job, name = one.job, class_of(one.job)
    ran_s, basis, doubt = _ran_s(job, job.granted, job.requested, classes.get(name))
    return Account(
        job_id=job.job_id,
        submit_time_s=job.submit_time_s,
        user=job.user,
        job_class=name,
        way="enforced",
        placed=any(intent.state in ("started", "gone") for intent in one.intents),
        stock_amounts=job.requested,
        tapfinger_amounts=job.granted,
        stock_waited_s=stock_waits_s,
        stock_ran_s=ran_s,
        tapfinger_waited_s=_waited_s(job),
        tapfinger_ran_s=job.elapsed_s,
        basis=basis,
        log_doubt=doubt,
    )


def _watched(one: Seen, classes: Mapping[str, JobClass]) -> Account:
    job, name, found = one.job, class_of(one.job), decided(one)
    amounts, waits_s = job.granted, _waited_s(job)
    if found is not None:
        at_s, placement = found
        amounts, waits_s = _with_memory(placement.amounts, job.granted), max(0.0, at_s - job.submit_time_s) + START_S
        if amounts == job.granted:
            # Decided in the moment in which Slurm started it.
            waits_s = min(waits_s, _waited_s(job))
    ran_s, basis, doubt = _ran_s(job, job.granted, amounts, classes.get(name))
    return Account(
        job_id=job.job_id,
        submit_time_s=job.submit_time_s,
        user=job.user,
        job_class=name,
        way="watched",
        placed=found is not None,
        stock_amounts=job.granted,
        tapfinger_amounts=amounts,
        stock_waited_s=_waited_s(job),
        stock_ran_s=job.elapsed_s,
        tapfinger_waited_s=waits_s,
        tapfinger_ran_s=ran_s,
        basis=basis,
        log_doubt=doubt,
    )


def _waited_s(job: EndedJob) -> float:
    return max(0.0, float(job.start_time_s or 0) - job.submit_time_s)


def _ran_s(job: EndedJob, had: Resources, other: Resources, known: JobClass | None) -> tuple[float, Basis, float]:
    """How long the job would have run on other amounts, what tells so, and how unsure that is."""
    if had == other:
        return job.elapsed_s, "same amounts", 0.0
    model = known.speed if known else prior(had, job.time_limit_s)
    here_s, there_s = model.duration_s(had), model.duration_s(other)
    if not (math.isfinite(here_s) and math.isfinite(there_s)):
        return math.inf, "class", 0.0
    # As if the doubts of both points had nothing in common: rather too wide an interval than too narrow a one.
    doubt = math.hypot(model.log_std_at(had), model.log_std_at(other))
    return job.elapsed_s * there_s / here_s, "class" if known else "prior", doubt


def _with_memory(amounts: Resources, had: Resources) -> Resources:
    """Where memory is not counted no decision speaks of it."""
    return amounts if had.mem_mb else replace(amounts, mem_mb=0)


def _stock_waits(enforced: Iterable[Seen], classes: Mapping[str, JobClass], shape: Shape) -> dict[JobKey, float]:
    """How long stock Slurm would have had each of these jobs wait, had there been no others."""
    jobs = []
    for one in enforced:
        job = one.job
        ran_s, _, _ = _ran_s(job, job.granted, job.requested, classes.get(class_of(job)))
        limit_s = float(job.time_limit_s) if job.time_limit_s else math.inf
        runs_s = min(ran_s if math.isfinite(ran_s) else job.elapsed_s, limit_s)
        jobs.append(StockJob(one.key, job.submit_time_s, job.partition, job.requested, runs_s, limit_s))
    started = stock.starts(jobs, shape.nodes, shape.partitions)
    return {job.key: started[job.key] - job.submit_s for job in jobs if job.key in started}


def _contested(accounts: Sequence[Account], seen: Sequence[Seen]) -> list[Account]:
    """Marks the decisions for room that an earlier one had taken already, if anybody had carried that out.

    What each of them holds is known, but not what others would have done then: whoever shares a node is suspected.
    """
    by_key = {one.key: one for one in seen}
    held: dict[str, list[tuple[float, float, EndedJob]]] = {}
    marked: dict[JobKey, Account] = {}
    placements = []
    for account in accounts:
        found = decided(by_key[account.job_id, account.submit_time_s]) if account.way == "watched" else None
        if found is not None:
            placements.append((found[0], found[1].node, account))
    for at_s, node, account in sorted(placements, key=lambda item: item[0]):
        key = (account.job_id, account.submit_time_s)
        if any(until_s > at_s and not _was_there(job, node, at_s) for _, until_s, job in held.get(node, ())):
            marked[key] = replace(account, contested=True)
        held.setdefault(node, []).append((at_s, at_s + account.tapfinger_ran_s, by_key[key].job))
    return [marked.get((account.job_id, account.submit_time_s), account) for account in accounts]


def _was_there(job: EndedJob, node: str, at_s: float) -> bool:
    """Whether the job really was on the node then, so that the decision saw its room taken."""
    start_s = float(job.start_time_s or 0)
    return node in job.node_names and start_s <= at_s <= start_s + job.elapsed_s
