# SPDX-License-Identifier: Apache-2.0
"""The agent as a service of a guest: sets swap up, reports, answers the host; undoes what it did when it is stopped.

What was changed is noted in a file, so that ``off`` can undo it also after a crash.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from . import disks, lend, libc, modules, plan, probe, procs, report, server, stats, swap
from .plan import Plan
from .port import Port
from .probe import Found
from .protocol import OpError, encode
from .reporter import Reporter
from .settings import Settings

STATE = "/run/tmem-guest.json"
LOCK = "/run/tmem-guest.lock"
_PAGE_CLUSTER = "/proc/sys/vm/page-cluster"
#: Between two looks at a service that is to stop.
_LOOK_MS = 200

Say = Callable[[str], None]


class Running(Exception):
    """A service runs already; its pid."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"the service runs already, pid {pid}")
        self.pid = pid


@dataclass
class Changes:
    """What the service did to this guest, and what was there before."""

    pid: int = 0
    #: Device that was swapped on.
    swap: str = ""
    module: bool = False
    page_cluster: int | None = None
    #: How often it could not be undone, and why the last time.
    declined: int = 0
    reason: str = ""

    def save(self) -> None:
        with open(f"{STATE}.new", "w", encoding="ascii") as stream:
            json.dump(asdict(self), stream)
        os.rename(f"{STATE}.new", STATE)

    def decline(self, reason: str, say: Say) -> bool:
        """False: something stays."""
        say(reason)
        self.declined += 1
        self.reason = reason
        self.save()
        return False


def noted() -> Changes:
    """Those of the service that runs, or of one that could not undo them."""
    try:
        with open(STATE, encoding="ascii") as stream:
            return Changes(**json.load(stream))
    except (OSError, ValueError, TypeError):
        return Changes()


def claim() -> int:
    """The lock that one service at a time holds: a descriptor. Raises Running."""
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Running(noted().pid) from None
    return fd


def undo(changes: Changes, say: Say) -> bool:
    """Takes back what was changed. False: something stays, and what it is was said; nothing that needs it was touched.

    Pages of a swap device are somebody's only copy: as long as they do not fit in memory it stays, with its channel.
    """
    if changes.swap in swap.active():
        _size, used = swap.active()[changes.swap]
        room = _room_besides(changes.swap)
        if used > room:
            what = f"{used >> 20} MiB of pages do not fit in {room >> 20} MiB of memory and other swap"
            return changes.decline(f"swap: stays on: {what} [end some programs, then stop again]", say)
        try:
            _reach_pages(say)
            swap.stop(disks.Disk(changes.swap.removeprefix("/dev/")), discard=True)
        except OpError as error:
            what = f"{error.message}; {used >> 20} MiB of pages are on it"
            return changes.decline(f"swap: stays on: {what} [end some programs, then stop again]", say)
        say(f"swap: {changes.swap} is off, {used >> 20} MiB were read back")
    changes.swap = ""
    changes.save()
    if changes.page_cluster is not None:
        disks.write_text(_PAGE_CLUSTER, str(changes.page_cluster))
        changes.page_cluster = None
    if lend.lent():
        ended = lend.stop()
        say(f"port: taken back{', ' + ended if ended else ''}")
    if changes.module:
        try:
            modules.unload("tmem")
        except OpError as error:
            if not probe.module_has_hooks():
                return changes.decline(f"module: {error.message} [see 'lsmod' for what uses it]", say)
            say("module: tmem.ko stays, as the kernel keeps the hooks of frontswap and cleancache until it boots anew")
        else:
            say("module: tmem.ko unloaded")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(STATE)
    return True


def _room_besides(device: str) -> int:
    """Bytes of memory and of other swap that pages of this device could go to."""
    others = sum(size - used for path, (size, used) in swap.active().items() if path != device)
    return stats.read_meminfo()["MemAvailable"] + others


