# SPDX-License-Identifier: Apache-2.0
"""What the channel bench compares: vhost-user-blk servers, each in its own process, all running at the same time.

Idle servers sleep, so they do not disturb the one that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tmem_host.bench.comparators import Tree
from tmem_host.bench.comparators_process import cpu_ns, daemon, last_line
from tmem_host.config import PAGE_SIZE
from tmem_host.errors import VmFailed

COMPRESSIBLE = "compressible"
SAME_FILLED = "same-filled"
CONTENTS = (COMPRESSIBLE, SAME_FILLED)
"""One device for each kind of contents, so that writes of one never change what the other's reads find."""

_QUEUE_SIZE = 256


class Backend(Protocol):
    """A server as the bench sees it."""

    async def ready(self) -> None:
        """Puts the server into the state that its arm means; called before each of its turns."""

    def socket(self, contents: str) -> Path:
        """The socket of the device for these contents."""

    def cpu_ns(self) -> int:
        """CPU time the server's process has used, nanoseconds."""


@dataclass(frozen=True)
class StorageDaemon:
    """qemu-storage-daemon with one export per kind of contents."""

    pid: int
    sockets: dict[str, Path]

    async def ready(self) -> None:
        return None

    def socket(self, contents: str) -> Path:
        return self.sockets[contents]

    def cpu_ns(self) -> int:
        return cpu_ns(self.pid)


class TmemProcess:
    """The channel server process; several arms (codec, polling or not) share it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._folder = folder
        self._log = log

    async def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer. Raises VmFailed when it is refused or the process is gone."""
        assert self._process.stdin is not None  # opened as a pipe
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """The next line of the process."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        if not line:
            raise VmFailed(f"the tmem channel server ended: {last_line(read_text(self._log)) or 'no reason given'}")
        reply: dict[str, Any] = json.loads(line)
        if not reply.pop("ok"):
            raise VmFailed(f"the tmem channel server refused: {reply['reason']}")
        return reply

    async def add(self, name: str, pages: int, codec: str) -> Path:
        """A device of `pages` pages; returns its socket."""
        path = self._folder / f"{name}.sock"
        await self.ask(
            op="add", name=name, pages=pages, codec=codec, socket=str(path), queues=1, queue_size=_QUEUE_SIZE
        )
        return path


@dataclass(frozen=True)
class TmemArm:
    """One codec and way of waiting."""

    process: TmemProcess
    #: By kind of contents: name of the channel and its socket.
    channels: dict[str, tuple[str, Path]]
    poll_us: int

    async def ready(self) -> None:
        for name, _ in self.channels.values():
            await self.process.ask(op="poll", name=name, us=self.poll_us)

    def socket(self, contents: str) -> Path:
        return self.channels[contents][1]

    def cpu_ns(self) -> int:
        return cpu_ns(self.process.pid)


@contextlib.asynccontextmanager
async def tmem_process(folder: Path, limit_bytes: int) -> AsyncIterator[TmemProcess]:
    """Starts the channel server with an arena in `folder` (shared memory) and ends it with the block."""
    arena, log = folder / "arena", folder / "channel-server.log"
    argv = [sys.executable, "-m", "tmem_host.bench.channel_server", "--arena", str(arena), "--limit", str(limit_bytes)]
    pipe = asyncio.subprocess.PIPE
    async with daemon(argv, log=log, stdin=pipe, stdout=pipe) as process:
        server = TmemProcess(process, folder, log)
        await server.answer()
        try:
            yield server
        finally:
            if process.stdin is not None:
                process.stdin.close()  # the server ends by itself, and removes its sockets
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 10)


@dataclass(frozen=True)
class DaemonOptions:
    """How a qemu-storage-daemon is started."""

    #: null-co, or file (on tmpfs).
    driver: str
    #: aio= of the file driver; None: QEMU's default, threads.
    aio: str | None = None
    #: Exports in an I/O thread, which polls adaptively for up to 32 us (QEMU's default), not in the main loop.
    iothread: bool = False


@contextlib.asynccontextmanager
async def storage_daemon(tree: Tree, options: DaemonOptions, folder: Path, pages: int) -> AsyncIterator[StorageDaemon]:
    """Starts qemu-storage-daemon with an export per kind of contents, and ends it with the block."""
    sockets = {contents: folder / f"{contents}.sock" for contents in CONTENTS}
    files = {contents: folder / f"{contents}.raw" for contents in CONTENTS}
    if options.driver == "file":
        for path in files.values():
            fill(path, pages)
    argv = daemon_argv(tree, options, sockets, files, pages)
    async with daemon(argv, env=tree.env, sockets=list(sockets.values()), log=folder / "qsd.log") as process:
        yield StorageDaemon(process.pid, sockets)


def daemon_argv(
    tree: Tree, options: DaemonOptions, sockets: dict[str, Path], files: dict[str, Path], pages: int
) -> list[str]:
    """The command line of qemu-storage-daemon."""
    args: list[str] = ["--object", "iothread,id=io"] if options.iothread else []
    for number, contents in enumerate(sockets):
        node = f"node{number}"
        if options.driver == "file":
            # Linux AIO wants O_DIRECT, which tmpfs has from kernel 6.6 on.
            direct = "on" if options.aio == "native" else "off"
            aio = f",aio={options.aio}" if options.aio else ""
            block = f"driver=file,node-name={node},filename={files[contents]},cache.direct={direct}{aio}"
        else:
            block = f"driver=null-co,node-name={node},size={pages * PAGE_SIZE},read-zeroes=on"
        export = (
            f"type=vhost-user-blk,id=export{number},node-name={node},addr.type=unix,addr.path={sockets[contents]},"
            "writable=on,logical-block-size=4096,num-queues=1"
        )
        args += ["--blockdev", block, "--export", export + (",iothread=io" if options.iothread else "")]
    return tree.command("qemu-storage-daemon", *args)


def fill(path: Path, pages: int) -> None:
    """A file with every page allocated: what is measured is not tmpfs taking its first pages."""
    block = bytes(1 << 20)
    left = pages * PAGE_SIZE
    with path.open("wb") as file:
        while left > 0:
            left -= file.write(block[: min(left, len(block))])


def read_text(path: Path) -> str:
    """What a log holds; empty when there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def names(backends: dict[str, Backend], wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` that exist, in the order of `backends`; all when none is wanted."""
    return [name for name in backends if not wanted or name in wanted]
