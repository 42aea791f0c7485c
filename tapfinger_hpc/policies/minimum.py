"""Every job on the least amounts it can run on, as soon as any node has them."""

from tapfinger_hpc.decision import Alternative, Decision, Placement
from tapfinger_hpc.policies import choices
from tapfinger_hpc.policies.board import Board
from tapfinger_hpc.state import ClusterState


class MinimumPolicy:
    """Any job that fits, in order of submission, on the least GPUs, CPUs and memory that its class can run on."""

    name = "min"

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        board = Board(state)
        for position, job in enumerate(board.jobs()):
            score = -float(position)
            refusal, options = "no node that is up can run it", []
            for partition, node in board.reach(job):
                amounts = choices.of(state, job, node.capacity).least()
                if amounts is None:
                    continue
                if not board.fits(node, amounts):
                    refusal = f"{amounts} are not free on any node it may use"
                elif (delayed := board.delays(job, node, amounts)) is not None:
                    refusal = delayed
                else:
                    options.append(Placement(partition.name, node.name, amounts))
            if options:
                runners_up = [Alternative(option, score) for option in options[1:]]
                board.place(job, options[0], "the least amounts it can run on", score, runners_up)
            else:
                board.wait(job, refusal, score)
        return board.decisions()
