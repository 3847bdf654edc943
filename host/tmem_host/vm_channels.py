# SPDX-License-Identifier: Apache-2.0
"""The channels of one VM: their sockets, and the engine that those carrying the tmem ABI share."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tmem_host.channel.control import ChannelServer, ControlLoop, GuestReports, SerialChannel
from tmem_host.channel.serial import SerialPort
from tmem_host.config import AgentConfig, check_socket_path
from tmem_host.core import BlkServer, CoreError, Engine, Store, TmemServer, core_errors
from tmem_host.errors import NotFound, TmemError
from tmem_host.models import ChannelInfo, ChannelKind, ChannelSummary, GuestReport
from tmem_host.state import VmEntry


class VmChannels:
    """Serves one VM from :meth:`listen` to :meth:`stop`."""

    def __init__(self, config: AgentConfig, store: Store, entry: VmEntry, control: ControlLoop) -> None:
        self._config = config
        self._store = store
        self._control = control
        self._servers: dict[ChannelKind, ChannelServer] = {}
        self._engine: Engine | None = None
        self._reports = GuestReports()
        self._name = entry.name

    @property
    def engine(self) -> Engine | None:
        """What carries the VM's requests out; None for a VM with nothing but a block device."""
        return self._engine

    @property
    def report(self) -> GuestReport | None:
        """The latest that the guest said of itself, if it did since the channels listen."""
        return self._reports.latest()

    def listen(self, entry: VmEntry) -> None:
        """Serves every channel of ``entry``.  All of them, or none and a :class:`TmemError`."""
        try:
            for kind in entry.channels:
                path = check_socket_path(self._config.vm_socket(entry.name, kind))
                with core_errors(f"VM {entry.name} cannot be served on {path}"):
                    self._servers[kind] = self._serve(entry, kind, path)
        except BaseException:
            with contextlib.suppress(TmemError):
                self.stop()
            raise

    def _serve(self, entry: VmEntry, kind: ChannelKind, path: Path) -> ChannelServer:
        if kind == "blk":
            assert entry.pool is not None  # made or found before anything listens
            return BlkServer(
                self._store,
                entry.pool,
                str(path),
                queues=entry.queues,
                poll_us=entry.poll_us,
                # virtio-blk's GET_ID has 20 bytes.
                serial=entry.name[:20],
            )
        self._engine = self._engine or Engine(self._store, entry.name, codec=entry.codec, hidden=entry.pool)
        if kind == "serial":
            return SerialChannel(self._control, SerialPort(self._engine, entry.name, path, self._reports))
        return TmemServer(self._engine, str(path), queues=entry.queues, poll_us=entry.poll_us)

    def set_poll(self, poll_us: int) -> None:
        """Raises CoreError."""
        for server in self._servers.values():
            server.set_poll(poll_us)

    def stop(self) -> None:
        """Ends all of them, also when one does not end in good order; that is raised at the end."""
        servers, self._servers = self._servers, {}
        with contextlib.ExitStack() as rest:
            for kind, server in servers.items():
                rest.callback(self._stop_one, kind, server)

    def _stop_one(self, kind: ChannelKind, server: ChannelServer) -> None:
        with core_errors(f"the channel {kind} of {self._name} did not stop in good order"):
            server.stop()

    def summaries(self, entry: VmEntry) -> list[ChannelSummary]:
        """What went through each channel, in the order of ``entry``."""
        found = []
        for kind in entry.channels:
            stats = self.stats(kind)
            found.append(
                ChannelSummary(
                    kind=kind,
                    socket=str(self._config.vm_socket(entry.name, kind)),
                    state=str(stats.get("state", "stopped")),
                    requests=stats.get("requests", {}),
                    refused=stats.get("refused", {}),
                    malformed=stats.get("malformed", {}),
                )
            )
        return found

    def info(self, entry: VmEntry, kind: ChannelKind | None) -> ChannelInfo:
        """All that a channel counts; the first one's for None.  Raises NotFound."""
        kind = kind or entry.channels[0]
        if kind not in entry.channels:
            raise NotFound(f"VM {entry.name} has no channel {kind}", f"it has {' and '.join(entry.channels)}")
        stats = self.stats(kind)
        return ChannelInfo(
            kind=kind,
            socket=str(self._config.vm_socket(entry.name, kind)),
            state=str(stats.pop("state", "stopped")),
            queues=1 if kind == "serial" else entry.queues,
            poll_us=0 if kind == "serial" else entry.poll_us,
            counters=stats,
        )

    def stats(self, kind: ChannelKind) -> dict[str, Any]:
        """All that a channel counts, and its ``state``; nothing when it does not listen."""
        server = self._servers.get(kind)
        if server is None:
            return {}
        try:
            return dict(server.stats())
        except CoreError:  # stopped in this moment
            return {}
