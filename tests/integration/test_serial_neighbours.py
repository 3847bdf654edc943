# SPDX-License-Identifier: Apache-2.0
"""Two VMs on virtio-serial sockets of one service: whatever one of the guests does, the other's pages come and go."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.guest import PERSISTENT, Guest, page
from conformance.speaker import Channel
from conformance.stream import FakeGuest
from tmem_host.channel.abi import FEATURES_ALL, Feature, Header, Op, Status
from tmem_host.channel.frames import CONTROL_MAX, Kind, encode
from tmem_host.config import AgentConfig
from tmem_host.models import VmCreate
from tmem_host.service import Service

PATIENCE = 20.0
PAGES = range(64)
#: What a port lets through of short control frames: at once, and in a second after that.
BURST, RATE = 256, 64


@pytest.fixture
def service(config: AgentConfig) -> Iterator[Service]:
    running = Service.open(config)
    running.start_channels()
    yield running
    running.close()


@contextlib.contextmanager
def monitor(service: Service, name: str) -> Iterator[socket.socket]:
    """The VM, and the socket where its monitor would listen."""
    made = service.create_vm(VmCreate(name=name, channels=("serial",)))
    assert (made.socket, made.channel) == (str(service.config.vm_socket(name, "serial")), "waiting")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(made.socket)
        listener.listen()
        yield listener
    Path(made.socket).unlink()


class Port(Channel):
    """A guest in step."""

    features = Feature(FEATURES_ALL)

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.guest = FakeGuest(listener)

    def request(self, message: bytes, room: int | None = None) -> bytes:
        return self.guest.ask(message)

    def reset(self) -> None:
        self.guest.close()
        self.guest = FakeGuest(self._listener)

    def say(self, **message: object) -> None:
        self.guest.send(Kind.CONTROL, json.dumps(message).encode())


@contextlib.contextmanager
def speaking(listener: socket.socket) -> Iterator[tuple[Guest, Port]]:
    """A guest that has said HELLO; its pools and its connection are gone afterwards."""
    port = Port(listener)
    try:
        with Guest(port) as guest:
            yield guest, port
    finally:
        port.guest.close()


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def counted(service: Service, name: str, counter: str) -> int:
    return int(service.channel(name, "serial").counters[counter])


Misbehaviour = Callable[[socket.socket, threading.Event], None]


def silent(listener: socket.socket, over: threading.Event) -> None:
    """Never answers SYNC."""
    connection, _ = listener.accept()
    with connection:
        over.wait()


def slow(listener: socket.socket, over: threading.Event) -> None:
    """Begins a put, and never comes to its end."""
    guest = FakeGuest(listener)
    guest.stream.sendall(encode(Kind.REQUEST, Header(Op.PUT, count=1).encode(data=bytes(4096)))[:-1])
    over.wait()
    guest.close()


def deaf(listener: socket.socket, over: threading.Event) -> None:
    """Asks and asks, and takes no answer."""
    guest = FakeGuest(listener)
    guest.stream.settimeout(0.1)
    hello = encode(Kind.REQUEST, Header(Op.HELLO, index=1).encode())
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            guest.stream.sendall(hello * 1000)
    guest.close()


def chatty(listener: socket.socket, over: threading.Event) -> None:
    """Control messages, without an end: reports, none, and long ones."""
    guest = FakeGuest(listener)
    some = [b'{"op":"report","pswpin":1}', b'{"op":"report","pswpin":"x"}', b"[" * CONTROL_MAX, b"{}"]
    flood = b"".join(encode(Kind.CONTROL, body) for body in some) * 10
    while not over.is_set():
        guest.stream.sendall(flood)
    guest.close()


def lying(listener: socket.socket, over: threading.Event) -> None:
    """Requests that cannot be, then bytes that are no frame; and the same again on the next connection."""
    while not over.is_set():
        guest = FakeGuest(listener)
        for op in range(40):
            guest.ask(Header(op, 0xFFFF, pool=op, count=0xFFFF, length=1 << 30).encode())
        with contextlib.suppress(OSError):  # it may be hung up on before all is sent
            guest.stream.sendall(b"\xff" * 4096)
            while guest.stream.recv(4096):
                pass
        guest.close()


#: What proves that it is going on: a counter of the bad guest, and how much of it.
WAYS: list[tuple[Misbehaviour, str, int]] = [
    (silent, "connections", 1),
    (slow, "received", 4000),
    (deaf, "received", 1 << 16),
    (chatty, "control_dropped", 5000),
    (lying, "connections", 3),
]


@pytest.mark.parametrize(("way", "counter", "least"), WAYS, ids=[way.__name__ for way, _, _ in WAYS])
def test_a_guest_disturbs_no_other(way: Misbehaviour, counter: str, least: int, service: Service) -> None:
    over = threading.Event()
    with monitor(service, "good") as here, monitor(service, "bad") as there:
        began = time.monotonic()
        bad = threading.Thread(target=way, args=(there, over))
        bad.start()
        try:
            until(lambda: counted(service, "bad", counter) >= least, f"{way.__name__} is going on")
            with speaking(here) as (guest, port):
                pool = guest.new_pool(PERSISTENT, pages=len(PAGES))
                assert all(guest.put(pool, i, page(i)).status == Status.OK for i in PAGES)
                assert all(guest.has(pool, i, page(i)) for i in PAGES)
                port.say(op="report", mem_total=77)
                until(lambda: service.guest_report("good") is not None, "the good guest is heard")
                assert service.get_vm("good").pages == len(PAGES)
                assert counted(service, "bad", counter) >= least
            heard = counted(service, "bad", "control")
            assert heard <= BURST + RATE * (time.monotonic() - began + 1)
            assert counted(service, "good", "control_dropped") == 0
        finally:
            over.set()
            bad.join(PATIENCE)
        assert not bad.is_alive()


def test_a_guest_that_misbehaved_is_served_when_it_behaves(service: Service) -> None:
    with monitor(service, "one") as listener:
        guest = FakeGuest(listener)
        guest.stream.sendall(b"\xff" * 64)
        with speaking(listener) as (again, port):
            assert again.put(again.new_pool(PERSISTENT, pages=8), 1, page(1)).status == Status.OK
            summary = service.get_vm("one").channels[0]
            assert (summary.state, summary.malformed, summary.requests["put"]) == ("in-step", {"no_frame": 1}, 1)
            port.say(op="report", pswpin=3, unknown=[])
            port.say(op="report", pswpin="three")
            port.say(op="report", pswpin=4)
            until(lambda: counted(service, "one", "control") == 3, "all were heard")
            until(lambda: counted(service, "one", "control_refused") == 1, "the wrong one was refused")

            def latest() -> int | None:
                report = service.guest_report("one")
                return None if report is None else report.pswpin

            until(lambda: latest() == 4, "the latest is kept")
        guest.close()


def test_a_port_is_found_again_after_a_restart_of_either_side(config: AgentConfig) -> None:
    service = Service.open(config)
    service.start_channels()
    try:
        with monitor(service, "one") as listener:
            port = Port(listener)
            guest = Guest(port)
            pool = guest.new_pool(PERSISTENT, pages=8)
            assert guest.put(pool, 1, page(1)).status == Status.OK
            service.close()
            service = Service.open(config)
            service.start_channels()
            port.reset()
            assert guest.hello().status == Status.OK
            assert guest.has(pool, 1, page(1))
            port.guest.close()
        # The monitor is gone, with its socket; another one comes.
        until(lambda: service.get_vm("one").channel == "waiting", "nobody listens")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(PATIENCE)
            listener.bind(str(config.vm_socket("one", "serial")))
            listener.listen()
            with speaking(listener) as (again, _):
                assert again.has(pool, 1, page(1))
    finally:
        service.close()
