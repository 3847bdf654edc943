# SPDX-License-Identifier: Apache-2.0
"""The address that ``tmem serve --listen`` names: parsed, refused where it would be careless, bound."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tmem_host.config import AgentConfig
from tmem_host.errors import Denied, InUse, InvalidInput, TmemError

_ADDRESS: Final = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; port 0 lets the system choose.  Raises InvalidInput."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise InvalidInput(f"{text!r} is no address to listen on", "write it like 127.0.0.1:7080 or [::1]:7080")
    return found["six"] or found["host"], int(found["port"])


def check_config(config: AgentConfig) -> None:
    """Refuses what would be careless, or cannot be.  Raises InvalidInput."""
    if config.listen is None:
        if config.tls_cert or config.tls_key or config.insecure_plain:
            raise InvalidInput("TLS is for TCP, and no address was given", "add --listen HOST:PORT")
        return
    if (config.tls_cert is None) != (config.tls_key is None):
        raise InvalidInput("a certificate needs its key, and a key its certificate", "give --tls-cert and --tls-key")
    parse_address(config.listen)
    if config.tls_cert is not None and config.tls_key is not None:
        _check_certificate(config.tls_cert, config.tls_key)
        if config.insecure_plain:
            raise InvalidInput("--insecure-plain and TLS exclude each other", "leave one of them out")


def _check_certificate(cert: Path, key: Path) -> None:
    def refuse() -> str:
        # An empty password instead of a question at the terminal of a service.
        raise InvalidInput(f"{key} has a password", "give a key without one, readable by the agent's user only")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=refuse)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"{cert} and {key} are no certificate with its key: {error.strerror or error}", "give both in PEM"
        ) from error


@contextlib.contextmanager
def bound(config: AgentConfig) -> Iterator[socket.socket]:
    """A listening socket on ``config.listen``.  Raises InvalidInput, InUse, Denied.

    Without TLS tokens cross the network as they are, so that only a loopback address is served, unless somebody said
    that he wants it.
    """
    assert config.listen is not None
    host, port = parse_address(config.listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{host!r} is no address of this host: {error}", "give one of its addresses") from error
    family, _, _, _, address = found[0]
    if config.tls_cert is None and not config.insecure_plain:
        for one in found:
            if not ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_loopback:
                raise InvalidInput(
                    f"{one[4][0]} can be reached from elsewhere, and tokens would cross the network in plain text",
                    "give --tls-cert and --tls-key, or say --insecure-plain",
                )
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # [::] is asked for, not 0.0.0.0 with it.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
        except OSError as error:
            raise _refusal(config.listen, error) from error
        listener.listen(128)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()


def _refusal(address: str, error: OSError) -> TmemError:
    if error.errno == errno.EADDRINUSE:
        return InUse(f"another process listens on {address}", "stop it, or choose another port")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(f"this user may not listen on {address}", "choose a port from 1024 on")
    return InvalidInput(f"{address} cannot be listened on: {error.strerror}", "give an address of this host")


def url_of(config: AgentConfig, listener: socket.socket) -> str:
    """The address for clients."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
