"""Log lines: one an event, whatever it holds, in the same words as text and as JSON."""

import io
import json
import logging
import os
import shlex
import subprocess
import sys

import pytest

from tapfinger_hpc import log
from tapfinger_hpc.log import Lines

NASTY = 'two\nlines "quoted" =\x1b[31m\u2028end'


@pytest.fixture
def logged():
    """Logs with a formatter; returns what was written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("tests.log")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [handler]

    def write(formatter: Lines, *arguments, **fields) -> list[str]:
        handler.setFormatter(formatter)
        log.event(logger, *arguments, **fields)
        return stream.getvalue().splitlines()

    yield write
    logger.handlers.clear()


def test_an_event_is_one_line_of_words_that_can_be_taken_apart(logged) -> None:
    (line,) = logged(Lines("text"), logging.INFO, "placed", job="7", node="n1", cpus=4, ms=1.5, reason=NASTY, why="")
    at, *words = shlex.split(line)
    assert at.startswith("at=2")
    assert words[:6] == ["level=info", "event=placed", "job=7", "node=n1", "cpus=4", "ms=1.5"]
    name, _, value = line.partition(" reason=")[1:][1].partition("\0")
    assert json.loads(name) == NASTY
    assert value == ""
    assert "why=" not in line


def test_as_json_it_holds_the_same(logged) -> None:
    (line,) = logged(Lines("json"), logging.WARNING, "not-placed", job="7", cpus=4, why=NASTY)
    fields = json.loads(line)
    assert fields.pop("at")
    assert fields == {"level": "warning", "event": "not-placed", "job": "7", "cpus": 4, "why": NASTY}


def test_in_the_journal_the_line_says_how_serious_it_is_and_leaves_the_time_to_it(logged) -> None:
    (line,) = logged(Lines("text", for_journal=True), logging.ERROR, "journal-broken", file="/j")
    assert line == "<3>level=error event=journal-broken file=/j"


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_traceback_stays_on_its_line(logged, kind: log.Format) -> None:
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        (line,) = logged(Lines(kind), logging.ERROR, "failed", decision="d1", error=error)
    assert "in test_a_traceback_stays_on_its_line" in line


def test_what_a_library_says_has_a_place_too() -> None:
    record = logging.LogRecord("waitress", logging.WARNING, "f.py", 1, "%s is late", ("it",), None)
    assert Lines("text", for_journal=True).format(record) == '<4>level=warning event=said by=waitress text="it is late"'


def test_events_below_the_level_are_not_logged(logged) -> None:
    assert logged(Lines("text"), logging.DEBUG, "answered") == []


@pytest.mark.parametrize("in_journal", [True, False])
def test_a_process_knows_whether_systemd_gave_it_a_stream_to_the_journal(in_journal: bool) -> None:
    code = (
        "import logging, os; from tapfinger_hpc import log; s = os.fstat(2);"
        f"log.to_stderr('text', 'info', {{'JOURNAL_STREAM': f'{{s.st_dev}}:{{s.st_ino + {int(not in_journal)}}}'}});"
        "log.event(logging.getLogger(), logging.INFO, 'started')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert said.stderr.startswith("<6>level=info event=started" if in_journal else "at=")
