# SPDX-License-Identifier: Apache-2.0
"""How far hogs are, by what they say."""

from __future__ import annotations

import pytest

from tmem_host.vm.guest_results import HogsProgress, Progress


def test_a_phase_that_follows_says_that_those_before_are_over() -> None:
    far = HogsProgress(1)
    assert far.fraction == 0
    far.take(0, Progress("write", 55, 100, 0))
    assert far.fraction == pytest.approx(0.55 / 3)
    far.take(0, Progress("sequential", 1, 100, 0))
    assert far.fraction == pytest.approx(1.01 / 3)
    far.take(0, Progress("random", 100, 100, 0))
    assert far.fraction == 1


def test_hogs_count_alike() -> None:
    far = HogsProgress(2)
    far.take(0, Progress("random", 100, 100, 0))
    assert far.fraction == pytest.approx(0.5)
    far.take(1, Progress("write", 0, 0, 0))
    far.take(1, Progress("no phase of a hog", 9, 10, 0))
    assert far.fraction == pytest.approx(0.5)
