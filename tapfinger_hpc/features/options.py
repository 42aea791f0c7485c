"""What may be chosen next while one decision is made, and what each option looks like; an option always fits.

Two heads choose. "task": for every agent, the tasks that it sees and has room for (or to wait). "place": for a task
that an agent has taken, the agent's nodes with the amounts of the task's menu that are free there. Options of many
environments go side by side; rows of them are one choice each. Compiled.
"""

from typing import NamedTuple

import numpy as np

from tapfinger_hpc.features import measures
from tapfinger_hpc.features.graph import RESOURCES, _unit, log_amount
from tapfinger_hpc.features.measures import LEVELS, PRICE_LEVELS, Measures, bounded, ratio
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import compiled, lean, open_to

_NAMES = tuple(f"price_{level:g}" for level in PRICE_LEVELS)
AGENT_COLUMNS: tuple[str, ...] = (
    *(f"{name}_free_share" for name in RESOURCES),
    *(f"{name}_free_on_best_node_log" for name in RESOURCES),
    *(f"{name}_scarcity" for name in RESOURCES),
    "fitting_log",
    "seen_log",
    "queue_per_node_log",
    "waiting_log",
    "round",
    "tasks_advised_log",
    "advised_to_wait",
)
"""What an agent knows beyond its embedding: numbers that change from round to round."""
TASK_COLUMNS: tuple[str, ...] = (
    *(f"{name}_now_over_ideal" for name in _NAMES),
    *(f"{name}_best_elsewhere_over_here" for name in _NAMES),
    *(f"{name}_ideal_here_over_ideal" for name in _NAMES),
    *(f"{name}_now_over_least_here" for name in _NAMES),
    *(f"{name}_later_here_over_now" for name in _NAMES),
    *(f"{name}_later_over_now" for name in _NAMES),
    "seconds_ideal_log",
    "cost_ideal_log",
    "age_log",
    "headroom_log",
    "reach_log",
    "fits_on_partitions_log",
    "alike_log",
    "advised",
    "advised_elsewhere",
    "advised_nowhere",
)
PLACE_COLUMNS: tuple[str, ...] = (
    *(f"{name}_over_best" for name in _NAMES),
    *(f"{name}_later_over_this" for name in _NAMES),
    "seconds_over_ideal_log",
    "seconds_log",
    "area_over_least_log",
    *(f"{name}_of_node" for name in RESOURCES),
    *(f"{name}_of_free" for name in RESOURCES),
    *(f"{name}_left_log" for name in RESOURCES),
    "alike_after_log",
    "others_after",
    "others_lost",
    "idle",
    "only",
    "advised",
)
"""What each number of each option is, by the head that chooses among them."""
OPTION_COLUMNS = {"task": TASK_COLUMNS, "place": PLACE_COLUMNS}
ADVISED_TASK = TASK_COLUMNS.index("advised")
ADVISED_PLACE = PLACE_COLUMNS.index("advised")
ADVISED_TO_WAIT = AGENT_COLUMNS.index("advised_to_wait")
MOST_OF_FREE = 2.0
"""Stands for the share of what is free that amounts are which are not."""
_AGENT, _TASK, _PLACE = len(AGENT_COLUMNS), len(TASK_COLUMNS), len(PLACE_COLUMNS)


class Options(NamedTuple):
    """Rows of options: each row is one choice to be made, by one agent, among options of its own."""

    env: np.ndarray  # int64 [row] position among the environments asked for
    partition: np.ndarray  # int64 [row] the agent that chooses
    job: np.ndarray  # int64 [row] the task it is about; -1 where that is what is chosen
    agents: np.ndarray  # float32 [row, AGENT_COLUMNS]
    row_of: np.ndarray  # int64 [option] ascending
    value: np.ndarray  # int64 [option] task; or node
    choice: np.ndarray  # int64 [option] position on the task's menu; -1 of a task
    features: np.ndarray  # float32 [option, TASK_COLUMNS or PLACE_COLUMNS]
    room: np.ndarray  # float64 [option] how many times the task's least amounts are free on the agent's best node
    idle: np.ndarray  # bool [option] nothing runs on any node that the task could use: waiting would bring it nothing


def first_of_rows(offered: Options) -> Options:
    """Of every row the first option alone: of tasks the oldest."""
    first = np.flatnonzero(np.diff(offered.row_of, prepend=-1))
    return offered._replace(
        **{name: getattr(offered, name)[first] for name in ("row_of", "value", "choice", "features", "room", "idle")}
    )


@compiled
def no_advice(frame: Frame) -> np.ndarray:
    """int64 [B, J, 5] for every waiting task the partition, node, CPUs, GPUs and MiB that a heuristic would give it
    now; -1 of one that it would leave, as here all.
    """
    return np.full((*frame.kind.shape, 5), -1, np.int64)


