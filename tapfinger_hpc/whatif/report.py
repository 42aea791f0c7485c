"""What would have changed, in figures: each policy against stock Slurm on the same jobs, and that against what was.

Pure: records in, a report out, which holds all that tables and drawings need. Jobs near in time share a queue, so
intervals come from resampling stretches of time, not jobs.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.state import JobKey
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import TraceJob

EASY = "easy"
"""Stock Slurm: order of priority and backfill, with what was asked for."""
RESAMPLES = 4000
BLOCKS = (12, 60)
"""Into so many stretches of submit times at least and at most; a day each in between."""
DAY_S = 86400.0
POINTS = 200
"""Of each drawing over time."""
ALIKE, MINUTE_S = 1.5, 60.0
"""Mean waiting times by this factor, or this much, apart say that the queue of the replay is that of life."""
CLOSE_S, CLOSE = 300.0, 0.25
"""A replayed completion time is near the real one within five minutes, or a quarter of it."""


class Change(msgspec.Struct, frozen=True):
    """By how much a mean is above another, as a share of it (below 0: it fell), with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.1%} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


class Row(msgspec.Struct, frozen=True):
    """One replay. Times in seconds."""

    policy: str
    amounts: str
    """``kept`` as they were, or ``may change``."""
    jobs: int
    mean_completion_s: float
    median_completion_s: float
    p95_completion_s: float
    mean_waiting_s: float
    median_waiting_s: float
    p95_waiting_s: float
    gpu_use: float
    """Share of all GPUs that was held while jobs of the window arrived."""
    cpu_use: float
    changed: int
    """Jobs that ran on other amounts than they had."""
    cut_off: int
    """Jobs that their time limit ended."""
    replay_s: float
    """How long the replay took."""
    completion: Change | None = None
    """Against stock Slurm's replay; None of that itself."""
    waiting: Change | None = None
    waiting_percentiles: tuple[float, ...] = ()
    """At 0, 1, ... 100 % of the jobs."""
    queue_over_time: tuple[float, ...] = ()
    """Jobs waiting, at the report's moments."""
    use_over_time: tuple[float, ...] = ()
    """Share of the GPUs held, or of the CPUs where there are no GPUs."""

    @property
    def name(self) -> str:
        return self.policy if self.amounts == KEPT else f"{self.policy}, {self.amounts}"


KEPT, CHANGED = "kept", "may change"


class Pair(msgspec.Struct, frozen=True):
    """Two policies compared with each other rather than with stock Slurm."""

    policy: str
    against: str
    amounts: str
    completion: Change

    def __str__(self) -> str:
        amounts = "" if self.amounts == KEPT else f" ({self.amounts})"
        return f"{self.policy} against {self.against}{amounts}: {self.completion}"


class Fidelity(msgspec.Struct, frozen=True):
    """How near the replay of stock Slurm is to what accounting says. Times in seconds."""

    jobs: int
    """Whose start accounting knows."""
    real_mean_waiting_s: float
    replayed_mean_waiting_s: float
    real_median_waiting_s: float
    replayed_median_waiting_s: float
    real_mean_completion_s: float
    replayed_mean_completion_s: float
    real_median_completion_s: float
    replayed_median_completion_s: float
    correlation: float | None
    """Of the ranks of waiting times; None where all wait alike."""
    near: float
    """Share of the jobs whose completion time is within five minutes or a quarter of the real one."""
    real_waiting_percentiles: tuple[float, ...] = ()
    real_queue_over_time: tuple[float, ...] = ()

    @property
    def waits_as_it_was(self) -> bool:
        """Whether jobs wait about as long as they did: within a factor, or within a minute."""
        longer, shorter = sorted((self.real_mean_waiting_s, self.replayed_mean_waiting_s), reverse=True)
        return longer - shorter <= MINUTE_S or longer <= ALIKE * shorter


class WhatIf(msgspec.Struct, frozen=True):
    """Everything that a replay found."""

    version: str
    trace: str
    cluster: str
    notes: tuple[str, ...]
    window_s: float
    """From the first to the last submission that counts."""
    jobs: int
    managed: int
    ranged: int
    classes: int
    left_out: dict[str, int]
    assumed: dict[str, int]
    blocks: int
    """Stretches of time that are resampled."""
    draws: int
    """Of speed curves that were resampled too, where amounts may change; 0: the fitted ones were taken as true."""
    times_s: tuple[float, ...]
    """Moments of what is told over time, from the first submission."""
    fidelity: Fidelity | None
    """None of a made-up trace."""
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()

    def row(self, policy: str, amounts: str = KEPT) -> Row:
        return next(row for row in self.rows if (row.policy, row.amounts) == (policy, amounts))


