"""The compiled simulator: many environments side by side, in slots as in the paper or in event time.

It fills a ``Frame``, which policies read, and keeps what they may not know (true speeds and ends) in a ``Truth``.
Functions take the two, and the number of an environment; none allocates. Slots follow the authors' program: within a
slot any number of rounds of placements; then a slot passes, tasks end, new ones enter the windows ahead of queued ones.
"""

from typing import NamedTuple

import numba
import numpy as np

from tapfinger_hpc.frame import DONE, FUTURE, RUNNING, WAITING, Frame, allocate
from tapfinger_hpc.sim import scenarios
from tapfinger_hpc.sim.scenarios import Workload

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


class Truth(NamedTuple):
    """What the simulator alone knows. Sizes as in ``Frame``; W places of a window, C and G greatest amounts + 1."""

    jobs: np.ndarray  # int64 [B] tasks of the episode
    next: np.ndarray  # int64 [B] the first that has not yet arrived
    finished: np.ndarray  # int64 [B]
    rate: np.ndarray  # float64 [B, K, C, G] progress in a unit of time; 0 where a task cannot run
    curved: np.ndarray  # bool [B, K] progress slows down: rate * sqrt(1.2 - progress)
    switch_weight: np.ndarray  # float64 [B]
    progress: np.ndarray  # float64 [B, J] at the time ``since``
    since: np.ndarray  # float64 [B, J]
    switched: np.ndarray  # bool [B, J] amounts were changed at ``since``
    end: np.ndarray  # float64 [B, J] of running and finished jobs
    window: np.ndarray  # int64 [B, P, W] numbers of the tasks in each agent's window; -1 where empty
    queue: np.ndarray  # int64 [B, P, J] tasks behind the window, in order; those placed elsewhere are still among them
    queue_first: np.ndarray  # int64 [B, P]
    queue_last: np.ndarray  # int64 [B, P]
    queued: np.ndarray  # int64 [B, P] how many of them still wait


def environments(workloads: list[Workload]) -> tuple[Frame, Truth]:
    """Environments at the start of these workloads; they may be of different scenarios."""
    batch = len(workloads)
    sizes = [workload.scenario for workload in workloads]
    agents = max(scenario.agents for scenario in sizes)
    kinds = max(len(scenario.types) for scenario in sizes)
    jobs = max(len(workload.arrival) for workload in workloads)
    menu = max(len(kind.menu) for scenario in sizes for kind in scenario.types)
    cpus = max(kind.rate.shape[0] for scenario in sizes for kind in scenario.types)
    gpus = max(kind.rate.shape[1] for scenario in sizes for kind in scenario.types)
    places = max(scenario.window for scenario in sizes)
    frame = allocate(batch, partitions=agents, nodes=agents, kinds=kinds, choices=menu, jobs=jobs)
    truth = Truth(
        jobs=np.zeros(batch, np.int64),
        next=np.zeros(batch, np.int64),
        finished=np.zeros(batch, np.int64),
        rate=np.zeros((batch, kinds, cpus, gpus)),
        curved=np.zeros((batch, kinds), np.bool_),
        switch_weight=np.ones(batch),
        progress=np.zeros((batch, jobs)),
        since=np.zeros((batch, jobs)),
        switched=np.zeros((batch, jobs), np.bool_),
        end=np.zeros((batch, jobs)),
        window=np.full((batch, agents, places), -1, np.int64),
        queue=np.zeros((batch, agents, jobs), np.int64),
        queue_first=np.zeros((batch, agents), np.int64),
        queue_last=np.zeros((batch, agents), np.int64),
        queued=np.zeros((batch, agents), np.int64),
    )
    for env, workload in enumerate(workloads):
        load(frame, truth, env, workload)
    return frame, truth


