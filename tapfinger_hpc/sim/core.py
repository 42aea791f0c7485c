"""The compiled simulator: many environments side by side, in slots as in the paper or in event time.

It fills a ``Frame``, which policies read, and keeps what they may not know (true speeds and ends) in a ``Truth``.
Functions take the two, and the number of an environment; none allocates. Slots follow the authors' program: within a
slot any number of rounds of placements; then a slot passes, tasks end, new ones enter the windows ahead of queued ones.
Where a ``Belief`` was loaded, times in the frame are believed ones; when a task really ends is the truth's alone.

A cluster in event time takes two environments: one that is shown, as it was when it was last looked at, and one that is
as things are (``LOOK``). Callers name the first; ``place`` and ``advance`` work on both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.frame import DONE, FUTURE, RUNNING, WAITING, Frame, allocate
from tapfinger_hpc.sim import others, scenarios
from tapfinger_hpc.sim.compiling import compiled as compiled
from tapfinger_hpc.sim.compiling import lean, threaded, woven
from tapfinger_hpc.sim.knowledge import Belief
from tapfinger_hpc.sim.scenarios import Workload
from tapfinger_hpc.sim.sites import Site, SiteWorkload

WAIT = -1
"""The place in the window that stands for taking no task."""
OVERDUE = 0.5
"""A task that has not ended when it was expected to is expected to go on for this share of what it has run, times the
standard deviation of its logarithm: near the mean of what then remains of a log-normal time."""
LEAST_OVERDUE = 0.02
"""The least such share, for kinds that are thought to be known well."""
COMPLETED, TIMEOUT, OUT_OF_MEMORY = 0, 1, 2
"""How a job ended, or will."""
OUT_OF_MEMORY_S = 1.0
"""How long a job runs whose memory is too little."""
RETRY_S = 10.0
"""After a refusal a cluster in event time is looked at again by then, if nothing happens before."""


class Truth(NamedTuple):
    """What the simulator alone knows. Sizes as in ``Frame``; W places of a window, C and G greatest amounts + 1."""

    jobs: np.ndarray  # int64 [B] tasks of the episode
    next: np.ndarray  # int64 [B] the first that has not yet arrived
    finished: np.ndarray  # int64 [B]
    rate: np.ndarray  # float64 [B, K, C, G] progress in a unit of time; 0 where a task cannot run
    curved: np.ndarray  # bool [B, K] progress slows down: rate * sqrt(1.2 - progress)
    arrivals: np.ndarray  # float64 [B] mean number of tasks in a slot
    switch_weight: np.ndarray  # float64 [B]
    progress: np.ndarray  # float64 [B, J] at the time ``since``
    since: np.ndarray  # float64 [B, J]
    switched: np.ndarray  # bool [B, J] amounts were changed at ``since``
    end: np.ndarray  # float64 [B, J] of running and finished jobs
    told: np.ndarray  # bool [B] the times in the frame are the true ones
    window: np.ndarray  # int64 [B, P, W] numbers of the tasks in each agent's window; -1 where empty
    queue: np.ndarray  # int64 [B, P, J] tasks behind the window, in order; those placed elsewhere are still among them
    queue_first: np.ndarray  # int64 [B, P]
    queue_last: np.ndarray  # int64 [B, P]
    queued: np.ndarray  # int64 [B, P] how many of them still wait
    # What could be worked out from the above, kept so that a step need not.
    places: np.ndarray  # int64 [B] of each window
    minimum: np.ndarray  # int64 [B, K, 3] amounts below which a task cannot run
    lasts: np.ndarray  # float64 [B, K, C, G] slots from placement to completion; infinite where a task cannot run
    windowed: np.ndarray  # int64 [B, P] tasks in each window
    held: np.ndarray  # int64 [B, P] running tasks of each agent
    next_end: np.ndarray  # float64 [B] no running task ends before
    state: np.ndarray  # uint64 [B] of each environment's own random numbers
    choice: np.ndarray  # int64 [B, P] room for ``step``: the task that each agent goes for
    claim: np.ndarray  # float64 [B, P] room for ``step``: the agent's claim to it
    # What slotted scenarios have little use for. As records: every further array costs each call of a function time.
    mem_mb: np.ndarray  # int64 [B, K, G] MiB without which a task cannot run on so many GPUs
    look: np.ndarray  # LOOK [B]
    job: np.ndarray  # JOB [B, J]
    cpu_step: np.ndarray  # int64 [B, M] CPUs that Slurm hands out together


LOOK = np.dtype(
    [
        ("views", np.int64),  # 2 where the second half of all environments is kept for what is not shown
        ("actual", np.int64),  # the environment that holds what is; its own number where all is shown
        ("present", np.int64),  # our tasks in the system
        ("waited", np.float64),  # time that our tasks have waited so far
        ("late", np.float64),  # how old what is shown is when a decision about it is carried out
        ("refusal", np.float64),  # share of placements that are refused without a reason
        ("again", np.float64),  # when to look again though nothing may have happened
        ("news", np.bool_),  # something has happened since what is shown
        ("lined", np.int64),  # waiting jobs of others
        ("lining", np.int64),  # the first job that may have to be lined up yet
        # A placement that is asked for, while jobs of others are planned with it.
        ("held_node", np.int64),
        ("held_cpus", np.int64),
        ("held_gpus", np.int64),
        ("held_mb", np.int64),
        ("held_until", np.float64),
    ]
)
JOB = np.dtype(
    [
        ("pace", np.float64),  # its own time over that of its kind
        ("others", np.bool_),  # a job of others: it never stands in ``Frame.waiting``, and counts as finished
        ("cpus", np.int64),  # what Slurm starts it with
        ("gpus", np.int64),
        ("mem_mb", np.int64),
        ("limit", np.float64),
        ("priority", np.int64),
        ("lasts", np.float64),  # of a job of others: how long it takes on that; infinite: its memory is too little
        ("begin", np.float64),  # Slurm does not start it before; infinite: it is held
        ("pin", np.int64),  # the only node that it may have; -1: any
        ("members", np.int64),  # a job on several nodes is as many jobs, one after another, that start together
        ("outcome", np.int64),  # of one that was started by Slurm: COMPLETED, ...
        # By place, not by job: the line of waiting jobs of others, in the order in which Slurm serves them.
        ("line", np.int64),
        ("start", np.float64),  # when the one at this place is planned to start; infinite: never
        ("node", np.int64),  # and where
        ("partition", np.int64),
        ("taken", np.int64),  # CPUs of that node: whole cores
        ("before", np.float64),  # when it would start without the placement that is asked for
    ]
)


class Sizes(NamedTuple):
    """The most that environments shall have room for."""

    agents: int
    kinds: int
    menu: int
    cpus: int
    """Of one task."""
    gpus: int
    places: int
    jobs: int
    nodes: int
    views: int
    """2 where what is shown is not what is."""

    @classmethod
    def of(cls, workload: Workload, belief: Belief | None = None) -> "Sizes":
        """What this workload needs."""
        scenario = workload.scenario
        menus = belief.menus if belief else [kind.menu for kind in scenario.types]
        return cls(
            agents=scenario.agents,
            kinds=len(scenario.types),
            menu=max(len(menu) for menu in menus),
            cpus=max(kind.rate.shape[0] for kind in scenario.types) - 1,
            gpus=max(kind.rate.shape[1] for kind in scenario.types) - 1,
            places=scenario.window,
            jobs=len(workload.arrival),
            nodes=len(scenario.nodes),
            views=1 if scenario.slot > 0 else 2,
        )


def environments(
    workloads: Sequence[Workload], room: Sizes | None = None, beliefs: Sequence[Belief | None] | None = None
) -> tuple[Frame, Truth]:
    """Environments at the start of these workloads; they may be of different scenarios.

    Those in event time have a second environment, behind all that are named.

    Args:
        room: where greater ones are to be loaded later.
        beliefs: what the frame says of the speed of each workload's tasks; None is the truth.
    """
    beliefs = beliefs or [None] * len(workloads)
    needed = [Sizes.of(workload, belief) for workload, belief in zip(workloads, beliefs, strict=True)]
    needed += [room] if room else []
    sizes = Sizes(*(max(each) for each in zip(*needed, strict=True)))
    frame, truth = empty(len(workloads) * sizes.views, sizes)
    for env, (workload, belief) in enumerate(zip(workloads, beliefs, strict=True)):
        load(frame, truth, env, workload, belief)
    return frame, truth


def empty(batch: int, sizes: Sizes) -> tuple[Frame, Truth]:
    """Environments without a cluster and without jobs."""
    agents, kinds, jobs = sizes.agents, sizes.kinds, sizes.jobs
    cpus, gpus = sizes.cpus + 1, sizes.gpus + 1
    frame = allocate(batch, partitions=agents, nodes=sizes.nodes, kinds=kinds, choices=sizes.menu, jobs=jobs)
    truth = Truth(
        jobs=np.zeros(batch, np.int64),
        next=np.zeros(batch, np.int64),
        finished=np.zeros(batch, np.int64),
        rate=np.zeros((batch, kinds, cpus, gpus)),
        curved=np.zeros((batch, kinds), np.bool_),
        arrivals=np.zeros(batch),
        switch_weight=np.ones(batch),
        progress=np.zeros((batch, jobs)),
        since=np.zeros((batch, jobs)),
        switched=np.zeros((batch, jobs), np.bool_),
        end=np.zeros((batch, jobs)),
        told=np.ones(batch, np.bool_),
        window=np.full((batch, agents, sizes.places), -1, np.int64),
        queue=np.zeros((batch, agents, jobs), np.int64),
        queue_first=np.zeros((batch, agents), np.int64),
        queue_last=np.zeros((batch, agents), np.int64),
        queued=np.zeros((batch, agents), np.int64),
        places=np.zeros(batch, np.int64),
        minimum=np.zeros((batch, kinds, 3), np.int64),
        lasts=np.full((batch, kinds, cpus, gpus), np.inf),
        windowed=np.zeros((batch, agents), np.int64),
        held=np.zeros((batch, agents), np.int64),
        next_end=np.full(batch, np.inf),
        state=np.zeros(batch, np.uint64),
        choice=np.full((batch, agents), -1, np.int64),
        claim=np.zeros((batch, agents)),
        mem_mb=np.zeros((batch, kinds, gpus), np.int64),
        look=np.zeros(batch, LOOK),
        job=np.zeros((batch, jobs), JOB),
        cpu_step=np.ones((batch, sizes.nodes), np.int64),
    )
    truth.look["views"], truth.look["actual"] = sizes.views, np.arange(batch)
    return frame, truth


def enlarged(frame: Frame, truth: Truth, sizes: Sizes) -> tuple[Frame, Truth]:
    """The same environments with more room."""
    larger_frame, larger_truth = empty(len(frame.now), sizes)
    for larger, array in zip((*larger_frame, *larger_truth), (*frame, *truth), strict=True):
        larger[tuple(slice(length) for length in array.shape)] = array
    return larger_frame, larger_truth


def load(frame: Frame, truth: Truth, env: int, workload: Workload, belief: Belief | None = None) -> None:
    """Sets one environment to the start of a workload, whatever it held before.

    Args:
        belief: what the frame says of the speed of its tasks; None is the truth.

    Raises:
        ScenarioError: the workload needs more room than the arrays have.
    """
    _check_room(frame, truth, workload, belief)
    truth.look["actual"][env] = env
    _load(frame, truth, env, workload, belief)
    if isinstance(workload, SiteWorkload):
        actual = env + len(frame.now) // 2
        truth.look["actual"][[env, actual]] = actual
        _load(frame, truth, actual, workload, belief)
        for each in (env, actual):
            _load_site(truth, each, workload)
    restart(frame, truth, env)


def _load(frame: Frame, truth: Truth, env: int, workload: Workload, belief: Belief | None) -> None:
    scenario, count = workload.scenario, len(workload.arrival)
    agents, nodes, kinds = scenario.agents, len(scenario.nodes), len(scenario.types)
    _clear(frame, truth, env)
    frame.partitions[env], frame.nodes[env] = agents, nodes
    frame.member[env, :agents, :nodes] = scenario.member
    frame.capacity[env, :nodes] = scenario.nodes
    frame.available[env, :nodes] = True
    frame.slot[env] = scenario.slot
    frame.kinds[env] = kinds
    truth.places[env] = scenario.window
    for number, kind in enumerate(scenario.types):
        menu, slots = (belief.menus[number], belief.slots[number]) if belief else (kind.menu, kind.slots)
        frame.choices[env, number] = len(menu)
        frame.menu[env, number, : len(menu), :2] = menu
        frame.menu[env, number, : len(menu), 2] = kind.mem_mb[menu[:, 1]]
        frame.seconds[env, number, : len(menu)] = slots[menu[:, 0], menu[:, 1]]
        frame.log_std[env, number] = np.hypot(kind.log_std, belief.log_std[number] if belief else 0.0)
        cpus, gpus = kind.rate.shape
        truth.mem_mb[env, number, :gpus] = kind.mem_mb
        truth.rate[env, number, :cpus, :gpus] = kind.rate
        truth.lasts[env, number, :cpus, :gpus] = kind.slots
        truth.curved[env, number] = kind.curved
        truth.minimum[env, number, :2] = kind.minimum
    frame.kind[env, :count] = workload.type
    frame.arrival[env, :count] = workload.arrival
    frame.reach[env, :count, :agents] = workload.reachable
    # What a job takes beyond its kind is not known to anyone.
    truth.told[env] = belief is None and scenario.slot > 0
    truth.jobs[env] = count
    truth.arrivals[env] = scenario.arrivals
    truth.switch_weight[env] = scenario.switch_weight
    truth.state[env] = workload.seed


def _load_site(truth: Truth, env: int, workload: SiteWorkload) -> None:
    """What slotted scenarios lack."""
    site, jobs = workload.scenario, truth.job[env, : len(workload.arrival)]
    assert isinstance(site, Site)
    truth.look["late"][env], truth.look["refusal"][env] = site.late_s, site.refusal
    jobs["cpus"], jobs["gpus"], jobs["mem_mb"] = workload.asked.T
    with np.errstate(divide="ignore"):
        lasts = 1.0 / truth.rate[env, workload.type, jobs["cpus"], jobs["gpus"]] * workload.pace
    jobs["lasts"] = np.where(workload.others, lasts, 0.0)
    for name in ("pace", "others", "limit", "priority"):
        jobs[name] = getattr(workload, name)


def _check_room(frame: Frame, truth: Truth, workload: Workload, belief: Belief | None) -> None:
    room = Sizes(
        agents=frame.member.shape[1],
        kinds=truth.rate.shape[1],
        menu=frame.menu.shape[2],
        cpus=truth.rate.shape[2] - 1,
        gpus=truth.rate.shape[3] - 1,
        places=truth.window.shape[2],
        jobs=frame.kind.shape[1],
        nodes=frame.member.shape[2],
        views=int(truth.look["views"][0]),
    )
    for what, needed, there in zip(Sizes._fields, Sizes.of(workload, belief), room, strict=True):
        if needed > there:
            raise ScenarioError(
                f"loading a workload of scenario {workload.scenario.name!r}: it needs room for {needed} {what}, but "
                f"the environments were made for {there}; make them with more room"
            )


def _clear(frame: Frame, truth: Truth, env: int) -> None:
    """What a shorter workload or a smaller scenario would leave of the one before."""
    for array in (frame.member, frame.capacity, frame.available, frame.choices, frame.menu, frame.log_std):
        array[env] = 0
    for array in (frame.kind, frame.arrival, frame.reach, truth.rate, truth.curved, truth.minimum, truth.mem_mb):
        array[env] = 0
    frame.usable[env] = True
    truth.look["late"][env] = truth.look["refusal"][env] = 0.0
    truth.job[env] = 0
    frame.seconds[env] = np.inf
    truth.lasts[env] = np.inf
    truth.job["limit"][env] = np.inf
    truth.job["pace"][env] = 1.0
    truth.job["pin"][env] = others.ANY
    truth.job["members"][env] = 1
    truth.cpu_step[env] = 1


@lean
def restart(frame: Frame, truth: Truth, env: int) -> None:
    """Begins the episode of one environment anew, with the workload that it has."""
    actual = truth.look[env].actual
    _begin_anew(frame, truth, actual)
    if actual != env:
        _begin_anew(frame, truth, env)
        _show(frame, truth, actual, env)


@lean
def _begin_anew(frame: Frame, truth: Truth, env: int) -> None:
    frame.now[env] = 0.0
    for node in range(frame.capacity.shape[1]):
        for resource in range(3):
            frame.free[env, node, resource] = frame.capacity[env, node, resource]
    frame.status[env] = FUTURE
    frame.seen[env] = False
    frame.node[env] = -1
    frame.partition[env] = -1
    frame.amounts[env] = 0
    frame.start[env] = 0.0
    frame.expected_end[env] = 0.0
    frame.waiting_count[env] = 0
    frame.running_count[env] = 0
    truth.next[env] = 0
    truth.finished[env] = 0
    truth.progress[env] = 0.0
    truth.since[env] = 0.0
    truth.switched[env] = False
    truth.end[env] = 0.0
    truth.window[env] = -1
    truth.queue_first[env] = 0
    truth.queue_last[env] = 0
    truth.queued[env] = 0
    truth.windowed[env] = 0
    truth.held[env] = 0
    truth.next_end[env] = np.inf
    truth.look[env].present = 0
    truth.look[env].waited = 0.0
    truth.look[env].again = np.inf
    truth.look[env].news = False
    truth.look[env].lined = 0
    truth.look[env].lining = 0
    _arrive(frame, truth, env)
    if frame.slot[env] == 0.0:
        for job in range(truth.jobs[env]):
            truth.finished[env] += truth.job[env, job].others
        others.line_up(truth, env)
        _serve_others(frame, truth, env)


@lean
def redraw(frame: Frame, truth: Truth, env: int) -> None:
    """Draws other tasks of the same scenario, as many, and begins the episode. Distributed like those of
    ``scenarios.draw``, but from the environment's own random numbers: for training, thousands of times faster.
    """
    agents = frame.partitions[env]
    slot, left = 0.0, _poisson(truth, env)
    for job in range(truth.jobs[env]):
        while left == 0:
            slot += 1.0
            left = _poisson(truth, env)
        left -= 1
        frame.arrival[env, job] = slot
        frame.kind[env, job] = _below(truth, env, frame.kinds[env])
        reachable = 1 + _below(truth, env, agents)
        for agent in range(agents):  # each of those to come is as likely to be among those still wanted
            wanted = _below(truth, env, agents - agent) < reachable
            frame.reach[env, job, agent] = wanted
            reachable -= wanted
    restart(frame, truth, env)


@lean
def uniform(truth: Truth, env: int) -> float:
    """The next of the environment's own random numbers, at least 0 and below 1 (splitmix64)."""
    truth.state[env] += np.uint64(0x9E3779B97F4A7C15)
    mixed = truth.state[env]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@lean
