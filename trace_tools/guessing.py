"""Which field of a row without header is which, from what stands in the rows. Pure.

Only what can be told with reason is told: a state, job ids, moments that differ by the elapsed time, amounts of memory
that stand on steps alone. A field of which nothing is certain keeps no name.
"""

import re
from collections.abc import Callable, Sequence
from statistics import fmean, median

from trace_tools import spelling

ID = re.compile(r"\d+(_(\d+|\[[^\]]*\]))?(\+\d+)?(\.[\w+]+)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d", re.ASCII)
_EPOCH = re.compile(r"1\d{9}", re.ASCII)
_CLOCK = re.compile(r"(\d+-)?\d+:\d\d(:\d\d)?", re.ASCII)
_FINE_CLOCK = re.compile(r"(\d+-)?(\d+:)?\d+:\d\d\.\d+", re.ASCII)
_MEMORY = re.compile(r"\d+(\.\d+)?[KMGTP]?[nc]|\d+(\.\d+)?[KMGTP]", re.ASCII)
_COUNT = re.compile(r"\d{1,6}", re.ASCII)
_TRES = re.compile(r"(^|,)(cpu|node|billing)=\d+(,|$)|gres/gpu")
_NO_DATE = frozenset({"Unknown", "None"})
_NO_LIMIT = frozenset({"UNLIMITED", "Partition_Limit", "INVALID"})
_STEP_NAMES = frozenset({"batch", "extern", "interactive"})
_LARGEST_MEDIAN = 1024
"""CPUs or nodes of a usual job; ids of users and groups are larger."""
_MOST = 0.6
"""Of rows that must agree before it is believed."""


def is_state(text: str) -> bool:
    """Whether the text may be a state, of whatever release."""
    return bool(re.fullmatch(r"[A-Z_]{3,}|[A-Z]{1,3}", text.split(" ")[0].rstrip("+")))


def is_date(text: str) -> bool:
    """Whether the text is a moment, or says that there is none."""
    return bool(_DATE.match(text)) or text in _NO_DATE or (text.isdecimal() and len(text) >= 9)


def is_clock(text: str) -> bool:
    """Whether the text is a time of the form ``1-02:03:04``."""
    return bool(_CLOCK.fullmatch(text))


