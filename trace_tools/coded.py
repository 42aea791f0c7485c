"""Columns of text, read once for each distinct spelling.

Arrow finds the distinct ones, Python reads them, numpy spreads what they say over the rows. So millions of rows cost
little, and there is one definition of what a spelling means.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trace_tools.reasons import EXAMPLES, Tally

MOST = 2.0**53
"""Amounts beyond this cannot be meant."""


class Coded:
    """A column as a code for each row and the spelling of each code."""

    def __init__(self, codes: np.ndarray, spellings: Sequence[str]) -> None:
        self.codes = codes
        self.spellings = spellings

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def of(cls, column: pa.Array) -> "Coded":
        encoded = column.dictionary_encode()
        return cls(encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist())

    @classmethod
    def constant(cls, text: str, rows: int) -> "Coded":
        return cls(np.zeros(rows, np.int32), [text])

    def take(self, rows: np.ndarray) -> "Coded":
        return Coded(self.codes[rows], self.spellings)

    def each(self, change: Callable[[str], str]) -> "Coded":
        """The same rows with another text for each spelling."""
        return Coded(self.codes, [change(spelling) for spelling in self.spellings])

    def rows_where(self, test: Callable[[str], bool]) -> np.ndarray:
        """Which rows hold a spelling of this kind."""
        return np.fromiter(map(test, self.spellings), bool, len(self.spellings))[self.codes]

    def read(self, parse: Callable[[str], Any], note: str, tally: Tally, default: Any = None) -> list[Any]:
        """What each spelling says; one that cannot be read is noted for each of its rows and taken as ``default``."""
        said: list[Any] = []
        unread: list[int] = []
        for code, spelling in enumerate(self.spellings):
            try:
                value = parse(spelling)
            except (ValueError, OverflowError):
                unread.append(code)
                value = None
            said.append(default if value is None else value)
        if unread:
            rows = int(np.bincount(self.codes, minlength=len(said))[unread].sum())
            tally.add(note, rows, (self.spellings[code] for code in unread[:EXAMPLES]))
        return said

    def numbers(self, parse: Callable[[str], float | None], note: str, tally: Tally) -> np.ndarray:
        """A number for each row, NaN where there is none."""
        values = np.array(self.read(parse, note, tally, np.nan), dtype=np.float64)
        values[~(np.abs(values) < MOST)] = np.nan
        return values[self.codes] if len(values) else np.zeros(0)

    def arrow(self) -> pa.Array:
        """The rows as text."""
        return pa.array(self.spellings, pa.string()).take(pa.array(self.codes))


def numbers(column: pa.Array, parse: Callable[[str], float | None], note: str, tally: Tally) -> np.ndarray:
    """A number for each row, NaN where there is none. Plain digits need no Python at all."""
    plain = pc.and_(pc.ascii_is_decimal(column), pc.less_equal(pc.binary_length(column), 15))
    values = _cast(column, plain, pa.int64())
    rest = pc.invert(plain)
    if pc.any(rest).as_py():
        where = rest.to_numpy(zero_copy_only=False)
        values[where] = Coded.of(column.filter(rest)).numbers(parse, note, tally)
    return values


def times(column: pa.Array, parse: Callable[[str], float | None], zone: str, note: str, tally: Tally) -> np.ndarray:
    """Seconds since the epoch for each row, NaN where there is none: plain digits, or date and time in the zone."""
    is_date = pc.match_substring_regex(column, r"^\d{4}-[01]\d-[0-3]\d[T ][0-2]\d:[0-5]\d:[0-5]\d$")
    if not pc.any(is_date).as_py():
        return numbers(column, parse, note, tally)
    where = is_date.to_numpy(zero_copy_only=False)
    values = np.full(len(column), np.nan)
    try:
        moments = column.filter(is_date).cast(pa.timestamp("s"))
    except pa.ArrowInvalid:  # the 31st of June
        return Coded.of(column).numbers(parse, note, tally)
    if zone != "UTC":
        moments = pc.assume_timezone(moments, zone, ambiguous="earliest", nonexistent="earliest")
    values[where] = moments.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if not where.all():
        values[~where] = numbers(column.filter(pc.invert(is_date)), parse, note, tally)
    return values


def examples(rows: np.ndarray, show: Callable[[int], object]) -> list[object]:
    """The first few of the rows that are marked."""
    return [show(int(row)) for row in np.flatnonzero(rows)[:EXAMPLES]]


def _cast(column: pa.Array, where: pa.Array, kind: pa.DataType) -> np.ndarray:
    values = np.full(len(column), np.nan)
    if pc.any(where).as_py():
        cast = column.filter(where).cast(kind).to_numpy(zero_copy_only=False)
        values[where.to_numpy(zero_copy_only=False)] = cast
    return values