def _below(truth: Truth, env: int, count: int) -> int:
    return int(uniform(truth, env) * count)


@lean
def _poisson(truth: Truth, env: int) -> int:
    """How many arrive in a slot: as many as exponential gaps fit into it."""
    count, gaps = 0, -np.log(1.0 - uniform(truth, env))
    while gaps < truth.arrivals[env]:
        count += 1
        gaps -= np.log(1.0 - uniform(truth, env))
    return count


@lean
def over(truth: Truth, env: int) -> bool:
    """Whether every task of the episode has arrived and ended."""
    return truth.finished[env] == truth.jobs[env]


@lean
def open_to(frame: Frame, env: int, kind: int, node: int) -> bool:
    """Whether the node is up and jobs of this kind may use it."""
    return frame.available[env, node] and frame.usable[env, kind, node]


@lean
def fits(frame: Frame, env: int, job: int, partition: int, node: int, cpus: int, gpus: int, mem_mb: int) -> bool:
    """Whether the agent may start the task on the node with these amounts now. Numbers that name nothing do not fit."""
    return (
        0 <= job < frame.status.shape[1]
        and 0 <= partition < frame.partitions[env]
        and 0 <= node < frame.nodes[env]
        and frame.status[env, job] == WAITING
        and frame.seen[env, job, partition]
        and frame.member[env, partition, node]
        and open_to(frame, env, frame.kind[env, job], node)
        and 0 <= cpus <= frame.free[env, node, 0]
        and 0 <= gpus <= frame.free[env, node, 1]
        and 0 <= mem_mb <= frame.free[env, node, 2]
    )


