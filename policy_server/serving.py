"""Runs the application on waitress until it is told to stop; answers what is under way first.

One process with one copy of the model. Four threads: one decides (the placer lets no second one), the others keep
health and refusals quick while it does. Even what waitress itself refuses is ``application/problem+json``.
"""

import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import msgspec
from flask import Flask
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

from policy_server import problems
from tapfinger_hpc import log, wire

logger = logging.getLogger(__name__)

THREADS = 4
STOP_PATIENCE_S = 3.0
"""How long requests that are under way may take after SIGTERM; systemd kills after 90 s."""
_HEADER_BYTES = 16 * 1024


class _ProblemTask(ErrorTask):
    """waitress's own refusals (malformed HTTP, body or headers too large), in the words of ours."""

    def execute(self) -> None:
        error = self.request.error
        problem = (
            problems.too_large(wire.MAX_BODY_BYTES) if error.code == 413 else problems.of_status(error.code, error.body)
        )
        body = msgspec.json.encode(problem)
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", wire.PROBLEM_JSON))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    error_task_class = _ProblemTask


class Serving:
    """Applications on listening sockets, in one loop."""

    def __init__(self, apps: Sequence[tuple[socket.socket, Flask]]) -> None:
        self._stopping = False
        self._channels: dict[int, Any] = {}
        self._servers = [self._serve(listener, app) for listener, app in apps]

    def run_until_signal(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT. ``ready`` is called when the first request can be answered."""
        former = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            ready()
            while not self._stopping:
                self._turn(timeout_s=30.0)
            self._finish()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _serve(self, listener: socket.socket, app: Flask):
        server = create_server(
            app,
            map=self._channels,
            sockets=[listener],
            threads=THREADS,
            ident="tapfinger",
            recv_bytes=64 * 1024,
            max_request_header_size=_HEADER_BYTES,
            max_request_body_size=wire.MAX_BODY_BYTES,
            clear_untrusted_proxy_headers=True,
        )
        server.channel_class = _Channel
        return server

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True
        self._servers[0].pull_trigger()

    def _turn(self, timeout_s: float) -> None:
        self._servers[0].asyncore.loop(timeout=timeout_s, map=self._channels, count=1)

    def _finish(self) -> None:
        """Takes no new requests; lets those under way end, and their answers be sent."""
        for server in self._servers:
            server.accepting = False
            server.del_channel()
            server.socket.close()
        give_up_s = time.monotonic() + STOP_PATIENCE_S
        while self._busy() and time.monotonic() < give_up_s:
            self._turn(timeout_s=0.05)
        for server in self._servers:
            server.task_dispatcher.shutdown(timeout=max(0.0, give_up_s - time.monotonic()))
        if self._busy():
            log.event(logger, logging.WARNING, "stopped-in-haste", patience_s=STOP_PATIENCE_S)
        self._servers[0].asyncore.close_all(self._channels, ignore_all=True)

    def _busy(self) -> bool:
        return any(
            channel.requests or channel.total_outbufs_len
            for server in self._servers
            for channel in server.active_channels.values()
        )
