"""The shape of a simulated cluster, apart from the compiled core: what only makes or reads traces stays light."""

import msgspec

from tapfinger_hpc.state import Node, Partition, Resources


class ClusterSpec(msgspec.Struct, frozen=True):
    """The nodes of a cluster while nothing runs, and its partitions."""

    nodes: tuple[Node, ...]
    partitions: tuple[Partition, ...]

    @classmethod
    def uniform(cls, partitions: int = 3, nodes_each: int = 2, capacity: Resources | None = None) -> "ClusterSpec":
        """Partitions pa, pb, ... of equal nodes n1, n2, ...: the sandbox's default shape."""
        amounts = capacity or Resources(16, 4, 64000)
        names = [f"n{number}" for number in range(1, partitions * nodes_each + 1)]
        return cls(
            tuple(Node(name, amounts, amounts) for name in names),
            tuple(
                Partition(f"p{chr(ord('a') + index)}", tuple(names[index * nodes_each : (index + 1) * nodes_each]))
                for index in range(partitions)
            ),
        )

    @property
    def capacity(self) -> Resources:
        """All nodes together."""
        return sum((node.capacity for node in self.nodes), Resources())
