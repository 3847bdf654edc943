# SPDX-License-Identifier: Apache-2.0
"""What is worth nothing once something else has happened is ended then, and nothing is left running."""

from __future__ import annotations

import asyncio

import pytest

from tmem_host.first_of import first_of


async def forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


async def test_the_work_is_over_first() -> None:
    ended: list[str] = []
    async with first_of(answer(), forever(ended, "other")) as work:
        assert work.done()
        assert await work == 42
        assert ended == []
    assert ended == ["other"]


async def test_the_other_is_over_first() -> None:
    ended: list[str] = []
    async with first_of(forever(ended, "work"), answer()) as work:
        assert not work.done()
    assert ended == ["work"]
    assert work.cancelled()


async def test_both_end_with_a_failure_and_with_a_cancelled_wait() -> None:
    ended: list[str] = []
    with pytest.raises(ZeroDivisionError):
        async with first_of(forever(ended, "work"), answer()):
            raise ZeroDivisionError
    assert ended == ["work"]

    async def wait() -> None:
        async with first_of(forever(ended, "one"), forever(ended, "two")):
            raise AssertionError("neither is over")

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert sorted(ended[1:]) == ["one", "two"]
