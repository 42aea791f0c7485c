"""Reads slurm.conf as slurmctld would: nodes and partitions, and which settings stand where.

Pure: text in, values out; asks for included files. Only ``settings_in`` opens any.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from slurm_plugin.parse import host_list
from tapfinger_hpc import units
from tapfinger_hpc.errors import SlurmError, UnitError
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.state import Node, Partition, Resources

MOST_INCLUDED = 10
"""Files within files; more is a circle."""
_WORD = re.compile(r"([A-Za-z][\w.]*)[-+*/]?\s*=\s*(\"[^\"]*\"|[^\s\"]*)")
_COMMENT = re.compile(r"(?<!\\)#.*")
_INCLUDE = re.compile(r"\s*include\s+(\S+)", re.IGNORECASE)

UNCOUNTED = "the cluster does not hand out memory (SelectTypeParameters, RealMemory): it was not counted"
Fields = dict[str, str]
"""Values by key in small letters, as Slurm reads keys in any case."""


class Found(NamedTuple):
    """What a slurm.conf says."""

    spec: ClusterSpec
    notes: tuple[str, ...]


class Setting(NamedTuple):
    """What a key is set to, and where."""

    value: str
    file: str
    """As the Include line names it; "" is slurm.conf itself."""


_OF_LISTS = frozenset(("nodename", "nodeset", "partitionname", "downnodes", "frontendname"))
"""Lines that begin with these describe one thing of many."""


def settings(text: str, included: Callable[[str], str]) -> Mapping[str, Setting]:
    """All but nodes and partitions, by key in small letters. Of one that is set twice the last counts, as for Slurm.

    Raises:
        SlurmError: files include one another in a circle.
    """
    return {
        key: Setting(value, file)
        for file, fields in _lines(text, included)
        if _OF_LISTS.isdisjoint(fields)
        for key, value in fields.items()
    }


def settings_in(conf: Path, at: Callable[[str], Path] = Path) -> Mapping[str, Setting]:
    """Those of a file, each with the whole path of where it stands. What cannot be read, or does not end, sets nothing.

    Args:
        conf: slurm.conf.
        at: where a file with a whole path lies, for a tree under another root.
    """

    def path(name: str) -> Path:
        return at(name) if name.startswith("/") else conf.parent / name

    def text(file: Path) -> str:
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    try:
        found = settings(text(conf), lambda name: text(path(name)))
    except SlurmError:
        return {}
    return {key: Setting(value, str(path(file) if file else conf)) for key, (value, file) in found.items()}


def asks_lua(plugins: Iterable[str]) -> bool:
    """Whether slurmctld asks job_submit.lua with these JobSubmitPlugins."""
    return any(plugin.strip().removeprefix("job_submit/") == "lua" for plugin in plugins)


def read(text: str, included: Callable[[str], str]) -> Found:
    """The cluster of this slurm.conf.

    Args:
        included: the text of a file that an Include line names.

    Raises:
        SlurmError: a line cannot be read, or there are no nodes.
    """
    given: Fields = {}
    node_lines, set_lines, partition_lines = [], [], []
    for _, fields in _lines(text, included):
        kind = next(iter(fields))
        if kind == "nodename":
            node_lines.append(fields)
        elif kind == "nodeset":
            set_lines.append(fields)
        elif kind == "partitionname":
            partition_lines.append(fields)
        else:
            given.update(fields)
    select = given.get("selecttypeparameters", "CR_Core_Memory").upper()
    notes = []
    lines = list(_with_defaults(node_lines, "nodename"))
    future = [fields for fields in lines if fields.get("state", "").upper().startswith("FUTURE")]
    if future:
        notes.append(f"nodes that are yet to come were left out: {', '.join(fields['nodename'] for fields in future)}")
    nodes = [node for fields in lines if fields not in future for node in _nodes(fields)]
    if not nodes:
        raise SlurmError("slurm.conf: no NodeName line; give the file that defines the nodes, or includes it")
    if "MEMORY" not in select or not any("realmemory" in fields for fields in lines):
        notes.append(UNCOUNTED)
        nodes = [without_memory(node) for node in nodes]
    names = _unique([node.name for node in nodes])
    features = {name: fields.get("feature", fields.get("features", "")) for fields in lines for name in _names(fields)}
    sets = {fields["nodeset"]: _set_of(fields, names, features) for fields in set_lines}
    partitions = [_partition(fields, names, sets) for fields in _with_defaults(partition_lines, "partitionname")]
    if not partitions:
        raise SlurmError("slurm.conf: no PartitionName line; give the file that defines the partitions, or includes it")
    return Found(ClusterSpec(tuple(nodes), tuple(partitions)), tuple(notes))


def _lines(text: str, included: Callable[[str], str], file: str = "", depth: int = 0) -> Iterator[tuple[str, Fields]]:
    """The file and the settings of each line that has any; those of included files in their place."""
    if depth > MOST_INCLUDED:
        raise SlurmError(f"slurm.conf: more than {MOST_INCLUDED} files include one another: is there a circle?")
    cluster = ""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        bare = _COMMENT.sub("", line).replace("\\#", "#")
        if match := _INCLUDE.match(bare):
            name = match[1].replace("%c", cluster)
            yield from _lines(included(name), included, name, depth + 1)
            continue
        fields = {key.lower(): value.strip('"') for key, value in _WORD.findall(bare)}
        cluster = fields.get("clustername", cluster)
        if fields:
            yield file, fields


def _with_defaults(lines: list[Fields], key: str) -> Iterator[Fields]:
    """Each line with what DEFAULT lines before it said."""
    default: Fields = {}
    for fields in lines:
        if fields[key].upper() == "DEFAULT":
            default = {**default, **fields}
        else:
            yield {**default, **fields}


def _names(fields: Fields) -> tuple[str, ...]:
    return host_list(fields["nodename"])


def _nodes(fields: Fields) -> list[Node]:
    """The nodes of a line: all alike."""
    try:
        capacity, step = _capacity(fields)
        _, gpu_type = units.gpus(fields.get("gres", ""))
    except ValueError as error:
        raise SlurmError(f"slurm.conf: NodeName={fields['nodename']}: cannot read {error}") from error
    return [Node(name, capacity, capacity, gpu_type=gpu_type, cpu_step=step) for name in _names(fields)]


def _capacity(fields: Fields) -> tuple[Resources, int]:
    """What jobs may have of a node, and how many CPUs are handed out together."""
    boards, threads = int(fields.get("boards", 1)), int(fields.get("threadspercore", 1))
    sockets = int(fields.get("sockets") or boards * int(fields.get("socketsperboard", 1)))
    cores = sockets * int(fields.get("corespersocket", 1))
    cpus = int(fields.get("cpus") or fields.get("procs") or cores * threads)
    # CPUs may be counted in cores on nodes that have more threads.
    step = threads if cpus > cores else 1
    kept = int(fields.get("corespeccount", 0)) * step
    if listed := fields.get("cpuspeclist"):
        kept = len(host_list(f"[{listed}]"))
    mem_mb = units.memory_mb(fields.get("realmemory", "1")) - units.memory_mb(fields.get("memspeclimit", "0"))
    gpus, _ = units.gpus(fields.get("gres", ""))
    return Resources(max(0, cpus - kept), gpus, max(0, mem_mb)), step


def without_memory(node: Node) -> Node:
    """The node of a cluster that does not hand out memory."""
    amounts = Resources(node.capacity.cpus, node.capacity.gpus)
    return Node(node.name, amounts, amounts, gpu_type=node.gpu_type, cpu_step=node.cpu_step)


def _unique(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise SlurmError(f"slurm.conf: node {twice[0]} is defined twice")
    return names


def _set_of(fields: Fields, names: list[str], features: Mapping[str, str]) -> tuple[str, ...]:
    wanted = fields.get("feature", "")
    listed = set(host_list(fields.get("nodes", "")))
    return tuple(name for name in names if name in listed or (wanted and wanted in features[name].split(",")))


def _partition(fields: Fields, names: list[str], sets: Mapping[str, tuple[str, ...]]) -> Partition:
    name = fields["partitionname"]
    members: set[str] = set()
    for part in host_list(fields.get("nodes", "")):
        if part.upper() == "ALL":
            members.update(names)
        else:
            members.update(sets.get(part, (part,)))
    try:
        max_time_s = units.duration_s(fields.get("maxtime", "UNLIMITED"))
    except UnitError as error:
        raise SlurmError(f"slurm.conf: PartitionName={name}: {error}") from error
    return Partition(name, tuple(node for node in names if node in members), max_time_s=max_time_s)
