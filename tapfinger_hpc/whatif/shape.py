"""The cluster on which a trace is replayed, and what was assumed of it. Another room reads it from Slurm's files."""

import msgspec

from tapfinger_hpc.sim.cluster_spec import ClusterSpec


class Shape(msgspec.Struct, frozen=True):
    """A cluster while nothing runs, with every node up."""

    source: str
    """A file, or ``live``."""
    spec: ClusterSpec
    notes: tuple[str, ...] = ()
    """What was assumed, one sentence each."""

    @property
    def memory_counts(self) -> bool:
        """Whether memory is handed out: on a cluster that does not count it no node has any."""
        return any(node.capacity.mem_mb for node in self.spec.nodes)

    def __str__(self) -> str:
        capacity = self.spec.capacity
        nodes, partitions = len(self.spec.nodes), len(self.spec.partitions)
        return f"{self.source}: {nodes} nodes in {partitions} partitions, {capacity.cpus} CPUs, {capacity.gpus} GPUs"