@lean
def place(
    frame: Frame, truth: Truth, env: int, job: int, partition: int, node: int, cpus: int, gpus: int, mem_mb: int
) -> bool:
    """Starts a waiting task; False, and nothing changes, where it does not fit or could not run on these amounts.

    What fits as things are shown may be refused as they are; the task is then not seen until the next look.
    """
    actual = truth.look[env].actual
    if actual == env:
        return _place(frame, truth, env, job, partition, node, cpus, gpus, mem_mb, frame.now[env])
    if not fits(frame, env, job, partition, node, cpus, gpus, mem_mb):
        return False
    refused = truth.look[env].refusal > 0.0 and uniform(truth, env) < truth.look[env].refusal
    refused = refused or not fits(frame, actual, job, partition, node, cpus, gpus, mem_mb)
    refused = refused or others.would_delay(frame, truth, actual, job, node, cpus, gpus, mem_mb)
    now = frame.now[actual]
    if refused or not _place(frame, truth, actual, job, partition, node, cpus, gpus, mem_mb, now):
        for agent in range(frame.partitions[env]):
            frame.seen[env, job, agent] = False
        truth.look[actual].again = now + RETRY_S
        return False
    _place(frame, truth, env, job, partition, node, cpus, gpus, mem_mb, now)
    return True


