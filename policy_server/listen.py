"""Opens the sockets of the server: a unix socket by default, TCP on loopback only and only with a token.

A socket file that a dead server left is replaced; one that a live server answers on is left alone, with an error.
"""

import errno
import fcntl
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tapfinger_hpc.errors import ConfigError, ServerError

SOCKET_MODE = 0o660
"""Owner and group; the agent is put in the group of the server."""
_BACKLOG = 128
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,1024}")


def refuse_live_server(path: Path) -> None:
    """Raises ServerError where a server answers on this socket already."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return
    except BlockingIOError:
        pass  # its queue is full: alive, and very busy
    except OSError as error:
        raise ServerError(_cannot_listen(path, error)) from error
    finally:
        probe.close()
    raise ServerError(f"socket {str(path)!r}: a server answers there already; stop it, or give another --socket")


@contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """A listening socket with mode 0660 at this path, whose file goes away with it.

    Raises:
        ServerError: a live server answers there, or the path cannot be used.
    """
    with _start_up_lock(path):
        refuse_live_server(path)
        _remove_stale(path)
        listener = _bind_unix(path)
    inode = path.lstat().st_ino
    try:
        yield listener
    finally:
        with suppress(FileNotFoundError):
            # Not the file of another server, which replaced ours after someone removed it.
            if path.lstat().st_ino == inode:
                path.unlink()
        listener.close()


def open_tcp(address: str) -> socket.socket:
    """A listening socket on ``host:port``, where host is a loopback address.

    Raises:
        ConfigError: the address is of another spelling, or is not loopback.
        ServerError: the port cannot be had.
    """
    host, port = _loopback(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(f"server.tcp {address!r}: {error.strerror}; is another server there already?") from error
    return listener


def read_token(path: str) -> str:
    """The bearer token in a file that nobody but its owner can read.

    Raises:
        ConfigError: no file is given, others may read it, or it holds no token.
    """
    if not path:
        raise ConfigError("server.tcp needs server.token_file: over TCP the token is all that keeps other users out")
    try:
        with Path(path).open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"server.token_file {path!r} cannot be read: {error}") from error
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"server.token_file {path!r} has mode {mode:04o}: others may use it; chmod 600 it")
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"server.token_file {path!r} belongs to user {status.st_uid}, not to the one who serves")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"server.token_file {path!r} holds no token: expected 16 to 1024 letters, digits or . _ ~ + / = -; "
            "make one with `openssl rand -hex 32`"
        )
    return token


def _loopback(address: str) -> tuple[str, int]:
    host, separator, port_text = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port_text.isdecimal() or int(port_text) > 65535:
        raise ConfigError(f"server.tcp {address!r}: expected host:port, such as 127.0.0.1:8642")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(f"server.tcp {address!r}: {host} is not a loopback address; use 127.0.0.1 or [::1]")
    return host, int(port_text)


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(_cannot_listen(path, error)) from error
    finally:
        os.umask(umask)
    return listener


@contextmanager
def _start_up_lock(path: Path) -> Iterator[None]:
    """Two servers that start at once must not take the other's new socket for a stale one.

    The lock is on the folder itself, so no lock file is left behind.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ServerError(
            f"socket {str(path)!r}: folder {str(path.parent)!r}: {error.strerror}; make it, or give another --socket"
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ServerError(f"socket {str(path)!r}: there is a file that is no socket; give another --socket")
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ServerError(_cannot_listen(path, error)) from error


def _cannot_listen(path: Path, error: OSError) -> str:
    if error.errno is None or error.errno == errno.ENAMETOOLONG:
        return f"socket {str(path)!r}: the path is too long for a unix socket (107 bytes); give a shorter --socket"
    return f"socket {str(path)!r} cannot be used: {error.strerror}"