def tasks(
    frame: Frame,
    envs: np.ndarray,
    waits: np.ndarray,
    round_: int,
    scratch: Measures,
    advice: np.ndarray,
    *,
    masked: bool = True,
) -> Options:
    """For every agent that does not wait and has a task that fits, the tasks that it may take.

    Args:
        scratch: its measures are taken for those of the environment that they say (``measures.keep``).
        waits: bool [B, P] agents that have chosen to wait in this decision. Those without an option are added: room
            only shrinks while a decision is made.
        advice: as of ``no_advice``.
        masked: otherwise tasks are offered that the agent could take on idle nodes, also where it has no room now.
    """
    return _tasks(frame, envs, waits, round_, scratch, advice, masked)


@compiled
def _tasks(
    frame: Frame,
    envs: np.ndarray,
    waits: np.ndarray,
    round_: int,
    scratch: Measures,
    advice: np.ndarray,
    masked: bool,
) -> Options:
    most_rows, most_options = 0, 0
    for env in envs:
        most_rows += frame.partitions[env]
        most_options += frame.partitions[env] * frame.waiting_count[env]
    out = _empty(most_rows, most_options, _TASK)
    rows = options = 0
    now = np.empty(LEVELS)
    for position, env in enumerate(envs):
        asked = False
        for partition in range(frame.partitions[env]):
            asked = asked or not waits[env, partition]
        if frame.waiting_count[env] == 0 or not asked:
            continue
        measures.keep(frame, env, scratch)
        count = frame.partitions[env]
        here = np.full((count, frame.kinds[env], LEVELS), np.inf)
        later = np.full((count, frame.kinds[env], LEVELS), np.inf)
        ideal = np.full((count, frame.kinds[env], LEVELS), np.inf)
        room = np.zeros((count, frame.kinds[env]))
        alike = np.zeros(frame.kinds[env])
        for place in range(frame.waiting_count[env]):
            alike[frame.kind[env, frame.waiting[env, place]]] += 1
        for partition in range(count):
            for node in range(frame.nodes[env]):
                if not frame.member[env, partition, node]:
                    continue
                for kind in range(frame.kinds[env]):
                    for level in range(LEVELS):
                        here[partition, kind, level] = min(here[partition, kind, level], scratch.now[node, kind, level])
                        later[partition, kind, level] = min(
                            later[partition, kind, level], scratch.later[node, kind, level]
                        )
                        ideal[partition, kind, level] = min(
                            ideal[partition, kind, level], scratch.ideal[node, kind, level]
                        )
                    if scratch.now[node, kind, 0] < np.inf:
                        room[partition, kind] = max(room[partition, kind], _headroom(frame, env, kind, node))
        log_scale = np.log(scratch.scale[0])
        for partition in range(count):
            if waits[env, partition]:
                continue
            begun = options
            least = np.full(LEVELS, np.inf)
            for place in range(frame.waiting_count[env]):
                job = frame.waiting[env, place]
                kind = frame.kind[env, job]
                open_ = here if masked else ideal
                if not frame.seen[env, job, partition] or open_[partition, kind, 0] == np.inf:
                    continue
                row = out.features[options]
                out.row_of[options] = rows
                out.value[options] = job
                out.choice[options] = -1
                out.room[options] = room[partition, kind]
                out.idle[options] = _waits_for_nothing(frame, env, job, scratch)
                reach, fitting = 0, 0
                for level in range(LEVELS):
                    now[level] = here[partition, kind, level]
                    if now[level] == np.inf:
                        now[level] = ideal[partition, kind, level] + measures.FAR
                    least[level] = min(least[level], now[level])
                    best, elsewhere, after = np.inf, np.inf, np.inf
                    for other in range(count):
                        if frame.reach[env, job, other]:
                            best = min(best, ideal[other, kind, level])
                            after = min(after, later[other, kind, level])
                            if level == 0:
                                reach += 1
                                fitting += here[other, kind, 0] < np.inf
                            if other != partition:
                                elsewhere = min(elsewhere, here[other, kind, level])
                    row[level] = bounded(now[level] - best)
                    row[LEVELS + level] = bounded(elsewhere - now[level])
                    row[2 * LEVELS + level] = bounded(ideal[partition, kind, level] - best)
                    row[3 * LEVELS + level] = now[level]  # completed below, when the least of the row is known
                    row[4 * LEVELS + level] = bounded(later[partition, kind, level] - now[level])
                    row[5 * LEVELS + level] = bounded(after - now[level])
                    if level == 0:
                        row[6 * LEVELS] = bounded(best - log_scale)
                    if level == 2:
                        row[6 * LEVELS + 1] = bounded(best - log_scale)
                row[6 * LEVELS + 2] = min(4.0, np.log1p((frame.now[env] - frame.arrival[env, job]) / scratch.scale[0]))
                row[6 * LEVELS + 3] = np.log(min(400.0, max(0.05, room[partition, kind])))
                row[6 * LEVELS + 4] = np.log(max(1, reach))
                row[6 * LEVELS + 5] = np.log(max(1, fitting))
                row[6 * LEVELS + 6] = np.log(alike[kind])
                row[6 * LEVELS + 7] = advice[env, job, 0] == partition
                row[6 * LEVELS + 8] = advice[env, job, 0] >= 0 and advice[env, job, 0] != partition
                row[6 * LEVELS + 9] = advice[env, job, 0] < 0
                options += 1
            if options == begun:
                waits[env, partition] = True
                continue
            for option in range(begun, options):
                for level in range(LEVELS):
                    column = 3 * LEVELS + level
                    out.features[option, column] = bounded(out.features[option, column] - least[level])
            out.env[rows] = position
            out.partition[rows] = partition
            out.job[rows] = -1
            _agent(frame, env, partition, options - begun, round_, scratch, advice, out.agents[rows])
            rows += 1
    return _cut(out, rows, options)