@lean
def _place(
    frame: Frame,
    truth: Truth,
    env: int,
    job: int,
    partition: int,
    node: int,
    cpus: int,
    gpus: int,
    mem_mb: int,
    now: float,
) -> bool:
    """``place`` in one environment, whether it shows things as they are or not."""
    if not fits(frame, env, job, partition, node, cpus, gpus, mem_mb):
        return False
    lasts = _lasts(frame, truth, env, job, cpus, gpus, 0.0, False)
    if lasts == np.inf or mem_mb < truth.mem_mb[env, frame.kind[env, job], gpus]:
        return False
    _take_from_waiting(frame, truth, env, job)
    _begin(frame, truth, env, job, partition, node, cpus, gpus, mem_mb, now, lasts)
    return True


@woven
def _begin(
    frame: Frame,
    truth: Truth,
    env: int,
    job: int,
    partition: int,
    node: int,
    cpus: int,
    gpus: int,
    mem_mb: int,
    now: float,
    lasts: float,
) -> None:
    """The task runs from now on."""
    truth.held[env, partition] += 1
    truth.next_end[env] = min(truth.next_end[env], now + lasts)
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
    frame.expected_end[env, job] = _expected_end(frame, truth, env, job)


@lean
def reallocate(frame: Frame, truth: Truth, env: int, job: int, node: int, cpus: int, gpus: int) -> bool:
    """Gives a running task other amounts, maybe on another node, or none at all (then it stands still but stays
    running); False, and nothing changes, where they are not free or it does not run. It makes less progress in this
    slot, by the switch weight.
    """
    if not (0 <= job < frame.status.shape[1] and frame.status[env, job] == RUNNING and truth.look[env].actual == env):
        return False
    if not (0 <= node < frame.nodes[env] and cpus >= 0 and gpus >= 0):
        return False
    if not open_to(frame, env, frame.kind[env, job], node):
        return False
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
    truth.next_end[env] = min(truth.next_end[env], now + lasts)
    frame.expected_end[env, job] = _expected_end(frame, truth, env, job)
    return True


