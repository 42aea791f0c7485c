"""From ended jobs to a file of job classes, and on from there with each job more.

Two files: the classes, as agent and server read them, and beside them what was seen (``.seen``), from which the next
run goes on. Each is written whole or not at all, what was seen first: a run that is killed in between is made up for.
"""

import contextlib
import fcntl
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tapfinger_hpc import trace as traces
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import JobKey
from tapfinger_hpc.trace import Trace, TraceJob
from tapfinger_hpc.units import Mark
from trace_tools.classes import class_of, is_declared
from trace_tools.records import EndedJob, of_trace_job
from trace_tools.seen import Seen

MOST_CLASSES = 20_000
"""That are remembered; beyond, those of the fewest and oldest jobs are forgotten."""
MOST_WRITTEN = 300
"""Into the file that the agent holds in memory: some 10 kB each."""


class Kept(msgspec.Struct, forbid_unknown_fields=True):
    """The file of what was seen."""

    format: Literal["tapfinger-seen"] = "tapfinger-seen"
    version: Literal[1] = 1
    journal: str = ""
    """Which journal was read; "" while none was."""
    journal_upto: int = 0
    """The last of its ended jobs that was taken in."""
    classes: list[Seen] = []


class Learner:
    """What was seen of all classes, and the speed models that were made of it."""

    def __init__(self, kept: Kept | None = None, made: Iterable[JobClass] = ()) -> None:
        self.kept = kept or Kept()
        self._seen = {one.name: one for one in self.kept.classes}
        self._made = {one.name: one for one in made}
        self._changed: set[str] = set(self._seen) - set(self._made)
        self.jobs = 0
        """Taken in since it was opened."""
        self.nameless = 0
        """Passed over, as neither user, account nor name is known of them."""

    def take_in(self, jobs: Iterable[EndedJob]) -> None:
        """Adds jobs that have ended to their classes."""
        for job in jobs:
            name = class_of(job)
            if not name:
                self.nameless += 1
                continue
            one = self._seen.get(name)
            if one is None:
                if len(self._seen) >= 2 * MOST_CLASSES:
                    self._forget()
                one = self._seen[name] = Seen(name)
            one.add(job)
            self._changed.add(name)
            self.jobs += 1

    def take_in_journal(self, name: str, ended_after: Callable[[int], Sequence[tuple[int, EndedJob]]]) -> None:
        """Adds the ended jobs of an agent's journal that were not taken in yet; a new journal is read from its begin.

        Args:
            name: of the journal.
            ended_after: its ended jobs with their numbers, from the one after a number on.
        """
        if self.kept.journal != name or (self.kept.journal_upto and not ended_after(self.kept.journal_upto - 1)):
            self.kept.journal, self.kept.journal_upto = name, 0
        for number, job in ended_after(self.kept.journal_upto):
            self.take_in([job])
            self.kept.journal_upto = number

    def classes(self) -> tuple[JobClass, ...]:
        """The classes of which most was seen, by name; only those that changed are fitted again."""
        try:
            from trace_tools import prior, speeds  # numpy, which a look into the files does not need
        except ImportError as error:
            raise TraceError(f"speed models need numpy: pip install 'tapfinger-hpc[traces]' ({error})") from error
        told = sorted(self._seen.values(), key=_worth, reverse=True)[:MOST_WRITTEN]
        believed = {
            declared: prior.of_jobs(prior.shipped(), prior.noises_of(self._spreads(declared), before))
            for declared, before in prior.NOISES_BEFORE.items()
        }
        for one in told:
            if one.name in self._changed or one.name not in self._made:
                fitted = speeds.fit(one, believed[is_declared(one.name)])
                if fitted is not None:
                    self._made[one.name] = fitted
        self._changed.clear()
        made = (self._made[one.name] for one in told if one.name in self._made)
        return tuple(sorted(made, key=lambda one: one.name))

    def of(self, name: str) -> Seen:
        """What was seen of this class, to be added to; its model is made anew."""
        self._changed.add(name)
        return self._seen.setdefault(name, Seen(name))

    def _spreads(self, declared: bool) -> list[tuple[float, float]]:
        return [one.spread() for one in self._seen.values() if is_declared(one.name) == declared]

    def all_seen(self) -> list[Seen]:
        """For the file; the best known of too many."""
        if len(self._seen) > MOST_CLASSES:
            self._forget()
        return list(self._seen.values())

    def _forget(self) -> None:
        best = sorted(self._seen.values(), key=_worth, reverse=True)[:MOST_CLASSES]
        self._seen = {one.name: one for one in best}