def load(frame: Frame, truth: Truth, env: int, workload: Workload) -> None:
    """Sets one environment to the start of a workload. Its sizes must not be above those of the arrays."""
    scenario, count = workload.scenario, len(workload.arrival)
    agents, kinds = scenario.agents, len(scenario.types)
    frame.partitions[env] = frame.nodes[env] = agents
    frame.member[env] = np.eye(*frame.member.shape[1:]) > 0
    frame.member[env, agents:] = False
    frame.capacity[env, :agents, :2] = scenario.capacities
    frame.available[env] = np.arange(frame.available.shape[1]) < agents
    frame.slot[env] = 1.0
    frame.kinds[env] = kinds
    for number, kind in enumerate(scenario.types):
        menu = kind.menu
        frame.choices[env, number] = len(menu)
        frame.menu[env, number] = 0
        frame.menu[env, number, : len(menu), :2] = menu
        frame.seconds[env, number] = np.inf
        frame.seconds[env, number, : len(menu)] = kind.slots[menu[:, 0], menu[:, 1]]
        cpus, gpus = kind.rate.shape
        truth.rate[env, number] = 0.0
        truth.rate[env, number, :cpus, :gpus] = kind.rate
        truth.curved[env, number] = kind.curved
    frame.log_std[env] = 0.0
    frame.kind[env, :count] = workload.type
    frame.arrival[env, :count] = workload.arrival
    frame.reach[env] = False
    frame.reach[env, :count, :agents] = workload.reachable
    truth.jobs[env] = count
    truth.switch_weight[env] = scenario.switch_weight
    restart(frame, truth, env)


@compiled
def restart(frame: Frame, truth: Truth, env: int) -> None:
    """Begins the episode of one environment anew, with the workload that it has."""
    frame.now[env] = 0.0
    frame.free[env] = frame.capacity[env]
    frame.status[env] = FUTURE
    frame.seen[env] = False
    frame.node[env] = -1
    frame.partition[env] = -1
    frame.amounts[env] = 0
    frame.waiting_count[env] = 0
    frame.running_count[env] = 0
    truth.next[env] = 0
    truth.finished[env] = 0
    truth.progress[env] = 0.0
    truth.switched[env] = False
    truth.window[env] = -1
    truth.queue_first[env] = 0
    truth.queue_last[env] = 0
    truth.queued[env] = 0
    _arrive(frame, truth, env)


@compiled
def over(truth: Truth, env: int) -> bool:
    """Whether every task of the episode has arrived and ended."""
    return truth.finished[env] == truth.jobs[env]


@compiled
def fits(frame: Frame, env: int, job: int, partition: int, node: int, cpus: int, gpus: int, mem_mb: int) -> bool:
    """Whether the agent may start the task on the node with these amounts now."""
    return (
        frame.status[env, job] == WAITING
        and frame.seen[env, job, partition]
        and frame.member[env, partition, node]
        and frame.available[env, node]
        and cpus <= frame.free[env, node, 0]
        and gpus <= frame.free[env, node, 1]
        and mem_mb <= frame.free[env, node, 2]
    )


@compiled
def place(
    frame: Frame, truth: Truth, env: int, job: int, partition: int, node: int, cpus: int, gpus: int, mem_mb: int
) -> bool:
    """Starts a waiting task; False, and nothing changes, where it does not fit or could not run on these amounts."""
    if not fits(frame, env, job, partition, node, cpus, gpus, mem_mb):
        return False
    lasts = _lasts(frame, truth, env, job, cpus, gpus, 0.0, False)
    if lasts == np.inf:
        return False
    now = frame.now[env]
    _take_from_waiting(frame, truth, env, job)
    frame.status[env, job] = RUNNING
    frame.node[env, job] = node
    frame.partition[env, job] = partition
    frame.amounts[env, job, 0] = cpus
    frame.amounts[env, job, 1] = gpus
    frame.amounts[env, job, 2] = mem_mb
    for resource in range(3):
        frame.free[env, node, resource] -= frame.amounts[env, job, resource]
    frame.start[env, job] = now
    frame.running[env, frame.running_count[env]] = job
    frame.running_count[env] += 1
    truth.since[env, job] = now
    truth.end[env, job] = now + lasts
    frame.expected_end[env, job] = now + lasts
    return True