@lean
def _expected_end(frame: Frame, truth: Truth, env: int, job: int) -> float:
    """When a task that was just started, or given other amounts, is expected to end.

    By what is believed of its kind: the least time on the menu for amounts that it has. What it did on earlier amounts
    is not known then, so it counts as begun anew. In slots a time is whole.
    """
    if truth.told[env]:
        return truth.end[env, job]
    kind = frame.kind[env, job]
    lasts = np.inf
    for choice in range(frame.choices[env, kind]):
        enough = True
        for resource in range(3):
            enough = enough and frame.menu[env, kind, choice, resource] <= frame.amounts[env, job, resource]
        if enough:
            lasts = min(lasts, frame.seconds[env, kind, choice])
    if frame.slot[env] > 0.0 and lasts < np.inf:
        lasts = frame.slot[env] * max(1.0, np.rint(lasts / frame.slot[env]))
    return truth.since[env, job] + lasts


@lean
def _put_off(frame: Frame, truth: Truth, env: int) -> None:
    """Running tasks that were expected to have ended by now are expected to go on a little: no end is in the past."""
    if truth.told[env]:
        return
    now = frame.now[env]
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        if frame.expected_end[env, job] <= now:
            rest = max(LEAST_OVERDUE, OVERDUE * frame.log_std[env, frame.kind[env, job]])
            rest *= now - frame.start[env, job]
            if frame.slot[env] > 0.0:
                rest = frame.slot[env] * np.ceil(rest / frame.slot[env])
            frame.expected_end[env, job] = now + rest


@lean
def progress_of(frame: Frame, truth: Truth, env: int, job: int) -> float:
    """Progress of a running task now, from 0 to 1."""
    return _progress(frame, truth, env, job)


@lean
def advance(frame: Frame, truth: Truth, env: int) -> float:
    """Lets a slot pass (or, in event time, goes to the next event). Returns the time that passed times our tasks that
    were in the system: summed over an episode that is the sum of completion times.
    """
    if truth.look[env].actual != env:
        return _look_again(frame, truth, env)
    if frame.slot[env] > 0.0:
        return _pass_slot(frame, truth, env)
    moment = next_event(frame, truth, env)
    return 0.0 if moment == np.inf else _pass(frame, truth, env, moment)


@lean
def _pass_slot(frame: Frame, truth: Truth, env: int) -> float:
    truth.look[env].waited += frame.waiting_count[env] * frame.slot[env]
    area = (frame.waiting_count[env] + frame.running_count[env]) * frame.slot[env]
    frame.now[env] += frame.slot[env]
    _end(frame, truth, env)
    _put_off(frame, truth, env)
    _arrive(frame, truth, env)
    _refill(frame, truth, env)
    return area


@lean
def _pass(frame: Frame, truth: Truth, env: int, moment: float) -> float:
    """Event time goes on to this moment, and what is due happens. Returns the time that passed times our tasks."""
    passed = moment - frame.now[env]
    area = truth.look[env].present * passed
    truth.look[env].waited += frame.waiting_count[env] * passed
    frame.now[env] = moment
    if truth.look[env].again <= moment:
        truth.look[env].again = np.inf
    _end(frame, truth, env)
    _put_off(frame, truth, env)
    _arrive(frame, truth, env)
    _refill(frame, truth, env)
    others.line_up(truth, env)
    _serve_others(frame, truth, env)
    return area


@lean
def next_event(frame: Frame, truth: Truth, env: int) -> float:
    """When something next happens by itself, or is to be looked at; infinity where nothing ever will."""
    now = frame.now[env]
    following = truth.look[env].again
    if truth.next[env] < truth.jobs[env]:
        following = min(following, frame.arrival[env, truth.next[env]])
    for position in range(frame.running_count[env]):
        following = min(following, truth.end[env, frame.running[env, position]])
    for position in range(truth.look[env].lined):
        begin = truth.job[env, truth.job[env, position].line].begin
        if begin > now:
            following = min(following, begin)
    return max(now, following)


