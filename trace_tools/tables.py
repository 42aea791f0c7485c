"""Text of sacct into columns of text. Arrow cuts the lines; those that it refuses are looked at one by one.

A line that cannot be cut costs its own record alone: a name with the delimiter or a line break in it is put together
again where that gives a believable row, else the line is counted as broken.
"""

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from tapfinger_hpc.errors import TraceError
from trace_tools import layout as layouts
from trace_tools.assemble import Columns
from trace_tools.blocks import LONGEST_LINE, Source
from trace_tools.layout import Layout
from trace_tools.reasons import Tally

_SEPARATOR = b"\x1f"
"""What a delimiter of several bytes is replaced by."""
_MESSAGE = re.compile(r"\s*(sacct|slurm\w*|srun|ssh|bash|-bash|kex_exchange\w*)(\[\d+\])?: ")
_COMMENT = re.compile(r"\s*#")
_LOOKED_AT = 400
"""Lines that a layout is found from."""
_MOST_JOINED = 40
"""Lines that one record may be spread over."""
_NO_ROWS = {"": pa.array([], pa.string())}


def read_text(source: Source, tally: Tally, delimiter: str = "", fields: Sequence[str] = ()) -> Iterator[Columns]:
    """The rows of a source, in batches that keep the steps of a job together with it.

    Raises:
        TraceError: nothing in the beginning of the source looks like accounting.
    """
    lines = _first_lines(source)
    layout = _layout_of(lines, delimiter, fields)
    many = _many_shapes(lines, layout)
    if layout is None and (not many or fields):
        raise TraceError(_not_accounting(source.name, lines))
    batches = _shapes(source, tally) if many or layout is None else _batches(source, layout, tally)
    yield from _with_whole_jobs(_with_ids(columns) for columns in batches)


def _first_lines(source: Source) -> list[str]:
    text = source.beginning().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    whole = text if len(text) < 4096 or "\n" not in text else text[: text.rfind("\n") + 1]
    lines = whole.splitlines()
    return [line for line in lines if line.strip()][:_LOOKED_AT]


def _layout_of(lines: Sequence[str], delimiter: str, fields: Sequence[str]) -> Layout | None:
    rows = [line for line in lines if not _MESSAGE.match(line) and not _COMMENT.match(line)]
    if not rows:
        return None
    if fields:
        return layouts.of_fields(fields, rows, delimiter)
    for line, following in zip(rows[:20], [*rows[1:21], ""], strict=False):
        if found := layouts.of_header(line, following):
            return found
    return layouts.of_content(rows, delimiter)


def _not_accounting(name: str, lines: Sequence[str]) -> str:
    if not lines:
        return f"{name!r} is empty: expected rows of sacct; `tapfinger trace collect` writes them"
    for line in lines:
        if _MESSAGE.match(line):
            return f"{name!r} holds no accounting but a message: {line.strip()[:200]!r}; ask sacct again"
    begins = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in lines[0][:80])
    return (
        f"{name!r}: begins with {begins!r}, which is neither a header of sacct nor rows with a job state in them; "
        "say what they are with --fields JobID,State,... and --delimiter"
    )


def _many_shapes(lines: Sequence[str], layout: Layout | None) -> bool:
    """Whether the file, without a header, is of rows of several kinds: pieces that someone has put together."""
    if layout is not None and (layout.header_line or layout.widths):
        return False
    rows = [line for line in lines if not _MESSAGE.match(line) and not _COMMENT.match(line)]
    if layout is not None:
        fitting = sum(line.count(layout.delimiter) + 1 == len(layout.names) for line in rows)
        return fitting < 0.7 * len(rows)
    return any(layouts.of_content(of_shape, delimiter) for (delimiter, _), of_shape in _by_shape(rows).items())


