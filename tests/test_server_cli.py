"""`tapfinger serve` as a process of its own: sockets, token, signals, and what it leaves behind."""

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policy_server import listen
from policy_server.app import create_app
from policy_server.cli import serve
from policy_server.example import EXAMPLE_STATE
from policy_server.placer import Placer
from policy_server.serving import Serving
from tapfinger_hpc import wire
from tapfinger_hpc.config import ServerConfig
from tapfinger_hpc.decision import Decision
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.policies import registry
from tapfinger_hpc.state import ClusterState

TOKEN = "0123456789abcdef0123456789abcdef"
SERVE = [sys.executable, "-m", "tapfinger_hpc.cli", "serve"]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str):
    if body:
        headers["Content-Type"] = wire.JSON
    connection.request(method, path, body or None, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def decide(path: Path) -> wire.DecideResponse:
    status, _, body = ask(UnixConnection(path), "POST", wire.DECIDE, EXAMPLE_STATE.to_json())
    assert status == 200, body
    return msgspec.json.decode(body, type=wire.DecideResponse)


def raw(path: Path, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of what the server sends back to these very bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


class Server:
    """One running `tapfinger serve`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tapfinger.toml"
    path.write_text('[server]\nsocket = ""\npolicy = "fifo"\nfallback = "min"\n')
    return path


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def start(config: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start_one(*arguments: str | Path) -> Server:
        started.append(Server("--config", str(config), *map(str, arguments)))
        return started[-1]

    yield start_one
    for server in started:
        server.process.kill()
        server.process.communicate()


@pytest.mark.slow
def test_it_does_not_start_with_constants_that_cannot_be_used(start, tmp_path: Path) -> None:
    broken = tmp_path / "constants.json"
    broken.write_text('{"prices": {"base": 1}}')
    server = start("--constants", broken, "--policy", "price", "--socket", tmp_path / "server.sock")
    assert server.process.wait(120) == 1
    assert f"{str(broken)!r}: prices.adapt is missing" in server.errors()
    assert not (tmp_path / "server.sock").exists()


def test_it_answers_over_a_unix_socket_that_only_owner_and_group_may_use(start, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    server = start("--socket", path)
    assert server.first_line == f"policy fifo (ok) on {path}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [decision.job_id for decision in decide(path).decisions] == ["102"]
    status, headers, body = ask(UnixConnection(path), "GET", wire.HEALTH)
    assert (status, headers["Content-Type"]) == (200, wire.JSON)
    assert msgspec.json.decode(body, type=wire.Health).decisions_served == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_the_socket_is_gone(start, tmp_path: Path, number: int) -> None:
    path = tmp_path / "server.sock"
    server = start("--socket", path)
    kept_open = UnixConnection(path)
    assert ask(kept_open, "GET", wire.HEALTH)[0] == 200
    assert server.stop(number) == 0
    assert server.errors() == ""
    assert not path.exists()


def test_a_second_server_on_a_live_socket_says_so_and_leaves_the_first_alone(start, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    start("--socket", path)
    second = start("--socket", path)
    assert second.process.wait(30) == 1
    assert second.errors().startswith(f"tapfinger: socket '{path}': a server answers there already; stop it")
    assert decide(path).policy.name == "fifo"


def test_the_socket_of_a_killed_server_is_replaced(start, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    start("--socket", path).stop(signal.SIGKILL)
    assert path.exists()
    start("--socket", path)
    assert decide(path).policy.name == "fifo"


def test_of_servers_that_start_at_once_one_serves_and_the_others_say_so(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with listen.unix_listener(path):
        pass
    command = [*SERVE, "--config", str(config), "--socket", str(path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        lines = [process.stdout.readline() for process in started if process.stdout]
        assert sorted(lines) == ["", "", "", f"policy fifo (ok) on {path}\n"]
        assert decide(path).policy.name == "fifo"
    finally:
        for process in started:
            process.terminate()
    assert sorted(process.wait(30) for process in started) == [0, 1, 1, 1]
    for process in started:
        process.communicate()


def test_a_server_does_not_remove_the_socket_of_the_one_that_replaced_it(start, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    first = start("--socket", path)
    path.unlink()
    start("--socket", path)
    assert first.stop() == 0
    assert decide(path).policy.name == "fifo"


def test_over_tcp_it_answers_only_with_the_token(start, token_file: Path) -> None:
    server = start("--tcp", "127.0.0.1:0", "--token-file", token_file)
    url = server.first_line.split()[-1]
    assert url.startswith("http://127.0.0.1:")
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    status, headers, body = ask(connection, "POST", wire.DECIDE, EXAMPLE_STATE.to_json())
    assert (status, headers["Content-Type"]) == (401, wire.PROBLEM_JSON)
    assert json.loads(body) == {"title": "Unauthorized", "status": 401}
    assert ask(connection, "GET", wire.HEALTH, Authorization=f"Bearer {TOKEN[:-1]}")[0] == 401
    assert ask(connection, "GET", wire.HEALTH, Authorization=f"Bearer {TOKEN}")[0] == 200
    status, _, body = ask(connection, "POST", wire.DECIDE, EXAMPLE_STATE.to_json(), Authorization=f"Bearer {TOKEN}")
    assert [one["job_id"] for one in json.loads(body)["decisions"]] == ["102"]


def test_both_sockets_answer_alike_and_share_their_counters(start, tmp_path: Path, token_file: Path) -> None:
    path = tmp_path / "server.sock"
    server = start("--socket", path, "--tcp", "127.0.0.1:0", "--token-file", token_file)
    tcp = http.client.HTTPConnection(server.first_line.split()[-1].removeprefix("http://"), timeout=30)
    _, _, body = ask(tcp, "POST", wire.DECIDE, EXAMPLE_STATE.to_json(), Authorization=f"Bearer {TOKEN}")
    assert msgspec.json.decode(body, type=wire.DecideResponse).decisions == decide(path).decisions
    assert json.loads(ask(tcp, "GET", wire.HEALTH, Authorization=f"Bearer {TOKEN}")[2])["decisions_served"] == 2
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "server.socket and server.tcp are both empty"),
        (["--tcp", "127.0.0.1:0"], "server.tcp needs server.token_file"),
        (["--socket", "{folder}/none/server.sock"], "No such file or directory; make it, or give another --socket"),
        (["--socket", "{folder}/" + "x" * 200], "the path is too long for a unix socket"),
        (["--socket", "{folder}/tapfinger.toml"], "there is a file that is no socket"),
        (["--socket", "{folder}/s", "--policy", "oracle"], "policy 'oracle' is not known; known: fifo"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(start, tmp_path: Path, arguments: list[str], why: str) -> None:
    server = start(*(argument.format(folder=tmp_path) for argument in arguments))
    assert server.process.wait(30) == 1
    errors = server.errors()
    assert why in errors
    assert errors.startswith("tapfinger: ")
    assert errors.count("\n") == 1


def test_it_prints_its_openapi_document_without_serving() -> None:
    done = subprocess.run([*SERVE, "--print-openapi"], capture_output=True, check=True)
    assert json.loads(done.stdout)["openapi"] == "3.1.0"


@pytest.mark.parametrize(
    "address", ["0.0.0.0:8642", "192.168.1.4:80", "[::]:80", "example.org:80", "8642", ":8642", "::1"]
)
def test_tcp_is_refused_anywhere_but_on_loopback(address: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.tcp"):
        listen.open_tcp(address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.8.8:0", "localhost:0"])
def test_loopback_addresses_are_listened_on(address: str) -> None:
    with listen.open_tcp(address) as listener:
        assert listener.getsockname()[0].startswith("127.")


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (TOKEN, 0o640, "others may use it"),
        (TOKEN, 0o604, "others may use it"),
        ("", 0o600, "holds no token"),
        ("short", 0o600, "holds no token"),
        ("two words that are long enough", 0o600, "holds no token"),
        ("x" * 2000, 0o600, "holds no token"),
    ],
)
def test_a_token_file_that_does_not_keep_others_out_is_refused(
    tmp_path: Path, content: str, mode: int, why: str
) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=why):
        listen.read_token(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that belongs to another user")
def test_a_token_file_of_another_user_is_refused(token_file: Path) -> None:
    os.chown(token_file, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        listen.read_token(str(token_file))


def test_the_token_is_read_without_its_line_end(token_file: Path) -> None:
    assert listen.read_token(str(token_file)) == TOKEN


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"POST /v1/decide HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/decide HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /v1/health HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /v1/decide HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n", 413),
    ],
)
def test_what_is_refused_before_any_route_is_a_problem_too(
    start, tmp_path: Path, request_bytes: bytes, status: int
) -> None:
    path = tmp_path / "server.sock"
    start("--socket", path)
    head, body = raw(path, request_bytes)
    assert head.split()[1] == str(status).encode()
    assert b"Content-Type: application/problem+json" in head
    assert msgspec.json.decode(body, type=wire.Problem).status == status
    assert decide(path).policy.name == "fifo"


def test_a_body_in_chunks_is_read(start, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    start("--socket", path)
    connection = UnixConnection(path)
    text = EXAMPLE_STATE.to_json()
    chunks = iter([text[:100], text[100:]])
    connection.request("POST", wire.DECIDE, chunks, {"Content-Type": wire.JSON}, encode_chunked=True)
    assert connection.getresponse().status == 200


def test_clients_that_leave_half_way_do_no_harm(start, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    server = start("--socket", path)
    request = b"POST /v1/decide HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"
    for part in (request, request[:40], b""):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(part)
    assert decide(path).policy.name == "fifo"
    assert server.stop() == 0


def test_a_request_under_way_is_answered_before_the_server_stops(tmp_path: Path) -> None:
    class StoppedWhileDeciding:
        name = "slow"

        def decide(self, state: ClusterState) -> tuple[Decision, ...]:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            return registry.make("fifo").decide(state)

    answers: list[Any] = []
    path = tmp_path / "server.sock"
    app = create_app(Placer(StoppedWhileDeciding(), registry.make("min")))
    asker = threading.Thread(target=lambda: answers.append(decide(path)))
    with listen.unix_listener(path) as listener:
        Serving([(listener, app)]).run_until_signal(ready=asker.start)
    asker.join(30)
    assert [one.policy.name for one in answers] == ["slow"]


def test_the_manual_names_every_route_option_and_key() -> None:
    manual = (Path(__file__).parent.parent / "docs" / "server.md").read_text(encoding="utf-8")
    routes = [wire.DECIDE, wire.HEALTH, wire.POLICY, wire.OPENAPI]
    options = [option for parameter in serve.params for option in parameter.opts if option.startswith("--")]
    keys = [f"`{field.name}`" for field in msgspec.structs.fields(ServerConfig)]
    assert [name for name in (*routes, *options, *keys) if name not in manual] == []
