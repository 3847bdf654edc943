# SPDX-License-Identifier: Apache-2.0
"""uvicorn inside the agent's own loop: it says when it is ready and leaves signals to the agent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn

from tmem_host.api.app import make_app
from tmem_host.service import Service


class ApiServer(uvicorn.Server):
    """Serves ``service`` on the sockets given to :meth:`serve`; ``should_exit`` ends it."""

    def __init__(self, service: Service, *, grace: int) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(service),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=grace,
            )
        )
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