def _by_shape(rows: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """Lines by their delimiter and how often it stands in them; those without one are left out."""
    shapes: dict[tuple[str, int], list[str]] = {}
    for line in rows:
        if delimiter := layouts.likely_delimiter([line]):
            shapes.setdefault((delimiter, line.count(delimiter)), []).append(line)
    return shapes


# One layout.


def _batches(source: Source, layout: Layout, tally: Tally) -> Iterator[Columns]:
    cut = _Fixed(layout, tally) if layout.widths else _Cut(layout, tally)
    for block in source.line_blocks():
        yield cut.columns(block)
    cut.end()


class _Cut:
    """Cuts blocks of delimited lines."""

    def __init__(self, layout: Layout, tally: Tally) -> None:
        self._layout = layout
        self._tally = tally
        self._rest = b""
        """Lines of a record that may go on in the next block."""
        raw = layout.delimiter.encode()
        self._raw = raw if len(raw) > 1 else b""
        self._delimiter = _SEPARATOR if self._raw else raw
        self._columns = [name or f"unused {index}" for index, name in enumerate(_once(layout.names))]
        self._header = layout.header_line.encode("utf-8", "replace").replace(self._raw or b"\0", self._delimiter)
        first_used = next(index for index, name in enumerate(layout.names) if name)
        self._first = self._columns[first_used]
        self._first_header = layout.header_line.split(layout.delimiter)[first_used].strip('" ') if self._header else ""

    def columns(self, block: bytes) -> Columns:
        """The rows of this block."""
        if self._rest:
            block, self._rest = self._rest + b"\n" + block, b""
        if self._raw:
            block = block.replace(_SEPARATOR, b" ").replace(self._raw, _SEPARATOR)
        table = self._parsed(block.removeprefix(b"\xef\xbb\xbf"))
        if table is None:
            return _NO_ROWS
        columns = {name: _one(table.column(name)) for name in table.column_names}
        return _without(columns, self._first, self._first_header, self._tally)

    def end(self) -> None:
        """Counts what no further line has made whole."""
        if self._rest:
            self._lost(self._rest)
            self._rest = b""

    def _parsed(self, block: bytes) -> pa.Table | None:
        """The lines cut by arrow, once all that it refuses is mended; None where no line is left."""
        for mend in (lambda refused: refused, self._in_utf8, self._mended):
            block = mend(block)
            if not block.strip(b"\r\n"):
                return None
            try:
                return self._table(block)
            except pa.ArrowInvalid:
                continue
        for line in filter(None, block.split(b"\n")):
            self._lost(line)
        return None

    def _table(self, block: bytes) -> pa.Table:
        used = [name for name in self._columns if not name.startswith("unused ")]
        return csv.read_csv(
            pa.BufferReader(block),
            csv.ReadOptions(column_names=self._columns, block_size=2 * LONGEST_LINE),
            csv.ParseOptions(
                delimiter=self._delimiter.decode(),
                quote_char='"' if self._layout.quoted else False,
            ),
            csv.ConvertOptions(
                include_columns=used, column_types=dict.fromkeys(used, pa.string()), strings_can_be_null=False
            ),
        )

    def _in_utf8(self, block: bytes) -> bytes:
        strange = []
        for line in block.splitlines():
            try:
                line.decode()
            except UnicodeDecodeError:
                strange.append(line)
        self._tally.add("not-utf8", len(strange), strange)
        return block.decode("utf-8", "replace").encode()

    # Lines that arrow refuses.

    def _mended(self, block: bytes) -> bytes:
        """The block with every line of the right number of fields; what cannot be mended is counted and left out."""
        wanted = len(self._layout.names) - 1
        whole: list[bytes] = []
        part = b""
        joined = 0
        for line in block.replace(b"\r\n", b"\n").replace(b"\r", b" ").split(b"\n"):
            found = line.count(self._delimiter)
            if len(line) > LONGEST_LINE:
                self._tally.rows += 1
                self._tally.add("line-too-long", 1, [line[:200]])
                continue
            if part:
                both = part + b" " + line
                if both.count(self._delimiter) == wanted and self._believable(both):
                    self._tally.add("joined-lines", 1, [both])
                    whole.append(both)
                    part = b""
                    continue
                if both.count(self._delimiter) < wanted and joined < _MOST_JOINED and not self._begins_row(line):
                    part, joined = both, joined + 1
                    continue
                self._lost(part)
                part = b""
            if not line.strip():
                continue
            if found == wanted:
                whole.append(line)
            elif not found and whole and self._goes_on(line):
                self._tally.add("joined-lines", 1, [whole[-1] + b" " + line])
                whole[-1] += b" " + line
            elif found < wanted and not self._is_remark(line):
                part, joined = line, 0
            elif found > wanted and (mended := self._merged(line, found - wanted)):
                self._tally.add("joined-fields", 1, [line])
                whole.append(mended)
            else:
                self._lost(line)
        self._rest = part
        return b"\n".join(whole) + b"\n"

    def _begins_row(self, line: bytes) -> bool:
        """Whether this is the beginning of another record rather than more of the one before."""
        if "JobID" not in self._layout.names:
            return False
        fields = line.split(self._delimiter)
        index = self._layout.names.index("JobID")
        return len(fields) > index + 1 and bool(re.match(rb"\d+(_|\+|\.|$)", fields[index].strip()))

    def _goes_on(self, line: bytes) -> bool:
        """Whether a line without delimiters is more of the row before: its last field is a user's own text."""
        free_end = len(self._layout.names) - 1 in self._layout.free_fields
        return free_end and len(self._layout.names) > 1 and not line.strip()[:1].isdigit() and not self._is_remark(line)

    def _is_remark(self, line: bytes) -> bool:
        text = line[:200].decode("utf-8", "replace")
        return bool(_MESSAGE.match(text) or _COMMENT.match(text))

    def _believable(self, line: bytes) -> bool:
        return self._layout.believable(line.decode("utf-8", "replace").split(self._delimiter.decode()))

    def _merged(self, line: bytes, spare: int) -> bytes:
        """The line with the fields of one free text put together, empty where none makes a believable row."""
        fields = line.split(self._delimiter)
        for index in self._layout.free_fields:
            merged = [*fields[:index], b" ".join(fields[index : index + spare + 1]), *fields[index + spare + 1 :]]
            mended = self._delimiter.join(merged)
            if self._believable(mended):
                return mended
        return b""

    def _lost(self, line: bytes) -> None:
        shown = line.replace(_SEPARATOR, self._raw) if self._raw else line
        text = shown[:400].decode("utf-8", "replace")
        if _COMMENT.match(text):
            self._tally.rows += 1
            self._tally.add("comment", 1, [shown])
            return
        self._tally.rows += 1
        if _MESSAGE.match(text):
            self._tally.add("message", 1, [shown])
        elif _is_junk(text):
            self._tally.add("not-text", 1, [shown[:200]])
        else:
            self._tally.add("broken-line", 1, [shown[:400]])


def _is_junk(text: str) -> bool:
    strange = sum(
        letter == "\N{REPLACEMENT CHARACTER}" or (ord(letter) < 32 and letter not in "\t\x1e\x1f") for letter in text
    )
    return strange > 0.1 * max(10, len(text))


def _once(names: Sequence[str]) -> list[str]:
    """Each name where it stands first: AllocCPUS and NCPUS are one field."""
    seen: set[str] = set()
    once = []
    for name in names:
        once.append("" if name in seen else name)
        seen.add(name)
    return once


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _without(columns: Columns, name: str, header: str, tally: Tally) -> Columns:
    """Leaves out the header itself, and wherever it comes again."""
    if not header or not len(columns[name]):
        return columns
    is_header = pc.equal(pc.utf8_trim_whitespace(columns[name]), header)
    if not pc.any(is_header).as_py():
        return columns
    rows = pc.invert(is_header)
    return {each: column.filter(rows) for each, column in columns.items()}


class _Fixed:
    """Cuts blocks of lines whose fields have fixed widths, the way sacct prints for people."""

    def __init__(self, layout: Layout, tally: Tally) -> None:
        self._layout = layout
        self._tally = tally

    def columns(self, block: bytes) -> Columns:
        rows: dict[str, list[str]] = {name: [] for name in self._layout.names if name}
        for line in block.decode("utf-8", "replace").splitlines():
            if not line.strip() or line == self._layout.header_line or layouts._DASHES.fullmatch(line):
                continue
            cells = layouts.cut(line, self._layout.widths)
            if not self._layout.believable(cells) or _MESSAGE.match(line):
                self._tally.rows += 1
                self._tally.add("message" if _MESSAGE.match(line) else "broken-line", 1, [line])
                continue
            for name, cell in zip(self._layout.names, cells, strict=True):
                if name:
                    rows[name].append(cell)
        return {name: pa.array(cells, pa.string()) for name, cells in rows.items()}

    def end(self) -> None:
        """Nothing goes on from one block to the next."""


# Several layouts in one file.


def _shapes(source: Source, tally: Tally) -> Iterator[Columns]:
    """Rows of a file that was put together of pieces: those of one width are read together."""
    for block in source.line_blocks():
        rows = []
        for line in block.decode("utf-8", "replace").splitlines():
            remark = "message" if _MESSAGE.match(line) else "comment" if _COMMENT.match(line) else ""
            if remark or not line.strip() or not layouts.likely_delimiter([line]):
                tally.rows += bool(line.strip())
                tally.add(remark or "broken-line", bool(line.strip()), [line])
                continue
            rows.append(line)
        for (delimiter, _), lines in _by_shape(rows).items():
            found = layouts.of_content(lines, delimiter)
            if found is None:
                tally.rows += len(lines)
                tally.add("no-state", len(lines), lines)
                continue
            cut = _Cut(found, tally)
            yield cut.columns(("\n".join(lines) + "\n").encode())
            cut.end()


# Jobs and their steps.


def _with_ids(columns: Columns) -> Columns:
    """Rows without job ids get those of their place: a job, or a step of the job before where only steps look so."""
    if "JobID" in columns or "JobName" not in columns or "User" not in columns:
        return columns
    steps = {"batch", "extern", "interactive"}
    ids, jobs = [], 0
    names, users = columns["JobName"].to_pylist(), columns["User"].to_pylist()
    for name, user in zip(names, users, strict=True):
        is_step = bool(jobs) and not user and (name in steps or not user.strip())
        jobs += not is_step
        ids.append(f"row{jobs}.{name or 0}" if is_step else f"row{jobs}")
    return {**columns, "JobID": pa.array(ids, pa.string())}


def _with_whole_jobs(batches: Iterator[Columns]) -> Iterator[Columns]:
    """The same rows; the last job of each batch waits for the next, which may begin with its steps."""
    waiting: Columns | None = None
    for columns in batches:
        if waiting is not None and "JobID" in waiting and waiting.keys() == columns.keys():
            last = _last_job(waiting["JobID"])
            yield {name: column.slice(0, last) for name, column in waiting.items()}
            columns = {name: pa.concat_arrays([waiting[name].slice(last), each]) for name, each in columns.items()}
        elif waiting is not None:
            yield waiting
        waiting = columns
    if waiting is not None:
        yield waiting


def _last_job(ids: pa.Array) -> int:
    """Where the rows of the last job begin: its own, or that of the first part of a heterogeneous job."""
    last, head = len(ids), ""
    for row in range(len(ids) - 1, max(-1, len(ids) - 100_000), -1):
        job, dot, _ = ids[row].as_py().partition(".")
        if dot:
            continue
        root, plus, _ = job.partition("+")
        if head and root != head:
            break
        last, head = row, root
        if not plus:
            break
    return last
