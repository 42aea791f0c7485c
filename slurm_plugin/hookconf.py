"""Writes the site file of the submit hook (``tapfinger_conf.lua``): the facts of a site that the hook may not ask for.

The hook runs inside slurmctld and reads no TOML and no cluster, so whoever installs it writes them down as a Lua table.
Pure: values in, text out. Whatever the strings hold, the text is one valid Lua chunk for Lua 5.1 to 5.4.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tapfinger_hpc.config import PartitionConfig

Amount = Annotated[int, Meta(ge=0)]
GresSeparator = Literal["", ":", "/"]
"""Between ``gres`` and ``gpu`` in the job's fields: ":" up to 23.x, "/" from 24.x, "" lets the hook find out."""


class HookPartition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the hook knows of one partition."""

    name: str
    cpus: Amount
    gpus: Amount
    mem_mb: Amount
    """Amounts of the partition's largest node: a request beyond them is never held back."""
    managed: PartitionConfig | None = None
    """The ranges of its jobs where all of them are managed; None where only those with a mark in their comment are."""


def render(
    partitions: Sequence[HookPartition],
    *,
    hook_file: str,
    wake_socket: str,
    agent_uid: int,
    gres_separator: GresSeparator,
) -> str:
    """The site file's text.

    Args:
        partitions: those whose largest node is known.
        hook_file: the agent's sign of life (``agent.hook_file``), best on tmpfs.
        wake_socket: unix datagram socket of the agent; "" sends nothing.
        agent_uid: who runs the agent; 0 where that is root.
        gres_separator: how this Slurm spells GRES in a job's fields.
    """
    return "".join(
        (
            "-- What TapFinger's submit hook knows of this site. Written by a program from its TOML configuration.\n",
            "return {\n",
            f"  hook_file = {_quoted(hook_file)},\n",
            f"  wake_socket = {_quoted(wake_socket)},\n",
            f"  agent_uid = {agent_uid:d},\n",
            f"  gres_separator = {_quoted(gres_separator)},\n",
            "  partitions = {\n",
            *_partition_lines(partitions),
            "  },\n",
            "}\n",
        )
    )


def _partition_lines(partitions: Sequence[HookPartition]) -> Iterable[str]:
    for partition in sorted(partitions, key=lambda partition: partition.name):
        ranges = partition.managed or PartitionConfig()
        yield (
            f"    [{_quoted(partition.name)}] = {{ cpus = {partition.cpus:d}, gpus = {partition.gpus:d}, "
            f"mem_mb = {partition.mem_mb:d}, managed = {'false' if partition.managed is None else 'true'}, "
            f"gpus_range = {_quoted(ranges.gpus)}, cpus_range = {_quoted(ranges.cpus)}, "
            f"mem_range = {_quoted(ranges.mem)} }},\n"
        )


def _quoted(text: str) -> str:
    """A Lua string of these characters. Decimal escapes, because Lua 5.1 knows no others."""
    return '"' + "".join(map(_escaped, text.encode("utf-8", "surrogateescape"))) + '"'


def _escaped(byte: int) -> str:
    character = chr(byte)
    if 32 <= byte < 127 and character not in '"\\':
        return character
    return f"\\{byte:03d}"
