"""Random clusters to train and to tune on: 1 to 8 partitions, equal and unequal nodes, some in several partitions."""

import random

from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.state import Node, Partition, Resources

SHAPES = (
    Resources(8, 2, 32000),
    Resources(16, 2, 64000),
    Resources(16, 4, 64000),
    Resources(24, 4, 96000),
    Resources(32, 4, 128000),
    Resources(32, 8, 256000),
    Resources(64, 8, 256000),
    Resources(16, 1, 64000),
)
"""Nodes as small sites have them. CPUs per GPU go from 4 to 16, as on the GPU nodes of Alibaba's 2023 cluster."""


def random_cluster(draw: random.Random) -> ClusterSpec:
    """1-8 partitions of 1-6 nodes each; now and then mixed nodes, partitions that overlap, and one over all nodes."""
    shapes = draw.choices(SHAPES, weights=[1, 1, 4, 2, 2, 1, 1, 1], k=3)
    mixed, overlapping = draw.random() < 0.4, draw.random() < 0.3
    nodes: list[Node] = []
    partitions: list[Partition] = []
    for position in range(draw.choice((1, 2, 2, 3, 3, 3, 4, 5, 6, 8))):
        shape = draw.choice(shapes) if mixed else shapes[0]
        names = []
        for _ in range(draw.randint(1, 6)):
            amounts = draw.choice(shapes) if mixed and draw.random() < 0.3 else shape
            nodes.append(Node(f"n{len(nodes) + 1}", amounts, amounts))
            names.append(nodes[-1].name)
        if overlapping and partitions:
            names += draw.sample(partitions[-1].nodes, draw.randint(0, len(partitions[-1].nodes)))
        partitions.append(Partition(f"p{chr(ord('a') + position)}", tuple(sorted(set(names)))))
    if len(partitions) > 1 and draw.random() < 0.15:
        partitions.append(Partition("pz", tuple(sorted(node.name for node in nodes))))
    return ClusterSpec(tuple(nodes), tuple(partitions))
