"""Moments as people give them: how long ago, a date, or seconds since the epoch. Pure."""

import re
from datetime import datetime, tzinfo

from tapfinger_hpc.errors import TraceError

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGO = re.compile(r"(\d{1,6})([mhdw])", re.ASCII)
_EPOCH = re.compile(r"\d{9,11}", re.ASCII)


def moment_s(text: str, zone: tzinfo, now_s: float) -> int | None:
    """Seconds since the epoch of ``30d`` (that long ago), ``2025-01-31[T12:00]`` in the zone, or of such seconds.

    None for no text.

    Raises:
        TraceError: the text is none of these.
    """
    spelling = text.strip()
    if not spelling:
        return None
    if match := _AGO.fullmatch(spelling):
        return int(now_s) - int(match[1]) * _UNITS_S[match[2]]
    if _EPOCH.fullmatch(spelling):
        return int(spelling)
    try:
        moment = datetime.fromisoformat(spelling)
    except ValueError as error:
        raise TraceError(f"moment {text!r}: expected 30d, 12h, 2025-01-31, 2025-01-31T12:00 or seconds") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp())
