# SPDX-License-Identifier: Apache-2.0
"""The host's end of the guest agent's port.

::

    VmFailed
    └── GuestError             anything below
        ├── GuestGone          the channel has closed: the guest or its QEMU ended
        ├── GuestTimeout       no answer within the deadline; the client stays usable
        ├── GuestRefused       the agent answered ok=false; .kind is invalid, not-found, busy or failed
        └── GuestGarbled       what arrived is not the protocol; the channel was closed
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import enum
import functools
import json
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from tmem_host.errors import Conflict, VmFailed, one_line
from tmem_host.vm.guest_results import HogResult, Progress, WorkloadResult, collect_hog, collect_workload

PROTOCOL: Final = 1
#: A phase's samples are the longest frame: 65536 of 4 bytes, in base64.
_LONGEST: Final = 4 << 20
#: Bytes that one workload may say: far more than the samples of any, and what a guest that lies can make us hold.
_MOST: Final = 32 << 20

#: Characters of what a guest says of an error that are told.
_WORDS: Final = 400

Json = dict[str, Any]
EventHandler = Callable[[Json], None]
WorkloadKind = Literal["zipf", "build", "redis"]
T = TypeVar("T")


class GuestError(VmFailed):
    """The agent in the guest cannot be reached, or did not do what it was asked."""


class GuestGone(GuestError):
    """The channel has closed."""


class GuestTimeout(GuestError):
    """No answer within the deadline."""


class GuestGarbled(GuestError):
    """What arrived is not the protocol."""


class GuestRefused(GuestError):
    """The agent answered that it cannot."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ClientState(enum.Enum):
    """NEW -> OPEN -> CLOSED; nothing else."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


def _said(text: object) -> str:
    """What a guest says of itself, fit for an error: a line, and not a long one."""
    line = one_line(str(text)[:_WORDS])
    return "".join(letter for letter in line if letter.isprintable())


class GuestClient:
    """Requests to one agent, any number at a time. Every method raises GuestError and nothing else of its own."""

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(f"{__name__}.{name}")
        self._name = name
        self._state = ClientState.NEW
        self._next_id = 1
        #: The agent ends what another host, which left unseen, had begun.
        self._session = secrets.token_hex(8)
        self._pending: dict[int, tuple[asyncio.Future[Json], EventHandler | None]] = {}
        self._received = 0
        self._reason = "not connected"
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> ClientState:
        return self._state

    async def connect(self, socket: Path) -> None:
        """Opens the port's socket, which need not have a listening agent yet. Raises OSError, Conflict."""
        if self._state is not ClientState.NEW:
            raise Conflict(f"the agent's client is {self._state.value}", "make a new one for each connection")
        reader, self._writer = await asyncio.open_unix_connection(str(socket), limit=_LONGEST)
        self._state = ClientState.OPEN
        self._task = asyncio.create_task(self._read(reader), name=f"guest-{self._name}")

    async def close(self) -> None:
        """Ends the connection; whoever waits gets GuestGone."""
        self._end("closed by the host")
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            # not awaited itself: its cancellation must not be taken for ours
            await asyncio.wait((self._task,))
            self._task = None
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _end(self, reason: str, error: type[GuestError] = GuestGone) -> None:
        if self._state is ClientState.CLOSED:
            return
        self._state = ClientState.CLOSED
        self._reason = reason
        if self._writer is not None:
            self._writer.close()
        for future, _handler in self._pending.values():
            if not future.done():
                future.set_exception(error(f"{self._name}: {reason}", "see the guest's console log"))
        self._pending.clear()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._received += len(line)
                self._take(json.loads(line))
            self._end("the guest's agent has gone")
        except OSError as error:
            self._end(f"the guest's port failed: {error}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._end(f"the agent sent something else than the protocol: {error}", GuestGarbled)

    def _take(self, frame: Json) -> None:
        pending = self._pending.get(frame["id"]) if frame["id"] is not None else None
        if pending is None:
            # The answer to a request that has timed out meanwhile, or to a frame that the agent could not read.
            self._log.debug("unasked frame: %.200s", frame)
            return
        future, handler = pending
        if "event" in frame:
            if handler is not None and not future.done():
                try:
                    handler(frame)
                except Exception as error:  # the caller's own: it surfaces where the caller waits
                    future.set_exception(error)
            return
        if not future.done():
            if frame["ok"]:
                future.set_result(frame)
            else:
                future.set_exception(GuestRefused(f"{self._name}: {_said(frame['error'])}", frame["kind"]))

    async def request(
        self, op: str, *, timeout: float = 30.0, on_event: EventHandler | None = None, **arguments: object
    ) -> Json:
        """Sends one request and returns its answer; events on the way go to ``on_event``, in order."""
        return await self._ask(self._claim_id(), op, timeout, on_event, arguments)

    def _claim_id(self) -> int:
        request_id, self._next_id = self._next_id, self._next_id + 1
        return request_id

    async def _ask(
        self, request_id: int, op: str, timeout: float, on_event: EventHandler | None, arguments: Json
    ) -> Json:
        if self._state is not ClientState.OPEN or self._writer is None:
            raise GuestGone(f"{self._name}: {self._reason}", "see the guest's console log")
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = (future, on_event)
        frame = {"id": request_id, "op": op, **{k: v for k, v in arguments.items() if v is not None}}
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(json.dumps(frame).encode() + b"\n")
                await self._writer.drain()
                return await future
        except TimeoutError:
            raise GuestTimeout(
                f"{self._name}: {op} took longer than {timeout:g} s", "see the guest's console log"
            ) from None
        except OSError as error:
            raise GuestGone(f"{self._name}: {error}", "see the guest's console log") from error
        finally:
            self._pending.pop(request_id, None)
            # Nobody may be left to look at it.
            if future.done() and not future.cancelled():
                future.exception()

    async def hello(self, timeout: float = 60.0) -> Json:
        """Kernel, versions, disks by serial. Raises GuestGarbled for another protocol version."""
        answer = await self.request("hello", timeout=timeout, session=self._session)
        if answer.get("protocol") != PROTOCOL:
            self._end(f"the agent speaks protocol {answer.get('protocol')}, not {PROTOCOL}", GuestGarbled)
            raise GuestGarbled(f"{self._name}: {self._reason}", "run 'make guests'")
        return answer

    async def swap_on(
        self,
        serial: str | None = None,
        *,
        device: str | None = None,
        discard: bool = True,
        require_discard: bool = False,
        priority: int = 100,
        page_cluster: int | None = None,
        timeout: float = 60.0,
    ) -> Json:
        """Makes a disk, by serial or by name (tmem0), a swap device that sends discards.

        Answer: device, bytes, discard, rotational, queues, ...
        """
        return await self.request(
            "swap_on",
            timeout=timeout,
            serial=serial,
            device=device,
            discard=discard,
            require_discard=require_discard,
            priority=priority,
            page_cluster=page_cluster,
        )

    async def swap_off(
        self,
        serial: str | None = None,
        *,
        device: str | None = None,
        discard_after: bool = True,
        timeout: float = 300.0,
    ) -> Json:
        """By serial or name; zram0 is reset too. Answer: seconds, used_before (bytes), discarded."""
        return await self.request(
            "swap_off", timeout=timeout, serial=serial, device=device, discard_after=discard_after
        )

    async def lend(self, *, wait: float = 30.0) -> Json:
        """Lends the pages port to tmem.ko, loaded with channel=serial, until the host answers. Answer: port."""
        return await self.request("lend", timeout=wait + 30.0, wait_ms=round(wait * 1000))

    async def lend_stop(self, *, timeout: float = 30.0) -> Json:
        """Takes the port back. Answer: error, how serving had ended by itself."""
        return await self.request("lend_stop", timeout=timeout)

    async def zram_setup(
        self, size_mib: int, algo: str = "lz4", *, page_cluster: int | None = None, timeout: float = 60.0
    ) -> Json:
        """Makes zram0 of that size the swap device. Answer: device, algorithm, offered."""
        return await self.request(
            "zram_setup", timeout=timeout, size_mib=size_mib, algo=algo, page_cluster=page_cluster
        )

    async def meminfo(self) -> Json:
        """{"meminfo": {name: bytes}, "swaps": {device: {bytes, used}}}"""
        return await self.request("meminfo")

    async def vmstat(self) -> dict[str, int]:
        answer: dict[str, int] = (await self.request("vmstat"))["vmstat"]
        return answer

    async def hog(
        self,
        mib: int,
        *,
        pattern: str | None = None,
        corpus: str | None = None,
        seed: int = 1,
        passes: int = 1,
        rewrite: int | None = None,
        recheck: bool = False,
        verify: bool = True,
        samples: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        timeout: float = 600.0,
    ) -> HogResult:
        """Runs one hog; two at once are two calls with unlike seeds. ``corpus`` is the serial of a disk of 4K pages.

        A hog whose caller was cancelled, or timed out, is ended in the guest. Raises GuestRefused when the hog did not
        finish (killed for lack of memory, for example); bad pages are a result, not an error.
        """
        arguments: Json = {
            "mib": mib,
            "pattern": pattern,
            "corpus": corpus,
            "seed": seed,
            "passes": passes,
            "rewrite": rewrite,
            "recheck": recheck,
            "verify": verify,
            "samples": samples,
        }
        return await self._work("hog", arguments, progress, timeout, collect_hog)

    async def workload(
        self,
        kind: WorkloadKind,
        mib: int,
        *,
        progress: Callable[[Progress], None] | None = None,
        timeout: float = 600.0,
        **arguments: int | str | None,
    ) -> WorkloadResult:
        """Runs a workload on ``mib`` MiB of data, of each job in a build; guest/work/main.c has the other arguments.

        Its end, and what is raised, are as of :meth:`hog`.
        """
        collect = functools.partial(collect_workload, kind)
        return await self._work(kind, {"mib": mib, **arguments}, progress, timeout, collect)

    async def _work(
        self,
        kind: str,
        arguments: Json,
        progress: Callable[[Progress], None] | None,
        timeout: float,
        collect: Callable[[list[Json], int, float], T],
    ) -> T:
        """``collect`` makes the result of the program's lines, its status and the seconds it took, or ValueError."""
        request_id = self._claim_id()
        events: list[Json] = []
        began, before = time.monotonic(), self._received

        def on_event(frame: Json) -> None:
            if self._received - before > _MOST:
                raise GuestGarbled(f"{self._name}: {kind} says more than {_MOST >> 20} MiB", "ask for fewer samples")
            event = frame["data"]
            if event["event"] != "progress":
                events.append(event)
            elif progress is not None:
                progress(Progress(event["phase"], event["done"], event["planned"], event["bad"]))

        try:
            answer = await self._ask(request_id, "workload", timeout, on_event, {"kind": kind, **arguments})
        except (KeyError, TypeError) as error:
            raise GuestGarbled(f"{self._name}: what {kind} says is no event: {error}", "run 'make guests'") from error
        except (GuestTimeout, asyncio.CancelledError):
            with contextlib.suppress(GuestError):
                await self.request("workload_cancel", timeout=10.0, target=request_id)
            raise
        try:
            return collect(events, answer["status"], time.monotonic() - began)
        except (KeyError, TypeError, AttributeError) as error:
            raise GuestGarbled(f"{self._name}: {kind} lacks what it says: {error}", "run 'make guests'") from error
        except ValueError as error:
            raise GuestRefused(f"{self._name}: {_said(error)}", "failed") from error

    async def report(self) -> dict[str, float]:
        """What the guest says of its memory, as in its reports (tmem_guest.report)."""
        numbers: dict[str, float] = (await self.request("report"))["report"]
        return numbers

    async def command(
        self,
        *words: str,
        settings: str | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout: float = 120.0,
    ) -> tuple[int, list[str]]:
        """Runs the agent's own command line in the guest, as ``command("run")``: its exit status and its lines.

        ``settings``: the text of its settings file. Cancelled or timed out, it is asked to end.
        """
        request_id = self._claim_id()
        lines: list[str] = []

        def on_event(frame: Json) -> None:
            lines.append(frame["data"])
            if on_line is not None:
                on_line(frame["data"])

        arguments = {"arguments": list(words), "settings": settings}
        try:
            answer = await self._ask(request_id, "command", timeout, on_event, arguments)
        except (GuestTimeout, asyncio.CancelledError):
            with contextlib.suppress(GuestError):
                await self.request("command_stop", timeout=10.0, target=request_id)
            raise
        return answer["status"], lines

    async def sample_pages(
        self, count: int, *, kind: str = "anon", seed: int = 1, workload: bool = True, timeout: float = 120.0
    ) -> bytes:
        """Up to ``count`` pages of 4096 bytes of the guest's own memory: anon, file, kernel or all."""
        chunks: list[bytes] = []
        await self.request(
            "sample_pages",
            timeout=timeout,
            on_event=lambda frame: chunks.append(base64.b64decode(frame["data"])),
            count=count,
            kind=kind,
            seed=seed,
            workload=workload,
        )
        return b"".join(chunks)

    async def io(
        self,
        serial: str,
        action: str,
        *,
        offset: int = 0,
        size: int | None = None,
        block: int = 65536,
        seed: int = 1,
        timeout: float = 120.0,
    ) -> Json:
        """write, verify, zero-check, discard, write-zeroes or flush. Answer: bad_blocks, nanoseconds, error?"""
        return await self.request(
            "io", timeout=timeout, serial=serial, action=action, offset=offset, bytes=size, block=block, seed=seed
        )

    async def files_read(
        self, path: str = "/", *, part: int = 0, parts: int = 1, evict: bool = False, timeout: float = 120.0
    ) -> Json:
        """Reads one of ``parts`` parts of a filesystem's files; ``evict``: the kernel drops them behind it.

        Answer: bytes, crc, sectors (read from the disk for it), seconds.
        """
        return await self.request("files_read", timeout=timeout, path=path, part=part, parts=parts, evict=evict)

    async def module_load(self, name: str = "tmem", *, timeout: float = 60.0, **parameters: str | int | bool) -> Json:
        """Loads a module that came with the initramfs (tmem_host.vm.modulebuild.module.with_module)."""
        words = {key: int(value) if isinstance(value, bool) else value for key, value in parameters.items()}
        return await self.request("module_load", timeout=timeout, name=name, parameters=words)

    async def module_unload(self, name: str = "tmem", *, timeout: float = 60.0) -> Json:
        """Raises GuestRefused, kind busy, while something uses it."""
        return await self.request("module_unload", timeout=timeout, name=name)

    async def debugfs_read(self, path: str, *, timeout: float = 30.0) -> str:
        """A file below /sys/kernel/debug, as in ``tmem/version``."""
        text: str = (await self.request("debugfs_read", timeout=timeout, path=path))["text"]
        return text

    async def shutdown(self, timeout: float = 10.0) -> None:
        """Asks the guest to power off; the channel closes soon after."""
        await self.request("shutdown", timeout=timeout)
