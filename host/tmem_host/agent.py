# SPDX-License-Identifier: Apache-2.0
"""``tmem serve``: control plane and data plane in one process.

Start: lock the state folder, open the store (it finds its pages again), listen on every VM's socket - guests wait for
no more than that - and only then load and serve the API.  End: the same backwards.  The data plane's threads are
Rust's and never hold the GIL; this module never sees a page.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tmem_host import __version__
from tmem_host.config import AgentConfig, check_socket_path, format_size
from tmem_host.errors import InUse, TmemError
from tmem_host.listen import bound, check_config, url_of
from tmem_host.notify import notify
from tmem_host.state import locked, os_error
from tmem_host.tokens import Tokens

if TYPE_CHECKING:
    from tmem_host.api.server import ApiServer
    from tmem_host.service import Service

log = logging.getLogger(__name__)

#: Seconds that open API connections get at the end.
API_GRACE: Final = 3
LOG_BYTES: Final = 8 << 20
#: Seconds that a thread of Python keeps the interpreter when another waits for it. A scrape of many VMs computes for
#: tens of milliseconds, and nobody else should wait for much of that.
SWITCH_INTERVAL: Final = 0.0005


def run(config: AgentConfig, *, parent: int | None = None) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends the process at once.  With ``parent``, until it is gone.

    Being ended at once, or by SIGKILL, loses nothing: the next start finds every page in the arena.
    """
    check_config(config)
    with locked(config):
        _log_to(config.log_file)
        _raise_file_limit()
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            asyncio.run(_serve(config, parent))
        except TmemError as error:
            log.error("%s", error)
            raise


def _raise_file_limit() -> None:
    """All the descriptors this user may have: a connected VM takes about twelve."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _ForJournal(logging.Formatter):
    """For journald, which knows the time, and takes the priority from the front of a line (sd-daemon(3))."""

    _PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        priority = next((found for level, found in self._PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _log_to(path: Path) -> None:
    """Everything from INFO on to ``path``, and to stderr what is worth an operator's eye."""
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        file = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
        path.chmod(0o600)
    except OSError as error:
        raise os_error(error, f"{path} cannot be written") from error
    file.setFormatter(text)
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(
        _ForJournal("%(message)s")
        if os.environ.get("JOURNAL_STREAM")
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    )
    # An error that ends the agent is the command line's to print.
    stderr.addFilter(lambda record: record.name != __name__ or record.levelno < logging.ERROR)
    logging.basicConfig(level=logging.INFO, handlers=[file, stderr], force=True)
    logging.captureWarnings(True)
    for noisy in ("uvicorn", "httpx", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


async def _serve(config: AgentConfig, parent: int | None) -> None:
    from tmem_host.journal import told
    from tmem_host.service import Service

    stop = asyncio.Event()
    with _signals(stop), _parent_watched(stop, parent), told():
        service = await asyncio.to_thread(Service.open, config)
        try:
            _say_recovery(service)
            await asyncio.to_thread(service.start_channels)
            await _serve_api(service, stop)
        finally:
            notify("STOPPING=1")
            # Guests swap to the end, so they go first.
            await service.machines.close()
            await asyncio.to_thread(service.close)
    log.info("stopped; every page stays in the arena")


def _say_recovery(service: Service) -> None:
    found = service.recovery
    info = service.store_info()
    if found["fresh"]:
        log.info("arena %s: new, up to %s", info.arena, format_size(info.limit_bytes))
    else:
        log.info("arena %s: %d pages found again in %.3f s", info.arena, found["pages"], found["seconds"])
    if found["lost_pages"] or found["damaged_pools"]:
        log.warning("%d pages are lost, pools damaged: %s", found["lost_pages"], found["damaged_pools"] or "none")


async def _serve_api(service: Service, stop: asyncio.Event) -> None:
    """The API, until ``stop``; an end of it that nobody asked for surfaces."""
    # Not before the channels listen: this import takes longer than everything up to here.
    from tmem_host.api.app import make_app
    from tmem_host.api.doors import LocalDoor, TokenDoor
    from tmem_host.api.server import ApiServer

    config = service.config
    with contextlib.ExitStack() as sockets:
        app = make_app(service)
        places = [str(config.api_socket)]
        servers = [(ApiServer(LocalDoor(app), grace=API_GRACE), sockets.enter_context(_bound(config.api_socket)))]
        if config.listen is not None:
            listener = sockets.enter_context(bound(config))
            tokens = Tokens(config.state)
            tls = None if config.tls_cert is None or config.tls_key is None else (config.tls_cert, config.tls_key)
            door = TokenDoor(app, tokens, rate=config.rate)
            servers.append((ApiServer(door, grace=API_GRACE, tls=tls), listener))
            places.append(url_of(config, listener))
            if not tokens.list_():
                log.warning("there is no token yet, so nobody gets in over TCP: make one with 'tmem token add'")
        serving = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
        stopped = asyncio.create_task(stop.wait(), name="stop")
        ready = asyncio.create_task(_all_ready([server for server, _ in servers]), name="ready")  # noqa: RUF006
        try:
            await asyncio.wait({*serving, stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                vms = service.health().vms
                log.info("tmem %s serves %d VMs; API on %s", __version__, vms, " and ".join(places))
                notify("READY=1")
                await _open_runs(service)
                await asyncio.wait({*serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            # Who follows a run would keep the servers waiting.
            await asyncio.to_thread(service.runs.stop)
            for server, _ in servers:
                server.should_exit = True
            await asyncio.gather(*serving)
            if not stop.is_set():
                raise TmemError("the API ended by itself", "see agent.log in the state folder")
        finally:
            for task in (*serving, stopped, ready):
                task.cancel()
            await asyncio.gather(*serving, stopped, ready, return_exceptions=True)


async def _all_ready(servers: list[ApiServer]) -> None:
    for server in servers:
        await server.ready.wait()


async def _open_runs(service: Service) -> None:
    try:
        await asyncio.to_thread(service.runs.open)
    except TmemError as error:
        # Guests are served without a history of benches.
        log.error("runs are not to be had: %s", error)


@contextlib.contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket on ``path``, mode 0600.  The state folder is locked: a socket that is there and that
    nobody answers on is what a killed agent left."""
    check_socket_path(path)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                pass
            else:
                raise InUse(f"another process serves {path}", "stop it, or choose another folder with --state")
        path.unlink()
    elif path.exists():
        raise InUse(f"{path} is there and is no socket", "move it away, or choose another folder with --state")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # The mode has to hold from the first moment, and bind(2) takes it from the mask.
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise os_error(error, f"{path} cannot be served") from error
    finally:
        os.umask(mask)
    try:
        listener.listen(128)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def on(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("%s: stopping", number.name)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _parent_watched(stop: asyncio.Event, parent: int | None) -> Iterator[None]:
    """Stops with ``parent``.  A pidfd and not PR_SET_PDEATHSIG: that one fires when the *thread* that spawned ends."""
    if parent is None:
        yield
        return
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(parent) if os.getppid() == parent else -1
    if descriptor < 0:
        stop.set()
        yield
        return
    try:
        loop.add_reader(descriptor, stop.set)
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
