"""The journal: what is written before an update is there after any crash."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from msgspec.structs import replace

from slurm_plugin import journal as journals
from slurm_plugin.journal import Intent, JobMemory, Journal, JournalError, Note, Told
from tapfinger_hpc.decision import Alternative, Decision, JobUpdate, Placement
from tapfinger_hpc.state import Resources


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def intent(job_id: str = "7", submit_time_s: int = 100, **fields) -> Intent:
    update = JobUpdate(job_id, submit_time_s, node="n1", amounts=Resources(4, 2, 4000), tasks=2, priority=9, begin_s=0)
    original = JobUpdate(job_id, submit_time_s, "pa,pb", "", Resources(1, 1, 1000), 2, "a100", 5)
    values: dict = {"ticket": "t1", "decision_id": "d1", "decided_s": 123.5, "update": update, "original": original}
    return Intent(job_id, submit_time_s, **(values | fields))


def told(job_id: str = "7", at_s: float = 1.0, reason: str = "because") -> Told:
    place = Placement("pa", "n1", Resources(4, 2, 4000))
    decision = Decision(job_id, 100, place, reason, 1.5, (Alternative(None, 0.5), Alternative(place, 0.1)))
    return Told(at_s, "d1", "price", decision, "no room", "enforce")


def test_everything_comes_back_as_it_was_written(path: Path) -> None:
    with Journal.open(path) as journal:
        (written,) = journal.write_intents([intent()])
        journal.tell([told()])
        journal.note([Note(5.0, "7", 100, "left", "häßlich\n"), Note(6.0, "", 0, "mode", "mode enforce")])
        journal.remember([JobMemory("7", 100, 50.0, 1, 60.5, "no place")])
    with Journal.open(path) as journal:
        history = journal.history("7")
        assert history.intents == (written,)
        assert replace(written, intent_id=0) == intent(changed_s=123.5)
        assert history.told == (told(),)
        assert history.notes == (Note(5.0, "7", 100, "left", "häßlich\n"),)
        assert journal.agent_notes() == [Note(6.0, "", 0, "mode", "mode enforce")]
        assert journal.memories() == [JobMemory("7", 100, 50.0, 1, 60.5, "no place")]


def test_an_intent_outlives_the_process_that_is_killed_right_after_writing_it(path: Path) -> None:
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_journal import intent
        from slurm_plugin.journal import Journal
        journal = Journal.open(Path({str(path)!r}))
        journal.write_intents([intent("1"), intent("2")])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with Journal.open(path) as journal:
        assert [one.job_id for one in journal.open_intents()] == ["1", "2"]


def test_intents_are_written_all_or_none(path: Path) -> None:
    def intents():
        yield intent("1")
        raise OSError("the disk is full")

    with Journal.open(path) as journal:
        with pytest.raises(OSError, match="full"):
            journal.write_intents(intents())
        assert journal.open_intents() == []
        journal.write_intents([intent("2")])
        assert [one.job_id for one in journal.open_intents()] == ["2"]


def test_an_intent_is_open_until_its_job_runs_or_is_taken_back(path: Path) -> None:
    with Journal.open(path) as journal:
        one, two = journal.write_intents([intent("1"), intent("2")])
        one = journal.move(one, "open", "", 200.0)
        assert [i.state for i in journal.open_intents()] == ["open", "written"]
        journal.move(one, "started", "", 201.0)
        journal.move(two, "restored", "the node is down", 202.0)
        assert journal.open_intents() == []
        assert journal.counts() == {"started": 1, "restored": 1}
        (restored,) = journal.history("2").intents
        assert (restored.why, restored.changed_s) == ("the node is down", 202.0)


def test_the_latest_intent_of_a_submission_is_found_after_a_requeue_and_not_by_another_job(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.write_intents(
            [intent("7", 100, ticket="a"), intent("7", 160, ticket="a"), intent("7", 900, ticket="b")]
        )
        latest = journal.latest_intent("7", "a")
        assert latest is not None
        assert latest.submit_time_s == 160
        assert journal.latest_intent("7", "c") is None
        assert journal.latest_intent("8", "a") is None


def test_readers_see_what_the_agent_writes_meanwhile(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.write_intents([intent("1")])
        with Journal.reading(path) as reader:
            assert len(reader.open_intents()) == 1
            journal.write_intents([intent("2")])
            assert len(reader.open_intents()) == 2
    with Journal.reading(path) as reader:
        assert len(reader.open_intents()) == 2
        with pytest.raises(sqlite3.OperationalError):
            reader.note([Note(1.0, "1", 1, "x", "y")])


@pytest.mark.parametrize("content", [b"no database" * 999, b"SQLite format 3\0" + os.urandom(5000)])
def test_a_file_that_cannot_be_read_is_set_aside_and_a_new_one_begun(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with Journal.open(path) as journal:
        journal.write_intents([intent()])
        assert len(journal.open_intents()) == 1
    (aside,) = path.parent.glob("journal.sqlite.broken-*")
    assert aside.read_bytes() == content


def test_a_damaged_page_is_noticed_on_opening(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.write_intents([intent(str(number)) for number in range(300)])
    content = bytearray(path.read_bytes())
    content[8192:12288] = os.urandom(4096)
    path.write_bytes(content)
    with Journal.open(path) as journal:
        assert journal.open_intents() == []
    assert list(path.parent.glob("journal.sqlite.broken-*"))


def test_the_journal_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    Journal.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("update meta set value = '99'")
    connection.commit()
    connection.close()
    for way in (Journal.open, Journal.reading):
        with pytest.raises(JournalError, match="schema 99"):
            way(path)
    assert not list(path.parent.glob("*.broken-*"))


def test_a_journal_that_is_not_there_says_what_to_do(path: Path) -> None:
    with pytest.raises(JournalError, match="has the agent run"):
        Journal.reading(path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file"):
        Journal.open(tmp_path / "file" / "journal.sqlite")


def test_its_size_is_bounded_and_open_intents_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MOST_ROWS", 50)
    with Journal.open(path) as journal:
        old, _ = journal.write_intents([intent("1", decided_s=1.0), intent("2", decided_s=1.0)])
        journal.move(old, "started", "", 2.0)
        journal.tell([told("1", at_s=1e9, reason=f"{number}") for number in range(40)])
        journal.tell([told("2", at_s=1e9), told("3", at_s=5.0)])
        journal.note([Note(1e9 + number, "", 0, "mode", "x") for number in range(200)])
        journal.prune(1e9 + 100)
        assert [one.job_id for one in journal.open_intents()] == ["2"]
        assert journal.history("1").intents == ()
        assert [one.decision.reason for one in journal.history("1").told] == [str(number) for number in range(20, 40)]
        assert len(journal.history("2").told) == 1
        assert journal.history("3").told == ()
        assert len(journal.agent_notes(1000)) == 50


def test_memories_are_replaced_and_forgotten(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.remember([JobMemory("7", 100), JobMemory("8", 100)])
        journal.remember([JobMemory("7", 100, failures=2)])
        journal.forget([("8", 100)])
        assert journal.memories() == [JobMemory("7", 100, failures=2)]
