"""One small state with a bit of everything: warms the policies up, and is the example in the OpenAPI document."""

from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import ClusterState, Node, Partition, PendingJob, Resources, RunningJob, Share

_NOW_S = 1_700_000_000

EXAMPLE_STATE = ClusterState(
    time_s=float(_NOW_S),
    nodes=(
        Node("node1", capacity=Resources(16, 4, 64000), free=Resources(12, 3, 48000)),
        Node("node2", capacity=Resources(16, 4, 64000), free=Resources(16, 4, 64000)),
    ),
    partitions=(Partition("gpu", ("node1", "node2"), max_time_s=86400),),
    pending=(
        PendingJob(
            job_id="102",
            submit_time_s=_NOW_S - 30,
            partitions=("gpu",),
            requested=Resources(4, 2, 16000),
            minimum=Resources(2, 1, 8000),
            maximum=Resources(8, 4, 32000),
            user="ada",
            job_class="resnet",
            time_limit_s=3600,
            priority=1000,
            managed=True,
            lease_until_s=_NOW_S + 30,
        ),
        PendingJob(
            job_id="103",
            submit_time_s=_NOW_S - 10,
            partitions=("gpu",),
            requested=Resources(16, 4, 64000),
            minimum=Resources(16, 4, 64000),
            maximum=Resources(16, 4, 64000),
            user="bob",
            time_limit_s=7200,
            priority=1000,
            why="no mark in its comment",
        ),
    ),
    running=(
        RunningJob(
            job_id="101",
            submit_time_s=_NOW_S - 600,
            partition="gpu",
            shares=(Share("node1", Resources(4, 1, 16000)),),
            start_time_s=_NOW_S - 590,
            end_limit_s=_NOW_S + 3000,
            user="ada",
            job_class="resnet",
            managed=True,
        ),
    ),
    classes=(
        JobClass(
            "resnet",
            SpeedModel(
                cpus=(2, 8), gpus=(1, 4), mem_mb=(8000,), seconds=(1800.0, 800.0, 1500.0, 500.0), log_std=(0.2,)
            ),
            observations=12,
        ),
    ),
)