@lean
def pass_until(frame: Frame, truth: Truth, env: int, until: float) -> float:
    """Lets event time go on to this moment, event by event. Returns the time that passed times our tasks."""
    area, moment = 0.0, next_event(frame, truth, env)
    while moment < until:
        area += _pass(frame, truth, env, moment)
        moment = next_event(frame, truth, env)
    return area + _pass(frame, truth, env, until)


@lean
def pass_until_then(frame: Frame, truth: Truth, env: int, until: float) -> float:
    """``pass_until``. Returns when something happens next: one call from Python where two cost twice as much."""
    pass_until(frame, truth, env, until)
    return next_event(frame, truth, env)


@lean
def _look_again(frame: Frame, truth: Truth, env: int) -> float:
    """Shows what is, once there is anything new, and lets the time go by that a decision about it takes."""
    actual = truth.look[env].actual
    area = 0.0
    if not truth.look[env].news:
        moment = next_event(frame, truth, actual)
        if moment == np.inf:
            return 0.0
        area += _pass(frame, truth, actual, moment)
    truth.look[actual].again = np.inf
    truth.look[env].news = False
    _show(frame, truth, actual, env)
    until = frame.now[actual] + truth.look[env].late
    if frame.now[actual] < until:
        truth.look[env].news = next_event(frame, truth, actual) <= until
        area += pass_until(frame, truth, actual, until)
    truth.finished[env] = truth.finished[actual]
    truth.look[env].waited = truth.look[actual].waited
    return area


@lean
def _show(frame: Frame, truth: Truth, source: int, target: int) -> None:
    """Makes one environment show another as it is now; their clusters and workloads are the same."""
    frame.now[target] = frame.now[source]
    for node in range(frame.nodes[source]):
        frame.available[target, node] = frame.available[source, node]
        for resource in range(3):
            frame.free[target, node, resource] = frame.free[source, node, resource]
    for job in range(truth.next[source]):
        frame.status[target, job] = frame.status[source, job]
        frame.node[target, job] = frame.node[source, job]
        frame.partition[target, job] = frame.partition[source, job]
        frame.start[target, job] = frame.start[source, job]
        frame.expected_end[target, job] = frame.expected_end[source, job]
        for resource in range(3):
            frame.amounts[target, job, resource] = frame.amounts[source, job, resource]
        for agent in range(frame.partitions[source]):
            frame.seen[target, job, agent] = frame.seen[source, job, agent]
    frame.waiting_count[target] = frame.waiting_count[source]
    for position in range(frame.waiting_count[source]):
        frame.waiting[target, position] = frame.waiting[source, position]
    frame.running_count[target] = frame.running_count[source]
    for position in range(frame.running_count[source]):
        frame.running[target, position] = frame.running[source, position]
    truth.finished[target] = truth.finished[source]


@lean
def step(frame: Frame, truth: Truth, env: int, actions: np.ndarray, rewards: np.ndarray) -> int:
    """A sub-step: all agents of one environment act together; where none of them places a task, a slot passes.

    An action that cannot be carried out is none. Where several agents go for the same task, the one with most room has
    it, by the paper's prior: the greatest of its free amounts over the task's minimum, taken of the scarcest resource;
    the first of equals. The others do nothing.

    Args:
        actions: int64 [B, P, 4] place in the agent's window or WAIT, CPUs, GPUs, MiB. Of the agent's nodes it is the
            first with room for them.
        rewards: float64 [B, P], written: 0 where tasks were placed, else minus the agent's tasks (running on its
            partition, in its window and its queue) while the slot passed. 0 for agents that the environment lacks.

    Returns:
        How many tasks were placed.
    """
    agents = frame.partitions[env]
    wanted = 0
    rewards[env] = 0.0
    for agent in range(agents):
        wanted += _choose(frame, truth, env, agent, actions)
    placed = 0
    if wanted:
        for agent in range(agents):
            if truth.choice[env, agent] >= 0 and _wins(truth, env, agent, agents):
                placed += _carry_out(frame, truth, env, agent, actions)
    if placed == 0:
        for agent in range(agents):
            tasks = truth.held[env, agent] + truth.windowed[env, agent] + truth.queued[env, agent]
            rewards[env, agent] = -float(tasks)
        _pass_slot(frame, truth, env)
    return placed


@lean
def step_all(
    frame: Frame,
    truth: Truth,
    actions: np.ndarray,
    again: bool,
    rewards: np.ndarray,
    placed: np.ndarray,
    ended: np.ndarray,
) -> None:
    """A sub-step of every environment, on one thread. Arrays and meaning as for ``step``.

    Args:
        again: whether an environment whose episode ends here begins anew at once (with the same tasks); if not, one
            that is over stays as it is.
        rewards: float64 [B, P], written.
        placed: int64 [B], written: how many tasks were placed; where 0, a slot has passed.
        ended: bool [B], written: whether the episode is over.
    """
    for env in range(len(placed)):
        step_one(frame, truth, env, actions, again, rewards, placed, ended)


@threaded
def step_all_threaded(
    frame: Frame,
    truth: Truth,
    actions: np.ndarray,
    again: bool,
    rewards: np.ndarray,
    placed: np.ndarray,
    ended: np.ndarray,
) -> None:
    """``step_all`` on as many threads as ``numba.set_num_threads`` says. Not in a process that forks afterwards."""
    for env in numba.prange(len(placed)):
        step_one(frame, truth, env, actions, again, rewards, placed, ended)