@compiled
def reallocate(frame: Frame, truth: Truth, env: int, job: int, node: int, cpus: int, gpus: int) -> bool:
    """Gives a running task other amounts, maybe on another node, or none at all (then it stands still but stays
    running); False where they are not free. It makes less progress in this slot, by the switch weight.
    """
    old = frame.node[env, job]
    amounts = frame.amounts[env, job]
    if node == old and cpus == amounts[0] and gpus == amounts[1]:
        return True
    free_cpus, free_gpus = frame.free[env, node, 0], frame.free[env, node, 1]
    if node == old:
        free_cpus, free_gpus = free_cpus + amounts[0], free_gpus + amounts[1]
    if cpus > free_cpus or gpus > free_gpus:
        return False
    now = frame.now[env]
    truth.progress[env, job] = _progress(frame, truth, env, job)
    frame.free[env, old, 0] += amounts[0]
    frame.free[env, old, 1] += amounts[1]
    frame.free[env, node, 0] -= cpus
    frame.free[env, node, 1] -= gpus
    amounts[0], amounts[1] = cpus, gpus
    frame.node[env, job] = node
    truth.since[env, job] = now
    truth.switched[env, job] = now > frame.start[env, job]
    lasts = _lasts(frame, truth, env, job, cpus, gpus, truth.progress[env, job], truth.switched[env, job])
    truth.end[env, job] = now + lasts
    frame.expected_end[env, job] = now + lasts
    return True


@compiled
def progress_of(frame: Frame, truth: Truth, env: int, job: int) -> float:
    """Progress of a running task now, from 0 to 1."""
    return _progress(frame, truth, env, job)


@compiled
def advance(frame: Frame, truth: Truth, env: int) -> float:
    """Lets a slot pass (or, in event time, goes to the next event). Returns the time that passed times the tasks that
    were in the system: summed over an episode that is the sum of completion times.
    """
    before = frame.now[env]
    tasks = frame.waiting_count[env] + frame.running_count[env]
    if frame.slot[env] > 0:
        frame.now[env] = before + frame.slot[env]
    else:
        following = np.inf
        if truth.next[env] < truth.jobs[env]:
            following = frame.arrival[env, truth.next[env]]
        for position in range(frame.running_count[env]):
            following = min(following, truth.end[env, frame.running[env, position]])
        if following == np.inf:
            return 0.0
        frame.now[env] = max(before, following)
    _end(frame, truth, env)
    _arrive(frame, truth, env)
    _refill(frame, truth, env)
    return tasks * (frame.now[env] - before)


@compiled
def mean_completion_time(frame: Frame, truth: Truth, env: int) -> float:
    """Over the tasks that have ended."""
    total, count = 0.0, 0
    for job in range(truth.jobs[env]):
        if frame.status[env, job] == DONE:
            total += truth.end[env, job] - frame.arrival[env, job]
            count += 1
    return total / count if count else np.nan


@compiled
def _rate(truth: Truth, env: int, kind: int, cpus: int, gpus: int) -> float:
    if cpus < 0 or gpus < 0 or cpus >= truth.rate.shape[2] or gpus >= truth.rate.shape[3]:
        return 0.0
    return truth.rate[env, kind, cpus, gpus]


@compiled
def _lasts(
    frame: Frame, truth: Truth, env: int, job: int, cpus: int, gpus: int, progress: float, switched: bool
) -> float:
    """Time to the end on constant amounts from this progress on."""
    kind = frame.kind[env, job]
    rate = _rate(truth, env, kind, cpus, gpus)
    if rate <= 0.0:
        return np.inf
    if frame.slot[env] == 0.0:
        return (1.0 - progress) / rate
    slots = 0
    while progress < scenarios.DONE:
        step = rate * np.sqrt(max(0.0, 1.2 - progress)) if truth.curved[env, kind] else rate
        if slots == 0 and switched:
            step *= truth.switch_weight[env]
        progress += step
        slots += 1
    return slots * frame.slot[env]