def opened(output: Path) -> Learner:
    """Goes on from this file of classes and what was seen beside it; from nothing where neither is there.

    Raises:
        TraceError: a file is there and cannot be used.
    """
    kept, made = kept_path(output), ()
    if not kept.exists():
        return Learner()
    seen_before = _decoded(kept, Kept)
    if output.exists():
        made = _decoded(output, tuple[JobClass, ...])
    return Learner(seen_before, made)


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps others from going on from the same file meanwhile; waits for them."""
    path = output.with_name(f".{output.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TraceError(f"{str(output)!r} cannot be written: {error.strerror}; name another with --output") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(learner: Learner, output: Path) -> tuple[JobClass, ...]:
    """Writes both files; the classes."""
    classes = learner.classes()
    learner.kept.classes = learner.all_seen()
    for path, content in ((kept_path(output), learner.kept), (output, classes)):
        with whole_or_not_at_all(path, TraceError) as partial:
            partial.write_bytes(msgspec.json.encode(content))
    return classes


def kept_path(output: Path) -> Path:
    """Where the sums are, from which a later run goes on."""
    return output.with_name(f"{output.name}.seen")


def ended_jobs(path: Path) -> Iterator[EndedJob]:
    """The jobs of a trace as they ended, one by one; those that are made up as they would on what they ask for."""
    header = traces.read_header(path)
    made_up = traces.Trace(header.source, header.classes, ())
    for item in traces.read_jobs(path):
        job = of_trace_job(item, header.zero_s) or _as_if_run(item, made_up)
        if job is not None:
            yield job


def of_trace(trace: Trace) -> tuple[tuple[JobClass, ...], dict[JobKey, str]]:
    """The classes of a trace with their speed models, and the class of each of its jobs that has one."""
    learner, class_of_job = Learner(), {}
    for item in trace.jobs:
        job = of_trace_job(item, trace.zero_s)
        if job is not None:
            learner.take_in([job])
            if name := class_of(job):
                class_of_job[item.job.key] = name
    return learner.classes(), class_of_job


def ended_s(job: EndedJob) -> float:
    """When it ended; that of its submission where the source has no start."""
    return (job.submit_time_s if job.start_time_s is None else job.start_time_s) + job.elapsed_s


def _as_if_run(item: TraceJob, trace: Trace) -> EndedJob | None:
    job = item.job
    seconds = trace.true_duration_s(item, job.requested)
    ran_s = seconds if job.time_limit_s is None else min(seconds, float(job.time_limit_s))
    if math.isinf(ran_s):
        return None
    return EndedJob(
        job_id=job.job_id,
        state="COMPLETED" if ran_s == seconds else "TIMEOUT",
        elapsed_s=ran_s,
        granted=job.requested,
        requested=job.requested,
        nodes=job.nodes_wanted,
        gpu_type=job.gpu_type,
        submit_time_s=job.submit_time_s,
        time_limit_s=job.time_limit_s,
        partition=job.partitions[0],
        user=job.user,
        mark=Mark(job_class=job.job_class),
    )


def _worth(one: Seen) -> tuple[int, int, str]:
    return (one.finished + min(one.unfinished, 1), one.last_s, one.name)


def _decoded(path: Path, kind):
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise TraceError(f"{str(path)!r} cannot be read: {error}; move it away to begin anew") from error
