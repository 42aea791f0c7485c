"""The policy server's client: whatever answers, an answer of the right types or a ServerError, in time."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from slurm_plugin import client as clients
from slurm_plugin.client import PolicyClient
from tapfinger_hpc.config import Config, ServerConfig
from tapfinger_hpc.errors import ConfigError, ServerError
from tapfinger_hpc.state import ClusterState
from tapfinger_hpc.wire import DecideResponse, PolicyInfo

EMPTY = ClusterState(1.0, (), ())
ANSWER = DecideResponse("d1", PolicyInfo("min"), ())
Talk = Callable[[socket.socket, bytes], None]


def request(connection: socket.socket) -> bytes:
    """Everything that the client sends."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def says(body: bytes, status: str = "200 OK") -> Talk:
    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body))

    return talk


@contextmanager
def server(listener: socket.socket, talk: Talk) -> Iterator[list[bytes]]:
    """Answers every connection so; yields what was asked."""
    asked: list[bytes] = []
    listener.listen()

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    asked.append(request(connection))
                    talk(connection, asked[-1])

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def unix(tmp_path: Path) -> tuple[socket.socket, ServerConfig]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    return listener, ServerConfig(socket=str(tmp_path / "s"), timeout_s=0.4)


def test_an_answer_comes_back_with_its_types(unix) -> None:
    listener, config = unix
    with server(listener, says(msgspec.json.encode(ANSWER))) as asked:
        assert PolicyClient(config).decide(EMPTY) == ANSWER
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/decide HTTP/1.1\r\n")
    assert ClusterState.from_json(body) == EMPTY
    assert b"Authorization" not in head


def test_a_newer_server_may_say_more(unix) -> None:
    listener, config = unix
    more = json.loads(msgspec.json.encode(ANSWER)) | {"mood": "good"}
    with server(listener, says(json.dumps(more).encode())):
        assert PolicyClient(config).decide(EMPTY) == ANSWER


def test_over_tcp_the_token_goes_along(tmp_path: Path) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    (tmp_path / "token").write_text("secret-of-sixteen\n")
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = ServerConfig(socket="", tcp=address, token_file=str(tmp_path / "token"), timeout_s=5)
    with server(listener, says(msgspec.json.encode(ANSWER))) as asked:
        assert PolicyClient(config).decide(EMPTY) == ANSWER
    assert b"\r\nAuthorization: Bearer secret-of-sixteen\r\n" in asked[0]


def test_a_token_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    config = ServerConfig(socket="", tcp="127.0.0.1:9", token_file=str(tmp_path / "none"))
    with pytest.raises(ServerError, match="token"):
        PolicyClient(config).decide(EMPTY)


def hang(connection: socket.socket, _: bytes) -> None:
    time.sleep(3)


def trickle_body(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(60):
        connection.sendall(b" ")
        time.sleep(0.05)


def trickle_head(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(60):
        connection.sendall(b"X-%d: y\r\n" % number)
        time.sleep(0.05)


def endless_head(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500)


def endless_body(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" " * 100_000)


def short(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")


def silent(connection: socket.socket, _: bytes) -> None:
    pass


PROBLEM = {"title": "Not a state", "status": 400, "detail": "expected an array", "field": "/nodes"}


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        (hang, r"no answer within 0\.4 s"),
        (trickle_body, r"no answer within 0\.4 s"),
        (trickle_head, r"no answer within 0\.4 s"),
        (endless_head, "more than 100 headers"),
        (endless_body, "longer than"),
        (short, "truncated"),
        (silent, "RemoteDisconnected"),
        (says(b"{}"), "cannot be used.*decision_id"),
        (says(b'{"decision_id": "d", "policy": {"name": "x"}, "decisions": [{"job_id": 5}]}'), r"\$\.decisions\[0\]"),
        (says(b'{"decision_id": "d", "policy": {"name": "x"}, "decisions": [], "elapsed_ms": NaN}'), "cannot be used"),
        (says(b"\xff\xfe"), "cannot be used"),
        (says(b""), "cannot be used"),
        (says(b"[" * 100_000), "cannot be used"),
        (says(json.dumps(PROBLEM).encode(), "400 Bad Request"), "400 Not a state: /nodes: expected an array"),
        (says(b"<html>oops</html>", "500 Oops"), "500 '<html>oops</html>'"),
        (says(b"", "204 No Content"), "204"),
        (lambda connection, _: connection.sendall(bytes(range(256))), "BadStatusLine|no answer"),
    ],
)
def test_an_answer_that_cannot_be_used_is_an_error_with_the_reason(
    unix, talk: Talk, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_ANSWER_BYTES", 1_000_000)
    listener, config = unix
    with server(listener, talk), pytest.raises(ServerError, match=why) as caught:
        PolicyClient(config).decide(EMPTY)
    assert "/v1/decide" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_no_server_is_an_error_with_the_address(tmp_path: Path) -> None:
    for gone in (tmp_path / "none", tmp_path / ("x" * 150)):
        with pytest.raises(ServerError, match=str(tmp_path)):
            PolicyClient(ServerConfig(socket=str(gone))).health()


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (ServerConfig(socket=""), "both empty"),
        (ServerConfig(socket="", tcp="8642", token_file="/etc/token"), "expected host:port"),
        (ServerConfig(socket="", tcp="127.0.0.1:8642"), "needs server.token_file"),
    ],
)
def test_a_configuration_without_a_server_that_could_be_asked_is_refused_at_once(
    server: ServerConfig, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        PolicyClient.from_config(Config(server=server))


def test_each_question_has_a_name_which_goes_along_and_stands_in_what_went_wrong(unix) -> None:
    listener, config = unix
    with server(listener, says(b"busy", "503 Service Unavailable")) as asked, pytest.raises(ServerError) as caught:
        PolicyClient(config).decide(EMPTY)
    (name,) = re.findall(rb"X-Decision-Id: ([0-9a-f]{16})\r\n", asked[0])
    assert f"(decision {name.decode()})" in str(caught.value)
