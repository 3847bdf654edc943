# SPDX-License-Identifier: Apache-2.0
"""Who is let in, and with how much: between the sockets and the routes.

The Unix socket's door lets everybody in who could open it.  TCP's looks at the token, and at how often its owner comes.
Whether a caller may use a route is the route's to say (:mod:`tmem_host.api.scoped`): what has no scope, as the files of
the web page, is open to all.
"""

from __future__ import annotations

import math
import time
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tmem_host.api.problems import problem
from tmem_host.api.scoped import CALLER_KEY, LOCAL, Caller
from tmem_host.errors import TmemError, TooLarge, TooMany, Unauthorised
from tmem_host.tokens import Tokens

#: Bytes of a request's body: settings, never data.
BODY_MAX: Final = 1 << 20
#: Requests a second of one token, and how many at once after a pause.
RATE: Final = 100.0
_BURST_SECONDS: Final = 2.0
#: Requests a second of one address without a token that the agent knows, and how many at once.
_STRANGERS_RATE: Final = 1.0
_STRANGERS_BURST: Final = 10.0
#: Clients that are remembered: beyond that those who came least recently are forgotten.
_CLIENTS: Final = 10_000


class Buckets:
    """A bucket of tokens for each client (of the event loop's thread): ``rate`` a second drip in, ``burst`` fit."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        #: By client, in the order they came last: what was left, and when.
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> float:
        """Takes one: 0; or the seconds until there is one."""
        now = time.monotonic()
        left, then = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        taken = left >= 1
        self._left[client] = (left - taken, now)
        if len(self._left) > _CLIENTS:
            del self._left[next(iter(self._left))]
        return 0.0 if taken else (1 - left) / self._rate


class LocalDoor:
    """For the Unix socket."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _enter(self._app, LOCAL, scope, receive, send)


class TokenDoor:
    """For TCP."""

    def __init__(self, app: ASGIApp, tokens: Tokens, *, rate: float = RATE) -> None:
        self._app = app
        self._tokens = tokens
        self._known = Buckets(rate, max(1.0, rate * _BURST_SECONDS))
        self._strangers = Buckets(_STRANGERS_RATE, _STRANGERS_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            caller = self._caller(scope)
        except TmemError as error:
            await problem(error, headers=_headers(error))(scope, receive, send)
            return
        await _enter(self._app, caller, scope, receive, send)

    def _caller(self, scope: Scope) -> Caller | None:
        """None: nobody said who it is.  Raises Unauthorised, TooMany."""
        said = Headers(scope=scope).get("authorization")
        if said is None:
            return None
        scheme, _, value = said.partition(" ")
        token = self._tokens.find(value.strip()) if scheme.lower() == "bearer" else None
        if token is not None:
            _check(self._known.take(token.name))
            return Caller(token.name, token.scope)
        # Only who fails pays: a neighbour behind the same address is not kept out.
        address = scope["client"][0] if scope.get("client") else ""
        _check(self._strangers.take(address))
        raise Unauthorised("the agent does not know that token", "make one with 'tmem token add' on its host")


def _check(wait: float) -> None:
    if wait > 0:
        error = TooMany("that is more requests than this client may send", f"wait {wait:.1f} s")
        error.wait = wait
        raise error


def _headers(error: TmemError) -> dict[str, str]:
    if isinstance(error, TooMany):
        # Whole seconds (RFC 9110, 10.2.3), none too early.
        return {"Retry-After": str(math.ceil(error.wait))}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else {}


async def _enter(app: ASGIApp, caller: Caller | None, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    length = Headers(scope=scope).get("content-length", "")
    if length.isdigit() and int(length) > BODY_MAX:
        await problem(_too_large())(scope, receive, send)
        return
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_MAX:
            raise _too_large()
        return message

    await app({**scope, CALLER_KEY: caller}, counted, send)


def _too_large() -> TooLarge:
    return TooLarge(f"a body has at most {BODY_MAX} bytes", "send settings, not data")