def _reach_pages(say: Say) -> None:
    """After a crash the module has no port: what is on its swap is reached only when it is lent one again."""
    if probe.module_channel() == "serial" and not lend.lent():
        say(f"port: {lend.start(30_000)} is lent to the module again, to read its pages back")


class Service:
    """One run. Each step says in a line what it did, or could not do."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._settings = settings
        self._say = say
        self._changes = noted()
        self._stop = threading.Event()
        self._lent = False

    def start(self) -> bool:
        """False: there is nothing to do here, neither swap nor anybody to report to."""
        found = probe.look(self._settings.module)
        self._changes.pid = os.getpid()
        self._changes.save()
        choice = plan.choose(self._settings, found)
        for reason in choice.reasons:
            self._say(f"not used: {reason}")
        swapping = choice.plan is not None and self._swap(choice.plan, found)
        reporting = self._report(found)
        answering = self._answer(found)
        if found.zswap and swapping:
            self._say(
                "zswap: is on in this guest and keeps pages before they reach the host [boot with zswap.enabled=0]"
            )
        return swapping or reporting or answering

    def _swap(self, chosen: Plan, found: Found) -> bool:
        try:
            if chosen.parameters:
                self._load(chosen, found)
            if chosen.channel == "virtio-serial":
                path = lend.start(self._settings.wait_seconds * 1000)
                self._lent = True
                self._say(f"port: {lend.PORT_NAME} ({path}) is lent to the module, the host answers")
            self._swap_on(chosen, found)
        except OpError as error:
            self._say(f"swap: not set up: {error.message}")
            return False
        return True

    def _load(self, chosen: Plan, found: Found) -> None:
        if found.module_loaded:
            self._say(f"module: tmem.ko was loaded before, channel {found.module_channel}")
            return
        words = " ".join(f"{name}={value}" for name, value in chosen.parameters.items())
        modules.load("tmem", found.module_file, words)
        self._changes.module = True
        self._changes.save()
        self._say(f"module: {found.module_file} loaded, {words}")

    def _swap_on(self, chosen: Plan, found: Found) -> None:
        previous = int(disks.read_text(_PAGE_CLUSTER))
        if chosen.device in found.swaps:
            disks.write_text(_PAGE_CLUSTER, str(self._settings.page_cluster))
            # Its pages go by this service, so it may not end before that swap has.
            self._changes.swap = chosen.device if chosen.parameters else self._changes.swap
            self._say(f"swap: {chosen.device} is on already, priority {found.swaps[chosen.device]}")
        else:
            priority = plan.priority_above(self._settings, found.swaps)
            made = swap.start(
                disks.Disk(chosen.device.removeprefix("/dev/")),
                priority=priority,
                # The module hears of freed slots from the kernel itself.
                discard=self._settings.discard and not chosen.parameters,
                page_cluster=self._settings.page_cluster,
            )
            self._changes.swap = chosen.device
            told = "freed swap is told to the host" if made["discard"] or chosen.parameters else "no discards"
            size = f"{disks.Disk(chosen.device.removeprefix('/dev/')).size >> 20} MiB"
            where = f"{chosen.source} over {chosen.channel}"
            self._say(f"swap: {chosen.device} is on, {where}, {size}, priority {priority}, {told}")
        if self._changes.page_cluster is None and previous != self._settings.page_cluster:
            self._changes.page_cluster = previous
            self._say(f"page-cluster: {self._settings.page_cluster} (was {previous})")
        self._changes.save()

    def _report(self, found: Found) -> bool:
        every = self._settings.report_seconds
        if not every or not found.pages_port:
            self._say("reports: none" + ("" if every == 0 else f", as there is no port {lend.PORT_NAME}"))
            return False
        with contextlib.suppress(OpError):  # what the module counts is then not told
            modules.mount_debugfs()
        if not self._lent:
            try:
                Reporter(found.pages_port, every, _frame)
            except OSError as error:
                self._say(f"reports: none: {found.pages_port}: {error.strerror} [somebody else has the port open]")
                return False
        self._say(f"reports: every {every} s on {lend.PORT_NAME}{', by the module' if self._lent else ''}")
        return True

    def _answer(self, found: Found) -> bool:
        if not found.agent_port:
            self._say("requests: none, as there is no agent port")
            return False
        try:
            port = Port(found.agent_port)
        except OSError as error:
            self._say(f"requests: none: {found.agent_port}: {error.strerror} [somebody else has the port open]")
            return False
        threading.Thread(target=self._serve, args=(port,), name="requests", daemon=True).start()
        self._say(f"requests: answered on {found.agent_port}")
        return True

    def _serve(self, port: Port) -> None:
        try:
            server.serve(port)
        except OSError as error:
            self._say(f"requests: none any more: {port.path}: {error.strerror}")
            return
        # What is on swap is needed to the end: this goes on until it is told to stop.
        self._say("the host asks for the guest's end")
        try:
            procs.spawn(["/sbin/poweroff"])
        except OpError as error:
            self._say(f"the guest cannot be powered off: {error.message}")

    def stop(self, *_signal: object) -> None:
        """Makes :meth:`run` undo everything and return."""
        self._stop.set()

    def run(self) -> bool:
        """Works until it is told to stop. True: all is undone. What a lent port serves is not given up before that."""
        while True:
            while not self._stop.wait(self._settings.report_seconds or None):
                self._tell()
            if undo(self._changes, self._say):
                return True
            if not lend.lent():
                return False
            self._stop.clear()

    def _tell(self) -> None:
        if not self._lent:
            return
        try:
            if not lend.lent():
                self._say(f"port: {lend.stop() or 'serving ended'}, lending it again")
                lend.start(self._settings.wait_seconds * 1000)
            lend.tell(_frame())
        except OpError as error:
            self._say(f"port: {error.message}")


def _frame() -> bytes:
    """The body of a control frame: one JSON object."""
    return encode({"op": "report", **report.collect()}).rstrip(b"\n")


def notify(state: str) -> None:
    """Tells systemd, when that has started this (Type=notify); sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    import socket

    # Nobody may be listening any more, and nothing depends on it.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as port:
        port.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def main(settings: Settings, say: Say) -> int:
    """Exit status of ``run``. Raises Running."""
    lock = claim()
    try:
        # What frees memory must not wait for memory.
        libc.mlockall()
        threading.stack_size(256 * 1024)
        service = Service(settings, say)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, service.stop)
        if not service.start():
            undo(noted(), say)
            return 3
        say("ready")
        notify("READY=1")
        return 0 if service.run() else 1
    finally:
        os.close(lock)


