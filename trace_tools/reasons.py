"""What became of the rows of a source: every row that makes no job has a named reason, every assumption a named note.

Counts are exact; of each name the first few rows are kept as examples. A tally of a part of a file can be added to that
of the whole.
"""

from collections.abc import Iterable

WRONG = {
    "broken-line": "the line does not have as many fields as the header or the lines around it",
    "line-too-long": "a single line of more than 1 MiB",
    "not-text": "the line holds bytes that no accounting prints",
    "message": "a message of sacct where a row is expected",
    "no-state": "the row does not say how the job ended",
    "unknown-state": "a job state that no Slurm release knows",
    "no-job-id": "the row has no job id, though the source has such a field",
    "no-duration": "neither an elapsed time nor a start and an end",
    "bad-duration": "an elapsed time that cannot be read",
    "end-before-start": "no elapsed time, and the end lies before the start",
    "bad-json": "a job of a JSON document that cannot be read",
    "cut-short": "the file ends in the middle of a job",
}
"""Rows that should have made a job and could not."""
LEFT_OUT = {
    "not-ended": "the job was pending, running or suspended when accounting was read",
    "never-ran": "the job ended without having run, such as cancelled in the queue",
    "requeued": "a run that ended with the job going back to the queue; its last run counts",
    "earlier-run": "a run of a job that ran again later (sacct -D); its last run counts",
    "duplicate": "the same job once more",
    "step-without-job": "a step whose job is not in the source",
    "filtered": "not among the jobs that were asked for",
    "comment": "a line that begins with #, or a heading",
}
"""Rows that rightly make no job."""
NOTES = {
    "no-submit-time": "taken to be submitted when it was eligible or started, or at the start of the trace",
    "time-unreadable": "a time that cannot be read was passed over",
    "start-before-submit": "started before it was submitted: clocks, or an altered record",
    "elapsed-from-times": "no elapsed time: end less start",
    "under-a-second": "ran for 0 whole seconds: taken as half a second",
    "cpus-unknown": "no count of CPUs: taken as one",
    "nodes-unknown": "no count of nodes: taken as one",
    "memory-unreadable": "an amount of memory that cannot be read was passed over",
    "limit-unreadable": "a time limit that cannot be read was passed over",
    "tres-unreadable": "a list of TRES or GRES that cannot be read was passed over",
    "gpus-from-request": "no GPU among what was allocated: the count is that of the request or the command line",
    "mark-unreadable": "a comment that begins with tapfinger but cannot be read",
    "joined-lines": "one record over several lines was put together again",
    "joined-fields": "a field that holds the delimiter was put together again",
    "not-utf8": "text that is not UTF-8: the bytes that are not were replaced",
    "het-job": "the parts of a heterogeneous job were joined to one job",
    "state-assumed": "the list does not say how the job ended: taken as completed",
    "gpu-share": "a part of a GPU was counted as a whole one",
    "partition-unknown": "no partition: named 'unknown'",
}
"""What was assumed of rows that make jobs."""
EXAMPLES = 3
EXAMPLE_LENGTH = 160


class Tally:
    """Counts and examples by name; ``jobs``, ``rows`` and ``steps`` are those of the whole source."""

    def __init__(self) -> None:
        self.rows = 0
        self.steps = 0
        self.jobs = 0
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, name: str, count: int = 1, examples: Iterable[object] = ()) -> None:
        """Counts so many rows under a name of the tables above."""
        assert name in WRONG or name in LEFT_OUT or name in NOTES, name
        if not count:
            return
        self.counts[name] = self.counts.get(name, 0) + count
        kept = self.examples.setdefault(name, [])
        for example in examples:
            if len(kept) >= EXAMPLES:
                break
            kept.append(_short(example))

    def include(self, other: "Tally") -> None:
        """Adds what another part of the source came to."""
        self.rows += other.rows
        self.steps += other.steps
        self.jobs += other.jobs
        for name, count in other.counts.items():
            self.add(name, count, other.examples.get(name, ()))

    @property
    def wrong(self) -> int:
        """Rows that should have made a job and could not."""
        return sum(count for name, count in self.counts.items() if name in WRONG)

    @property
    def share_used(self) -> float:
        """Jobs, over jobs and rows that should have made one."""
        return self.jobs / (self.jobs + self.wrong) if self.jobs + self.wrong else 0.0

    def as_counts(self) -> dict[str, int]:
        """For the header of a trace."""
        return {"rows": self.rows, "steps": self.steps, "jobs": self.jobs, **dict(sorted(self.counts.items()))}


def meaning(name: str) -> str:
    """What a name says, in a sentence."""
    return WRONG.get(name) or LEFT_OUT.get(name) or NOTES[name]


def _short(example: object) -> str:
    text = example.decode("utf-8", "replace") if isinstance(example, bytes) else str(example)
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:400])
    return (
        printable if len(printable) <= EXAMPLE_LENGTH else printable[: EXAMPLE_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
