# SPDX-License-Identifier: Apache-2.0
"""The conformance suite over the patched QEMU's devices.

Kicks of an inline device are handled by the main loop's thread, which has the big lock, and by a vCPU's, which has not;
with ``ioeventfd=on`` they are handled later.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance import CASES, Case
from conformance.inline import InlineSpeaker
from conformance.vhost_user import VhostUserSpeaker
from framework.bare_machine import QtestMachine, VcpuMachine

pytestmark = pytest.mark.vm

INLINE: dict[str, tuple[type[QtestMachine | VcpuMachine], dict[str, str]]] = {
    "qtest-mmio": (QtestMachine, {}),
    "qtest-pio": (QtestMachine, {"modern_pio_notify": "on"}),
    "vcpu-mmio": (VcpuMachine, {}),
    "vcpu-pio": (VcpuMachine, {"modern_pio_notify": "on"}),
    "ioeventfd": (QtestMachine, {"ioeventfd": "on"}),
}


@contextmanager
def fresh_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=INLINE)
def inline(request: pytest.FixtureRequest) -> Iterator[InlineSpeaker]:
    machine, properties = INLINE[request.param]
    with fresh_folder() as folder:
        speaker = InlineSpeaker.over(folder, machine, **properties)
        assert speaker.driver.inline == (request.param != "ioeventfd")
        yield speaker
        speaker.close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inline(case: Case, inline: InlineSpeaker) -> None:
    case.run(inline)
    assert not inline.driver.broken


def test_nothing_is_left_behind_inline(inline: InlineSpeaker) -> None:
    for vm in inline.held():
        assert (vm["pages"], vm["held"], vm["reservation"], vm["frozen"]) == (0, 0, 0, False)
        assert "cap" not in vm


@pytest.fixture(scope="module")
def vhost_user() -> Iterator[VhostUserSpeaker]:
    with fresh_folder() as folder:
        (folder / "sockets").mkdir()
        speaker = VhostUserSpeaker.inside(folder / "arena", folder / "sockets")
        yield speaker
        speaker.close()
        speaker.store.close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vhost_user(case: Case, vhost_user: VhostUserSpeaker) -> None:
    case.run(vhost_user)
    assert not vhost_user.driver.broken


def test_nothing_is_left_behind_over_vhost_user(vhost_user: VhostUserSpeaker) -> None:
    assert not vhost_user.store.pools()
    assert all(not vm["reservation"] and not vm["held_bytes"] for vm in vhost_user.store.vms())
