"""The learned policy in the simulator: one agent for each partition, greedy, the same state always decided the same.

Multi-task: a whole sequence of tasks is decoded from one encoding of the state. Single-task: each agent takes at most
one task, and then the state is looked at anew, until nobody takes any.
"""

from pathlib import Path

import msgspec
import numpy as np

from tapfinger_hpc import checkpoint
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.nets.config import Without
from tapfinger_hpc.policies.decoding import NOTHING, Decoder, Network, Simulated, most_probable
from tapfinger_hpc.sim.core import Truth
from tapfinger_hpc.sim.experience import Experience


class AgentsPlayer:
    """A network as a policy."""

    def __init__(
        self,
        network: Network,
        prices: np.ndarray | None = None,
        *,
        name: str = "tapfinger",
        knowledge: str = "oracle",
        experience: Experience | None = None,
        without: Without = NOTHING,
    ) -> None:
        """
        Args:
            prices: constants of the price heuristic, whose advice the network hears.
            experience: what it knows of times already, where its knowledge is "types".
            without: what its agents go without.
        """
        self.experience = experience
        self.name, self.knowledge = name, knowledge
        self.passes = 0
        """Times that the network has encoded the state of one environment."""
        self._network, self._prices, self._without = network, prices, without
        self._decoder: tuple[Frame, Decoder] | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str = "tapfinger",
        single_task: bool = False,
        knowledge: str = "",
    ) -> "AgentsPlayer":
        """The policy of a checkpoint.

        Args:
            single_task: also where it was not trained so.
            knowledge: where not what it was trained with.

        Raises:
            CheckpointError: it cannot be used, and why.
        """
        network, info = checkpoint.load(folder)
        prices = np.array(info.advice) if info.advice else None
        without = info.network.without
        return cls(
            network,
            prices,
            name=name,
            knowledge=knowledge or info.training.knowledge,
            experience=info.experience,
            without=msgspec.structs.replace(without, multi_task=True) if single_task else without,
        )

    def hear(self, prices: np.ndarray) -> None:
        """Other constants of the price heuristic, for all that is played from here on."""
        self._prices, self._decoder = prices, None

    def play_slot(self, frame: Frame, truth: Truth, envs: np.ndarray) -> int:
        """All placements of the present slot; how many decisions that took."""
        if self._decoder is None or self._decoder[0] is not frame:
            self._decoder = (frame, Decoder(self._network, frame, self._prices, without=self._without))
        made = 0
        for decision in self._decoder[1].slot(Simulated(frame, truth), envs, lambda _: most_probable):
            self.passes += decision.encoded
            made += len(decision.envs)
        return made
