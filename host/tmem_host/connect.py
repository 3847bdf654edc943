# SPDX-License-Identifier: Apache-2.0
"""Ways to an agent: the Unix socket of its state folder, or TCP, with a token and as a rule TLS.

Of the standard library: every command of ``tmem`` starts with this.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tmem_host.config import check_socket_path
from tmem_host.errors import Denied, InvalidInput, NotFound, TmemError, Unavailable

#: Seconds.  Removing a VM with tens of millions of pages takes seconds.
TIMEOUT: Final = 60.0
#: The agent's port when an address names none.
PORT: Final = 7080


class Door(ABC):
    """Makes connections to one agent.  Its text names it in messages."""

    @abstractmethod
    def connection(self) -> http.client.HTTPConnection: ...

    def headers(self) -> dict[str, str]:
        """What every request says."""
        return {}

    @abstractmethod
    def unavailable(self, error: Exception) -> TmemError:
        """Nobody answers, or what answers is no agent."""


class SocketDoor(Door):
    """The Unix socket of a state folder."""

    def __init__(self, path: Path) -> None:
        self.path = check_socket_path(path)

    def __str__(self) -> str:
        return str(self.path)

    def connection(self) -> http.client.HTTPConnection:
        return _UnixConnection(self.path)

    def unavailable(self, error: Exception) -> TmemError:
        return Unavailable(f"no agent answers at {self}", "start one with 'tmem serve'")


class UrlDoor(Door):
    """``http://HOST:PORT`` or ``https://HOST:PORT``, with a token; ``ca`` trusts that certificate and no other.

    Raises InvalidInput for what is no such address.
    """

    def __init__(self, url: str, token: str | None = None, ca: Path | None = None) -> None:
        hint = "write it like https://host:7080"
        try:
            parts = urlsplit(url if "://" in url else f"https://{url}")
            host, port = parts.hostname, parts.port or PORT
        except ValueError as error:
            raise InvalidInput(f"{url!r} is not an address: {error}", hint) from None
        if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/") or parts.query:
            raise InvalidInput(f"{url!r} is not the address of an agent", hint)
        if token is not None and (not token.isascii() or not token.isprintable()):
            raise InvalidInput("the token is no token", "take the line that 'tmem token add' printed")
        self._host, self._port, self._token = host, port, token
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=None if ca is None else str(ca))
            except (OSError, ssl.SSLError) as error:
                raise InvalidInput(f"{ca} is no certificate: {error}", "give the agent's, in PEM") from error

    def __str__(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://{self._host}:{self._port}"

    def connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)
        return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT, context=self._tls)

    def headers(self) -> dict[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    def unavailable(self, error: Exception) -> TmemError:
        if isinstance(error, ssl.SSLError):
            return Unavailable(f"no trusted connection to {self}: {error.reason or error}", "give its --ca-file")
        return Unavailable(f"no agent answers at {self}", "is it started with 'tmem serve --listen'?")


def read_token(path: Path) -> str:
    """The token in a file: its only line.  Raises NotFound, Denied, InvalidInput."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise NotFound(
            f"there is no token file {path}", "write the token that 'tmem token add' printed to it"
        ) from None
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}", "check its owner and mode") from error
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} holds no token", "write the token that 'tmem token add' printed to it") from None
    if not text or " " in text or "\n" in text:
        raise InvalidInput(f"{path} holds no token", "write the token that 'tmem token add' printed to it")
    return text


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))