class Replayed(msgspec.Struct, frozen=True):
    """What came of one replay."""

    policy: str
    amounts: str
    records: tuple[JobRecord, ...]
    seconds: float
    strayed: tuple[tuple[JobRecord, ...], ...] = ()
    """The same with other speed curves, about as likely as those that were fitted."""


class Window:
    """The jobs that count, and the moments at which their cluster is looked at."""

    def __init__(self, counted: frozenset[JobKey], spec: ClusterSpec) -> None:
        submitted = [submit_s for _, submit_s in counted]
        self.counted, self.capacity = counted, spec.capacity
        self.first_s, self.last_s = float(min(submitted)), float(max(submitted))
        self.times_s = np.linspace(self.first_s, max(self.last_s, self.first_s + 1.0), POINTS)
        days = round((self.last_s - self.first_s) / DAY_S)
        self.blocks = int(np.clip(days, *BLOCKS))

    def of(self, records: Sequence[JobRecord]) -> list[JobRecord]:
        """Records of the jobs that count, in one order for all replays."""
        mine = [record for record in records if (record.job_id, int(record.submit_s)) in self.counted]
        return sorted(mine, key=lambda record: (record.submit_s, record.job_id))

    def block_of(self, submit_s: np.ndarray) -> np.ndarray:
        """int64 [job] the stretch of time in which each was submitted."""
        span = max(1.0, self.last_s - self.first_s)
        return np.minimum(((submit_s - self.first_s) / span * self.blocks).astype(np.int64), self.blocks - 1)


def rows(replays: Sequence[Replayed], window: Window, asked: Mapping[JobKey, TraceJob]) -> tuple[Row, ...]:
    """One of each replay; the first is stock Slurm's, with which the others are compared."""
    base = window.of(replays[0].records)
    blocks = window.block_of(np.array([record.submit_s for record in base]))
    found = []
    for one in replays:
        records = window.of(one.records)
        row = _row(one, records, window, asked)
        if one is not replays[0]:
            others = [window.of(each) for each in one.strayed]
            row = msgspec.structs.replace(
                row,
                completion=change(_completion(base), _completion(records), blocks, map(_completion, others)),
                waiting=change(_waiting(base), _waiting(records), blocks, map(_waiting, others)),
            )
        found.append(row)
    return tuple(found)


def fidelity(easy: Replayed, window: Window, jobs: Mapping[JobKey, TraceJob]) -> Fidelity | None:
    """Against accounting; None where it says of no job when it started."""
    pairs = [
        (record, jobs[record.job_id, int(record.submit_s)])
        for record in window.of(easy.records)
        if _started(jobs[record.job_id, int(record.submit_s)]) is not None
    ]
    if not pairs:
        return None
    submit = np.array([record.submit_s for record, _ in pairs])
    start = np.array([_started(item) for _, item in pairs], float)
    lasted = np.array([item.ran.elapsed_s for _, item in pairs if item.ran])
    # A start before its submission is an altered record, or a clock.
    real_wait, wait = np.maximum(start - submit, 0.0), _waiting([record for record, _ in pairs])
    real_completion, completion = real_wait + lasted, _completion([record for record, _ in pairs])
    off = np.abs(completion - real_completion)
    return Fidelity(
        jobs=len(pairs),
        real_mean_waiting_s=_short(real_wait.mean()),
        replayed_mean_waiting_s=_short(wait.mean()),
        real_median_waiting_s=_short(np.median(real_wait)),
        replayed_median_waiting_s=_short(np.median(wait)),
        real_mean_completion_s=_short(real_completion.mean()),
        replayed_mean_completion_s=_short(completion.mean()),
        real_median_completion_s=_short(np.median(real_completion)),
        replayed_median_completion_s=_short(np.median(completion)),
        correlation=_rank_correlation(real_wait, wait),
        near=_short((off <= np.maximum(CLOSE_S, CLOSE * real_completion)).mean()),
        real_waiting_percentiles=_series(np.percentile(real_wait, np.arange(101))),
        real_queue_over_time=_series(_present(submit, np.maximum(start, submit), window.times_s)),
    )


def pairs(replays: Sequence[Replayed], window: Window, names: Sequence[tuple[str, str]]) -> tuple[Pair, ...]:
    """The first of each two names against the second, with the same amounts."""
    of = {(one.policy, one.amounts): one for one in replays}
    return tuple(
        Pair(policy, against, amounts, between(of[against, amounts], of[policy, amounts], window))
        for policy, against in names
        for amounts in (KEPT, CHANGED)
        if (policy, amounts) in of
    )


def between(one: Replayed, other: Replayed, window: Window) -> Change:
    """By how much the mean completion time rose from one replay to another."""
    records = [window.of(each.records) for each in (one, other)]
    blocks = window.block_of(np.array([record.submit_s for record in records[0]]))
    return change(_completion(records[0]), _completion(records[1]), blocks)


