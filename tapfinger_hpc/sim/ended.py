"""Tasks of simulated episodes as jobs that have ended: what accounting would say of them, for ``tapfinger trace fit``.

So what a policy learns of a site's history can be tried where the truth is known.
"""

from collections.abc import Iterable, Iterator

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.sim.episodes import Episode
from tapfinger_hpc.sim.scenarios import SLOT_S
from tapfinger_hpc.state import PendingJob, Resources
from tapfinger_hpc.trace import Ran, Trace, TraceJob


def trace(episodes: Iterable[Episode]) -> Trace:
    """The tasks of these episodes, one episode after the other, in order of arrival.

    Raises:
        ConfigError: the policy changed the amounts of running tasks, so that their time is not that of any amounts.
    """
    jobs: list[TraceJob] = []
    begin_s, source = 0.0, ""
    for episode in episodes:
        source = source or f"simulated {episode.workload.scenario.name}, {episode.policy}"
        mine = list(_jobs(episode, begin_s, len(jobs) + 1))
        jobs += mine
        begin_s = max((job.ran.start_time_s or 0) + job.ran.elapsed_s for job in mine if job.ran) + 1
    return Trace(source, (), tuple(jobs))


def _jobs(episode: Episode, begin_s: float, first: int) -> Iterator[TraceJob]:
    workload = episode.workload
    if len(episode.changes) > len(set(episode.changes[:, 0].tolist())):
        raise ConfigError(
            f"policy {episode.policy!r} changed the amounts of running tasks: what they took says nothing of any "
            "amounts; take a policy that keeps them, such as random or price"
        )
    slot_s = SLOT_S if workload.scenario.slot else 1.0
    kinds = [kind.name for kind in workload.scenario.types]
    for task in workload.ours.nonzero()[0].tolist():
        cpus, gpus = episode.amounts[task].tolist()
        amounts = Resources(cpus, gpus, int(episode.mem_mb[task]))
        start_s, elapsed_s = episode.start[task] * slot_s, (episode.end[task] - episode.start[task]) * slot_s
        job = PendingJob(
            job_id=str(first + task),
            submit_time_s=int(begin_s + workload.arrival[task] * slot_s),
            partitions=tuple(f"agent{agent}" for agent in workload.reachable[task].nonzero()[0]),
            requested=amounts,
            minimum=amounts,
            maximum=amounts,
            job_class=kinds[workload.type[task]],
            managed=True,
        )
        yield TraceJob(job, ran=Ran("COMPLETED", float(elapsed_s), amounts, start_time_s=int(begin_s + start_s)))
