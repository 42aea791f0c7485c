"""Reads the nodes and partitions that scontrol prints. Pure: text in, values out.

Only administrators write what stands there, so it is read as ``Key=Value``, unlike jobs.
"""

import re
from collections.abc import Iterable

from slurm_plugin.parse import given, host_list
from tapfinger_hpc import units
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import Node, Partition, Resources


def nodes(text: str) -> list[Node]:
    """The nodes of ``scontrol --oneliner --detail show node``."""
    return [_node(fields) for fields in _lines_of_fields(text, "NodeName")]


def partitions(text: str, known: Iterable[str]) -> list[Partition]:
    """The partitions of ``scontrol --oneliner show partition``, with those of their nodes that are known."""
    names = set(known)
    return [
        Partition(
            name=fields["PartitionName"],
            nodes=tuple(name for name in host_list(given(fields.get("Nodes", ""))) if name in names),
            up=fields.get("State", "UP") == "UP",
            max_time_s=units.duration_s(fields.get("MaxTime", "UNLIMITED")),
        )
        for fields in _lines_of_fields(text, "PartitionName")
    ]


def partitions_of_nodes(text: str) -> list[Partition]:
    """The partitions that the nodes of ``scontrol show node`` say they are in."""
    members: dict[str, list[str]] = {}
    for fields in _lines_of_fields(text, "NodeName"):
        for partition in filter(None, given(fields.get("Partitions", "")).split(",")):
            members.setdefault(partition, []).append(fields["NodeName"])
    return [Partition(name, tuple(nodes)) for name, nodes in members.items()]


_FIELD = re.compile(r"(?:^|\s)([A-Za-z][\w:/]*)=")


def _lines_of_fields(text: str, first: str) -> list[dict[str, str]]:
    """One dictionary for each line that begins with this key. A value reaches to the next ``Key=``."""
    records = []
    for line in text.splitlines():
        found = list(_FIELD.finditer(line))
        if not found or found[0][1] != first:
            continue
        ends = [match.start() for match in found[1:]] + [len(line)]
        fields: dict[str, str] = {}
        for match, end in zip(found, ends, strict=True):
            # The first counts: a Reason or Comment comes later and may contain anything.
            fields.setdefault(match[1], line[match.end() : end].strip())
        records.append(fields)
    return records


_CLOSED = (
    "DOWN", "DRAIN", "ERROR", "FAIL", "FUTURE", "INVAL", "MAINT", "NOT_RESPOND", "NO_RESPOND", "PERFCTRS",
    "POWERING_DOWN", "POWER_DOWN", "REBOOT", "RESERVED", "UNKNOWN",
)  # fmt: skip
"""How words of a node's state begin with which nothing new starts there. A powered-down node is woken for a job."""


def _node(fields: dict[str, str]) -> Node:
    name = fields.get("NodeName", "")
    try:
        gpus, gpu_type = units.gpus(given(fields.get("Gres", "")))
        used_gpus, _ = units.gpus(given(fields.get("GresUsed", "")))
        # CPUEfctv leaves out the cores kept for the system; it came with 22.05.
        cpus = int(fields.get("CPUEfctv") or fields["CPUTot"])
        mem_mb = max(0, int(fields["RealMemory"]) - int(fields.get("MemSpecLimit", "0")))
        capacity = Resources(cpus, gpus, mem_mb)
        used = Resources(int(fields["CPUAlloc"]), used_gpus, int(fields["AllocMem"]))
        step = int(fields.get("ThreadsPerCore", "1"))
    except (KeyError, ValueError) as error:
        raise SlurmError(f"scontrol show node: {name or 'a node'}: cannot read {error}") from error
    return Node(
        name=name,
        capacity=capacity,
        free=capacity - used,
        available=_open(fields.get("State", "UNKNOWN")),
        gpu_type=gpu_type,
        cpu_step=step,
    )


def _open(state: str) -> bool:
    """``MIXED+PLANNED`` is open, ``IDLE+DRAIN`` and ``DOWN*`` (it does not answer) are not."""
    words = state.split("+")
    if any(word.endswith(("*", "$", "@", "%")) for word in words):
        return False
    return not any(word.upper().startswith(_CLOSED) for word in words)