def guessed(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of the fields of rows of one width; empty where no state is among them."""
    return _Guess(rows).names()


class _Guess:
    """Columns, and the names that they have been given so far."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self._columns = [[row[index].strip() for row in rows] for index in range(len(rows[0]))]
        self._names = [""] * len(self._columns)
        self._free = list(range(len(self._columns)))
        self._step = [False] * len(rows)

    def names(self) -> tuple[str, ...]:
        states = {index: sum(map(_is_known_state, self._columns[index])) for index in self._free}
        best = max(states, key=lambda index: states[index])
        if states[best] < 0.5 * len(self._step):
            return ()
        self._take("State", best)
        self._name_ids()
        elapsed = self._elapsed_candidates()
        self._name_moments(elapsed)
        self._name_limit()
        self._name_lists()
        self._name_memory()
        self._name_counts()
        self._take("NodeList", self._first(lambda text: text == "None assigned", share=0))
        self._take("JobName", self._first(lambda text: text in _STEP_NAMES, share=0))
        return tuple(self._names)

    def _take(self, name: str, index: int | None) -> None:
        if index is not None:
            self._names[index] = name
            self._free.remove(index)

    def _like(self, index: int, test: Callable[[str], object], share: float = 0.9) -> bool:
        filled = [text for text in self._columns[index] if text]
        found = sum(bool(test(text)) for text in filled)
        return found > 0 and found >= share * len(filled)

    def _first(self, test: Callable[[str], object], share: float = 0.9) -> int | None:
        return next((index for index in self._free if self._like(index, test, share)), None)

    def _filled_on(self, index: int, *, steps: bool) -> float:
        """Share of the rows of jobs, or of steps, on which the column says something."""
        cells = [text for text, step in zip(self._columns[index], self._step, strict=True) if step == steps]
        return sum(text not in ("", "Unknown") for text in cells) / len(cells) if cells else 0.0

    # One kind of field each.

    def _name_ids(self) -> None:
        """The column that looks most like job ids: parts of arrays, steps, large numbers."""

        def score(index: int) -> float:
            cells = self._columns[index]
            parted = sum(("." in text) + 2 * ("_" in text or "+" in text) for text in cells)
            return parted / len(cells) + sum(len(text.split(".")[0]) >= 3 for text in cells) / len(cells)

        able = [index for index in self._free if self._like(index, ID.fullmatch) and all(self._columns[index])]
        distinct = {index: len(set(self._columns[index])) for index in able}
        able = [index for index in able if distinct[index] >= 0.5 * max(distinct.values())]
        best = max(able, key=score, default=None)
        if best is None or score(best) < 0.5:
            return
        self._take("JobID", best)
        self._step = ["." in text for text in self._columns[best]]
        for index in list(self._free):  # JobIDRaw
            if self._like(index, ID.fullmatch) and ["." in text for text in self._columns[index]] == self._step:
                alike = sum(a == b for a, b in zip(self._columns[index], self._columns[best], strict=True))
                if any(self._step) or alike >= _MOST * len(self._step):
                    self._free.remove(index)

    def _elapsed_candidates(self) -> dict[int, list[float | None]]:
        """Columns that may be the elapsed time, with their seconds: a clock or a number on jobs and steps alike."""
        found = {}
        for index in self._free:
            cells = self._columns[index]
            clock = self._like(index, is_clock) and not any(map(_FINE_CLOCK.fullmatch, cells))
            if not clock and not self._like(index, str.isdecimal):
                continue
            if self._filled_on(index, steps=False) < 0.9 or (
                any(self._step) and self._filled_on(index, steps=True) < 0.5
            ):
                continue
            seconds = [_seconds(text) for text in cells]
            if any(seconds):
                found[index] = seconds
        return found

    def _name_moments(self, elapsed: dict[int, list[float | None]]) -> None:
        """Start and end are those that differ by an elapsed time; what is before them is the submission."""
        dates = [index for index in self._free if self._like(index, lambda text: _DATE.match(text) or text in _NO_DATE)]
        dates += [
            index for index in self._free if self._like(index, lambda text: _EPOCH.fullmatch(text) or text in _NO_DATE)
        ]
        moments = {index: [_moment(text) for text in self._columns[index]] for index in dict.fromkeys(dates)}
        moments = {index: times for index, times in moments.items() if any(times)}
        ordered = sorted(moments, key=lambda index: (_rank(moments, index), index))
        clocks = [index for index in elapsed if self._like(index, is_clock)]
        pairs = [
            (_agreeing(moments[start], moments[end], elapsed[index]), index in clocks, start, end, index)
            for index in elapsed
            if index not in moments
            for start in ordered
            for end in ordered
            if start != end
        ]
        share, _, start, end, index = max(pairs, default=(0.0, False, -1, -1, -1), key=lambda pair: pair[:2])
        if share >= _MOST:
            self._take("Elapsed" if index in clocks else "ElapsedRaw", index)
            self._take("Start", start)
            self._take("End", end)
            before = [other for other in ordered if other not in (start, end)]
            for name, other in zip(("Submit", "Eligible"), before, strict=False):
                self._take(name, other)
            return
        self._take("Elapsed", clocks[0] if clocks else None)
        if not ordered:
            return
        self._take("Submit", ordered[0])
        if len(ordered) > 1:
            told = elapsed[clocks[0]] if clocks else []
            first, last = moments[ordered[0]], moments[ordered[-1]]
            after = [a and b and e is not None and b - a >= e for a, b, e in zip(first, last, told, strict=False)]
            self._take("End" if after and sum(map(bool, after)) >= _MOST * len(after) else "Start", ordered[-1])

    def _name_limit(self) -> None:
        """A clock on jobs alone, or a round number of minutes on jobs alone."""
        limits = [
            index
            for index in self._free
            if self._like(index, lambda text: is_clock(text) or text in _NO_LIMIT)
            and not any(map(_FINE_CLOCK.fullmatch, self._columns[index]))
            and self._filled_on(index, steps=False) > _MOST
            and self._filled_on(index, steps=True) == 0
            and any(text in _NO_LIMIT or _seconds(text) for text in self._columns[index])
        ]
        if limits:
            self._take("Timelimit", max(limits, key=lambda index: _roundness(self._columns[index])))
        elif any(self._step):
            minutes = [
                index
                for index in self._free
                if self._like(index, lambda text: _COUNT.fullmatch(text) or text in _NO_LIMIT)
                and self._filled_on(index, steps=True) == 0
                and self._filled_on(index, steps=False) > _MOST
                and sum(int(text) % 5 == 0 for text in self._columns[index] if text.isdecimal())
                >= _MOST * sum(text.isdecimal() for text in self._columns[index])
            ]
            self._take("TimelimitRaw", minutes[0] if minutes else None)

    def _name_lists(self) -> None:
        lists = [index for index in self._free if self._like(index, _is_tres_list)]
        self._take("AllocTRES", lists[-1] if lists else None)
        self._take("ReqTRES", lists[0] if len(lists) > 1 else None)

    def _name_memory(self) -> None:
        """What was asked for stands on jobs; of what was measured the resident is less than the virtual."""
        amounts = [
            index
            for index in self._free
            if self._like(index, lambda text: _MEMORY.fullmatch(text) or text == "0")
            and any(map(_MEMORY.fullmatch, self._columns[index]))
        ]
        asked = [index for index in amounts if self._filled_on(index, steps=False) > _MOST]
        self._take("ReqMem", asked[0] if asked else None)
        measured = {
            index: fmean(int(text[:-1]) for text in self._columns[index] if re.fullmatch(r"\d+K", text))
            for index in amounts
            if index not in asked and self._filled_on(index, steps=False) == 0 and self._mostly_kib(index)
        }
        self._take("MaxRSS", min(measured, key=lambda index: measured[index], default=None))

    def _mostly_kib(self, index: int) -> bool:
        measured = [text for text in self._columns[index] if text not in ("", "0")]
        return sum(bool(re.fullmatch(r"\d+K", text)) for text in measured) >= 0.7 * len(measured) > 0

    def _name_counts(self) -> None:
        """CPUs and nodes, where no list of TRES says them; of two columns the one with more in it is that of CPUs."""
        if "AllocTRES" in self._names:
            return
        counts = {}
        for index in self._free:
            if self._like(index, _COUNT.fullmatch) and self._filled_on(index, steps=False) > 0.9:
                values = [int(text) for text in self._columns[index] if _COUNT.fullmatch(text)]
                if median(values) <= _LARGEST_MEDIAN:
                    counts[index] = fmean(values)
        ordered = sorted(counts, key=lambda index: -counts[index])
        self._take("NCPUS", ordered[0] if ordered else None)
        self._take("NNodes", ordered[-1] if len(ordered) > 1 else None)


def _is_known_state(text: str) -> bool:
    try:
        return len(text) > 2 and bool(spelling.state(text))
    except ValueError:
        return False


def _is_tres_list(text: str) -> bool:
    return "=" in text and bool(_TRES.search(text)) and "fs/disk" not in text


def _seconds(text: str) -> float | None:
    try:
        return spelling.clock_s(text)
    except ValueError:
        return None


def _moment(text: str) -> int | None:
    try:
        return spelling.time_s(text)
    except ValueError:
        return None


def _rank(moments: dict[int, list[int | None]], index: int) -> float:
    """How many of the other moments are before this one, on average."""
    rows = [row for row in zip(*moments.values(), strict=True) if all(row)]
    place = list(moments).index(index)
    return fmean(sum(other < row[place] for other in row) for row in rows) if rows else 0.0


def _agreeing(starts: Sequence[int | None], ends: Sequence[int | None], elapsed: Sequence[float | None]) -> float:
    """Share of the rows that ran for a while in which end less start is this long."""
    told = [
        (start, end, seconds)
        for start, end, seconds in zip(starts, ends, elapsed, strict=True)
        if start and end and seconds
    ]
    return sum(end - start == seconds for start, end, seconds in told) / len(told) if len(told) else 0.0


def _roundness(cells: Sequence[str]) -> float:
    """Share of the limits that are whole minutes."""
    told = [seconds for text in cells if (seconds := _seconds(text))]
    return sum(seconds % 60 == 0 for seconds in told) / len(told) if told else 1.0