@lean
def step_one(
    frame: Frame,
    truth: Truth,
    env: int,
    actions: np.ndarray,
    again: bool,
    rewards: np.ndarray,
    placed: np.ndarray,
    ended: np.ndarray,
) -> None:
    """What ``step_all`` does with one environment."""
    if over(truth, env):
        rewards[env] = 0.0
        placed[env] = 0
        ended[env] = True
        return
    placed[env] = step(frame, truth, env, actions, rewards)
    ended[env] = over(truth, env)
    if again and ended[env]:
        restart(frame, truth, env)


@lean
def _choose(frame: Frame, truth: Truth, env: int, agent: int, actions: np.ndarray) -> bool:
    """Notes the task that the agent goes for, and its claim to it; whether there is one."""
    truth.choice[env, agent] = -1
    place_ = actions[env, agent, 0]
    if not 0 <= place_ < truth.places[env]:
        return False
    job = truth.window[env, agent, place_]
    if job < 0:
        return False
    cpus, gpus = actions[env, agent, 1], actions[env, agent, 2]
    if _rate(truth, env, frame.kind[env, job], cpus, gpus) <= 0.0:
        return False
    node = _node_with_room(frame, env, job, agent, cpus, gpus, actions[env, agent, 3])
    if node < 0:
        return False
    truth.choice[env, agent] = job
    claim = np.inf
    for resource in range(3):
        least = truth.minimum[env, frame.kind[env, job], resource]
        if least > 0:
            claim = min(claim, frame.free[env, node, resource] / least)
    truth.claim[env, agent] = claim
    return True


@lean
def _node_with_room(frame: Frame, env: int, job: int, agent: int, cpus: int, gpus: int, mem_mb: int) -> int:
    for node in range(frame.nodes[env]):
        if frame.member[env, agent, node] and fits(frame, env, job, agent, node, cpus, gpus, mem_mb):
            return node
    return -1


@lean
def _wins(truth: Truth, env: int, agent: int, agents: int) -> bool:
    """Whether no other agent has a better claim to the task that this one goes for."""
    for other in range(agents):
        if other != agent and truth.choice[env, other] == truth.choice[env, agent]:
            claim, rival = truth.claim[env, agent], truth.claim[env, other]
            if rival > claim or (rival == claim and other < agent):
                return False
    return True


@lean
def _carry_out(frame: Frame, truth: Truth, env: int, agent: int, actions: np.ndarray) -> bool:
    job = truth.choice[env, agent]
    cpus, gpus, mem_mb = actions[env, agent, 1], actions[env, agent, 2], actions[env, agent, 3]
    node = _node_with_room(frame, env, job, agent, cpus, gpus, mem_mb)
    return node >= 0 and _place(frame, truth, env, job, agent, node, cpus, gpus, mem_mb, frame.now[env])


@lean
def mean_completion_time(frame: Frame, truth: Truth, env: int) -> float:
    """Over our tasks that have ended."""
    total, count = 0.0, 0
    actual = truth.look[env].actual
    for job in range(truth.jobs[env]):
        if frame.status[actual, job] == DONE and not truth.job[env, job].others:
            total += truth.end[actual, job] - frame.arrival[env, job]
            count += 1
    return total / count if count else np.nan


@lean
def _rate(truth: Truth, env: int, kind: int, cpus: int, gpus: int) -> float:
    if cpus < 0 or gpus < 0 or cpus >= truth.rate.shape[2] or gpus >= truth.rate.shape[3]:
        return 0.0
    return truth.rate[env, kind, cpus, gpus]


@lean
def _lasts(
    frame: Frame, truth: Truth, env: int, job: int, cpus: int, gpus: int, progress: float, switched: bool
) -> float:
    """Time to the end on constant amounts from this progress on."""
    kind = frame.kind[env, job]
    rate = _rate(truth, env, kind, cpus, gpus)
    if rate <= 0.0:
        return np.inf
    if frame.slot[env] == 0.0:
        return (1.0 - progress) / rate * truth.job[env, job].pace
    if progress == 0.0 and not switched:
        return truth.lasts[env, kind, cpus, gpus] * frame.slot[env]
    slots = 0
    while progress < scenarios.DONE:
        step = rate * np.sqrt(max(0.0, 1.2 - progress)) if truth.curved[env, kind] else rate
        if slots == 0 and switched:
            step *= truth.switch_weight[env]
        progress += step
        slots += 1
    return slots * frame.slot[env]


@lean
def _progress(frame: Frame, truth: Truth, env: int, job: int) -> float:
    kind = frame.kind[env, job]
    rate = _rate(truth, env, kind, frame.amounts[env, job, 0], frame.amounts[env, job, 1])
    progress = truth.progress[env, job]
    passed = frame.now[env] - truth.since[env, job]
    if frame.slot[env] == 0.0:
        return progress + passed * rate / truth.job[env, job].pace
    for slot in range(round(passed / frame.slot[env])):
        step = rate * np.sqrt(max(0.0, 1.2 - progress)) if truth.curved[env, kind] else rate
        if slot == 0 and truth.switched[env, job]:
            step *= truth.switch_weight[env]
        progress += step
    return progress


