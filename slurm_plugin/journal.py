"""What the agent meant to do, did and was told, on disk: written before Slurm is touched, read after any crash.

One SQLite file. Intents reach the disk before the update they announce is made; everything else may lose its last
second. Its size is bounded. A file that cannot be read is set aside, not lost, and a new one is begun.
"""

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from tapfinger_hpc import log
from tapfinger_hpc.decision import Decision, JobUpdate
from tapfinger_hpc.errors import TapfingerError
from tapfinger_hpc.state import JobKey
from trace_tools.records import EndedJob

SCHEMA_VERSION = 1
KEEP_S = 14 * 86400
"""How long a job that is over is remembered."""
KEEP_DECISIONS_PER_JOB = 20
MOST_ROWS = 100_000
"""Of decisions, and of notes; the oldest go first."""

logger = logging.getLogger(__name__)

IntentState = Literal["written", "open", "started", "gone", "lost", "refused", "restored", "given up"]
"""What became of a placement.

written: on its way; whether Slurm has it is not known. open: in Slurm's hands, not seen running yet. started: seen
running. gone: neither waiting nor running, so it ran or was cancelled. lost: the cluster shows the job as if nothing
had been done. refused: Slurm did not take it, the job has its request back. restored: taken back later. given up: as
restored, and ours no more.
"""


class JournalError(TapfingerError):
    """The journal cannot be opened."""


class Intent(msgspec.Struct, frozen=True):
    """One placement on its way to Slurm, and how to undo it."""

    job_id: str
    submit_time_s: int
    ticket: str
    decision_id: str
    decided_s: float
    """When the answer with this placement was there."""
    update: JobUpdate
    original: JobUpdate
    """Gives the job back what it had before."""
    intent_id: int = 0
    """Given by the journal."""
    state: IntentState = "written"
    why: str = ""
    changed_s: float = 0.0
    """When it came to this state."""

    @property
    def key(self) -> JobKey:
        return (self.job_id, self.submit_time_s)


class Told(msgspec.Struct, frozen=True):
    """A decision of the server for one job, and what the guard said to it."""

    at_s: float
    decision_id: str
    policy: str
    decision: Decision
    refused: str = ""
    """Why it was not carried out; "" where nothing spoke against it."""
    mode: str = "enforce"


class Note(msgspec.Struct, frozen=True):
    """Something that happened to a job, or with job_id "" to the agent."""

    at_s: float
    job_id: str
    submit_time_s: int
    kind: str
    text: str


class JobMemory(msgspec.Struct):
    """What has to be remembered of a waiting job between two cycles and over a restart."""

    job_id: str
    submit_time_s: int
    eligible_since_s: float | None = None
    failures: int = 0
    retry_s: float = 0.0
    """Not placed before this time, after placements that did not start."""
    given_up: str = ""
    """Why it is Slurm's for good; "" while it is ours."""

    @property
    def key(self) -> JobKey:
        return (self.job_id, self.submit_time_s)


class JobHistory(msgspec.Struct, frozen=True):
    """All that is known of the jobs that had this number, latest submission last."""

    told: tuple[Told, ...]
    intents: tuple[Intent, ...]
    notes: tuple[Note, ...]


_TABLES = """
create table if not exists meta (key text primary key, value text not null);
create table if not exists intents (
    intent_id integer primary key, job_id text not null, submit_time_s integer not null, ticket text not null,
    decision_id text not null, decided_s real not null, target text not null, original text not null,
    state text not null, why text not null, changed_s real not null);
create index if not exists intents_of_job on intents (job_id, submit_time_s);
create index if not exists intents_in_state on intents (state);
create table if not exists told (
    told_id integer primary key, at_s real not null, decision_id text not null, policy text not null,
    job_id text not null, submit_time_s integer not null, decision text not null, refused text not null,
    mode text not null);
create index if not exists told_of_job on told (job_id, submit_time_s);
create table if not exists notes (
    note_id integer primary key, at_s real not null, job_id text not null, submit_time_s integer not null,
    kind text not null, text text not null);
create index if not exists notes_of_job on notes (job_id, submit_time_s);
create table if not exists memories (
    job_id text not null, submit_time_s integer not null, eligible_since_s real, failures integer not null,
    retry_s real not null, given_up text not null, primary key (job_id, submit_time_s)) without rowid;
create table if not exists ended (
    ended_id integer primary key autoincrement, at_s real not null, job_id text not null,
    submit_time_s integer not null, start_time_s integer not null, record text not null,
    unique (job_id, submit_time_s, start_time_s));
"""


