"""Jobs of others in the compiled core: when Slurm would start them, and which placements of ours would delay them.

What ``reserve`` does in plain Python on the types of the live system, whose guard must stay readable; a test holds the
two against each other. Every waiting job, in Slurm's order, gets the earliest start that the time limits of running
jobs allow (conservative backfill); a placement of ours must not make any of those before it start later.
"""

from typing import TYPE_CHECKING

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.compiling import lean

if TYPE_CHECKING:
    from tapfinger_hpc.sim.core import Truth

PROTECTED_JOBS = 32
"""As in ``reserve``: how many waiting jobs a placement must not delay."""
PLANNED_JOBS = 100
"""Slurm's bf_max_job_test: so many of the line are planned at a time. A queue of thousands would else be planned anew
with every event."""
ANY = -1
"""The node of a job that is not pinned to one."""
_NOWHERE = -1


@lean
def line_up(truth: "Truth", env: int) -> None:
    """Those that have come join the line, and each waits behind all of more priority, and of as much that came before
    it; priorities may have changed.
    """
    for job in range(truth.look[env].lining, truth.next[env]):
        if truth.job[env, job].others:
            truth.job[env, truth.look[env].lined].line = job
            truth.look[env].lined += 1
    truth.look[env].lining = truth.next[env]
    for place in range(1, truth.look[env].lined):
        job, position = truth.job[env, place].line, place
        priority = truth.job[env, job].priority
        while position > 0:
            before = truth.job[env, position - 1].line
            first = truth.job[env, before].priority
            if first > priority or (first == priority and before < job):
                break
            truth.job[env, position].line = before
            position -= 1
        truth.job[env, position].line = job


@lean
def would_delay(frame: Frame, truth: "Truth", env: int, job: int, node: int, cpus: int, gpus: int, mem_mb: int) -> bool:
    """Whether a job of others, whom Slurm would serve first, would start later for this placement."""
    look, now, count, protected = truth.look[env], frame.now[env], 0, 0
    while count < look.lined and protected < PROTECTED_JOBS:
        first = truth.job[env, truth.job[env, count].line]
        if first.priority < truth.job[env, job].priority:
            break
        count += first.members
        protected += first.begin <= now
    if protected == 0:
        return False
    until = now + truth.job[env, job].limit
    plan(frame, truth, env, count)
    if _has_room(frame, truth, env, count, now, until, node, cpus, gpus, mem_mb):
        return False  # their plan leaves that room, so it can be kept as it is
    for position in range(count):
        truth.job[env, position].before = truth.job[env, position].start
    look.held_node, look.held_until = node, until
    look.held_cpus, look.held_gpus, look.held_mb = cpus, gpus, mem_mb
    _plan(frame, truth, env, count)
    later = False
    for position in range(count):
        later = later or truth.job[env, position].start > truth.job[env, position].before
    return later


@lean
def plan(frame: Frame, truth: "Truth", env: int, count: int) -> None:
    """Earliest start of each of the first so many of the line, in turn; each takes its room off the others'."""
    truth.look[env].held_node = _NOWHERE
    _plan(frame, truth, env, count)


@lean
def worth_planning(frame: Frame, truth: "Truth", env: int) -> int:
    """How many of the line: those up to the last that has room now. Where later ones are planned does not matter, nor
    is anyone looked at behind the first ``PLANNED_JOBS`` that may begin.
    """
    count = may_begin = 0
    while count < truth.look[env].lined and may_begin < PLANNED_JOBS:
        asked = truth.job[env, truth.job[env, count].line]
        may_begin += asked.begin <= frame.now[env]
        count += asked.members
    while count > 0:
        asked = truth.job[env, truth.job[env, count - 1].line]
        if asked.begin <= frame.now[env] and _has_room_now(frame, truth, env, count - asked.members):
            return count
        count -= asked.members
    return 0


@lean
def may_start(frame: Frame, truth: "Truth", env: int, position: int, after: int) -> bool:
    """Whether the job at these places of the line is planned to start by now, and what it takes is there."""
    for place in range(position, after):
        planned = truth.job[env, place]
        asked, node = truth.job[env, planned.line], planned.node
        if not (
            planned.start <= frame.now[env]
            and planned.taken <= frame.free[env, node, 0]
            and asked.gpus <= frame.free[env, node, 1]
            and asked.mem_mb <= frame.free[env, node, 2]
        ):
            return False
    return True


@lean
def _plan(frame: Frame, truth: "Truth", env: int, count: int) -> None:
    position = 0
    while position < count:
        asked, moment = truth.job[env, truth.job[env, position].line], _not_before(frame, truth, env, position)
        if asked.begin > frame.now[env]:
            moment = np.inf
        while moment < np.inf and not _find_nodes(frame, truth, env, position, moment):
            moment = _next_change(frame, truth, env, position, moment)
        for place in range(position, position + asked.members):
            truth.job[env, place].start = moment
            if moment == np.inf:
                truth.job[env, place].node = _NOWHERE
        position += asked.members


@lean
def _not_before(frame: Frame, truth: "Truth", env: int, position: int) -> float:
    """When the nearest job of the line before this one starts that asks for just the same: until then there was no room
    for that one, with fewer jobs planned; now where there is none. Arrays of a thousand tasks are planned so.
    """
    job = truth.job[env, position].line
    asked = truth.job[env, job]
    for place in range(position - 1, -1, -1):
        other = truth.job[env, place].line
        first = truth.job[env, other]
        if (
            first.cpus == asked.cpus
            and first.gpus == asked.gpus
            and first.mem_mb == asked.mem_mb
            and first.limit == asked.limit
            and first.members == asked.members
            and first.pin == asked.pin
            and first.begin <= frame.now[env]
            and frame.kind[env, other] == frame.kind[env, job]
            and _reach_the_same(frame, env, other, job)
        ):
            return max(frame.now[env], truth.job[env, place].start)
    return frame.now[env]


