# SPDX-License-Identifier: Apache-2.0
"""A speaker in a real guest: its agent sends the requests over a virtio-serial port, which the core serves."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from conformance.served import ServedSpeaker
from conformance.speaker import Speaker
from tmem_host.core import Engine, Store, StreamServer
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.guest_speaker import GuestPort
from tmem_host.vm.images import guest_image
from tmem_host.vm.qemu import PAGES_PORT, comma
from tmem_host.vm.spec import VmSpec

T = TypeVar("T")

_LIMIT = 256 << 20
#: Requests of 2 MiB lie in the agent several times over.
_MEMORY_MIB = 160
#: Seconds that the guest may take for one thing, TCG on a busy machine included.
_PATIENCE = 300.0
#: A port for each speaker: the VM's first channel, its second, and another VM's.
_PORTS = (PAGES_PORT, "org.kvm-tmem.pages.1", "org.kvm-tmem.pages.2")


class GuestMachine:
    """A running guest with three ports, for callers that are not coroutines. Sockets lie in ``folder``."""

    def __init__(self, series: str, folder: Path, workdir: Path) -> None:
        self.sockets = {name: folder / f"port{number}" for number, name in enumerate(_PORTS)}
        extra = [
            word
            for number, name in enumerate(_PORTS[1:])
            for word in (
                *("-chardev", f"socket,id=more{number},path={comma(self.sockets[name])},server=on,wait=off"),
                *("-device", f"virtserialport,chardev=more{number},name={name}"),
            )
        ]
        first = self.sockets[PAGES_PORT]
        spec = VmSpec(
            "speaker",
            guest_image(series),
            _MEMORY_MIB,
            workdir=workdir,
            pages_port=first,
            extra_args=tuple(extra),
        )
        self.vm = DirectVm(spec)
        self._loop = asyncio.new_event_loop()
        # QEMU dies with the thread that has started it, so that is one which stays.
        self._thread = threading.Thread(target=self._loop.run_forever, name="guest")
        self._thread.start()
        try:
            self.call(self.vm.start())
        except BaseException:
            self.close()
            raise

    def call(self, wanted: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises."""
        return asyncio.run_coroutine_threadsafe(wanted, self._loop).result(_PATIENCE)

    def close(self) -> None:
        """Ends the guest, whatever it is at."""
        try:
            self.call(self.vm.kill())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class GuestSpeaker(ServedSpeaker):
    """A port of the guest, served as a channel of a VM of ``store``."""

    rooms = False

    def __init__(self, store: Store, vm: str, machine: GuestMachine, port: str, engine: Engine | None = None) -> None:
        self._engine = engine or Engine(store, vm)
        socket_path = machine.sockets[port]
        super().__init__(store, vm, socket_path.parent, self._engine)
        self._machine = machine
        self._socket = str(socket_path)
        self._second: GuestSpeaker | None = None
        self._port = GuestPort(machine.vm.agent, port)
        self._serve()

    @classmethod
    def inside(cls, machine: GuestMachine, arena: Path) -> GuestSpeaker:
        """Over a new arena with two VMs, for which the one guest speaks."""
        store = Store(str(arena), limit_bytes=_LIMIT)
        for vm in ("one", "other"):
            store.vm_create(vm)
        first, second, other = _PORTS
        speaker = cls(store, "one", machine, first)
        speaker._second = speaker.keep(cls(store, "one", machine, second, speaker._engine))
        speaker._peer = speaker.keep(cls(store, "other", machine, other))
        return speaker

    def _serve(self) -> None:
        self._control, theirs = socket.socketpair()
        self.server = StreamServer(self._engine, self._socket, theirs.detach())
        self._machine.call(self._port.open())

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self._machine.call(self._port.request(message))

    def reset(self) -> None:
        self.end()
        self._serve()

    def time(self, what: str, pool: int, count: int, batch: int) -> list[int]:
        """Nanoseconds of each request, as the guest sees them."""
        return self._machine.call(self._port.time(what, pool, count, batch=batch, span=64))

    def reopen(self) -> None:
        """The guest closes the port and opens it, under the same server."""
        self._machine.call(self._port.close())
        self._machine.call(self._port.open())

    def channel(self) -> Speaker:
        assert self._second is not None
        self._second.reset()
        return self._second

    def end(self) -> None:
        self.server.stop()
        self._control.close()