class Journal:
    """The file; one writer at a time, any number of readers meanwhile."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Opens for writing; makes the file and its folder. What cannot be read is set aside and said.

        Raises:
            JournalError: the file cannot be made, or a newer tapfinger wrote it.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return cls(_opened(path))
        except sqlite3.OperationalError as error:
            raise JournalError(f"journal {str(path)!r} cannot be opened: {error}; is the folder writable?") from error
        except OSError as error:
            raise JournalError(f"journal {str(path)!r} cannot be made: {error}") from error
        except sqlite3.DatabaseError as error:
            aside = _set_aside(path)
            log.event(logger, logging.ERROR, "journal-broken", file=path, aside=aside, why=error)
            return cls(_opened(path))

    @classmethod
    def reading(cls, path: Path) -> "Journal":
        """Opens for reading, also while the agent writes, and without the right to write.

        Raises:
            JournalError: there is none, or it cannot be read.
        """
        if not path.exists():
            raise JournalError(f"journal {str(path)!r} is not there: has the agent run with this configuration?")
        # Without its -wal file beside it, SQLite would want to make one; nobody writes then, so it need not.
        wal = path.with_name(path.name + "-wal").exists()
        options = "mode=ro" if wal else "mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=5)
            _check_version(connection, path)
        except sqlite3.DatabaseError as error:
            raise JournalError(f"journal {str(path)!r} cannot be read: {error}") from error
        return cls(connection)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Intents.

    def write_intents(self, intents: Iterable[Intent]) -> list[Intent]:
        """Puts them on the disk, all or none, before it returns; the same with their numbers."""
        written = []
        with self._transaction(durable=True) as connection:
            for one in intents:
                intent = msgspec.structs.replace(one, changed_s=one.changed_s or one.decided_s)
                row = connection.execute(
                    "insert into intents (job_id, submit_time_s, ticket, decision_id, decided_s, target, original, "
                    "state, why, changed_s) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        intent.job_id,
                        intent.submit_time_s,
                        intent.ticket,
                        intent.decision_id,
                        intent.decided_s,
                        _json(intent.update),
                        _json(intent.original),
                        intent.state,
                        intent.why,
                        intent.changed_s,
                    ),
                )
                written.append(msgspec.structs.replace(intent, intent_id=row.lastrowid or 0))
        return written

    def move(self, intent: Intent, state: IntentState, why: str, at_s: float) -> Intent:
        """Notes what became of an intent."""
        with self._transaction() as connection:
            connection.execute(
                "update intents set state = ?, why = ?, changed_s = ? where intent_id = ?",
                (state, why, at_s, intent.intent_id),
            )
        return msgspec.structs.replace(intent, state=state, why=why, changed_s=at_s)

    def open_intents(self) -> list[Intent]:
        """Those whose job was neither seen running nor taken back, oldest first."""
        return self._intents("where state in ('written', 'open') order by intent_id", ())

    def latest_intent(self, job_id: str, ticket: str) -> Intent | None:
        """The last one of this submission, whatever its submit time (a requeue changes it)."""
        found = self._intents("where job_id = ? and ticket = ? order by intent_id desc limit 1", (job_id, ticket))
        return found[0] if found else None

    # What jobs and people want to know later.

    def tell(self, told: Sequence[Told]) -> None:
        """Keeps decisions for `explain`."""
        if not told:
            return
        with self._transaction() as connection:
            connection.executemany(
                "insert into told (at_s, decision_id, policy, job_id, submit_time_s, decision, refused, mode) "
                "values (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        one.at_s,
                        one.decision_id,
                        one.policy,
                        one.decision.job_id,
                        one.decision.submit_time_s,
                        _json(one.decision),
                        one.refused,
                        one.mode,
                    )
                    for one in told
                ],
            )

    def note(self, notes: Sequence[Note]) -> None:
        """Keeps what happened."""
        if not notes:
            return
        with self._transaction() as connection:
            connection.executemany(
                "insert into notes (at_s, job_id, submit_time_s, kind, text) values (?, ?, ?, ?, ?)",
                [(note.at_s, note.job_id, note.submit_time_s, note.kind, note.text) for note in notes],
            )

    def history(self, job_id: str) -> JobHistory:
        """Everything about the jobs of this number."""
        told = self._connection.execute(
            "select at_s, decision_id, policy, decision, refused, mode from told where job_id = ? order by told_id",
            (job_id,),
        )
        return JobHistory(
            told=tuple(
                Told(at_s, decision_id, policy, msgspec.json.decode(decision, type=Decision), refused, mode)
                for at_s, decision_id, policy, decision, refused, mode in told
            ),
            intents=tuple(self._intents("where job_id = ? order by intent_id", (job_id,))),
            notes=tuple(self._notes("where job_id = ? order by note_id", (job_id,))),
        )

    def agent_notes(self, most: int = 20) -> list[Note]:
        """The latest notes about the agent itself, oldest first."""
        return self._notes("where job_id = '' order by note_id desc limit ?", (most,))[::-1]

    def damage(self) -> str:
        """What SQLite finds wrong in the file; "" where all is well."""
        (finding,) = self._connection.execute("pragma quick_check(1)").fetchone()
        return "" if finding == "ok" else finding

    def counts(self) -> dict[str, int]:
        """How many intents are in each state."""
        return dict(self._connection.execute("select state, count(*) from intents group by state"))

    # What job classes are learned from.

    def keep_ended(self, jobs: Sequence[EndedJob], at_s: float) -> None:
        """Keeps jobs that have ended, each run of each job once."""
        if not jobs:
            return
        with self._transaction() as connection:
            connection.executemany(
                "insert or ignore into ended (at_s, job_id, submit_time_s, start_time_s, record) "
                "values (?, ?, ?, ?, ?)",
                [(at_s, job.job_id, job.submit_time_s, job.start_time_s or 0, _json(job)) for job in jobs],
            )

    def ended_after(self, number: int) -> list[tuple[int, EndedJob]]:
        """Those with a greater number than this, in order; none of a journal of before there were such."""
        if not self._connection.execute("select 1 from sqlite_master where name = 'ended'").fetchone():
            return []
        rows = self._connection.execute("select ended_id, record from ended where ended_id > ? order by 1", (number,))
        return [(ended_id, msgspec.json.decode(record, type=EndedJob)) for ended_id, record in rows]

    # What a report holds against each other.

    def ended_between(self, since_s: float, until_s: float) -> list[EndedJob]:
        """Jobs that were seen to end in this time; the last run of each that was requeued."""
        if not self._connection.execute("select 1 from sqlite_master where name = 'ended'").fetchone():
            return []
        rows = self._connection.execute(
            "select job_id, submit_time_s, record from ended where at_s >= ? and at_s < ? order by ended_id",
            (since_s, until_s),
        )
        latest = {(job_id, submit_s): record for job_id, submit_s, record in rows}
        return [msgspec.json.decode(record, type=EndedJob) for record in latest.values()]

    def told_of(self, keys: Collection[JobKey]) -> dict[JobKey, list[Told]]:
        """What was decided for these jobs, oldest first."""
        found: dict[JobKey, list[Told]] = {}
        rows = self._connection.execute(
            "select job_id, submit_time_s, at_s, decision_id, policy, decision, refused, mode from told "
            "order by told_id"
        )
        for job_id, submit_s, at_s, decision_id, policy, decision, refused, mode in rows:
            if (key := (job_id, submit_s)) in keys:
                one = Told(at_s, decision_id, policy, msgspec.json.decode(decision, type=Decision), refused, mode)
                found.setdefault(key, []).append(one)
        return found

    def intents_of(self, keys: Collection[JobKey]) -> dict[JobKey, list[Intent]]:
        """How these jobs were placed, oldest first."""
        found: dict[JobKey, list[Intent]] = {}
        for intent in self._intents("order by intent_id", ()):
            if intent.key in keys:
                found.setdefault(intent.key, []).append(intent)
        return found

    # What the agent remembers of waiting jobs.

    def memories(self) -> list[JobMemory]:
        rows = self._connection.execute(
            "select job_id, submit_time_s, eligible_since_s, failures, retry_s, given_up from memories"
        )
        return [JobMemory(*row) for row in rows]

    def remember(self, memories: Sequence[JobMemory]) -> None:
        if not memories:
            return
        with self._transaction() as connection:
            connection.executemany(
                "insert or replace into memories values (?, ?, ?, ?, ?, ?)",
                [msgspec.structs.astuple(memory) for memory in memories],
            )

    def forget(self, keys: Iterable[JobKey]) -> None:
        """Drops the memory of jobs that wait no more."""
        if not (gone := list(keys)):
            return
        with self._transaction() as connection:
            connection.executemany("delete from memories where job_id = ? and submit_time_s = ?", gone)

    def prune(self, now_s: float) -> None:
        """Drops what is old or too much; open intents stay whatever their age."""
        before_s = now_s - KEEP_S
        with self._transaction() as connection:
            connection.execute(
                "delete from intents where state not in ('written', 'open') and changed_s < ?", (before_s,)
            )
            for table, number in (("told", "told_id"), ("notes", "note_id"), ("ended", "ended_id")):
                connection.execute(f"delete from {table} where at_s < ?", (before_s,))
                connection.execute(
                    f"delete from {table} where {number} <= (select max({number}) from {table}) - ?", (MOST_ROWS,)
                )
            connection.execute(
                "delete from told where told_id in (select told_id from (select told_id, row_number() over "
                "(partition by job_id, submit_time_s order by told_id desc) as place from told) where place > ?)",
                (KEEP_DECISIONS_PER_JOB,),
            )

    def _intents(self, condition: str, values: tuple[object, ...]) -> list[Intent]:
        rows = self._connection.execute(
            "select job_id, submit_time_s, ticket, decision_id, decided_s, target, original, intent_id, state, why, "
            f"changed_s from intents {condition}",
            values,
        )
        return [_intent(*row) for row in rows]

    def _notes(self, condition: str, values: tuple[object, ...]) -> list[Note]:
        rows = self._connection.execute(
            f"select at_s, job_id, submit_time_s, kind, text from notes {condition}", values
        )
        return [Note(*row) for row in rows]

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction; a durable one is on the disk when it ends."""
        self._connection.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
        self._connection.execute("begin immediate")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("rollback")
            raise
        self._connection.execute("commit")


