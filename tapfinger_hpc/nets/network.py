"""The whole network as it is trained: the graph encoder and the pointers."""

from torch import Tensor

from tapfinger_hpc.nets.hgat import Encoder
from tapfinger_hpc.nets.pointers import NetworkConfig, Pointers
from tapfinger_hpc.nets.tensors import GraphTensors

__all__ = ["Network", "NetworkConfig"]


class Network(Pointers):
    """Encodes graphs with torch-geometric, and points."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        config = config or NetworkConfig()
        super().__init__(config)
        self.encoder = Encoder(config.hidden, config.rounds, config.heads)

    def encode(self, graph: GraphTensors) -> dict[str, Tensor]:
        """Embeddings of all graph nodes; once per decision."""
        embeddings: dict[str, Tensor] = self.encoder(graph.features, graph.edges)
        return embeddings
