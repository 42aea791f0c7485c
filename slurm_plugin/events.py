"""When to look: once an interval, or at once when the submit hook or the job-end event sends a datagram.

A datagram carries no truth: whatever it says, it only ends the wait. So anyone who may write to the socket can make
the agent look, ten times a second at most, and nothing else.
"""

import contextlib
import os
import select
import socket
import time
from pathlib import Path

from tapfinger_hpc.errors import ConfigError

SETTLE_S = 0.05
"""The hook speaks from inside sbatch, before the job is in the queue; and events come in crowds."""
_SHORTEST_S = 0.1
_REST_SHARE = 3.0
"""After a look that took long, so much longer is rested: a flood of datagrams costs a quarter of one core at most."""
_LONGEST_REST_S = 1.0
_MODE = 0o660
"""Owner and group: SlurmUser, who runs hook and job-end event, is put in the group or owns the folder's group."""


class WakeClock:
    """The clock of a live agent."""

    def __init__(self, wake_socket: Path | None) -> None:
        """Listens on this socket; None only waits.

        Raises:
            ConfigError: the socket cannot be made.
        """
        self._path = wake_socket
        self._socket = None if wake_socket is None else _bound(wake_socket)
        self._inode = None if wake_socket is None else wake_socket.lstat().st_ino
        self._interrupted, self._interrupt = os.pipe()
        os.set_blocking(self._interrupt, False)
        self._looked_s = time.monotonic()

    def now_s(self) -> float:
        return time.time()

    def wait(self, seconds: float) -> None:
        """Returns after this time, shortly after a datagram, or at once after ``interrupt``."""
        began_s = time.monotonic()
        rested_s = began_s + min(_LONGEST_REST_S, max(_SHORTEST_S, _REST_SHARE * (began_s - self._looked_s)))
        wakes = -1 if self._socket is None else self._socket.fileno()
        woken, _, _ = select.select([fd for fd in (self._interrupted, wakes) if fd >= 0], [], [], max(0.0, seconds))
        if wakes in woken:
            rest_s = max(SETTLE_S, rested_s - time.monotonic())
            time.sleep(max(0.0, min(rest_s, began_s + seconds - time.monotonic())))
            self._drain()
        if self._interrupted in woken:
            os.read(self._interrupted, 64)
        self._looked_s = time.monotonic()

    def interrupt(self) -> None:
        """Ends this wait, or the next one; safe in a signal handler."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._interrupt, b"x")

    def close(self) -> None:
        """Removes the socket, unless another agent has put its own there."""
        if self._socket is not None and self._path is not None:
            self._socket.close()
            with contextlib.suppress(FileNotFoundError):
                if self._path.lstat().st_ino == self._inode:
                    self._path.unlink()
        os.close(self._interrupted)
        os.close(self._interrupt)

    def _drain(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                self._socket.recv(256)


def _bound(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The agent has its lock by now, so whoever made it is gone.
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(_MODE)
    except OSError as error:
        raise ConfigError(f"agent.wake_socket {str(path)!r} cannot be made: {error}") from error
    return listener