def places(
    frame: Frame,
    envs: np.ndarray,
    env_of: np.ndarray,
    partitions: np.ndarray,
    jobs: np.ndarray,
    scratch: Measures,
    advice: np.ndarray,
    *,
    masked: bool = True,
) -> Options:
    """For every task taken by an agent, the nodes and amounts that it may get; ``env_of`` ascends.

    Args:
        env_of: int64 [row] position among ``envs``.
        masked: otherwise amounts are offered that an idle node has, also where they are not free now.
    """
    # numba compiles a second time for an argument that is left out.
    return _places(frame, envs, env_of, partitions, jobs, scratch, advice, masked)


@compiled
def _places(
    frame: Frame,
    envs: np.ndarray,
    env_of: np.ndarray,
    partitions: np.ndarray,
    jobs: np.ndarray,
    scratch: Measures,
    advice: np.ndarray,
    masked: bool,
) -> Options:
    most_options = 0
    for row in range(len(jobs)):
        env = envs[env_of[row]]
        most_options += frame.nodes[env] * frame.choices[env, frame.kind[env, jobs[row]]]
    out = _empty(len(jobs), most_options, _PLACE)
    options = 0
    least = np.empty(LEVELS)
    for row in range(len(jobs)):
        env, partition, job = envs[env_of[row]], partitions[row], jobs[row]
        kind = frame.kind[env, job]
        measures.keep(frame, env, scratch)
        begun = options
        least[:] = np.inf
        least_area, ideal = np.inf, np.inf
        for node in range(frame.nodes[env]):
            if not frame.member[env, partition, node] or not open_to(frame, env, kind, node):
                continue
            ideal = min(ideal, scratch.ideal[node, kind, 0])
            for choice in range(frame.choices[env, kind]):
                fits = measures.choice_fits(frame, env, kind, choice, node)
                if not fits and (masked or not measures.within(frame, env, kind, choice, node)):
                    continue
                out.row_of[options] = row
                out.value[options] = node
                out.choice[options] = choice
                out.room[options] = 0.0
                out.idle[options] = False
                features = out.features[options]
                seconds = scratch.seconds[kind, choice]
                area = 0.0
                for resource in range(3):
                    amount = frame.menu[env, kind, choice, resource]
                    free, capacity = frame.free[env, node, resource], frame.capacity[env, node, resource]
                    area += scratch.scarcity[resource] * ratio(amount, scratch.total[resource])
                    features[11 + resource] = ratio(amount, capacity)
                    features[14 + resource] = ratio(amount, free) if amount <= free else MOST_OF_FREE
                    features[17 + resource] = log_amount(max(0, free - amount) * _unit(resource))
                area = seconds + np.log(max(1e-9, area))
                for level in range(LEVELS):
                    cost = scratch.cost[node, kind, choice, level]
                    least[level] = min(least[level], cost)
                    features[level] = cost
                    features[LEVELS + level] = bounded(scratch.later[node, kind, level] - cost)
                features[8] = seconds
                features[9] = bounded(seconds - np.log(scratch.scale[0]))
                features[10] = area
                least_area = min(least_area, area)
                _afterwards(frame, env, partition, job, node, choice, scratch, features)
                features[23] = scratch.held_by[node] == 0
                features[25] = (
                    advice[env, job, 0] == partition
                    and advice[env, job, 1] == node
                    and advice[env, job, 2] == frame.menu[env, kind, choice, 0]
                    and advice[env, job, 3] == frame.menu[env, kind, choice, 1]
                    and advice[env, job, 4] == frame.menu[env, kind, choice, 2]
                )
                options += 1
        for option in range(begun, options):
            features = out.features[option]
            for level in range(LEVELS):
                features[level] = bounded(features[level] - least[level])
            features[8] = bounded(features[8] - ideal)
            features[10] = bounded(features[10] - least_area)
            features[24] = options - begun == 1
        out.env[row] = env_of[row]
        out.partition[row] = partition
        out.job[row] = job
        _agent(frame, env, partition, 1, 0, scratch, advice, out.agents[row])
    return _cut(out, len(jobs), options)


