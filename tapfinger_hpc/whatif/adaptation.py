"""What a site learns from its own trace: on the earlier part of it, kept only if it does better on the later part.

What is learned of job classes for that, and what policies are told on the later part, comes from the earlier part
alone; how long the later jobs truly take comes from all of it.
"""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.whatif import evaluation, playing, report
from tapfinger_hpc.whatif.evaluation import Loaded, Prepared
from tapfinger_hpc.whatif.playing import Contender
from tapfinger_hpc.whatif.report import CHANGED, KEPT, Change, Row, Window
from tapfinger_hpc.whatif.site import SiteWorkloads

HELD_OUT = 0.3
"""Share of the jobs, the last ones, on which the policies are compared."""


class Parts(msgspec.Struct, frozen=True):
    """What is trained on, and what it is tried on."""

    name: str
    """Of the scenario: the same for the same jobs, cluster and choices alone."""
    workloads: SiteWorkloads
    held_out: Prepared


class Verdict(msgspec.Struct, frozen=True):
    """How the policies did on the later part."""

    jobs: int
    rows: tuple[Row, ...]
    """Stock Slurm, then each pair: the present policy, and the one with what was learned."""
    changes: tuple[Change, ...]
    """Of the mean completion time, from the first of each pair to the second."""

    @property
    def better(self) -> bool:
        """Whether what was learned is kept."""
        return self.changes[0].value < 0


def parts(loaded: Loaded) -> Parts:
    """Divides a trace by time.

    Raises:
        TraceError: it is too short, or too few of its jobs are managed.
    """
    times = sorted(item.job.submit_time_s for item in loaded.trace.jobs)
    split_s = float(times[round((1 - HELD_OUT) * (len(times) - 1))])
    if split_s == times[0]:
        raise TraceError(
            f"trace {loaded.trace.source!r}: most of its {len(times)} jobs came in the first second, so there "
            "is no earlier part to learn from; take a longer trace"
        )
    earlier = loaded.before(split_s)
    trained = evaluation.prepare(earlier).plan
    jobs = trained.changed or trained.kept
    digest = hashlib.blake2b(msgspec.json.encode((jobs, loaded.shape.spec)), digest_size=6).hexdigest()
    return Parts(
        name=f"site-{digest}",
        workloads=SiteWorkloads(jobs, loaded.shape.spec),
        held_out=evaluation.prepare(loaded, from_s=split_s, told=earlier.classes()[0]),
    )


def judged(
    held_out: Prepared,
    pairs: Sequence[tuple[Contender, Contender]],
    report_: Callable[[str, int], None] = lambda name, ended: None,
) -> Verdict:
    """Replays the later part with both of each pair; the first pair decides."""
    plan, shape = held_out.plan, held_out.shape
    contenders = [one for pair in pairs for one in pair]
    amounts = KEPT if plan.changed is None else CHANGED
    replays = list(playing.replays(plan, shape.spec, contenders, amounts=(amounts,), report=report_))
    window = Window(plan.counted, shape.spec)
    asked = {item.job.key: item for item in plan.kept.jobs}
    return Verdict(
        jobs=len(plan.counted),
        rows=report.rows(replays, window, asked),
        changes=tuple(
            report.between(before, after, window) for before, after in zip(replays[1::2], replays[2::2], strict=True)
        ),
    )
