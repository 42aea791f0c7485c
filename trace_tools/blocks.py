"""Bytes of a source, whatever it is packed in, in blocks of whole lines. Memory does not grow with the file."""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from tapfinger_hpc.errors import TraceError
from trace_tools.reasons import Tally

BLOCK = 1 << 23
LONGEST_LINE = 1 << 20
STANDARD_INPUT = "-"
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


class Stream(Protocol):
    """What is needed of an open file."""

    def read(self, size: int) -> bytes: ...


class Source:
    """One open file, or standard input: its beginning can be looked at before it is read."""

    def __init__(self, name: str, raw: IO[bytes], tally: Tally) -> None:
        self.name = name
        self._raw = _Counted(raw)
        self._tally = tally
        self._stream = _unpacked(self._raw, name)
        self._ahead = b""
        self._ended = False

    @property
    def read_bytes(self) -> int:
        """How much of the file itself has been read."""
        return self._raw.count

    def beginning(self, size: int = 1 << 18) -> bytes:
        """The first bytes; they are read again by what follows."""
        while len(self._ahead) < size and (more := self._read(size)):
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end."""
        if self._ahead:
            taken, self._ahead = self._ahead[:size], self._ahead[size:]
            return taken
        return self._read(size)

    def line_blocks(self, size: int = BLOCK) -> Iterator[bytes]:
        """Blocks that end with a line; a line that is too long to be a record is counted and passed over."""
        rest = b""
        skipping = False
        while block := self.read(size):
            if skipping:
                _, newline, block = block.partition(b"\n")
                if not newline:
                    continue
                skipping = False
            cut = block.rfind(b"\n") + 1
            if cut:
                yield rest + block[:cut] if rest else block[:cut]
                rest = block[cut:]
            else:
                rest += block
            if len(rest) > LONGEST_LINE:
                self._tally.rows += 1
                self._tally.add("line-too-long", 1, [rest[:200]])
                rest, skipping = b"", True
        if rest:
            yield rest + b"\n"

    def _read(self, size: int) -> bytes:
        if self._ended:
            return b""
        try:
            block = self._stream.read(size)
        except _DAMAGED as error:
            self._ended = True
            if not self._raw.count:
                raise TraceError(f"{self.name!r} cannot be read: {error}") from error
            self._tally.add("cut-short", 1, [f"{self.name}: {error}"])
            return b""
        self._ended = not block
        return block


def open_source(name: str, tally: Tally) -> Source:
    """Opens a file, or standard input for ``-``; gzip, bzip2, xz and zstd are known by their first bytes."""
    if name == STANDARD_INPUT:
        return Source("standard input", sys.stdin.buffer, tally)
    try:
        return Source(name, Path(name).open("rb"), tally)
    except OSError as error:
        raise TraceError(f"{name!r} cannot be read: {error.strerror}") from error


class _Counted(io.RawIOBase):
    """Counts what is read, and gives back a beginning that was looked at."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._magic = raw.read(6)
        self.count = 0

    @property
    def magic(self) -> bytes:
        return self._magic

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._magic and size:
            size = size if size > 0 else len(self._magic)
            block, self._magic = self._magic[:size], self._magic[size:]
        else:
            block = self._raw.read(size)
        self.count += len(block)
        return block

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _zstd(raw: _Counted) -> Stream:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")


_PACKED: dict[bytes, Callable[[_Counted], Stream]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": lambda raw: bz2.BZ2File(raw),
    b"\xfd7zXZ\x00": lambda raw: lzma.open(raw),  # type: ignore[call-overload]  # noqa: SIM115
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _unpacked(raw: _Counted, name: str) -> Stream:
    try:
        magic = raw.magic
    except OSError as error:
        raise TraceError(f"{name!r} cannot be read: {error.strerror}") from error
    for start, opener in _PACKED.items():
        if magic.startswith(start):
            return opener(raw)
    return raw
