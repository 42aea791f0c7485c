"""``tapfinger bench decision``: how long the learned policy takes for one decision, in this process, on one thread.

Simulated: everything between a slot's state and the last placement in it, as ``tapfinger evaluate`` plays. Live: from
a ClusterState to its Decisions, as the server answers; HTTP and JSON are in ``tapfinger bench live``.
"""

import os
import platform
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import numpy as np
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from tapfinger_hpc import checkpoint, fit
from tapfinger_hpc.checkpoint import CheckpointInfo
from tapfinger_hpc.decision import guard_all
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.nets.compiled import CompiledNetwork
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.policies.decoding import Decoder, Simulated, most_probable
from tapfinger_hpc.policies.fifo import FifoPolicy
from tapfinger_hpc.policies.learned import LearnedPolicy
from tapfinger_hpc.sim import core, scenarios
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.core import Truth
from tapfinger_hpc.sim.episodes import place_all
from tapfinger_hpc.state import ClusterState
from tapfinger_hpc.stats import percentile
from tapfinger_hpc.workload import WorkloadKnobs, random_trace

LOAD = 1.3
"""More than there is room for: all windows are full, and something ends in nearly every slot."""
ENDED = 0.15
"""Share of what runs on the full cluster that has just ended when a live state is decided on."""


class Pace(msgspec.Struct, frozen=True):
    """Decisions on states of one sort."""

    states: str
    count: int
    pending: float
    """Tasks that wait, mean."""
    placed: float
    """Placements in a decision, mean."""
    median_ms: float
    p95_ms: float
    best_ms: float
    median_cpu_ms: float
    """CPU time: what it takes on a core that has nothing else to do."""


class DecisionFigures(msgspec.Struct, frozen=True):
    """What `tapfinger bench decision --json` writes."""

    machine: str
    load_average: float
    """Of the machine when the measurement began: what else it had to do."""
    weights: str
    paces: list[Pace]


@click.command()
@click.option(
    "--checkpoint",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Weights; if not given, those that ship with the package.",
)
@click.option("--states", default=100, show_default=True, type=click.IntRange(min=2), help="Of each sort.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def decision(folder: Path | None, states: int, json_file: Path | None) -> None:
    """Measure one decision: all rounds, features, network and advice, on one thread."""
    network, info = checkpoint.load(folder or checkpoint.DEFAULT)
    load = os.getloadavg()[0]
    paces = [simulated(network, info, states)]
    paces += [live(LearnedPolicy(network, info=info), *sizes, states) for sizes in ((3, 2, 50), (24, 4, 240))]
    figures = DecisionFigures(
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        load_average=load,
        weights=info.fingerprint,
        paces=paces,
    )
    _show(figures)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


def simulated(network: CompiledNetwork, info: CheckpointInfo, count: int) -> Pace:
    """Slots of hetero-6 at too high a load, in which each of the 6 agents has 10 tasks to choose from."""
    prices = np.array(info.advice) if info.advice else None
    samples, pending, placed = [], [], []
    for frame, truth in _crowded(count + 1):
        decoder = Decoder(network, frame, prices)
        waiting = int(frame.waiting_count[0])
        clock = _Clock()
        made = decoder.decide(Simulated(frame, truth), np.array([0]), most_probable)
        samples.append(clock.passed())
        pending.append(waiting)
        placed.append(int(made.placed[0]))
    return _pace("hetero-6, 6 agents x 10 tasks", samples, pending, placed)


def live(policy: LearnedPolicy, partitions: int, nodes_each: int, pending: int, count: int) -> Pace:
    """States of a cluster that was full, of whose jobs some have just ended. The server has met the jobs before, as
    agents ask about the same queue every few seconds.
    """
    samples, placed = [], []
    for number in range(count + 1):
        state = _busy(partitions, nodes_each, pending, number)
        policy.decide(state)
        clock = _Clock()
        decisions = policy.decide(state)
        samples.append(clock.passed())
        placed.append(sum(each.placement is not None for each in decisions))
    name = f"live, {partitions} x {nodes_each} nodes, {pending} jobs"
    return _pace(name, samples, [pending] * len(samples), placed)


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def passed(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def _pace(name: str, samples: list[tuple[float, float]], pending: list[int], placed: list[int]) -> Pace:
    """Without the first one, which loads what all others need."""
    ms = sorted(1000 * wall for wall, _ in samples[1:])
    return Pace(
        states=name,
        count=len(ms),
        pending=statistics.fmean(pending[1:]),
        placed=statistics.fmean(placed[1:]),
        median_ms=round(statistics.median(ms), 3),
        p95_ms=round(percentile(ms, 95), 3),
        best_ms=round(ms[0], 3),
        median_cpu_ms=round(1000 * statistics.median(cpu for _, cpu in samples[1:]), 3),
    )


def _crowded(count: int) -> Iterator[tuple[Frame, Truth]]:
    """So many copies of environments in which every window is full and something can be placed."""
    seed = 0
    while True:
        frame, truth = core.environments([scenarios.workload("hetero-6", seed, load=LOAD)])
        plan = np.zeros((frame.waiting.shape[1], 6), np.int64)
        while not core.over(truth, 0):
            made = price.decide(frame, 0, price.DEFAULT, plan)
            if made and (truth.windowed[0] == truth.places[0]).all():
                yield Frame(*(array.copy() for array in frame)), Truth(*(array.copy() for array in truth))
                count -= 1
                if not count:
                    return
            place_all(frame, truth, 0, plan, made)
            core.advance(frame, truth, 0)
        seed += 1


def _busy(partitions: int, nodes_each: int, pending: int, seed: int) -> ClusterState:
    spec, draw = ClusterSpec.uniform(partitions, nodes_each), random.Random(seed)
    jobs = 8 * partitions * nodes_each + pending
    trace = random_trace(seed, spec, WorkloadKnobs(jobs=jobs, classes=6, several_partitions=0.5))
    now_s = max(item.job.submit_time_s for item in trace.jobs) + 60.0
    waiting = [replace(item.job, managed=True) for item in trace.jobs]
    before = ClusterState(now_s, spec.nodes, spec.partitions, tuple(waiting[:-pending]), (), trace.classes)
    _, _, full = guard_all(FifoPolicy().decide(before), before)
    kept, nodes = [], {node.name: node for node in full.nodes}
    for running in full.running:
        if draw.random() >= ENDED:
            kept.append(replace(running, start_time_s=int(now_s) - draw.randrange(600)))
            continue
        for share in running.shares:
            node = nodes[share.node]
            nodes[share.node] = replace(node, free=node.free + fit.granted(node, share.amounts))
    return ClusterState(
        now_s, tuple(nodes.values()), spec.partitions, tuple(waiting[-pending:]), tuple(kept), trace.classes
    )


def _show(figures: DecisionFigures) -> None:
    table = Table(title=f"one decision, weights {figures.weights}")
    for column in ("states", "pending", "placed", "median", "95 %", "best", "CPU", "of"):
        table.add_column(column, justify="left" if column == "states" else "right", no_wrap=True)
    for pace in figures.paces:
        numbers = (pace.pending, pace.placed)
        times = (pace.median_ms, pace.p95_ms, pace.best_ms, pace.median_cpu_ms)
        table.add_row(
            pace.states, *(f"{each:.1f}" for each in numbers), *(f"{each:.2f} ms" for each in times), str(pace.count)
        )
    console = Console()
    console.print(table)
    console.print(f"{figures.machine}; load average {figures.load_average:.1f} when it began")
