# SPDX-License-Identifier: Apache-2.0
"""The conformance suite over the patched QEMU's virtio-tmem device, by both of its doorbells.

Kicks are handled by the main loop's thread, which has the big lock, and by a vCPU's, which has not.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import CASES, Case
from conformance.inline import InlineSpeaker
from framework.bare_machine import QtestMachine, VcpuMachine
from framework.virtio_pci import Status

pytestmark = pytest.mark.vm


@pytest.fixture(
    scope="module",
    params=[(machine, bell) for machine in (QtestMachine, VcpuMachine) for bell in ("mmio", "pio")],
    ids=["qtest-mmio", "qtest-pio", "vcpu-mmio", "vcpu-pio"],
)
def speaker(request: pytest.FixtureRequest) -> Iterator[InlineSpeaker]:
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    try:
        made = InlineSpeaker.over(folder, *request.param)
        yield made
        made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case, speaker: InlineSpeaker) -> None:
    try:
        case.run(speaker)
    finally:
        assert not speaker.status & Status.NEEDS_RESET


def test_nothing_is_left_behind(speaker: InlineSpeaker) -> None:
    for vm in speaker.held():
        assert (vm["pages"], vm["held"], vm["reservation"], vm["frozen"]) == (0, 0, 0, False)
        assert "cap" not in vm
