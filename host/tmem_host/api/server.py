# SPDX-License-Identifier: Apache-2.0
"""uvicorn inside the agent's own loop: it says when it is ready and leaves signals to the agent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

#: Connections of one door at once; more are answered with 503.
_CONNECTIONS: Final = 1000


class ApiServer(uvicorn.Server):
    """Serves ``app`` on the sockets given to :meth:`serve`; ``should_exit`` ends it."""

    def __init__(self, app: ASGIApp, *, grace: int, tls: tuple[Path, Path] | None = None) -> None:
        """``grace``: seconds that open connections get at the end; ``tls``: certificate and key."""
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                # Who a client is, its connection says.
                proxy_headers=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=grace,
                ssl_certfile=None if tls is None else str(tls[0]),
                ssl_keyfile=None if tls is None else str(tls[1]),
            )
        )
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
