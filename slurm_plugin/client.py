"""Asks the policy server over HTTP: a unix socket, or TCP with a bearer token. Standard library and msgspec alone.

Whatever the server does (hangs, trickles, talks nonsense, answers without end), the caller has an answer of the right
types or a ServerError with the reason, within the configured time.
"""

import http.client
import re
import secrets
import socket
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tapfinger_hpc import wire
from tapfinger_hpc.config import Config, ServerConfig
from tapfinger_hpc.errors import ConfigError, ServerError
from tapfinger_hpc.state import ClusterState
from tapfinger_hpc.wire import DecideResponse, Health, PolicyDescription, Problem

MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""Some 30,000 decisions with their runners-up."""
_CHUNK_BYTES = 256 * 1024
_T = TypeVar("_T")


class PolicyClient:
    """One connection per question: a server that was started again needs nothing from us."""

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        self.address = server.socket or f"http://{server.tcp}"

    @classmethod
    def from_config(cls, config: Config) -> "PolicyClient":
        """Raises ConfigError where the configuration names no server that could be asked."""
        if why := _why_unreachable(config.server):
            raise ConfigError(why)
        return cls(config.server)

    def decide(self, state: ClusterState) -> DecideResponse:
        """One decision for every managed, eligible pending job. Each question has a name; the server's log has it too.

        Raises:
            ServerError: no answer, a refusal, or one that cannot be used; says which, and the name of the question.
        """
        return self._ask("POST", wire.DECIDE, state.to_json(), DecideResponse, decision_id=secrets.token_hex(8))

    def health(self) -> Health:
        """That the server lives. Raises ServerError where it does not."""
        return self._ask("GET", wire.HEALTH, None, Health)

    def policy(self) -> PolicyDescription:
        """What the server decides with. Raises ServerError where it does not answer."""
        return self._ask("GET", wire.POLICY, None, PolicyDescription)

    def _ask(self, method: str, path: str, body: bytes | None, kind: type[_T], decision_id: str = "") -> _T:
        deadline_s = time.monotonic() + self._server.timeout_s
        what = f"asking {self.address} for {path}" + (f" (decision {decision_id})" if decision_id else "")
        connection = _Connection(self._server, deadline_s)
        try:
            connection.request(method, path, body=body, headers=self._headers(body, decision_id))
            response = connection.getresponse()
            content = _read(response)
        except TimeoutError as error:
            raise ServerError(f"{what}: no answer within {self._server.timeout_s:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"{what}: {_said(error)}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"{what}: {response.status} {_problem(content)}")
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError as error:
            raise ServerError(f"{what}: the answer cannot be used: {error}") from error

    def _headers(self, body: bytes | None, decision_id: str) -> dict[str, str]:
        headers = {"Accept": wire.JSON, "Connection": "close"}
        if decision_id:
            headers[wire.DECISION_ID] = decision_id
        if body is not None:
            headers["Content-Type"] = wire.JSON
        if not self._server.socket:
            headers["Authorization"] = f"Bearer {_token(self._server.token_file)}"
        return headers


class _DeadlineSocket(socket.socket):
    """A socket whose every wait ends at one deadline, however the server spreads its bytes."""

    deadline_s = 0.0

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        self.settimeout(self.left_s())
        return super().recv_into(*arguments, **named)

    def left_s(self) -> float:
        """Time to the deadline; TimeoutError where there is none."""
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to the configured address."""

    def __init__(self, server: ServerConfig, deadline_s: float) -> None:
        super().__init__("localhost")
        self._server = server
        self._deadline_s = deadline_s

    def connect(self) -> None:
        address: str | tuple[str, int] = self._server.socket
        family = socket.AF_UNIX
        if not address:
            host, _, port = self._server.tcp.rpartition(":")
            address, family = (host.strip("[]"), int(port)), socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = opened = _DeadlineSocket(family, socket.SOCK_STREAM)
        opened.deadline_s = self._deadline_s
        opened.settimeout(opened.left_s())
        opened.connect(address)


def _why_unreachable(server: ServerConfig) -> str:
    if server.socket:
        return ""
    if not server.tcp:
        return "server.socket and server.tcp are both empty: there is no policy server to ask"
    if not re.fullmatch(r".+:\d{1,5}", server.tcp):
        return f"server.tcp {server.tcp!r}: expected host:port, such as 127.0.0.1:8642"
    if not server.token_file:
        return "server.tcp needs server.token_file: the server answers nobody without the token"
    return ""


def _read(response: http.client.HTTPResponse) -> bytes:
    parts, size = [], 0
    while part := response.read(_CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


def _problem(content: bytes) -> str:
    """What the server says was wrong, where it says so in our words."""
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.DecodeError:
        return repr(content[:200].decode("utf-8", "replace"))
    return ": ".join(filter(None, (problem.title, problem.field, problem.detail)))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _token(token_file: str) -> str:
    try:
        return Path(token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"the token of the policy server, {token_file!r}, cannot be read: {error}") from error
