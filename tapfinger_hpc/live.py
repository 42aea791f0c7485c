"""A live cluster as a frame of one environment, so that it is decided on by the very code that the simulator runs.

What fits is asked of ``fit``, what a job may sensibly be given of ``choices``, when jobs end of ``outlook``, whom a
placement delays of ``reserve``. Times are seconds from the state's own; amounts are what a node really gives for them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from tapfinger_hpc import fit
from tapfinger_hpc.decision import Alternative, Decision, Placement
from tapfinger_hpc.frame import RUNNING, WAITING, allocate
from tapfinger_hpc.policies import choices
from tapfinger_hpc.policies.board import Board
from tapfinger_hpc.policies.outlook import remaining_s
from tapfinger_hpc.state import ClusterState, PendingJob, Resources, RunningJob

ENV = 0
"""The one environment of the frame."""
MAX_REFUSALS = 64
"""So many placements may the guard refuse in one decision; then what is left waits."""
MOST_CHOICES = 48
"""On a menu. Policies look at every choice on every node, and the simulated tasks, on which they were made, have about
as many; a longer menu loses the choices that gain least."""
SPARE_KINDS = 16
"""Room for kinds that are split off because the guard refuses a node to some of their jobs."""


@dataclass(frozen=True, eq=False)
class Kind:
    """Jobs with the same menu on the same nodes."""

    given: np.ndarray  # int64 [choice, 3] what a job is given
    taken: np.ndarray  # int64 [choice, 3] what a node gives for it: whole cores
    seconds: np.ndarray  # float64 [choice]
    log_std: float
    usable: np.ndarray  # bool [node]

    @cached_property
    def choices(self) -> dict[tuple[int, ...], int]:
        """Amounts, as they are taken from a node, and their number on the menu."""
        return {tuple(taken): number for number, taken in enumerate(self.taken.tolist())}

    @property
    def content(self) -> tuple:
        return (self.given.tobytes(), self.taken.tobytes(), self.seconds.tobytes(), self.log_std, self.usable.tobytes())


class View:
    """A state as a frame while it is decided on: the frame changes with every placement and every refusal.

    Waiting jobs have the numbers 0, 1, ... in the order of ``jobs``; partitions and nodes have their positions in the
    state. Jobs of others are in the frame as long as they run (one entry for each node, of kind -1 where nothing
    is known of their like); where they wait, the guard speaks for them.
    """

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.jobs: tuple[PendingJob, ...] = ()
        """The managed, eligible jobs that some node could run, by number."""
        self.impossible: tuple[PendingJob, ...] = ()
        """Those that no node could run."""
        self.kinds: list[Kind] = []
        """By number."""
        self.refusals = 0
        self._board = Board(state)
        self._refused: dict[int, str] = {}
        self._column = {node.name: column for column, node in enumerate(state.nodes)}
        self._member = np.zeros((len(state.partitions), len(state.nodes)), np.bool_)
        for partition, row in zip(state.partitions, self._member, strict=True):
            row[[self._column[name] for name in partition.nodes]] = True
        self._capacity = np.array([row_of(node.capacity) for node in state.nodes], np.int64).reshape(-1, 3)
        self._steps = np.array([node.cpu_step for node in state.nodes], np.int64)
        # What was worked out for one job holds for others like it.
        self._places: dict[tuple, tuple[int, np.ndarray] | None] = {}
        self._holds: dict[tuple, np.ndarray] = {}
        self._numbers: dict[tuple, int] = {}
        self._alike: dict[tuple, int] = {}
        self._could: dict[tuple, tuple[int, np.ndarray]] = {}
        self._opened: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        self._largest: dict[bytes, tuple[int, Resources]] = {}
        self._fill()

    # What a policy needs.

    @property
    def exhausted(self) -> bool:
        """Whether the guard has refused so much that nothing more is to be tried."""
        return self.refusals >= MAX_REFUSALS

    def why_refused(self, job: int) -> str | None:
        """The guard's last reason against a placement of this job; None where there was none."""
        return self._refused.get(job)

    def stands(self, row: np.ndarray) -> bool:
        """Whether this placement (job, partition, node, CPUs, GPUs, MiB) is still open to the job, as far as refusals
        have come.
        """
        kind = self.kinds[self.frame.kind[ENV, row[0]]]
        return bool(kind.usable[row[2]]) and tuple(row[3:6].tolist()) in kind.choices

    def given(self, row: np.ndarray) -> Resources:
        """What the job of this row is given."""
        kind = self.kinds[self.frame.kind[ENV, row[0]]]
        return choices.resources(kind.given[kind.choices[tuple(row[3:6].tolist())]])

    def placement(self, row: np.ndarray) -> Placement:
        """The row as Slurm is told."""
        return Placement(self.state.partitions[row[1]].name, self.state.nodes[row[2]].name, self.given(row))

    def seconds(self, row: np.ndarray) -> float:
        """How long the job is expected to take so."""
        kind = self.kinds[self.frame.kind[ENV, row[0]]]
        return float(kind.seconds[kind.choices[tuple(row[3:6].tolist())]])

    def refusal(self, row: np.ndarray) -> str | None:
        """Why the guard refuses this placement on what is left, None where it does not.

        What is refused is barred from then on, for this job and for all others of which the same must be said.
        """
        job, column = int(row[0]), int(row[2])
        if not self.stands(row):
            return self._refused.get(job, "it was refused before")
        pending, node, amounts = self.jobs[job], self.state.nodes[column], self.given(row)
        if not self._board.fits(node, amounts):
            why: str | None = f"{amounts} is not free on {node.name}"
        else:
            why = self._board.delays(pending, node, amounts)
        if why is not None:
            self.refusals += 1
            self._bar(job, column, amounts, why)
        return why

    def place(
        self, row: np.ndarray, reason: str, score: float = 0.0, runners_up: Iterable[Alternative] = ()
    ) -> Placement:
        """Decides that the job runs there: on the frame it is running from now on."""
        placement, frame = self.placement(row), self.frame
        job, node = int(row[0]), int(row[2])
        lasts = self.seconds(row)
        self._board.place(self.jobs[job], placement, reason, score, runners_up)
        taken = row_of(fit.granted(self.state.nodes[node], placement.amounts))
        frame.free[ENV, node] = np.maximum(frame.free[ENV, node] - taken, 0)
        waiting = frame.waiting[ENV, : frame.waiting_count[ENV]]
        left = waiting[waiting != job]
        frame.waiting[ENV, : len(left)] = left
        frame.waiting_count[ENV] = len(left)
        frame.seen[ENV, job] = False
        self._run(job, int(row[1]), node, taken, 0.0, lasts)
        return placement

    def wait(self, job: int, reason: str, score: float = 0.0, runners_up: Iterable[Alternative] = ()) -> None:
        """Decides that the job waits."""
        self._board.wait(self.jobs[job], reason, score, runners_up)

    def decisions(self) -> tuple[Decision, ...]:
        """Placements in the order in which they were made, the jobs that wait, and those that no node could run."""
        for job in self.impossible:
            self._board.wait(job, "no node that is up can run it within its range", -math.inf)
        return self._board.decisions()

    # The frame.

    def _fill(self) -> None:
        state = self.state
        reaches = []
        jobs: list[PendingJob] = []
        impossible: list[PendingJob] = []
        kinds: list[int] = []
        for job in self._board.jobs():
            place = self._place_of(job)
            if place is None:
                impossible.append(job)
                continue
            jobs.append(job)
            kinds.append(place[0])
            reaches.append(place[1])
        self.jobs, self.impossible = tuple(jobs), tuple(impossible)
        held = [
            (running, self._column[share.node], share.amounts)
            for running in sorted(state.running, key=lambda running: running.start_time_s)
            for share in running.shares
            if share.node in self._column
        ]
        usual = {job.job_class: kind for job, kind in zip(reversed(jobs), reversed(kinds), strict=True)}
        of_running = [self._kind_of_running(running, usual) for running, _, _ in held]
        others_wait = any(not job.managed and job.eligible for job in state.pending)
        frame = allocate(
            1,
            partitions=len(state.partitions),
            nodes=len(state.nodes),
            kinds=max(1, len(self.kinds)) + (SPARE_KINDS if others_wait else 0),
            choices=max([1, *(len(kind.seconds) for kind in self.kinds)]),
            jobs=max(1, len(jobs) + len(held)),
        )
        frame.partitions[ENV], frame.nodes[ENV] = len(state.partitions), len(state.nodes)
        frame.member[ENV] = self._member
        frame.capacity[ENV] = self._capacity
        frame.free[ENV] = np.array([row_of(node.free) for node in state.nodes], np.int64).reshape(-1, 3)
        frame.available[ENV] = [node.available for node in state.nodes]
        self.frame = frame
        self._least = np.zeros((frame.menu.shape[1], 3), np.int64)
        for number in range(len(self.kinds)):
            self._write_kind(number)
        frame.kinds[ENV] = len(self.kinds)
        count = len(jobs)
        frame.kind[ENV, :count] = kinds
        frame.arrival[ENV, :count] = [min(0.0, job.submit_time_s - state.time_s) for job in jobs]
        frame.status[ENV, :count] = WAITING
        if count:
            frame.reach[ENV, :count] = frame.seen[ENV, :count] = reaches
        frame.waiting[ENV, :count] = np.arange(count)
        frame.waiting_count[ENV] = count
        self._limits = np.array([math.inf if job.time_limit_s is None else job.time_limit_s for job in jobs])
        self._priorities = np.array([job.priority for job in jobs])
        partitions = {partition.name: position for position, partition in enumerate(state.partitions)}
        for number, ((running, node, amounts), kind) in enumerate(zip(held, of_running, strict=True), start=count):
            frame.kind[ENV, number] = kind
            frame.arrival[ENV, number] = min(0.0, running.submit_time_s - state.time_s)
            taken = row_of(fit.granted(state.nodes[node], amounts))
            started = min(0.0, running.start_time_s - state.time_s)
            self._run(number, partitions.get(running.partition, -1), node, taken, started, remaining_s(state, running))

    def _run(self, job: int, partition: int, node: int, taken: Sequence[int], start: float, rest: float) -> None:
        frame = self.frame
        frame.status[ENV, job] = RUNNING
        frame.partition[ENV, job], frame.node[ENV, job] = partition, node
        frame.amounts[ENV, job] = taken
        frame.start[ENV, job], frame.expected_end[ENV, job] = start, rest
        frame.running[ENV, frame.running_count[ENV]] = job
        frame.running_count[ENV] += 1

    def _place_of(self, job: PendingJob) -> tuple[int, np.ndarray] | None:
        """The job's kind, and the partitions [partition] that may take it; None where no node could run it."""
        content = (
            job.job_class,
            job.minimum,
            job.maximum,
            job.requested,
            job.tasks,
            job.partitions,
            job.time_limit_s,
            job.gpu_type,
        )
        if content not in self._places:
            self._places[content] = self._find_place(job)
        return self._places[content]

    def _find_place(self, job: PendingJob) -> tuple[int, np.ndarray] | None:
        open_, nodes = self._open(job)
        able, could = self._could_run(job)
        reached = could & nodes
        if not reached.any():
            return None
        step, capacity = self._greatest(reached)
        table = choices.of(self.state, job, capacity)
        if (table, step, able) not in self._holds:
            usable = could & (step % self._steps == 0)
            menu = _menu(table, step)
            self._holds[table, step, able] = (menu.taken[:, None, :] <= self._capacity).all(axis=2) & usable
        holds = self._holds[table, step, able]
        kept = (holds & reached).any(axis=1)
        if not kept.any():
            return None
        key = (table, step, able, kept.tobytes())
        if key not in self._numbers:
            self._numbers[key] = self._add_kind(job, _menu(table, step), kept, could & (step % self._steps == 0))
        reach = open_ & (self._member & holds[kept].any(axis=0)).any(axis=1)
        return self._numbers[key], reach

    def _add_kind(self, job: PendingJob, menu: "_Menu", kept: np.ndarray, usable: np.ndarray) -> int:
        """The number of the kind with this menu: a new one, or one that is just alike."""
        log_std = choices.speed_of(self.state, job).log_std_at(choices.resources(menu.given[kept][0]))
        kind = Kind(menu.given[kept], menu.taken[kept], menu.seconds[kept], log_std, usable)
        number = self._alike.setdefault(kind.content, len(self.kinds))
        if number == len(self.kinds):
            self.kinds.append(kind)
        return number

    def _could_run(self, job: PendingJob) -> tuple[int, np.ndarray]:
        """bool [node] that could run the least of the job if they were empty; with a number for what decides that."""
        least = fit.smallest(job)
        key = (job.gpu_type, least)
        if key not in self._could:
            nodes = [least is not None and fit.could_fit_node(job, node, least) for node in self.state.nodes]
            self._could[key] = (len(self._could), np.array(nodes, np.bool_))
        return self._could[key]

    def _open(self, job: PendingJob) -> tuple[np.ndarray, np.ndarray]:
        """bool [partition] that the job may enter, and bool [node] of these."""
        key = (job.partitions, job.time_limit_s)
        if key not in self._opened:
            open_ = np.array(
                [part.name in job.partitions and fit.open_to(job, part) for part in self.state.partitions], np.bool_
            )
            self._opened[key] = (open_, np.asarray(self._member[open_].any(axis=0)))
        return self._opened[key]

    def _greatest(self, nodes: np.ndarray) -> tuple[int, Resources]:
        """The coarsest step of these nodes, and the most of each resource that one of them has."""
        key = nodes.tobytes()
        if key not in self._largest:
            self._largest[key] = (
                int(self._steps[nodes].max()),
                choices.resources(self._capacity[nodes].max(axis=0)),
            )
        return self._largest[key]

    def _kind_of_running(self, running: RunningJob, usual: dict[str, int]) -> int:
        """That of waiting jobs of its class, or of any job of its class: where some run, more will come."""
        known = self.state.job_class(running.job_class) if running.managed and running.job_class else None
        if known is None:
            return -1
        if running.job_class in usual:
            return usual[running.job_class]
        speed = known.speed
        mem_mb = max(speed.mem_mb[0], running.amounts.mem_mb)
        like_it = PendingJob(
            job_id=running.job_id,
            submit_time_s=running.submit_time_s,
            partitions=(running.partition or "?",),
            requested=running.amounts,
            minimum=Resources(speed.cpus[0], speed.gpus[0], mem_mb),
            maximum=Resources(speed.cpus[-1], speed.gpus[-1], mem_mb),
            job_class=running.job_class,
        )
        place = self._place_of(like_it)
        usual[running.job_class] = -1 if place is None else place[0]
        return usual[running.job_class]

    # Refusals.

    def _bar(self, job: int, column: int, amounts: Resources, why: str) -> None:
        """Where even its least is refused, or there are other nodes, the job loses the node; else what is as much."""
        frame, node = self.frame, self.state.nodes[column]
        kind = self.kinds[frame.kind[ENV, job]]
        least = choices.resources(kind.given.min(axis=0))
        even_least = self._board.delays(self.jobs[job], node, least) is not None
        refused = least if even_least else amounts
        waiting = frame.waiting[ENV, : frame.waiting_count[ENV]]
        # Whoever holds as much for as long, and is not served earlier by Slurm, delays as much.
        no_better = (self._least[frame.kind[ENV, waiting]] >= row_of(refused)).all(axis=1)
        no_better &= (self._limits[waiting] >= self._limits[job]) & (self._priorities[waiting] <= self._priorities[job])
        if not even_least:
            as_much = (kind.given >= row_of(amounts)).all(axis=1)
            elsewhere = frame.seen[ENV, job] @ self._member & kind.usable
            elsewhere[column] = False
            if elsewhere.any() or as_much.all():
                no_better |= waiting == job
            else:
                less = replace(
                    kind, given=kind.given[~as_much], taken=kind.taken[~as_much], seconds=kind.seconds[~as_much]
                )
                self._split(np.array([job]), less)
                self._refused[job] = why
        barred = waiting[no_better]
        for number in np.unique(frame.kind[ENV, barred]).tolist():
            usable = self.kinds[number].usable.copy()
            usable[column] = False
            self._split(barred[frame.kind[ENV, barred] == number], replace(self.kinds[number], usable=usable))
        self._refused.update(dict.fromkeys(barred.tolist(), why))

    def _split(self, jobs: np.ndarray, kind: Kind) -> None:
        """Makes these jobs, all of one kind, of another kind: that one itself where no others are left of it.

        Where there is no room for more kinds, all of the old one share the fate of these jobs.
        """
        frame = self.frame
        number = int(frame.kind[ENV, jobs[0]])
        of_kind = (frame.kind[ENV, frame.waiting[ENV, : frame.waiting_count[ENV]]] == number).sum()
        if of_kind > len(jobs) and len(self.kinds) < frame.menu.shape[1]:
            number = len(self.kinds)
            self.kinds.append(kind)
            frame.kinds[ENV] = len(self.kinds)
            frame.kind[ENV, jobs] = number
        else:
            self.kinds[number] = kind
        self._write_kind(number)

    def _write_kind(self, number: int) -> None:
        frame, kind = self.frame, self.kinds[number]
        count = len(kind.seconds)
        frame.choices[ENV, number] = count
        frame.menu[ENV, number, :count] = kind.taken
        frame.seconds[ENV, number] = np.inf
        frame.seconds[ENV, number, :count] = kind.seconds
        frame.log_std[ENV, number] = kind.log_std
        frame.usable[ENV, number] = kind.usable
        self._least[number] = kind.given.min(axis=0)


@dataclass(frozen=True, eq=False)
class _Menu:
    given: np.ndarray
    taken: np.ndarray
    seconds: np.ndarray


@lru_cache(maxsize=16384)
def _menu(table: choices.Choices, step: int) -> _Menu:
    """The choices as they are taken from nodes that hand out so many CPUs together: of what takes as much the fastest.

    Where nodes of several steps are in a job's reach, it counts as taking whole cores of the coarsest from all.
    """
    taken = table.grid.copy()
    taken[:, 0] = -(-taken[:, 0] // step) * step
    order = np.lexsort((table.seconds, taken[:, 2], taken[:, 0], taken[:, 1]))
    given, taken, seconds = table.grid[order], taken[order], table.seconds[order]
    gain = choices.GAIN
    kept = choices.worth_having(taken, seconds, gain)
    while len(kept) > MOST_CHOICES and gain < 1.0:
        gain *= 1.5
        kept = choices.worth_having(taken, seconds, gain)
    return _Menu(given[kept], taken[kept], seconds[kept])


def row_of(amounts: Resources) -> tuple[int, int, int]:
    """Amounts as a frame has them."""
    return amounts.cpus, amounts.gpus, amounts.mem_mb
