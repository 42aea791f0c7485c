"""Any job on any node with any amounts it may have: the floor that every other policy must beat."""

import random
import zlib

from tapfinger_hpc.decision import Decision, Placement
from tapfinger_hpc.policies import choices
from tapfinger_hpc.policies.board import Board
from tapfinger_hpc.state import ClusterState


class RandomPolicy:
    """Draws from its seed and the content of the state, so that the same state gets the same answer."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        draw = random.Random(f"{self._seed} {zlib.crc32(state.to_json())}")
        board = Board(state)
        jobs = board.jobs()
        draw.shuffle(jobs)
        for job in jobs:
            options = [
                Placement(partition.name, node.name, amounts)
                for partition, node in board.reach(job)
                for amounts in choices.of(state, job, node.capacity).amounts()
                if board.fits(node, amounts)
            ]
            draw.shuffle(options)
            chosen = next(
                (option for option in options if not board.delays(job, state.node(option.node), option.amounts)), None
            )
            if chosen is None:
                board.wait(job, "no amounts it may have are free")
            else:
                board.place(job, chosen, "drawn at random")
        return board.decisions()
