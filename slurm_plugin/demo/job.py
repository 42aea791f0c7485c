"""What one demo job does: works out from what it really got how long it takes, and sleeps that.

Its record is the demo's only source for what a job got and when it ran: nothing is taken from what was decided.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from tapfinger_hpc import units
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from tapfinger_hpc.stats import COMPLETED


class Ran(msgspec.Struct, frozen=True):
    """What a job found and did; times are seconds since the epoch."""

    job: str
    partition: str
    node: str
    got: Resources
    started_s: float
    ended_s: float
    outcome: str = COMPLETED


def granted(environment: Mapping[str, str]) -> Resources:
    """The amounts that Slurm gave to a one-node batch job, from its environment."""
    cpus = int(environment["SLURM_CPUS_ON_NODE"])
    if "SLURM_MEM_PER_NODE" in environment:
        mem_mb = units.memory_mb(environment["SLURM_MEM_PER_NODE"])
    else:
        mem_mb = units.memory_mb(environment.get("SLURM_MEM_PER_CPU", "0")) * cpus
    return Resources(cpus, int(environment.get("SLURM_GPUS_ON_NODE") or 0), mem_mb)


@click.command()
@click.argument("name")
@click.option("--class", "class_name", required=True)
@click.option(
    "--classes", type=click.Path(path_type=Path, exists=True), required=True, help="True speed of the classes."
)
@click.option("--scale", type=float, required=True, help="Seconds of this job = seconds of its class times this.")
@click.option("--records", type=click.Path(path_type=Path), required=True, help="Folder for the record.")
def main(name: str, class_name: str, classes: Path, scale: float, records: Path) -> None:
    """Run as the demo job NAME inside a Slurm allocation."""
    started_s = float(os.environ["TAPFINGER_DEMO_STARTED"])
    got = granted(os.environ)
    known = msgspec.json.decode(classes.read_bytes(), type=tuple[JobClass, ...])
    speed = next(job_class.speed for job_class in known if job_class.name == class_name)
    takes_s = scale * speed.duration_s(got)
    if takes_s == float("inf"):
        raise SystemExit(f"demo job {name}: class {class_name} cannot run with {got}")
    outcome = _sleep_until(started_s + takes_s)
    record = Ran(
        name,
        os.environ["SLURM_JOB_PARTITION"],
        os.environ["SLURMD_NODENAME"],
        got,
        started_s,
        time.time(),
        outcome,
    )
    # Renamed into place, so that the demo never reads half a record.
    partial = records / f".{name}.partial"
    partial.write_bytes(msgspec.json.encode(record))
    partial.replace(records / f"{name}.json")


class _TimeLimit(Exception):
    """Slurm's SIGTERM: the job has used its time limit."""


def _sleep_until(end_s: float) -> str:
    """Sleeps; COMPLETED, or TIMEOUT where Slurm ended it before."""

    def stop(_signal: int, _frame: object) -> None:
        raise _TimeLimit

    signal.signal(signal.SIGTERM, stop)
    try:
        time.sleep(max(0.0, end_s - time.time()))
    except _TimeLimit:
        return "TIMEOUT"
    return COMPLETED


if __name__ == "__main__":
    main()