@compiled
def _progress(frame: Frame, truth: Truth, env: int, job: int) -> float:
    kind = frame.kind[env, job]
    rate = _rate(truth, env, kind, frame.amounts[env, job, 0], frame.amounts[env, job, 1])
    progress = truth.progress[env, job]
    passed = frame.now[env] - truth.since[env, job]
    if frame.slot[env] == 0.0:
        return progress + passed * rate
    for slot in range(round(passed / frame.slot[env])):
        step = rate * np.sqrt(max(0.0, 1.2 - progress)) if truth.curved[env, kind] else rate
        if slot == 0 and truth.switched[env, job]:
            step *= truth.switch_weight[env]
        progress += step
    return progress


@compiled
def _end(frame: Frame, truth: Truth, env: int) -> None:
    kept = 0
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        if truth.end[env, job] <= frame.now[env]:
            for resource in range(3):
                frame.free[env, frame.node[env, job], resource] += frame.amounts[env, job, resource]
            frame.status[env, job] = DONE
            truth.finished[env] += 1
        else:
            frame.running[env, kept] = job
            kept += 1
    frame.running_count[env] = kept


@compiled
def _arrive(frame: Frame, truth: Truth, env: int) -> None:
    """Tasks that are due enter the lowest empty place of every window that they can reach, else the queue behind it."""
    places = truth.window.shape[2]
    while truth.next[env] < truth.jobs[env] and frame.arrival[env, truth.next[env]] <= frame.now[env]:
        job = truth.next[env]
        truth.next[env] += 1
        frame.status[env, job] = WAITING
        frame.waiting[env, frame.waiting_count[env]] = job
        frame.waiting_count[env] += 1
        for agent in range(frame.partitions[env]):
            if not frame.reach[env, job, agent]:
                continue
            entered = False
            for place_ in range(places):
                if truth.window[env, agent, place_] < 0:
                    truth.window[env, agent, place_] = job
                    frame.seen[env, job, agent] = True
                    entered = True
                    break
            if not entered:
                truth.queue[env, agent, truth.queue_last[env, agent]] = job
                truth.queue_last[env, agent] += 1
                truth.queued[env, agent] += 1


@compiled
def _refill(frame: Frame, truth: Truth, env: int) -> None:
    """Empty places of each window take the head of the queue behind it."""
    for agent in range(frame.partitions[env]):
        if truth.queued[env, agent] == 0:
            continue
        for place_ in range(truth.window.shape[2]):
            if truth.window[env, agent, place_] >= 0:
                continue
            while truth.queue_first[env, agent] < truth.queue_last[env, agent]:
                job = truth.queue[env, agent, truth.queue_first[env, agent]]
                truth.queue_first[env, agent] += 1
                if frame.status[env, job] == WAITING:
                    truth.window[env, agent, place_] = job
                    frame.seen[env, job, agent] = True
                    truth.queued[env, agent] -= 1
                    break


@compiled
def _take_from_waiting(frame: Frame, truth: Truth, env: int, job: int) -> None:
    count = frame.waiting_count[env]
    position = 0
    while frame.waiting[env, position] != job:
        position += 1
    for later in range(position + 1, count):
        frame.waiting[env, later - 1] = frame.waiting[env, later]
    frame.waiting_count[env] = count - 1
    for agent in range(frame.partitions[env]):
        if frame.seen[env, job, agent]:
            frame.seen[env, job, agent] = False
            for place_ in range(truth.window.shape[2]):
                if truth.window[env, agent, place_] == job:
                    truth.window[env, agent, place_] = -1
        elif frame.reach[env, job, agent]:
            truth.queued[env, agent] -= 1
