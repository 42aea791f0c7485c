"""What a throw-away cluster looks like: nodes, partitions, amounts. Pure; where it lives is decided in layout.py."""

import re
import string

import msgspec

from tapfinger_hpc.errors import SandboxError

MAX_NODES = 600
"""600 came up in 23 s on two cores and 4 GB (measured); more has not been tried."""

_PARTITION = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")


class SandboxSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cluster that is wanted. Every node is alike; nodes are dealt to partitions in order, as evenly as can be."""

    nodes: int = 6
    partitions: int = 3
    gpus: int = 4
    """Fake GPUs of each node."""
    cpus: int = 16
    """CPUs that each node claims to have; more than the machine has is fine."""
    memory_mb: int = 64000
    accounting: bool = True
    """With slurmdbd and MariaDB; without, sacct knows nothing and slurmctld has no operators."""
    hook: bool = True
    """With our submit hook and job-end event. False is stock Slurm with the same scheduling parameters."""
    partition_names: tuple[str, ...] = ()
    """Names, first is the default; () gives pa, pb, pc and so on."""
    overlapping: tuple[str, ...] = ()
    """Names of further partitions that each hold all nodes."""
    default_minutes: int = 10
    """Time limit of a job that gives none."""
    max_minutes: int = 1440
    lease_s: int = 60
    """agent.lease_s in the tapfinger.toml of the sandbox."""
    extra_conf: tuple[str, ...] = ()
    """Lines at the end of slurm.conf; of two lines with one key Slurm takes the later."""
    release: str = ""
    """Debian release whose Slurm it is; "" for the one that is installed on this machine."""
    extra_toml: str = ""
    """Text at the end of tapfinger.toml, such as a [partitions.pa] section; the hook is told of its partitions."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("nodes", self.nodes, 1, MAX_NODES),
            ("partitions", self.partitions, 1, self.nodes),
            ("gpus", self.gpus, 0, 64),
            ("cpus", self.cpus, 1, 4096),
            ("memory_mb", self.memory_mb, self.cpus, 1 << 30),
            ("default_minutes", self.default_minutes, 1, self.max_minutes),
        ):
            if not low <= value <= high:
                raise SandboxError(f"sandbox with {name}={value}: expected {low} to {high}")
        if self.partition_names and len(self.partition_names) != self.partitions:
            raise SandboxError(
                f"sandbox with partition names {', '.join(self.partition_names)}: expected {self.partitions} of them"
            )
        names = (*self.partition_order(), *self.overlapping)
        for name in names:
            if not _PARTITION.fullmatch(name):
                raise SandboxError(f"partition name {name!r}: expected a letter, then letters, digits or '_'")
        if len(set(names)) != len(names):
            raise SandboxError(f"partition names {', '.join(names)}: each may be given once")

    def node_names(self) -> tuple[str, ...]:
        """n1, n2 and so on."""
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))

    def partition_order(self) -> tuple[str, ...]:
        """Names of the partitions that share the nodes out, default first; without the overlapping ones."""
        if self.partition_names:
            return self.partition_names
        letters = string.ascii_lowercase
        endings = [*letters, *(first + second for first in letters for second in letters)]
        return tuple(f"p{ending}" for ending in endings[: self.partitions])

    def partition_nodes(self) -> dict[str, tuple[str, ...]]:
        """Nodes of every partition, also of the overlapping ones."""
        nodes = self.node_names()
        names = self.partition_order()
        bounds = [index * len(nodes) // len(names) for index in range(len(names) + 1)]
        dealt = {name: nodes[bounds[i] : bounds[i + 1]] for i, name in enumerate(names)}
        return dealt | dict.fromkeys(self.overlapping, nodes)
