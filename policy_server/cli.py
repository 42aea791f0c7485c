"""The command ``tapfinger serve``: configuration in, a listening server out."""

import logging
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import click
from msgspec.structs import replace

from policy_server import compiled, listen, openapi
from tapfinger_hpc import config as configuration
from tapfinger_hpc import log
from tapfinger_hpc.config import ServerConfig
from tapfinger_hpc.errors import ConfigError

logger = logging.getLogger(__name__)


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="tapfinger.toml [/etc/tapfinger]")
@click.option("--policy", help="Policy that answers, in place of server.policy.")
@click.option("--checkpoint", type=click.Path(), help="Folder of its weights, in place of server.checkpoint.")
@click.option("--constants", type=click.Path(), help="Constants of price, in place of server.constants.")
@click.option("--socket", "socket_path", type=click.Path(), help="Unix socket, in place of server.socket.")
@click.option("--tcp", metavar="HOST:PORT", help="Also listen on this loopback address (needs a token file).")
@click.option("--token-file", type=click.Path(), help="File with the bearer token for --tcp, mode 600.")
@click.option("--print-openapi", is_flag=True, help="Print the OpenAPI document and exit.")
def serve(path: Path | None, print_openapi: bool, **options: str | None) -> None:
    """Run the policy server."""
    if print_openapi:
        click.echo(openapi.document_json())
        return
    config = configuration.load(path)
    log.to_stderr(config.log.format, config.log.level, os.environ)
    # It warns of every request that waits for a thread, be it for a microsecond.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    given = {key.removesuffix("_path"): value for key, value in options.items() if value is not None}
    _serve(replace(config.server, **given))


def _serve(config: ServerConfig) -> None:
    """Fails early and cheaply first: addresses and token, then the policy, and only then the sockets are opened."""
    if not config.socket and not config.tcp:
        raise ConfigError("server.socket and server.tcp are both empty: nothing to listen on")
    token = listen.read_token(config.token_file) if config.tcp else None
    if config.socket:
        listen.refuse_live_server(Path(config.socket))

    with ExitStack() as open_sockets:
        compiled.settle(os.environ, Path(config.compiled), open_sockets)

        # Imported here: flask, and behind the policy numpy and numba, take their time.
        from policy_server.app import create_app
        from policy_server.example import EXAMPLE_STATE
        from policy_server.loading import load_placer
        from policy_server.serving import Serving

        placer = load_placer(config)
        if compiled.nothing_yet():
            why = "nothing is compiled yet: that takes a minute of one core, once"
            log.event(logger, logging.INFO, "compiling", policy=config.policy, why=why)
        placer.warm_up(EXAMPLE_STATE)
        apps = []
        addresses = []
        if config.socket:
            listener = open_sockets.enter_context(listen.unix_listener(Path(config.socket)))
            apps.append((listener, create_app(placer)))
            addresses.append(config.socket)
        if config.tcp:
            listener = open_sockets.enter_context(listen.open_tcp(config.tcp))
            apps.append((listener, create_app(placer, token=token)))
            addresses.append(_url(listener))
        health = placer.health()
        Serving(apps).run_until_signal(
            ready=lambda: click.echo(f"policy {health.policy.name} ({health.status}) on {' and '.join(addresses)}")
        )
    click.echo("stopped")


def _url(listener: socket.socket) -> str:
    """With the port that was given where the configuration leaves it open (``127.0.0.1:0``)."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
