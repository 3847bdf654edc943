# SPDX-License-Identifier: Apache-2.0
"""The conformance suite against the core and against the reference, both in this process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import CASES, Case
from conformance.local import CoreSpeaker, ReferenceSpeaker


@pytest.fixture(scope="module")
def core() -> Iterator[CoreSpeaker]:
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    speaker = CoreSpeaker.over(folder / "arena")
    yield speaker
    speaker.store.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def reference() -> ReferenceSpeaker:
    return ReferenceSpeaker.new()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_core(case: Case, core: CoreSpeaker) -> None:
    case.run(core)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case: Case, reference: ReferenceSpeaker) -> None:
    case.run(reference)


def test_names_are_no_two_cases() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def test_nothing_is_left_behind(core: CoreSpeaker) -> None:
    """What cases made is gone when they are done: pools, pages, promises, settings."""
    for case in CASES:
        try:
            case.run(core)
        except pytest.skip.Exception:
            continue
        assert not core.store.pools(), case.name
    assert all(not vm["reservation"] and not vm["held_bytes"] for vm in core.store.vms())