def change(
    before: np.ndarray, after: np.ndarray, blocks: np.ndarray, others: Iterable[np.ndarray] = (), *, seed: int = 0
) -> Change:
    """By how much the mean of the same jobs rose, with a percentile bootstrap over their stretches of time.

    Args:
        blocks: int64 [job] the stretch of each.
        others: what might as well have come after, each drawn as often; none where only time is resampled.
    """
    if before.sum() <= 0:
        value = 0.0 if after.sum() <= 0 else np.inf
        return Change(value, value, value)
    source, used = np.random.default_rng(seed), np.unique(blocks)
    afters = list(others) or [after]
    sums = np.array([[values[blocks == one].sum() for values in (before, *afters)] for one in used])
    drawn = source.integers(len(used), size=(RESAMPLES, len(used)))
    chosen = source.integers(len(afters), size=RESAMPLES)
    totals = sums[drawn].sum(axis=1)  # [resample, 1 + afters]
    rose = totals[np.arange(RESAMPLES), 1 + chosen]
    ratios = rose[totals[:, 0] > 0] / totals[totals[:, 0] > 0, 0] - 1
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Change(_short(after.sum() / before.sum() - 1), _short(low), _short(high))


def _row(one: Replayed, records: Sequence[JobRecord], window: Window, asked: Mapping[JobKey, TraceJob]) -> Row:
    completion, waiting = _completion(records), _waiting(records)
    held = np.array([[record.amounts.gpus, record.amounts.cpus] for record in one.records], float)
    start = np.array([record.start_s for record in one.records])
    end = np.array([record.end_s for record in one.records])
    # All that run then, also those that only fill the cluster.
    overlap = np.clip(np.minimum(end, window.last_s) - np.maximum(start, window.first_s), 0.0, None)
    capacity = np.array([window.capacity.gpus, window.capacity.cpus], float)
    use = (held * overlap[:, None]).sum(axis=0) / np.maximum(capacity, 1) / max(1.0, window.last_s - window.first_s)
    scarce = 0 if window.capacity.gpus else 1
    return Row(
        policy=one.policy,
        amounts=one.amounts,
        jobs=len(records),
        mean_completion_s=_short(completion.mean()),
        median_completion_s=_short(np.median(completion)),
        p95_completion_s=_short(np.percentile(completion, 95)),
        mean_waiting_s=_short(waiting.mean()),
        median_waiting_s=_short(np.median(waiting)),
        p95_waiting_s=_short(np.percentile(waiting, 95)),
        gpu_use=_short(use[0]),
        cpu_use=_short(use[1]),
        changed=sum(_other_amounts(record, asked) for record in records),
        cut_off=sum(record.outcome == "TIMEOUT" for record in records),
        replay_s=_short(one.seconds),
        waiting_percentiles=_series(np.percentile(waiting, np.arange(101))),
        queue_over_time=_series(_present(np.array([r.submit_s for r in one.records]), start, window.times_s)),
        use_over_time=_series(_held(start, end, held[:, scarce], window.times_s) / max(1.0, capacity[scarce])),
    )


def _other_amounts(record: JobRecord, asked: Mapping[JobKey, TraceJob]) -> bool:
    wanted = asked[record.job_id, int(record.submit_s)].job
    # Of several nodes each has a whole share, which may be a little more in all.
    return wanted.nodes_wanted == 1 and record.amounts != wanted.requested


def _started(item: TraceJob) -> int | None:
    return None if item.ran is None else item.ran.start_time_s


def _completion(records: Sequence[JobRecord]) -> np.ndarray:
    return np.array([record.completion_s for record in records])


def _waiting(records: Sequence[JobRecord]) -> np.ndarray:
    return np.array([record.waiting_s for record in records])


def _present(begin: np.ndarray, end: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """How many are between their begin and their end at each moment."""
    return np.searchsorted(np.sort(begin), times_s, side="right") - np.searchsorted(np.sort(end), times_s, side="right")


def _held(start: np.ndarray, end: np.ndarray, amounts: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    return np.array([amounts[(start <= moment) & (moment < end)].sum() for moment in times_s])


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's: of ranks, equal values sharing theirs."""
    ranks = [_ranks(values) for values in (one, other)]
    deviations = [values - values.mean() for values in ranks]
    spread = np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum())
    return _short((deviations[0] * deviations[1]).sum() / spread) if spread > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def _series(values: np.ndarray) -> tuple[float, ...]:
    return tuple(_short(value) for value in values.tolist())


def _short(value: float) -> float:
    return float(f"{float(value):.6g}")
