"""The one definition of "fits": simulator, action masks, guard and live backend all ask here. Pure."""

from tapfinger_hpc.state import ClusterState, Node, Partition, PendingJob, Resources


def granted(node: Node, amounts: Resources) -> Resources:
    """What Slurm really takes from the node for these amounts: whole cores."""
    if node.cpu_step == 1:
        return amounts
    return Resources(-(-amounts.cpus // node.cpu_step) * node.cpu_step, amounts.gpus, amounts.mem_mb)


def fits_node(job: PendingJob, node: Node, amounts: Resources) -> bool:
    """Whether the node can start the job on these amounts now."""
    return node.available and _type_fits(job, node) and node.free.covers(granted(node, amounts))


def could_fit_node(job: PendingJob, node: Node, amounts: Resources) -> bool:
    """Whether the node could start the job on these amounts if it were empty."""
    return node.available and _type_fits(job, node) and node.capacity.covers(granted(node, amounts))


def allowed(job: PendingJob, amounts: Resources) -> bool:
    """Whether the job may be given these amounts: inside its range, and CPUs shared evenly by its tasks."""
    return job.maximum.covers(amounts) and amounts.covers(job.minimum) and amounts.cpus % job.tasks == 0


def greatest(job: PendingJob, node: Node) -> Resources | None:
    """The greatest allowed amounts that fit on the node now, resource by resource; None if the least do not fit.

    Every allowed amount between ``smallest(job)`` and this one fits.
    """
    cpus = min(job.maximum.cpus, node.free.cpus // node.cpu_step * node.cpu_step) // job.tasks * job.tasks
    amounts = Resources(cpus, min(job.maximum.gpus, node.free.gpus), min(job.maximum.mem_mb, node.free.mem_mb))
    least = smallest(job)
    if least is None or not amounts.covers(least) or not fits_node(job, node, amounts):
        return None
    return amounts


def smallest(job: PendingJob) -> Resources | None:
    """The least amounts that the job may be given; None where no multiple of its tasks lies in its range of CPUs."""
    cpus = -(-job.minimum.cpus // job.tasks) * job.tasks
    if cpus > job.maximum.cpus:
        return None
    return Resources(cpus, job.minimum.gpus, job.minimum.mem_mb)


def reachable(state: ClusterState, job: PendingJob) -> list[tuple[Partition, Node]]:
    """Partition and node pairs on which the job could ever run, in canonical order."""
    least = smallest(job)
    if least is None:
        return []
    nodes = {node.name: node for node in state.nodes}
    return [
        (partition, nodes[name])
        for partition in state.partitions
        if partition.name in job.partitions and open_to(job, partition)
        for name in sorted(partition.nodes)
        if could_fit_node(job, nodes[name], least)
    ]


def open_to(job: PendingJob, partition: Partition) -> bool:
    """Whether the partition is up and lets the job run as long as it asks."""
    if not partition.up:
        return False
    if partition.max_time_s is None or job.time_limit_s is None:
        return True
    return job.time_limit_s <= partition.max_time_s


def _type_fits(job: PendingJob, node: Node) -> bool:
    return not job.gpu_type or job.gpu_type == node.gpu_type
