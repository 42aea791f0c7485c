"""First come, first served, with the amounts that were asked for."""

from tapfinger_hpc import fit
from tapfinger_hpc.decision import Alternative, Decision, Placement
from tapfinger_hpc.policies.board import Board
from tapfinger_hpc.state import ClusterState, Node, PendingJob, Resources


class FifoPolicy:
    """Strict order of submission: a job that has to wait keeps every node it could use from those behind it."""

    name = "fifo"

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        board = Board(state)
        kept: dict[str, str] = {}
        for position, job in enumerate(board.jobs()):
            refusals = _place(board, job, kept, score=-float(position))
            if refusals is not None:
                board.wait(job, "first come, first served: " + refusals, score=-float(position))
                for node, _ in _wishes(board, job):
                    kept.setdefault(node.name, job.job_id)
        return board.decisions()


def asked(job: PendingJob, node: Node) -> Resources:
    """What the user asked for, as near as the job's range and the node allow."""
    least = fit.smallest(job)
    assert least is not None, "only jobs that can run somewhere are placed"
    whole = node.capacity.cpus // node.cpu_step * node.cpu_step
    cpus = max(least.cpus, min(job.requested.cpus, job.maximum.cpus, whole))
    return Resources(
        cpus // job.tasks * job.tasks,
        max(least.gpus, min(job.requested.gpus, job.maximum.gpus, node.capacity.gpus)),
        max(least.mem_mb, min(job.requested.mem_mb, job.maximum.mem_mb, node.capacity.mem_mb)),
    )


def _wishes(board: Board, job: PendingJob) -> list[tuple[Node, Placement]]:
    """What was asked for on every node that has so much; where none has, on those that have most of it."""
    wishes = [(node, Placement(partition.name, node.name, asked(job, node))) for partition, node in board.reach(job)]
    most = max(
        (placement.amounts for _, placement in wishes), key=lambda amounts: (amounts.gpus, amounts), default=None
    )
    return [wish for wish in wishes if wish[1].amounts == most]


def _place(board: Board, job: PendingJob, kept: dict[str, str], score: float) -> str | None:
    """Places the job on the first node with room; otherwise says why it has to wait."""
    refusal, options = "no node that is up can run it", []
    for node, placement in _wishes(board, job):
        if node.name in kept:
            refusal = f"job {kept[node.name]} is ahead of it"
        elif not board.fits(node, placement.amounts):
            refusal = f"{placement.amounts} are not free on any node it may use"
        elif (delayed := board.delays(job, node, placement.amounts)) is not None:
            refusal = delayed
        else:
            options.append(placement)
    if not options:
        return refusal
    runners_up = [Alternative(option, score) for option in options[1:]]
    board.place(job, options[0], "first come, first served, with what was asked for", score, runners_up)
    return None
