# SPDX-License-Identifier: Apache-2.0
"""The one door to libvirt: a connection that is opened again when it was lost, errors of ours, and events.

libvirt-python blocks, so coroutines use :meth:`Link.call`, which waits in a worker thread. It is an extra of this
package and imported when it is needed (:func:`library`).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, TypeVar

from tmem_host.errors import Conflict, Denied, InvalidInput, NotFound, TmemError, Unavailable, VmFailed

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

SYSTEM: Final = "qemu:///system"
#: Seconds between two keep-alive messages, and how many may be missed.
_KEEPALIVE: Final = (5, 3)
#: Seconds between two attempts to find a lost daemon again: the first, and at most.
_RETRY: Final = (0.1, 2.0)
#: Seconds that a call waits for a daemon that went away.
_PATIENCE: Final = 15.0


class Lifecycle(enum.Enum):
    """What happened to a domain. LOOK: libvirtd was away, and nobody knows what happened meanwhile."""

    STARTED = "started"
    STOPPED = "stopped"
    CRASHED = "crashed"
    CHANGED = "changed"
    LOOK = "look"


Watcher = Callable[[str, Lifecycle], None]


def library() -> ModuleType:
    """libvirt-python, with its event loop running. Raises Unavailable when it is not installed."""
    try:
        import libvirt
    except ImportError as error:
        raise Unavailable("libvirt-python is not installed", "run 'make libvirt'") from error
    _start_events(libvirt)
    module: ModuleType = libvirt
    return module


_events_lock = threading.Lock()
_events_thread: threading.Thread | None = None


def _start_events(libvirt: Any) -> None:
    """Once in a process, and before any connection is opened: keep-alive and events depend on it."""
    global _events_thread
    with _events_lock:
        if _events_thread is not None:
            return
        # What it would print is raised as well.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()

        def loop() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _events_thread = threading.Thread(target=loop, name="libvirt-events", daemon=True)
        _events_thread.start()


def translated(libvirt: Any, error: Any, what: str) -> TmemError:
    """A libvirtError as one of ours."""
    code = error.get_error_code()
    message = f"{what}: {error.get_error_message() or error}"
    if code in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_STORAGE_POOL):
        return NotFound(message, "see 'virsh list --all'")
    if code in (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_UNAVAILABLE, libvirt.VIR_ERR_OPERATION_DENIED):
        return Denied(message, "join the group libvirt, or run as root")
    if code in (libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL, libvirt.VIR_ERR_INVALID_ARG):
        return InvalidInput(message, "see the domain's XML with 'virsh dumpxml'")
    if code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_DOM_EXIST):
        return Conflict(message, "see 'virsh list --all'")
    if code == libvirt.VIR_ERR_NO_CONNECT or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return Unavailable(message, "is libvirtd running?")
    return VmFailed(message, "see libvirt's log of the domain in /var/log/libvirt/qemu")


class Link:
    """A connection to one libvirtd, shared by threads; opened at the first use."""

    def __init__(self, uri: str = SYSTEM) -> None:
        self.uri = uri
        self._lock = threading.RLock()
        self._connection: Any = None
        #: A daemon answered once.
        self._known = False
        self._watchers: list[Watcher] = []
        #: libvirt's number of the callback for events, while it is registered.
        self._events: int | None = None
        self._closed = False
        self._seeking: threading.Thread | None = None

    # -- calls --------------------------------------------------------------------------------------------------

    def run(self, what: str, work: Callable[[Any], Answer], *, again: bool = True) -> Answer:
        """``work(connection)``, in this thread; its errors as ours, beginning with ``what``.

        When the daemon goes away under it, it is done ``again`` on a new connection, once: say no for what must not be
        done twice.
        """
        libvirt = library()
        connection = self._patiently(libvirt, what)
        try:
            return work(connection)
        except libvirt.libvirtError as error:
            if not self._lost(libvirt, connection, error):
                raise translated(libvirt, error, what) from error
            if not again:
                raise Unavailable(f"{what}: libvirtd went away", "see what it did, and repeat it") from error
        connection = self._patiently(libvirt, what)
        try:
            return work(connection)
        except libvirt.libvirtError as error:
            raise translated(libvirt, error, what) from error

    async def call(self, what: str, work: Callable[[Any], Answer], *, again: bool = True) -> Answer:
        """:meth:`run` in a worker thread."""
        return await asyncio.to_thread(self.run, what, work, again=again)

    def _patiently(self, libvirt: Any, what: str) -> Any:
        """The connection. A daemon that was there before is waited for: it is most likely being restarted."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._open(libvirt, what)
            except Unavailable:
                if not self._known or time.monotonic() > until:
                    raise
            time.sleep(_RETRY[0])

    def _open(self, libvirt: Any, what: str) -> Any:
        with self._lock:
            if self._closed:
                raise Conflict(f"{what}: the connection to {self.uri} was closed", "make a new one")
            if self._connection is None:
                try:
                    self._connection = libvirt.open(self.uri)
                    self._known = True
                    self._connection.setKeepAlive(*_KEEPALIVE)
                    self._connection.registerCloseCallback(self._on_close, None)
                    if self._watchers:
                        self._register(libvirt)
                except libvirt.libvirtError as error:
                    self._drop()
                    raise translated(libvirt, error, what) from error
            return self._connection

    def _lost(self, libvirt: Any, connection: Any, error: Any) -> bool:
        """Whether the call failed because the connection did."""
        try:
            alive = bool(connection.isAlive())
        except libvirt.libvirtError:
            alive = False
        gone = not alive or (
            error.get_error_domain() == libvirt.VIR_FROM_RPC
            and error.get_error_code() in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR)
        )
        if gone:
            with self._lock:
                if self._connection is connection:
                    self._drop()
        return gone

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        events, self._events = self._events, None
        if connection is None:
            return
        # Each callback holds the connection open.
        with contextlib.suppress(Exception):
            if events is not None:
                connection.domainEventDeregisterAny(events)
        with contextlib.suppress(Exception):
            connection.unregisterCloseCallback()
        with contextlib.suppress(Exception):
            connection.close()

    def close(self) -> None:
        """Domains that were started to end with the connection end."""
        with self._lock:
            self._closed = True
            self._watchers.clear()
            self._drop()

    # -- events -------------------------------------------------------------------------------------------------

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls ``watcher(domain's name, what happened)`` from a thread of libvirt's; the answer ends that."""
        libvirt = library()
        with self._lock:
            self._watchers.append(watcher)
            if self._events is None and self._connection is not None:
                self._register(libvirt)
        self._open(libvirt, "watching domains")

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._watchers.remove(watcher)

        return end

    def _register(self, libvirt: Any) -> None:
        kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        self._events = self._connection.domainEventRegisterAny(None, kind, self._on_lifecycle, None)

    def _on_lifecycle(self, _connection: Any, domain: Any, event: int, _detail: int, _opaque: object) -> None:
        libvirt = library()
        meaning = {
            libvirt.VIR_DOMAIN_EVENT_STARTED: Lifecycle.STARTED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED: Lifecycle.STOPPED,
            libvirt.VIR_DOMAIN_EVENT_CRASHED: Lifecycle.CRASHED,
        }
        self._tell(domain.name(), meaning.get(event, Lifecycle.CHANGED))

    def _tell(self, name: str, what: Lifecycle) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            try:
                watcher(name, what)
            except Exception:  # one watcher's fault is not the others'
                log.exception("a watcher of %s failed", name)

    def _on_close(self, connection: Any, reason: int, _opaque: object) -> None:
        """From libvirt's thread, which must not wait: somebody else looks for the daemon."""
        with self._lock:
            if self._closed or self._connection is not connection:
                return
            log.warning("%s: the connection was lost (%d)", self.uri, reason)
            self._connection = self._events = None
            if self._watchers and (self._seeking is None or not self._seeking.is_alive()):
                self._seeking = threading.Thread(target=self._seek, name="libvirt-seek", daemon=True)
                self._seeking.start()

    def _seek(self) -> None:
        """Until the daemon answers again; then whoever watches has to look, as events were lost."""
        pause, longest = _RETRY
        libvirt = library()
        while True:
            try:
                self._open(libvirt, "watching domains")
                break
            except Conflict:
                return
            except TmemError:
                time.sleep(pause)
                pause = min(2 * pause, longest)
        log.info("%s: connected again", self.uri)
        self._tell("", Lifecycle.LOOK)
