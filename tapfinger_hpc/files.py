"""Files that are there whole, or as they were before."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tapfinger_hpc.errors import TapfingerError


@contextlib.contextmanager
def whole_or_not_at_all(path: Path, refusal: type[TapfingerError]) -> Iterator[Path]:
    """A place to write to that takes the name ``path`` only when all has gone well, and is then on the disk.

    Raises:
        TapfingerError: there is no such folder, no room, or no right to write; as the ``refusal`` that the caller's
            callers expect.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise refusal(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
