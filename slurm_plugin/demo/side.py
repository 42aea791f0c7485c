"""One of the demo's two clusters: the jobs are submitted to it as they arrive, and it tells how far they are."""

import shlex
import sys
import threading
import time
from pathlib import Path

import msgspec

from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.demo.job import Ran
from slurm_plugin.demo.view import Progress
from slurm_plugin.sandbox.sandbox import Sandbox
from tapfinger_hpc import config
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import ClusterState, PendingJob
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace, TraceJob

GONE_PATIENCE_S = 5.0
"""How long a job may be gone from the queue before its record is there."""


class Side:
    """A sandbox and what was submitted to it."""

    def __init__(self, title: str, sandbox: Sandbox, trace: Trace) -> None:
        self.title = title
        self.sandbox = sandbox
        self.trace = trace
        self._cluster = SlurmCluster.from_config(config.load(sandbox.tapfinger_toml))
        self._records_folder = sandbox.layout.jobs / "records"
        self._records_folder.mkdir(mode=0o777)
        self._classes = sandbox.layout.jobs / "true-classes.json"
        self._classes.write_bytes(msgspec.json.encode(trace.classes))
        self._submitted: dict[str, float] = {}
        self._ran: dict[str, Ran] = {}
        self._gone_since_s: float | None = None
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self, at_s: float) -> None:
        """Begins to submit; each job when it arrives, counted from ``at_s``."""
        self._thread = threading.Thread(target=self._submit_all, args=(at_s,), name=self.title, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Submits no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def look(self) -> Progress:
        """How far this side is. SlurmError if a job ended without a record, or could not be submitted."""
        if self._failure is not None:
            raise self._failure
        self._read_records()
        state = self._cluster.observe()
        self._check_none_lost(state)
        completions = [ran.ended_s - self._submitted[name] for name, ran in self._ran.items()]
        capacity = sum(node.capacity.gpus for node in state.nodes)
        return Progress(
            title=self.title,
            jobs=len(self.trace.jobs),
            submitted=len(self._submitted),
            waiting=len(state.pending),
            running=len(state.running),
            done=len(self._ran),
            gpus_held=capacity - sum(node.free.gpus for node in state.nodes),
            gpus=capacity,
            mean_completion_s=sum(completions) / len(completions) if completions else None,
        )

    def records(self) -> tuple[JobRecord, ...]:
        """What became of every job, in the order of the trace."""
        return tuple(self._record(trace_job.job, self._ran[trace_job.job.job_id]) for trace_job in self.trace.jobs)

    def _record(self, job: PendingJob, ran: Ran) -> JobRecord:
        return JobRecord(
            job_id=job.job_id,
            submit_s=self._submitted[job.job_id],
            start_s=ran.started_s,
            end_s=ran.ended_s,
            partition=ran.partition,
            nodes=(ran.node,),
            requested=job.requested,
            amounts=ran.got,
            job_class=job.job_class,
            managed=job.managed,
            outcome=ran.outcome,
        )

    def _submit_all(self, at_s: float) -> None:
        try:
            for trace_job in self.trace.jobs:
                arrives_s = at_s + trace_job.job.submit_time_s
                if self._stop.wait(max(0.0, arrives_s - time.time())):
                    return
                name = trace_job.job.job_id
                submitted_s = time.time()
                self.sandbox.submit(self._script(trace_job), *sbatch_options(trace_job.job))
                self._submitted[name] = submitted_s
        except Exception as error:  # noqa: BLE001 - shown by look(), which runs where somebody sees it
            self._failure = error

    def _script(self, trace_job: TraceJob) -> str:
        arguments = [
            trace_job.job.job_id,
            f"--class={trace_job.job.job_class}",
            f"--classes={self._classes}",
            f"--scale={trace_job.scale}",
            f"--records={self._records_folder}",
        ]
        command = shlex.join([sys.executable, "-m", "slurm_plugin.demo.job", *arguments])
        return f"#!/bin/bash\nexport TAPFINGER_DEMO_STARTED=$EPOCHREALTIME\nexec {command}\n"

    def _read_records(self) -> None:
        for path in self._records_folder.glob("*.json"):
            # A job may end before the thread that submitted it has noted so.
            if path.stem not in self._ran and path.stem in self._submitted:
                self._ran[path.stem] = msgspec.json.decode(path.read_bytes(), type=Ran)

    def _check_none_lost(self, state: ClusterState) -> None:
        missing = sorted(set(self._submitted) - set(self._ran))
        if not missing or state.pending or state.running:
            self._gone_since_s = None
            return
        now_s = time.monotonic()
        self._gone_since_s = self._gone_since_s or now_s
        if now_s - self._gone_since_s > GONE_PATIENCE_S:
            raise SlurmError(
                f"demo on {self.title}: job {missing[0]} ended without a record ({len(missing)} such jobs): "
                f"{_last_output(self.sandbox.layout.jobs)}"
            )


def sbatch_options(job: PendingJob) -> list[str]:
    """How the user of this job would submit it. The mark is there on both sides; stock Slurm passes it over."""
    options = [
        f"--job-name={job.job_id}",
        f"--partition={','.join(job.partitions)}",
        "--nodes=1",
        f"--ntasks={job.tasks}",
        f"--cpus-per-task={job.requested.cpus // job.tasks}",
        f"--mem={job.requested.mem_mb}M",
    ]
    if job.requested.gpus:
        options.append(f"--gres=gpu:{job.requested.gpus}")
    if job.time_limit_s is not None:
        options.append(f"--time={-(-job.time_limit_s // 60)}")
    if job.managed:
        options.append(f"--comment={comment(job)}")
    return options


def comment(job: PendingJob) -> str:
    """The mark that declares the job's ranges and class."""
    least, greatest = job.minimum, job.maximum
    return (
        f"tapfinger gpus={least.gpus}-{greatest.gpus} cpus={least.cpus}-{greatest.cpus} "
        f"mem={least.mem_mb}M-{greatest.mem_mb}M class={job.job_class}"
    )


def _last_output(folder: Path) -> str:
    """The end of the newest output file that is not empty: most likely why a job failed."""
    outputs = sorted(folder.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
    texts = [text for path in outputs if (text := path.read_text(errors="replace").strip())]
    return texts[-1][-500:] if texts else "no job wrote anything"
