"""Log lines of the services: one line an event, ``key=value`` or JSON, the same names everywhere.

Whatever a value holds (a user's comment, a traceback), it stays on its line and in its field. Under systemd the time is
left to the journal, and each line tells it how serious it is.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Literal

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

_FIELDS = "tapfinger_fields"
_EVENT = "tapfinger_event"
_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f]+")
_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def event(
    logger: logging.Logger, level: int, name: str, /, *, error: BaseException | None = None, **fields: object
) -> None:
    """Logs an event with its fields; those that are None or "" are left out.

    Args:
        error: a mistake of ours, whose traceback goes along.
    """
    if logger.isEnabledFor(level):
        said = {key: value for key, value in fields.items() if value is not None and value != ""}
        extra = {_EVENT: name, _FIELDS: said}
        logger.log(level, "%s", _spelled({"event": name, **said}), exc_info=error, extra=extra, stacklevel=2)


def to_stderr(kind: Format, level: Level, environment: Mapping[str, str]) -> None:
    """Has everything that is logged in this process go to standard error in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(kind, for_journal=_is_journal(environment)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class Lines(logging.Formatter):
    """One line for each record."""

    def __init__(self, kind: Format, *, for_journal: bool = False) -> None:
        super().__init__()
        self._kind, self._for_journal = kind, for_journal

    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        line = json.dumps(fields, default=str) if self._kind == "json" else _spelled(fields)
        return f"<{_SYSLOG.get(record.levelno, 5)}>{line}" if self._for_journal else line

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        fields: dict[str, object] = {}
        if not self._for_journal:
            whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
            zone = time.strftime("%z", time.localtime(record.created))
            fields["at"] = f"{whole}.{int(record.msecs):03d}{zone}"
        fields["level"] = record.levelname.lower()
        ours = getattr(record, _FIELDS, None)
        if ours is None:
            # A library's own words.
            fields |= {"event": "said", "by": record.name, "text": record.getMessage()}
        else:
            fields |= {"event": getattr(record, _EVENT), **ours}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


def _spelled(fields: Mapping[str, object]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    """As it is where it is one plain word, else quoted as JSON does: no line break, no doubt where it ends."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _is_journal(environment: Mapping[str, str]) -> bool:
    """Whether standard error goes to journald: systemd names the stream that it gave us."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
