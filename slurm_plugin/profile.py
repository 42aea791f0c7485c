"""Profiling a class on purpose: a few runs of its script, each where its speed model is least sure, until it is sure.

The runs are plain jobs without the mark: what they get is what this module asks for. Slurm says how they ended.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.commands import Runner
from slurm_plugin.ended import record_of
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import Resources
from tapfinger_hpc.units import Mark
from trace_tools import choosing
from trace_tools.choosing import Point
from trace_tools.records import EndedJob
from trace_tools.seen import Seen

LOOK_S = 1.0
FORGOTTEN_S = 30.0
"""How long a job may be unknown to Slurm, just after its submission or over a restart, before it counts as lost."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be run."""

    job_class: str
    script: Path
    arguments: tuple[str, ...]
    cpus: tuple[int, int]
    gpus: tuple[int, int]
    mem_mb: int = 0
    """0: what the site gives by default."""
    partition: str = ""
    most_runs: int = 8
    sure: float = 0.15
    """The mean doubt of the curve, in logarithms of seconds, with which it is known well enough."""


class Step(msgspec.Struct, frozen=True):
    """One run, and what is believed after it."""

    run: int
    job: EndedJob
    curve: tuple[Point, ...]
    doubt: float
    """Over the whole curve."""


def profile(plan: Plan, seen: Seen, run: Callable[[Resources], EndedJob]) -> Iterator[Step]:
    """Runs until the model is sure or the runs are used up; each run is added to what was seen.

    Raises:
        SlurmError: a run failed, so its time says nothing.
    """
    amounts = choosing.candidates(plan.cpus, plan.gpus, plan.mem_mb)
    points = choosing.curve(seen, amounts) if seen.cells or seen.bounds else []
    for number in range(1, plan.most_runs + 1):
        if points and choosing.mean_doubt(points) <= plan.sure:
            return
        job = run(choosing.least_sure(points).amounts if points else choosing.first(amounts))
        if job.state in ("FAILED", "CANCELLED", "BOOT_FAIL", "DEADLINE"):
            raise SlurmError(
                f"job {job.job_id} of the profile ended {job.state} after {job.elapsed_s:g} s; see its output"
            )
        seen.add(job)
        points = choosing.curve(seen, amounts)
        yield Step(number, job, tuple(points), choosing.mean_doubt(points))


class SlurmRuns:
    """Runs the script as jobs, one after the other."""

    def __init__(
        self, commands: Runner, cluster: SlurmCluster, plan: Plan, *, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._run, self._cluster, self._plan, self._wait = commands, cluster, plan, wait

    def __call__(self, amounts: Resources) -> EndedJob:
        """Submits, waits for the end, and says what it was. A job that is interrupted here is cancelled.

        Raises:
            SlurmError: the job was refused, or Slurm lost it.
        """
        job_id = self._run(self._submission(amounts)).checked().decode().strip().partition(";")[0]
        try:
            return self._ended(job_id)
        except BaseException:
            self._run(["scancel", job_id])
            raise

    def _submission(self, amounts: Resources) -> Sequence[str]:
        plan = self._plan
        options = [f"--job-name=profile-{plan.job_class}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={amounts.cpus}"]
        options += [f"--gres=gpu:{amounts.gpus}"] if amounts.gpus else []
        options += [f"--mem={amounts.mem_mb}M"] if amounts.mem_mb else []
        options += [f"--partition={plan.partition}"] if plan.partition else []
        return ["sbatch", "--parsable", *options, str(plan.script), *plan.arguments]

    def _ended(self, job_id: str) -> EndedJob:
        missing_s = 0.0
        while missing_s < FORGOTTEN_S:
            record = self._cluster.job(job_id)
            missing_s = missing_s + LOOK_S if record is None else 0.0
            if record is not None:
                job = record_of(record)
                if job is not None:
                    return msgspec.structs.replace(job, mark=Mark(job_class=self._plan.job_class))
                if record.state not in ("PD", "CF", "R", "CG", "S", "ST", "RQ", "SE"):
                    raise SlurmError(f"job {job_id} of the profile ended as {record.state} without having run")
            self._wait(LOOK_S)
        raise SlurmError(f"job {job_id} of the profile is unknown to Slurm: did it end more than MinJobAge ago?")
