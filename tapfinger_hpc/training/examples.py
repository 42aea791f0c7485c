"""A teacher's decisions as labels for every part of the network's action, and batches of them.

A decision is a list of placements; the network makes it in rounds, every agent one task at a time. So the label of an
agent in a round is the first of the teacher's placements in its partition that is still to be made, or "wait".
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from tapfinger_hpc import graph
from tapfinger_hpc.decision import Decision
from tapfinger_hpc.graph import Graph
from tapfinger_hpc.nets.tensors import GraphTensors, OptionTensors, graph_tensors, option_tensors, side_by_side
from tapfinger_hpc.room import AMOUNT_HEADS, Options, Pick, Room
from tapfinger_hpc.state import ClusterState, Resources

HEADS = ("task", "node", *AMOUNT_HEADS)
WAIT = -1


@dataclass(frozen=True)
class Labelled:
    """Rows of one head with the option that the teacher took."""

    options: OptionTensors
    labels: Tensor  # int64 [row] position of the option; WAIT for "wait"


@dataclass(frozen=True)
class Example:
    """One state, and all that its teacher chose there."""

    state: ClusterState
    graph: GraphTensors
    heads: dict[str, Labelled]


@dataclass(frozen=True)
class Batch:
    """Several examples side by side."""

    graph: GraphTensors
    heads: dict[str, Labelled]


def label(state: ClusterState, decisions: Sequence[Decision]) -> Example | None:
    """The example of a state and the teacher's decisions on it; None where there is nothing to choose."""
    built = graph.build(state)
    if not built.jobs:
        return None
    room = Room(built)
    to_make = _picks(built, decisions)
    rows: dict[str, list[tuple[OptionTensors, list[int]]]] = {head: [] for head in HEADS}
    while (options := room.tasks()) is not None:
        taken, labels = _tasks(options, to_make)
        rows["task"].append((option_tensors(built, options), labels))
        if not taken:
            break
        for head, offered, chosen in _parts(room, taken):
            rows[head].append((option_tensors(built, offered), chosen))
        to_make = [entry for entry in to_make if entry not in taken]
        room.next_round()
    if not rows["task"]:
        return None
    return Example(state, graph_tensors(built), {head: _joined_rounds(made) for head, made in rows.items() if made})


def collate(examples: Sequence[Example]) -> Batch:
    """One batch; every row keeps to its own graph."""
    starts = {
        kind: np.cumsum([0, *(len(example.graph.features[kind]) for example in examples)])
        for kind in ("partition", "pending", "node")
    }
    heads: dict[str, Labelled] = {}
    for head in HEADS:
        parts = [
            _shifted(example.heads[head], *(int(starts[kind][index]) for kind in ("partition", "pending", "node")))
            for index, example in enumerate(examples)
            if head in example.heads
        ]
        if parts:
            heads[head] = _joined(parts)
    return Batch(side_by_side([example.graph for example in examples]), heads)


@dataclass(frozen=True)
class _ToMake:
    """A placement of the teacher in positions of the graph."""

    partition: int
    job: int
    node: int
    amounts: Resources


def _picks(built: Graph, decisions: Sequence[Decision]) -> list[_ToMake]:
    jobs = {job.key: index for index, job in enumerate(built.jobs)}
    partitions = {partition.name: index for index, partition in enumerate(built.state.partitions)}
    nodes = {node.name: index for index, node in enumerate(built.state.nodes)}
    return [
        _ToMake(partitions[place.partition], jobs[decision.key], nodes[place.node], place.amounts)
        for decision in decisions
        if (place := decision.placement) is not None and decision.key in jobs
    ]


def _tasks(options: Options, to_make: Sequence[_ToMake]) -> tuple[list[_ToMake], list[int]]:
    """The placements that are due in this round, one for each agent at most, and the label of each row."""
    offered = {
        (int(options.partitions[agent]), int(job)): position
        for position, (agent, job) in enumerate(zip(options.row_of, options.values, strict=True))
    }
    taken: dict[int, _ToMake] = {}
    for entry in to_make:
        if entry.partition not in taken and (entry.partition, entry.job) in offered:
            taken[entry.partition] = entry
    labels = [
        offered[partition, taken[partition].job] if partition in taken else WAIT
        for partition in options.partitions.tolist()
    ]
    return list(taken.values()), labels


def _parts(room: Room, taken: Sequence[_ToMake]) -> list[tuple[str, Options, list[int]]]:
    """Options and labels of node and amounts of the placements of one round; then they are placed."""
    made = []
    picks = [Pick(entry.partition, entry.job) for entry in taken]
    offered = room.nodes_for(picks)
    labels = _nearest(offered, [entry.node for entry in taken])
    made.append(("node", offered, labels))
    picks = [
        Pick(pick.partition, pick.job, int(offered.values[chosen])) for pick, chosen in zip(picks, labels, strict=True)
    ]
    for head in AMOUNT_HEADS:
        offered = room.amounts_for(head, picks)
        labels = _nearest(offered, [_amount(entry.amounts, head) for entry in taken])
        made.append((head, offered, labels))
        picks = [
            pick.with_amount(head, int(offered.values[chosen])) for pick, chosen in zip(picks, labels, strict=True)
        ]
    for pick in picks:
        if room.fits(pick):
            room.place(pick)
    return made


def _amount(amounts: Resources, head: str) -> int:
    return {"gpus": amounts.gpus, "cpus": amounts.cpus, "mem": amounts.mem_mb}[head]


def _nearest(options: Options, wanted: Sequence[int]) -> list[int]:
    """Position of the option of each row that is nearest to what is wanted: the same, but for thinned-out ranges."""
    starts = np.searchsorted(options.row_of, np.arange(len(wanted) + 1))
    return [
        int(start + np.argmin(np.abs(options.values[start:end] - want)))
        for want, start, end in zip(wanted, starts[:-1], starts[1:], strict=True)
    ]


def _joined_rounds(rounds: Sequence[tuple[OptionTensors, list[int]]]) -> Labelled:
    return _joined([Labelled(options, torch.tensor(labels, dtype=torch.int64)) for options, labels in rounds])


def _shifted(part: Labelled, partition: int, pending: int, node: int) -> Labelled:
    """The same rows where the graph nodes begin at these positions."""
    options = part.options
    pointed = {"task": pending, "node": node}.get(options.head, 0)
    return Labelled(
        OptionTensors(
            head=options.head,
            partitions=options.partitions + partition,
            jobs=options.jobs + pending,
            nodes=options.nodes + node,
            agents=options.agents,
            row_of=options.row_of,
            pointed=options.pointed + pointed,
            features=options.features,
        ),
        part.labels,
    )


def _joined(parts: Sequence[Labelled]) -> Labelled:
    """Rows after rows, options after options."""
    rows = np.cumsum([0, *(len(part.labels) for part in parts)])
    options = np.cumsum([0, *(len(part.options.row_of) for part in parts)])
    joined = {
        field.name: torch.cat([getattr(part.options, field.name) for part in parts])
        for field in fields(OptionTensors)
        if field.name not in ("head", "row_of")
    }
    row_of = torch.cat([part.options.row_of + int(start) for part, start in zip(parts, rows[:-1], strict=True)])
    labels = torch.cat(
        [
            torch.where(part.labels == WAIT, WAIT, part.labels + int(start))
            for part, start in zip(parts, options[:-1], strict=True)
        ]
    )
    return Labelled(OptionTensors(head=parts[0].options.head, row_of=row_of, **joined), labels)