@lean
def _afterwards(
    frame: Frame, env: int, partition: int, job: int, node: int, choice: int, seen: Measures, features: np.ndarray
) -> None:
    """What the node can still do for other waiting tasks: of one's own kind, of any, and how many it no longer can."""
    own = frame.kind[env, job]
    alike, after, lost = 0.0, 0, 0
    for place in range(frame.waiting_count[env]):
        other = frame.waiting[env, place]
        if other == job or not frame.seen[env, other, partition]:
            continue
        kind = frame.kind[env, other]
        could = frame.usable[env, kind, node]
        can = could
        for resource in range(3):
            needed = frame.menu[env, kind, 0, resource]
            could = could and needed <= frame.free[env, node, resource]
            can = can and needed <= frame.free[env, node, resource] - frame.menu[env, own, choice, resource]
        after += can
        lost += could and not can
    fits = np.inf
    for resource in range(3):
        least = frame.menu[env, own, 0, resource]
        if least > 0:
            fits = min(fits, (frame.free[env, node, resource] - frame.menu[env, own, choice, resource]) / least)
    alike = 0.0 if fits == np.inf else np.log1p(max(0.0, fits))
    features[20] = alike
    features[21] = np.log1p(after)
    features[22] = np.log1p(lost)


@lean
def _agent(
    frame: Frame,
    env: int,
    partition: int,
    fitting: int,
    round_: int,
    seen: Measures,
    advice: np.ndarray,
    row: np.ndarray,
) -> None:
    nodes, queue = 0, 0.0
    for resource in range(3):
        capacity, free, best = 0.0, 0.0, 0.0
        for node in range(frame.nodes[env]):
            if frame.member[env, partition, node] and frame.available[env, node]:
                capacity += frame.capacity[env, node, resource]
                free += frame.free[env, node, resource]
                best = max(best, frame.free[env, node, resource] * _unit(resource))
        row[resource] = ratio(free, capacity)
        row[3 + resource] = log_amount(best)
        row[6 + resource] = seen.scarcity[resource]
    for node in range(frame.nodes[env]):
        if frame.member[env, partition, node]:
            nodes += 1
            queue += seen.queue[node]
    here, advised = 0, 0
    for place in range(frame.waiting_count[env]):
        job = frame.waiting[env, place]
        here += frame.seen[env, job, partition]
        advised += advice[env, job, 0] == partition
    row[9] = np.log1p(fitting)
    row[10] = np.log1p(here)
    row[11] = np.log1p(queue / max(1, nodes))
    row[12] = np.log1p(frame.waiting_count[env])
    row[13] = min(3.0, round_ / 3)
    row[14] = np.log1p(advised)
    row[15] = advised == 0


@lean
def _waits_for_nothing(frame: Frame, env: int, job: int, seen: Measures) -> bool:
    for partition in range(frame.partitions[env]):
        if not frame.reach[env, job, partition]:
            continue
        for node in range(frame.nodes[env]):
            if (
                frame.member[env, partition, node]
                and frame.usable[env, frame.kind[env, job], node]
                and seen.held_by[node] > 0
            ):
                return False
    return True


@lean
def _headroom(frame: Frame, env: int, kind: int, node: int) -> float:
    times = 1e6
    for resource in range(3):
        least = frame.menu[env, kind, 0, resource]
        if least > 0:
            times = min(times, frame.free[env, node, resource] / least)
    return times


@compiled
def _empty(rows: int, options: int, columns: int) -> Options:
    return Options(
        np.empty(rows, np.int64),
        np.empty(rows, np.int64),
        np.empty(rows, np.int64),
        np.zeros((rows, _AGENT), np.float32),
        np.empty(options, np.int64),
        np.empty(options, np.int64),
        np.empty(options, np.int64),
        np.zeros((options, columns), np.float32),
        np.empty(options, np.float64),
        np.empty(options, np.bool_),
    )


@compiled
def _cut(full: Options, rows: int, options: int) -> Options:
    return Options(
        full.env[:rows],
        full.partition[:rows],
        full.job[:rows],
        full.agents[:rows],
        full.row_of[:options],
        full.value[:options],
        full.choice[:options],
        full.features[:options],
        full.room[:options],
        full.idle[:options],
    )