def _opened(path: Path) -> sqlite3.Connection:
    # Statements begin their transactions themselves; the agent uses it from one thread.
    connection = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        if damage := Journal(connection).damage():
            raise sqlite3.DatabaseError(damage)
        _check_version(connection, path)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma cache_size = -2000")
        connection.executescript(_TABLES)
        connection.execute("insert or ignore into meta values ('schema', ?)", (str(SCHEMA_VERSION),))
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    if not connection.execute("select 1 from sqlite_master where name = 'meta'").fetchone():
        return
    row = connection.execute("select value from meta where key = 'schema'").fetchone()
    if row and row[0] != str(SCHEMA_VERSION):
        raise JournalError(
            f"journal {str(path)!r} has schema {row[0]}, this tapfinger reads {SCHEMA_VERSION}: "
            "use the tapfinger that wrote it, or move the file away"
        )


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    path.rename(aside)
    for ending in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))
    return aside


def _intent(
    job_id: str,
    submit_time_s: int,
    ticket: str,
    decision_id: str,
    decided_s: float,
    target: str,
    original: str,
    *state: Any,
) -> Intent:
    update, undo = (msgspec.json.decode(text, type=JobUpdate) for text in (target, original))
    return Intent(job_id, submit_time_s, ticket, decision_id, decided_s, update, undo, *state)


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()