def off(say: Say, deadline: float = 300.0) -> int:
    """Exit status of ``off``: stops the service that runs, or undoes what one left behind."""
    try:
        lock = claim()
    except Running as running:
        return _stop_other(running.pid, say, deadline)
    try:
        if noted() == Changes():
            say("nothing is on")
            return 0
        return 0 if undo(noted(), say) else 1
    finally:
        os.close(lock)


def _stop_other(pid: int, say: Say, deadline: float) -> int:
    before = noted().declined
    try:
        other = os.pidfd_open(pid)
        signal.pidfd_send_signal(other, signal.SIGTERM)
    except OSError as error:
        say(f"the service, pid {pid}, cannot be told to stop: {error.strerror} [run it as root]")
        return 1
    waiting = select.poll()
    waiting.register(other, select.POLLIN)
    end = time.monotonic() + deadline
    while not waiting.poll(_LOOK_MS):
        if noted().declined > before:
            say(f"the service, pid {pid}, goes on: {noted().reason}")
            return 1
        if time.monotonic() > end:
            say(f"the service, pid {pid}, has not ended after {deadline:g} s [see what it says]")
            return 1
    if noted() != Changes():
        say(f"the service, pid {pid}, has ended and left something on: {noted().reason} [run 'off' again]")
        return 1
    say(f"the service, pid {pid}, has undone everything and ended")
    return 0
