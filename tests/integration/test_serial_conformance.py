# SPDX-License-Identifier: Apache-2.0
"""The conformance suite over virtio-serial: the requests come out of a real guest, from its agent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import CASES, Case
from conformance.guest_serial import GuestMachine, GuestSpeaker
from framework.vm import evidence_folder
from tmem_host.channel.abi import FEATURES_ALL, POOL_PERSISTENT, REPLY_SIZE, VERSION, Header, Op, Reply, Status
from tmem_host.vm.guest_client import GuestRefused

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def speaker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestSpeaker]:
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    failed = request.session.testsfailed
    try:
        machine = GuestMachine("6.1", folder, tmp_path_factory.mktemp("guest"))
        try:
            speaker = GuestSpeaker.inside(machine, folder / "arena")
            yield speaker
            speaker.close()
            speaker.store.close()
        finally:
            if request.session.testsfailed > failed:
                machine.vm.save_evidence(evidence_folder("test_serial_conformance"))
            machine.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case, speaker: GuestSpeaker) -> None:
    case.run(speaker)
    assert speaker.server.stats()["state"] == "in-step"


def test_nothing_is_left_behind(speaker: GuestSpeaker) -> None:
    assert not speaker.store.pools()
    assert all(not vm["reservation"] and not vm["held_bytes"] for vm in speaker.store.vms())


def ask(speaker: GuestSpeaker, header: Header) -> Reply:
    reply = Reply.decode(speaker.request(header.encode())[:REPLY_SIZE])
    assert reply is not None
    assert reply.status == Status.OK
    return reply


def test_requests_timed_in_the_guest(speaker: GuestSpeaker) -> None:
    speaker.reset()
    ask(speaker, Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL))
    pool = ask(speaker, Header(Op.NEW_POOL, argument=POOL_PERSISTENT, count=64)).value
    try:
        for what, count, batch in (("put", 64, 1), ("get", 100, 1), ("put", 8, 16), ("exchange", 70, 1)):
            samples = speaker.time(what, pool, count, batch)
            assert len(samples) == count
            assert min(samples) > 0
        assert speaker.server.stats()["requests"]["put"] == 72
        assert speaker.time("flush_page", pool, 64, 1)
        with pytest.raises(GuestRefused, match="request 0 was answered MISS"):
            speaker.time("get", pool, 1, 1)
        with pytest.raises(GuestRefused, match="what must be one of"):
            speaker.time("hello", pool, 1, 1)
    finally:
        ask(speaker, Header(Op.DESTROY_POOL, pool=pool))


def test_a_port_that_was_given_up_is_opened_again(speaker: GuestSpeaker) -> None:
    """The host has not noticed, and is made to begin again."""
    connections = speaker.server.stats()["connections"]
    speaker.reopen()
    assert speaker.server.stats()["connections"] == connections + 1
    ask(speaker, Header(Op.HELLO, index=VERSION))
