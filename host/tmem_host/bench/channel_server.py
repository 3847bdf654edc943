# SPDX-License-Identifier: Apache-2.0
"""The tmem side of the channel bench, in a process of its own: a store and its vhost-user servers, nothing else.

The bench steers it by JSON lines on standard input and gets one JSON line back for each; the end of the input ends the
process. The Python thread sleeps in `readline` meanwhile, so that no interpreter takes part in what is measured.

    {"op":"add","name":"reads","pages":65536,"codec":"lz4","socket":"/...","queues":1,"queue_size":256}
    {"op":"add_tmem","name":"own","codec":"lz4","socket":"/...","queues":1}      a VM's tmem requests
    {"op":"add_serial","name":"own","codec":"lz4","socket":"/..."}               the same as frames, where QEMU listens
    {"op":"poll","name":"reads","us":50}      0: wait for events
    {"op":"stats"}                            -> {"store":{...},"pools":[...],"channels":{name:{...}}}

Every answer is {"ok":true,...} or {"ok":false,"reason":"..."}.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from tmem_host.config import PAGE_SIZE
from tmem_host.core import BlkServer, CoreError, Engine, Store, StreamServer, TmemServer


class ChannelServer:
    """A store with one VM and channel per name."""

    def __init__(self, arena: str, limit_bytes: int) -> None:
        self._store = Store(arena, limit_bytes=limit_bytes)
        self._channels: dict[str, Any] = {}
        self._controls: list[socket.socket] = []

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does one request. Raises CoreError, KeyError for what is not there or missing."""
        match request["op"]:
            case "add":
                return self._add(request)
            case "add_tmem":
                engine = self._engine(request)
                server: TmemServer | StreamServer = TmemServer(engine, request["socket"], queues=int(request["queues"]))
                self._channels[str(request["name"])] = server
                return {}
            case "add_serial":
                # What a guest says besides its requests is nobody's business here: held open, and never read.
                ours, theirs = socket.socketpair()
                self._controls.append(ours)
                server = StreamServer(self._engine(request), request["socket"], theirs.detach())
                self._channels[str(request["name"])] = server
                return {}
            case "poll":
                self._channels[request["name"]].set_poll(int(request["us"]))
                return {}
            case "stats":
                channels = {name: channel.stats() for name, channel in self._channels.items()}
                return {"store": self._store.stats(), "pools": self._store.pools(), "channels": channels}
            case other:
                raise KeyError(f"op {other}")

    def _engine(self, request: dict[str, Any]) -> Engine:
        """That of a new VM."""
        self._store.vm_create(str(request["name"]))
        return Engine(self._store, str(request["name"]), codec=request["codec"])

    def _add(self, request: dict[str, Any]) -> dict[str, Any]:
        name, pages = str(request["name"]), int(request["pages"])
        # The worst case is reserved, as the agent does for a swap device: no put is refused for room.
        self._store.vm_create(name, reservation=pages * (PAGE_SIZE + 64))
        pool = self._store.pool_create(name, persistent=True, pages=pages, codec=request["codec"])
        self._channels[name] = BlkServer(
            self._store,
            pool,
            request["socket"],
            queues=int(request["queues"]),
            queue_size=int(request["queue_size"]),
            serial=name[:20],
        )
        return {"pool": pool}

    def close(self) -> None:
        """Stops the channels (their sockets go) and closes the store."""
        for channel in self._channels.values():
            channel.stop()
        for control in self._controls:
            control.close()
        self._store.close()


def serve(server: ChannelServer, requests: TextIO, replies: TextIO) -> None:
    """Answers every line until the input ends."""
    for line in requests:
        try:
            reply = {"ok": True, **server.handle(json.loads(line))}
        except (CoreError, KeyError, ValueError, TypeError) as error:
            reply = {"ok": False, "reason": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply, default=_encode) + "\n")
        replies.flush()


def _encode(value: object) -> str:
    """Bytes (uuids) as hex."""
    return value.hex() if isinstance(value, bytes) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: `python -m tmem_host.bench.channel_server --arena FILE --limit BYTES`."""
    parser = argparse.ArgumentParser(prog="python -m tmem_host.bench.channel_server")
    parser.add_argument("--arena", required=True)
    parser.add_argument("--limit", type=int, required=True)
    options = parser.parse_args(argv)
    # Ctrl-C goes to the whole foreground group: the bench decides when we end, by closing our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = ChannelServer(options.arena, options.limit)
    except CoreError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return 1
    try:
        print(json.dumps({"ok": True}), flush=True)
        serve(server, sys.stdin, sys.stdout)
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