@lean
def _end(frame: Frame, truth: Truth, env: int) -> None:
    now = frame.now[env]
    if truth.next_end[env] > now:
        return
    kept, following = 0, np.inf
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        end = truth.end[env, job]
        if end <= now:
            for resource in range(3):
                frame.free[env, frame.node[env, job], resource] += frame.amounts[env, job, resource]
            frame.status[env, job] = DONE
            truth.held[env, frame.partition[env, job]] -= 1
            if frame.slot[env] > 0.0 or not truth.job[env, job].others:
                truth.finished[env] += 1
                truth.look[env].present -= 1
        else:
            following = min(following, end)
            frame.running[env, kept] = job
            kept += 1
    frame.running_count[env] = kept
    truth.next_end[env] = following


@lean
def _arrive(frame: Frame, truth: Truth, env: int) -> None:
    """Tasks that are due enter the lowest empty place of every window that they can reach, else the queue behind it."""
    while truth.next[env] < truth.jobs[env] and frame.arrival[env, truth.next[env]] <= frame.now[env]:
        job = truth.next[env]
        truth.next[env] += 1
        frame.status[env, job] = WAITING
        if frame.slot[env] == 0.0 and truth.job[env, job].others:
            continue  # these stand in a line of their own
        frame.waiting[env, frame.waiting_count[env]] = job
        frame.waiting_count[env] += 1
        truth.look[env].present += 1
        for agent in range(frame.partitions[env]):
            if not frame.reach[env, job, agent]:
                continue
            if truth.places[env] == 0:
                frame.seen[env, job, agent] = True
            elif truth.windowed[env, agent] < truth.places[env]:
                _enter(frame, truth, env, agent, job, 0)
            else:
                truth.queue[env, agent, truth.queue_last[env, agent]] = job
                truth.queue_last[env, agent] += 1
                truth.queued[env, agent] += 1


@lean
def _enter(frame: Frame, truth: Truth, env: int, agent: int, job: int, place_: int) -> int:
    """Puts the task into the lowest empty place from this one on (there is one); returns which."""
    while truth.window[env, agent, place_] >= 0:
        place_ += 1
    truth.window[env, agent, place_] = job
    truth.windowed[env, agent] += 1
    frame.seen[env, job, agent] = True
    return place_


@lean
def _refill(frame: Frame, truth: Truth, env: int) -> None:
    """Empty places of each window take the head of the queue behind it."""
    for agent in range(frame.partitions[env]):
        place_ = 0
        while truth.queued[env, agent] > 0 and truth.windowed[env, agent] < truth.places[env]:
            job = truth.queue[env, agent, truth.queue_first[env, agent]]
            truth.queue_first[env, agent] += 1
            if frame.status[env, job] == WAITING:
                place_ = _enter(frame, truth, env, agent, job, place_)
                truth.queued[env, agent] -= 1


@woven
def _take_from_waiting(frame: Frame, truth: Truth, env: int, job: int) -> None:
    position, after = 0, frame.waiting_count[env]
    while position < after:  # they stand in the order of their numbers, which is that of their arrival
        middle = (position + after) // 2
        if frame.waiting[env, middle] < job:
            position = middle + 1
        else:
            after = middle
    for later in range(position + 1, frame.waiting_count[env]):
        frame.waiting[env, later - 1] = frame.waiting[env, later]
    frame.waiting_count[env] -= 1
    for agent in range(frame.partitions[env]):
        if truth.places[env] == 0:
            frame.seen[env, job, agent] = False
        elif frame.seen[env, job, agent]:
            frame.seen[env, job, agent] = False
            place_ = 0
            while truth.window[env, agent, place_] != job:
                place_ += 1
            truth.window[env, agent, place_] = -1
            truth.windowed[env, agent] -= 1
        elif frame.reach[env, job, agent]:
            truth.queued[env, agent] -= 1


@lean
def _serve_others(frame: Frame, truth: Truth, env: int) -> None:
    """Slurm's own turn: starts those jobs of others whose planned start has come."""
    before = truth.look[env].lined
    _serve_first_of_others(frame, truth, env)
    while truth.look[env].lined < before and before > others.PLANNED_JOBS:
        before = truth.look[env].lined
        _serve_first_of_others(frame, truth, env)


@lean
def _serve_first_of_others(frame: Frame, truth: Truth, env: int) -> None:
    """The same for as many of the line as are planned at a time."""
    count = others.worth_planning(frame, truth, env)
    if count == 0:
        return
    others.plan(frame, truth, env, count)
    position = kept = 0
    while position < count:
        after = position + truth.job[env, truth.job[env, position].line].members
        starts = others.may_start(frame, truth, env, position, after)
        for place_ in range(position, after):
            if starts:
                _begin_of_others(frame, truth, env, place_)
            else:
                truth.job[env, kept].line = truth.job[env, place_].line
                kept += 1
        position = after
    for position in range(count, truth.look[env].lined):
        truth.job[env, kept].line = truth.job[env, position].line
        kept += 1
    truth.look[env].lined = kept


@lean
def _begin_of_others(frame: Frame, truth: Truth, env: int, position: int) -> None:
    """The one at this place of the line starts as it is planned."""
    planned, now = truth.job[env, position], frame.now[env]
    job, node, partition, cpus = planned.line, planned.node, planned.partition, planned.taken
    asked = truth.job[env, job]
    asked.outcome, lasts = COMPLETED, asked.lasts
    if lasts == np.inf:
        asked.outcome, lasts = OUT_OF_MEMORY, OUT_OF_MEMORY_S
    elif lasts > asked.limit:
        asked.outcome, lasts = TIMEOUT, asked.limit
    _begin(frame, truth, env, job, partition, node, cpus, asked.gpus, asked.mem_mb, now, lasts)
    # Of jobs that are not ours the time limit is all that is known; ``speed.prior`` believes a third of it.
    frame.expected_end[env, job] = now + asked.limit / 3
