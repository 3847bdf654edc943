# SPDX-License-Identifier: Apache-2.0
"""The guest agent as a speaker of the ABI: requests that it sends over a virtio-serial port of its guest."""

from __future__ import annotations

import base64
import struct
from typing import Final

from tmem_host.vm.guest_client import GuestClient
from tmem_host.vm.qemu import PAGES_PORT

#: Bytes of a message in one line of the agent's protocol, which has 256 KiB at most.
_PIECE: Final = 128 * 1024


class GuestPort:
    """One port of a guest. Every method raises GuestError; after one, the port has to be opened again."""

    def __init__(self, agent: GuestClient, port: str = PAGES_PORT) -> None:
        self._agent = agent
        self._port = port

    async def open(self, *, wait: float = 30.0) -> None:
        """Brings the port in step with whoever serves it on the host; no HELLO is said."""
        await self._agent.request("abi_open", timeout=wait + 30.0, port=self._port, wait_ms=round(wait * 1000))

    async def request(self, message: bytes, *, timeout: float = 60.0) -> bytes:
        """A request's reply, each with its data."""
        last = max(0, len(message) - 1) // _PIECE * _PIECE
        for at in range(0, last, _PIECE):
            await self._send(message[at : at + _PIECE], more=True, timeout=timeout)
        return base64.b64decode((await self._send(message[last:], more=False, timeout=timeout))["data"])

    async def _send(self, data: bytes, *, more: bool, timeout: float) -> dict[str, str]:
        text = base64.b64encode(data).decode()
        return await self._agent.request("abi_request", timeout=timeout, port=self._port, data=text, more=more)

    async def time(
        self, what: str, pool: int, count: int, *, batch: int = 1, span: int = 1024, timeout: float = 300.0
    ) -> list[int]:
        """Nanoseconds of each of ``count`` requests, as the guest's Python sees them.

        ``what`` is put, get, flush_page or exchange, of ``batch`` pages at once, round the first ``span`` pages of a
        pool that was made by :meth:`request`; those of a get must be there. Any answer but OK is an error.
        """
        answer = await self._agent.request(
            "abi_time", timeout=timeout, port=self._port, what=what, pool=pool, count=count, batch=batch, span=span
        )
        raw = base64.b64decode(answer["samples"])
        return list(struct.unpack(f"<{len(raw) // 8}Q", raw))

    async def close(self) -> None:
        """Gives the port up, so that it can be lent to the module."""
        await self._agent.request("abi_close", port=self._port)
