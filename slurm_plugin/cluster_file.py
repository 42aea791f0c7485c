"""A cluster to replay jobs on, from what describes it: slurm.conf, what scontrol prints, a TOML file, or Slurm itself.

Nodes count as up and empty, whatever they are at the moment: the past is replayed, not this day.
"""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from slurm_plugin import parse_nodes, slurm_conf
from slurm_plugin.commands import Runner, SlurmCommands
from slurm_plugin.parse import host_list
from tapfinger_hpc import config, units
from tapfinger_hpc.errors import ConfigError, SlurmError, TapfingerError
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.state import Node, Partition, Resources
from tapfinger_hpc.whatif.shape import Shape

LIVE = "live"
_ASKED = (("show", "node"), ("show", "partition"), ("show", "config"))
_SELECT = re.compile(r"^SelectTypeParameters\s*=\s*(\S+)", re.MULTILINE)
_RECORD = re.compile(r"^(?=(?:NodeName|PartitionName)=)", re.MULTILINE)


class TomlNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[node]]``: nodes that are all alike."""

    names: str
    """A host list: ``n[01-04],big``."""
    cpus: int
    gpus: int = 0
    mem: str = "0"
    """``256G``; left out everywhere, memory does not count."""
    gpu_type: str = ""
    threads_per_core: int = 1
    """CPUs that are handed out together."""


class TomlPartition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[partition]]``."""

    name: str
    nodes: str = "ALL"
    max_time: str = "UNLIMITED"


class TomlCluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    node: tuple[TomlNode, ...]
    partition: tuple[TomlPartition, ...]


def read(name: str) -> Shape:
    """The cluster of this file, or of the Slurm that runs here for ``live``.

    Raises:
        ConfigError: it cannot be read, or describes no cluster.
    """
    if name == LIVE:
        return of_live(SlurmCommands.from_config(config.load(None).slurm))
    path = Path(name)
    text = _text(path)
    try:
        if path.suffix == ".toml":
            shape = _of_toml(name, text)
        elif "CPUTot=" in text:
            shape = of_scontrol(name, text)
        elif re.search(r"^\s*(NodeName|PartitionName|Include)\b", text, re.MULTILINE | re.IGNORECASE):
            found = slurm_conf.read(text, lambda other: _text(path.parent / other))
            shape = Shape(name, found.spec, found.notes)
        else:
            raise SlurmError(
                "neither slurm.conf (NodeName=...), nor what `scontrol show nodes` prints, nor a .toml file"
            )
    except TapfingerError as error:
        raise ConfigError(f"cluster {name!r}: {error}") from error
    return _checked(shape)


def of_live(run: Runner) -> Shape:
    """The cluster that scontrol shows now."""
    text = "\n".join(run(["scontrol", *words]).checked().decode("utf-8", "replace") for words in _ASKED)
    return _checked(of_scontrol(LIVE, text))


def of_scontrol(source: str, text: str) -> Shape:
    """What ``scontrol show nodes`` prints, and after it perhaps ``show partitions`` and ``show config``."""
    lines = "\n".join(" ".join(record.split("\n\n")[0].split()) for record in _RECORD.split(text))
    nodes = parse_nodes.nodes(lines)
    notes = []
    closed = [node.name for node in nodes if not node.available]
    if closed:
        some = f"{', '.join(closed[:3])}{', ...' if len(closed) > 3 else ''}"
        notes.append(f"{len(closed)} nodes that are down, draining or reserved now were taken to be up ({some})")
    if (select := _SELECT.search(text)) and "MEMORY" not in select[1].upper():
        notes.append(slurm_conf.UNCOUNTED)
        nodes = [slurm_conf.without_memory(node) for node in nodes]
    partitions = parse_nodes.partitions(lines, (node.name for node in nodes))
    if not partitions:
        partitions = parse_nodes.partitions_of_nodes(lines)
        notes.append("no partitions were shown: they are those that the nodes name, without time limits")
    up = tuple(replace(node, available=True, free=node.capacity) for node in nodes)
    return Shape(source, ClusterSpec(up, tuple(replace(one, up=True) for one in partitions)), tuple(notes))


def _of_toml(name: str, text: str) -> Shape:
    try:
        read = msgspec.convert(tomllib.loads(text), TomlCluster)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{error}; expected [[node]] and [[partition]] tables as in docs/what-if.md") from error
    nodes = [node for line in read.node for node in _toml_nodes(line)]
    names = [node.name for node in nodes]
    return Shape(name, ClusterSpec(tuple(nodes), tuple(_toml_partition(line, names) for line in read.partition)), ())


def _toml_nodes(line: TomlNode) -> list[Node]:
    amounts = Resources(line.cpus, line.gpus, units.memory_mb(line.mem))
    return [
        Node(name, amounts, amounts, gpu_type=line.gpu_type, cpu_step=line.threads_per_core)
        for name in host_list(line.names)
    ]


def _toml_partition(line: TomlPartition, names: Sequence[str]) -> Partition:
    listed = names if line.nodes.upper() == "ALL" else host_list(line.nodes)
    return Partition(line.name, tuple(listed), max_time_s=units.duration_s(line.max_time))


def _checked(shape: Shape) -> Shape:
    """Says what cannot be a cluster; partitions without nodes are left out."""
    names = [node.name for node in shape.spec.nodes]
    if not names:
        raise ConfigError(f"cluster {shape.source!r}: no nodes")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"cluster {shape.source!r}: node {twice} is listed twice")
    for partition in shape.spec.partitions:
        unknown = sorted(set(partition.nodes) - set(names))
        if unknown:
            raise ConfigError(f"cluster {shape.source!r}: partition {partition.name} names node {unknown[0]!r}")
    kept = tuple(partition for partition in shape.spec.partitions if partition.nodes)
    if not kept:
        raise ConfigError(f"cluster {shape.source!r}: no partition has any nodes")
    return replace(shape, spec=replace(shape.spec, partitions=kept))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cluster {str(path)!r} cannot be read: {error.strerror}") from error
