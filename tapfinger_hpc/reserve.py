"""Room for jobs that are not ours: a placement must not delay what Slurm plans to start. Pure.

Conservative backfill (Mu'alem & Feitelson 2001), turned around: every protected job is given the earliest start that
the time limits of running jobs allow, once without the placement and once with it; none may start later.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from tapfinger_hpc import fit
from tapfinger_hpc.state import ClusterState, JobKey, Node, PendingJob, Resources

PROTECTED_JOBS = 32
"""How many waiting jobs, in Slurm's order, are protected; Slurm's own backfill looks at 100 by default."""


class Reservation(msgspec.Struct, frozen=True):
    """Where and when a waiting job could start: the same amounts on each of these nodes."""

    job: PendingJob
    start_s: float
    nodes: tuple[str, ...]


class Profile:
    """Free amounts of every node over time, if each running job lasts until its limit."""

    def __init__(self, state: ClusterState) -> None:
        self._nodes = {node.name: node for node in state.nodes}
        self._now_s = state.time_s
        self._steps: dict[str, list[tuple[float, Resources]]] = {
            node.name: [(state.time_s, node.free)] for node in state.nodes
        }
        endings = sorted(
            (max(float(running.end_limit_s), state.time_s), share)
            for running in state.running
            if running.end_limit_s is not None
            for share in running.shares
            if share.node in self._nodes
        )
        for end_s, share in endings:
            steps = self._steps[share.node]
            steps.append((end_s, steps[-1][1] + fit.granted(self._nodes[share.node], share.amounts)))

    def moments(self) -> list[float]:
        """Now, and each later moment at which something changes on any node."""
        return sorted({time_s for steps in self._steps.values() for time_s, _ in steps})

    def has_room(self, node: Node, start_s: float, end_s: float, amounts: Resources) -> bool:
        """Whether the amounts are free on the node during all of [start, end)."""
        steps = self._steps[node.name]
        for position, (time_s, free) in enumerate(steps):
            until_s = steps[position + 1][0] if position + 1 < len(steps) else math.inf
            if until_s <= start_s or (until_s <= time_s):
                continue
            if time_s >= end_s:
                break
            if not free.covers(amounts):
                return False
        return True

    def take(self, node: Node, start_s: float, end_s: float, amounts: Resources) -> None:
        """Takes the amounts off during [start, end)."""
        for time_s in (start_s, end_s):
            self._split(node.name, time_s)
        self._steps[node.name] = [
            (time_s, free - amounts if start_s <= time_s < end_s else free) for time_s, free in self._steps[node.name]
        ]

    def _split(self, name: str, time_s: float) -> None:
        steps = self._steps[name]
        if math.isinf(time_s) or any(time_s == known_s for known_s, _ in steps):
            return
        before = [free for known_s, free in steps if known_s < time_s]
        if before:
            steps.append((time_s, before[-1]))
            steps.sort(key=lambda step: step[0])


class Protection:
    """Asks many times of one state whether a placement would delay a protected job.

    Protected from a managed job are eligible jobs of others whose priority is at least its own, as Slurm would serve
    them first.
    """

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._others = [job for job in waiting_in_order(state) if not job.managed]
        self._plans: dict[int, tuple[list[Reservation], Profile]] = {}

    def would_delay(self, job: PendingJob, node: Node, amounts: Resources) -> str | None:
        """Which protected job would start later if ``job`` took ``amounts`` on ``node`` now; None if none would."""
        protected = [other for other in self._others if other.priority >= job.priority][:PROTECTED_JOBS]
        if not protected:
            return None
        taken, end_s = fit.granted(node, amounts), self._state.time_s + _limit_s(job)
        without, left = self._planned(protected)
        if left.has_room(node, self._state.time_s, end_s, taken):
            return None  # their plan leaves that room, so it can be kept as it is
        profile = Profile(self._state)
        profile.take(node, self._state.time_s, end_s, taken)
        with_it = {reservation.job.key: reservation for reservation in plan(self._state, protected, profile)}
        for before in without:
            now = with_it.get(before.job.key)
            if now is None or now.start_s > before.start_s:
                return f"job {before.job.job_id}, which Slurm would serve first, would start later"
        return None

    def _planned(self, protected: Sequence[PendingJob]) -> tuple[list[Reservation], Profile]:
        """When each starts without the placement, and what room that leaves. They are the first of ``_others``."""
        if len(protected) not in self._plans:
            profile = Profile(self._state)
            self._plans[len(protected)] = (plan(self._state, protected, profile), profile)
        return self._plans[len(protected)]


def waiting_in_order(state: ClusterState) -> list[PendingJob]:
    """Eligible pending jobs without a running lease, in the order in which Slurm serves them."""
    waiting = [
        job
        for job in state.pending
        if job.eligible and (job.lease_until_s is None or job.lease_until_s <= state.time_s)
    ]
    return sorted(waiting, key=lambda job: (-job.priority, job.submit_time_s))


def plan(
    state: ClusterState, jobs: Sequence[PendingJob], profile: Profile, pins: Mapping[JobKey, str] | None = None
) -> list[Reservation]:
    """Earliest start of each job in turn; each takes its room off the profile. Jobs that can never start are left out.

    Slurm's own plan (``planned_start_s`` and ``planned_nodes``) is followed where there is room for it. ``pins`` names
    the only node of jobs that were given one.
    """
    nodes = {node.name: node for node in state.nodes}
    made = []
    for job in jobs:
        pin = (pins or {}).get(job.key, "")
        reservation = _as_slurm_plans(job, state, nodes, profile) or _earliest(job, state, nodes, profile, pin)
        if reservation is None:
            continue
        made.append(reservation)
        for name in reservation.nodes:
            end_s = reservation.start_s + _limit_s(job)
            profile.take(nodes[name], reservation.start_s, end_s, fit.granted(nodes[name], per_node(job)))
    return made


def per_node(job: PendingJob) -> Resources:
    """What the job asks for on each of its nodes."""
    asked, count = job.requested, job.nodes_wanted
    return Resources(-(-asked.cpus // count), -(-asked.gpus // count), -(-asked.mem_mb // count))


def _as_slurm_plans(
    job: PendingJob, state: ClusterState, nodes: dict[str, Node], profile: Profile
) -> Reservation | None:
    start_s, names = job.planned_start_s, job.planned_nodes
    if start_s is None or not names or start_s <= state.time_s or not all(name in nodes for name in names):
        return None
    end_s, amounts = start_s + _limit_s(job), per_node(job)
    if all(profile.has_room(nodes[name], start_s, end_s, fit.granted(nodes[name], amounts)) for name in names):
        return Reservation(job, float(start_s), names)
    return None


def _earliest(
    job: PendingJob, state: ClusterState, nodes: dict[str, Node], profile: Profile, pin: str
) -> Reservation | None:
    """The first moment from which enough nodes of one partition have room for the job's whole time limit."""
    amounts = per_node(job)
    reachable = [
        [
            nodes[name]
            for name in sorted(partition.nodes)
            if pin in ("", name) and fit.could_fit_node(job, nodes[name], amounts)
        ]
        for partition in state.partitions
        if partition.name in job.partitions and fit.open_to(job, partition)
    ]
    for start_s in profile.moments():
        end_s = start_s + _limit_s(job)
        for candidates in reachable:
            roomy = [
                node.name for node in candidates if profile.has_room(node, start_s, end_s, fit.granted(node, amounts))
            ]
            if len(roomy) >= job.nodes_wanted:
                return Reservation(job, start_s, tuple(roomy[: job.nodes_wanted]))
    return None


def _limit_s(job: PendingJob) -> float:
    return math.inf if job.time_limit_s is None else float(job.time_limit_s)
