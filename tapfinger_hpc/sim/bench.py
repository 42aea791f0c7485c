"""``tapfinger bench simulator``: how many steps the compiled environments make in a second.

A step is a sub-step of one environment with every agent acting, as PettingZoo counts them. Actions are produced inside
the compiled loop, and the time for that is counted.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numba
import numpy as np
from rich.console import Console
from rich.table import Table

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim import core, observation, scenarios
from tapfinger_hpc.sim.core import Truth, lean, threaded
from tapfinger_hpc.sim.observation import Observation

LEAST, RANDOM = 0, 1
ACTIONS = {
    LEAST: "least: first task of the window that fits, on its least amounts; wait where none does",
    RANDOM: "random: one of the tasks that fit or wait, all alike; amounts alike from the least to the most that fits",
}
WARM_UP = 300
"""Sub-steps of each environment before the first measurement: then windows and queues are as full as they get."""


class Pace(msgspec.Struct, frozen=True):
    """Steps a second of one sort."""

    actions: str
    observing: bool
    """Whether all that agents see (``sim.observation``) was written after every step."""
    threads: int
    environments: int
    steps: int
    """In each repetition, over all environments."""
    repetitions: int
    median: float
    best: float
    worst: float
    median_of_cpu: float
    """Steps in a second of CPU time (of all threads): what a core makes that has nothing else to do."""
    running: float
    """Tasks that ran in an environment, on average over the environments after each repetition."""
    waiting: float


class SimulatorFigures(msgspec.Struct, frozen=True):
    """What `tapfinger bench simulator --json` writes."""

    machine: str
    load_average: float
    """Of the machine when the measurement began: what else it had to do."""
    scenario: str
    paces: list[Pace]


@click.command()
@click.option("--scenario", default="hetero-6", show_default=True, help="Name of the scenario.")
@click.option(
    "--table", type=click.Path(path_type=Path, dir_okay=False), help="Test-bed measurements, where it replays them."
)
@click.option("--envs", default=128, show_default=True, type=click.IntRange(min=1), help="Environments side by side.")
@click.option("--steps", default=4000, show_default=True, type=click.IntRange(min=1), help="Of each, in a repetition.")
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(min=1), help="The most; 1 is measured too."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def simulator(
    scenario: str, table: Path | None, envs: int, steps: int, repeats: int, threads: int, json_file: Path | None
) -> None:
    """Measure steps a second of the compiled environments (a step: a sub-step of one, with every agent acting)."""
    if threads > numba.config.NUMBA_NUM_THREADS:  # type: ignore[attr-defined]
        raise ScenarioError(f"--threads {threads}: numba has fewer here; give fewer, or set NUMBA_NUM_THREADS")
    workloads = [scenarios.workload(scenario, seed, table=table) for seed in range(envs)]
    if workloads[0].scenario.slot == 0:
        raise ScenarioError(f"--scenario {scenario}: a step is a sub-step of a slot, and it has none; take another")
    load = os.getloadavg()[0]
    sorts = [(LEAST, False, 1), (RANDOM, False, 1), (LEAST, True, 1), (RANDOM, True, 1)]
    if threads > 1:
        sorts += [(LEAST, False, threads), (RANDOM, False, threads)]
    paces = [measure(workloads, sort, observing, count, steps, repeats) for sort, observing, count in sorts]
    figures = SimulatorFigures(
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"numba {numba.__version__}",
        load_average=load,
        scenario=scenario,
        paces=paces,
    )
    _show(figures)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


def measure(
    workloads: list[scenarios.Workload], sort: int, observing: bool, threads: int, steps: int, repeats: int
) -> Pace:
    """Plays these workloads over and over with actions of this sort."""
    frame, truth = core.environments(workloads)
    count = len(workloads)
    rows = max(observation.most_running(workload.scenario) for workload in workloads)
    sizes = core.Sizes(*(max(needed) for needed in zip(*map(core.Sizes.of, workloads), strict=True)))
    seen = observation.empty(count, sizes, rows)
    actions = np.zeros((count, sizes.agents, 4), np.int64)
    rewards = np.zeros((count, sizes.agents))
    placed, ended = np.zeros(count, np.int64), np.zeros(count, np.bool_)
    play: Callable[..., Any] = _play if threads == 1 else _play_threaded
    numba.set_num_threads(threads)
    play(frame, truth, sort, observing, seen, actions, rewards, placed, ended, WARM_UP)
    paces, of_cpu, running, waiting = [], [], [], []
    for _ in range(repeats):
        started, started_cpu = time.perf_counter(), time.process_time()
        play(frame, truth, sort, observing, seen, actions, rewards, placed, ended, steps)
        paces.append(count * steps / (time.perf_counter() - started))
        of_cpu.append(count * steps / (time.process_time() - started_cpu))
        running.append(frame.running_count.mean())
        waiting.append(frame.waiting_count.mean())
    return Pace(
        actions=ACTIONS[sort],
        observing=observing,
        threads=threads,
        environments=count,
        steps=count * steps,
        repetitions=repeats,
        median=statistics.median(paces),
        best=max(paces),
        worst=min(paces),
        median_of_cpu=statistics.median(of_cpu),
        running=float(np.mean(running)),
        waiting=float(np.mean(waiting)),
    )


@lean
def _play(
    frame: Frame,
    truth: Truth,
    sort: int,
    observing: bool,
    seen: Observation,
    actions: np.ndarray,
    rewards: np.ndarray,
    placed: np.ndarray,
    ended: np.ndarray,
    steps: int,
) -> None:
    """In step: all environments make their first one, then all their second."""
    for _ in range(steps):
        for env in range(len(placed)):
            act(frame, truth, env, sort, actions)
        core.step_all(frame, truth, actions, True, rewards, placed, ended)
        if observing:
            observation.observe_all(frame, truth, seen)


@threaded
def _play_threaded(
    frame: Frame,
    truth: Truth,
    sort: int,
    observing: bool,
    seen: Observation,
    actions: np.ndarray,
    rewards: np.ndarray,
    placed: np.ndarray,
    ended: np.ndarray,
    steps: int,
) -> None:
    """The same on several threads, which wait for each other after every step."""
    for _ in range(steps):
        for env in numba.prange(len(placed)):
            act(frame, truth, env, sort, actions)
            core.step_one(frame, truth, env, actions, True, rewards, placed, ended)
            if observing:
                observation.observe(frame, truth, env, seen)


@lean
def act(frame: Frame, truth: Truth, env: int, sort: int, actions: np.ndarray) -> None:
    """Writes what the agents of an environment do; all of it can be done, but of one task by one agent alone."""
    for agent in range(frame.partitions[env]):
        if sort == LEAST:
            _least(frame, truth, env, agent, actions)
        else:
            _at_random(frame, truth, env, agent, actions)


@lean
def _least(frame: Frame, truth: Truth, env: int, agent: int, actions: np.ndarray) -> None:
    actions[env, agent, 0] = core.WAIT
    for place in range(truth.places[env]):
        job = truth.window[env, agent, place]
        if job >= 0 and observation.something_fits(frame, env, agent, frame.kind[env, job]):
            actions[env, agent, 0] = place
            for resource in range(2):
                actions[env, agent, 1 + resource] = truth.minimum[env, frame.kind[env, job], resource]
            return


@lean
def _at_random(frame: Frame, truth: Truth, env: int, agent: int, actions: np.ndarray) -> None:
    choices = 1
    for place in range(truth.places[env]):
        job = truth.window[env, agent, place]
        choices += job >= 0 and observation.something_fits(frame, env, agent, frame.kind[env, job])
    chosen = int(core.uniform(truth, env) * choices)
    actions[env, agent, 0] = core.WAIT
    if chosen == 0:
        return
    for place in range(truth.places[env]):
        job = truth.window[env, agent, place]
        chosen -= job >= 0 and observation.something_fits(frame, env, agent, frame.kind[env, job])
        if chosen == 0:
            actions[env, agent, 0] = place
            kind = frame.kind[env, job]
            for resource in range(2):
                least = truth.minimum[env, kind, resource]
                most = min(frame.free[env, agent, resource], truth.rate.shape[2 + resource] - 1)
                amount = least + int(core.uniform(truth, env) * (most - least + 1))
                actions[env, agent, 1 + resource] = amount
            return


def _show(figures: SimulatorFigures) -> None:
    table = Table(title=f"{figures.scenario}: steps a second")
    for column in ("actions", "observing", "threads", "median", "best", "a CPU second", "running", "waiting"):
        table.add_column(column, justify="left" if column == "actions" else "right")
    for pace in figures.paces:
        table.add_row(
            pace.actions.partition(":")[0],
            "yes" if pace.observing else "no",
            str(pace.threads),
            f"{pace.median:,.0f}",
            f"{pace.best:,.0f}",
            f"{pace.median_of_cpu:,.0f}",
            f"{pace.running:.0f}",
            f"{pace.waiting:.0f}",
        )
    console = Console()
    console.print(table)
    for words in ACTIONS.values():
        console.print(words)
    console.print(f"{figures.machine}; load average {figures.load_average:.1f} when it began")