@lean
def _reach_the_same(frame: Frame, env: int, one: int, other: int) -> bool:
    for partition in range(frame.partitions[env]):
        if frame.reach[env, one, partition] != frame.reach[env, other, partition]:
            return False
    return True


@lean
def _find_nodes(frame: Frame, truth: "Truth", env: int, position: int, moment: float) -> bool:
    """Plans the job at this place of the line on the first nodes on which it could start then, in the order of its
    partitions; whether there are as many as it wants.
    """
    job = truth.job[env, position].line
    asked = truth.job[env, job]
    for partition in range(frame.partitions[env]):
        if not frame.reach[env, job, partition]:
            continue
        found = 0
        for node in range(frame.nodes[env]):
            step = truth.cpu_step[env, node]
            cpus = -(-asked.cpus // step) * step
            if (
                _may_use(frame, truth, env, job, partition, node)
                and cpus <= frame.capacity[env, node, 0]
                and asked.gpus <= frame.capacity[env, node, 1]
                and asked.mem_mb <= frame.capacity[env, node, 2]
                and _has_room(
                    frame, truth, env, position, moment, moment + asked.limit, node, cpus, asked.gpus, asked.mem_mb
                )
            ):
                planned = truth.job[env, position + found]
                planned.node, planned.partition, planned.taken = node, partition, cpus
                found += 1
                if found == asked.members:
                    return True
    return False


@lean
def _has_room_now(frame: Frame, truth: "Truth", env: int, position: int) -> bool:
    """Whether what the job at this place of the line takes is free now on as many nodes as it wants."""
    job = truth.job[env, position].line
    asked = truth.job[env, job]
    for partition in range(frame.partitions[env]):
        if not frame.reach[env, job, partition]:
            continue
        found = 0
        for node in range(frame.nodes[env]):
            step = truth.cpu_step[env, node]
            found += (
                -(-asked.cpus // step) * step <= frame.free[env, node, 0]
                and asked.gpus <= frame.free[env, node, 1]
                and asked.mem_mb <= frame.free[env, node, 2]
                and _may_use(frame, truth, env, job, partition, node)
            )
        if found >= asked.members:
            return True
    return False


@lean
def _may_use(frame: Frame, truth: "Truth", env: int, job: int, partition: int, node: int) -> bool:
    """Whether the node is one of the partition, up, and one that this job may have."""
    pin = truth.job[env, job].pin
    return (
        frame.member[env, partition, node]
        and frame.available[env, node]
        and frame.usable[env, frame.kind[env, job], node]
        and pin in (ANY, node)
    )


@lean
def _has_room(
    frame: Frame,
    truth: "Truth",
    env: int,
    planned: int,
    start: float,
    end: float,
    node: int,
    cpus: int,
    gpus: int,
    mem_mb: int,
) -> bool:
    """Whether the amounts are free on the node all the time, with the first so many of the line as planned."""
    if not _free_at(frame, truth, env, planned, start, node, cpus, gpus, mem_mb):
        return False
    for position in range(planned):  # otherwise there is only less when something is planned to start meanwhile
        moment = truth.job[env, position].start
        if (
            truth.job[env, position].node == node
            and start < moment < end
            and not _free_at(frame, truth, env, planned, moment, node, cpus, gpus, mem_mb)
        ):
            return False
    return True


@lean
def _free_at(
    frame: Frame, truth: "Truth", env: int, planned: int, moment: float, node: int, cpus: int, gpus: int, mem_mb: int
) -> bool:
    look = truth.look[env]
    cpus = frame.free[env, node, 0] - cpus
    gpus = frame.free[env, node, 1] - gpus
    mem_mb = frame.free[env, node, 2] - mem_mb
    if look.held_node == node and moment < look.held_until:
        cpus, gpus, mem_mb = cpus - look.held_cpus, gpus - look.held_gpus, mem_mb - look.held_mb
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        if frame.node[env, job] == node and _latest_end(frame, truth, env, job) <= moment:
            cpus += frame.amounts[env, job, 0]
            gpus += frame.amounts[env, job, 1]
            mem_mb += frame.amounts[env, job, 2]
    for position in range(planned):
        begun = truth.job[env, position].start
        asked = truth.job[env, truth.job[env, position].line]
        if truth.job[env, position].node == node and begun <= moment < begun + asked.limit:
            cpus, gpus, mem_mb = cpus - truth.job[env, position].taken, gpus - asked.gpus, mem_mb - asked.mem_mb
    return cpus >= 0 and gpus >= 0 and mem_mb >= 0


@lean
def _next_change(frame: Frame, truth: "Truth", env: int, planned: int, after: float) -> float:
    """The first moment after this one at which anything is planned to change on any node."""
    following = np.inf
    for position in range(frame.running_count[env]):
        end = _latest_end(frame, truth, env, frame.running[env, position])
        if end > after:
            following = min(following, end)
    for position in range(planned):
        start = truth.job[env, position].start
        end = start + truth.job[env, truth.job[env, position].line].limit
        if start > after:
            following = min(following, start)
        if end > after:
            following = min(following, end)
    if truth.look[env].held_node >= 0 and truth.look[env].held_until > after:
        following = min(following, truth.look[env].held_until)
    return following


@lean
def _latest_end(frame: Frame, truth: "Truth", env: int, job: int) -> float:
    """By its time limit; one that is over it ends now."""
    return max(frame.start[env, job] + truth.job[env, job].limit, frame.now[env])
