# SPDX-License-Identifier: Apache-2.0
"""Made-up pages compress as asked; the real corpus is cached whole or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tmem_host.bench import corpus
from tmem_host.config import PAGE_SIZE
from tmem_host.errors import InvalidInput
from tmem_host.vm.images import KernelImage


def quiet(_text: str) -> None:
    return None


def contents(name: str, count: int, seed: int = 1) -> bytes:
    return asyncio.run(corpus.contents(name, count, seed=seed, series="6.1", progress=quiet))


@pytest.mark.parametrize("percent", [0, 25, 50, 75, 90])
def test_synthetic_pages_compress_as_asked(percent: int) -> None:
    found = corpus.facts(corpus.synthetic(64, percent))
    kept = 1 - percent / 100
    assert 1 / found.lz4_ratio == pytest.approx(kept, abs=0.06)


def test_text_compresses_like_text() -> None:
    found = corpus.facts(corpus.text_like(64))
    assert 1.2 < found.lz4_ratio < 3
    assert found.zstd_ratio > found.lz4_ratio


@pytest.mark.parametrize("name", ["text", "random", "zero", "synthetic:50"])
def test_contents_are_whole_pages_and_follow_the_seed(name: str) -> None:
    pages = contents(name, 9)
    assert len(pages) == 9 * PAGE_SIZE
    assert pages == contents(name, 9)
    if name != "zero":
        assert pages != contents(name, 9, seed=2)


@pytest.mark.parametrize("name", ["", "synthetic", "synthetic:x", "synthetic:101", "music"])
def test_unknown_contents_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        contents(name, 1)


def test_same_filled_pages_are_counted() -> None:
    pages = bytes(PAGE_SIZE) + b"\x01\x02\x03\x04\x05\x06\x07\x08" * 512 + corpus.synthetic(2, 0)
    found = corpus.facts(pages)
    assert (found.pages, found.same_filled_share) == (4, 0.5)


def test_drawing_takes_each_page_once_before_any_twice() -> None:
    pool = b"".join(bytes([i]) * PAGE_SIZE for i in range(5))
    drawn = corpus.split(corpus.draw(pool, 12, seed=3))
    assert len(set(drawn[:5])) == 5
    assert len(set(drawn[5:10])) == 5


@pytest.mark.parametrize("bad", [b"", b"x", bytes(PAGE_SIZE + 1)])
def test_parts_of_pages_are_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="whole number"):
        corpus.split(bad)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelImage:
    """A guest image that nobody boots, and an empty cache."""
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path))
    found = KernelImage("6.1", "6.1.0", tmp_path, tmp_path, None, "key")
    monkeypatch.setattr(corpus, "guest_image", lambda _series: found)
    return found


def test_the_corpus_is_sampled_once(image: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = corpus.synthetic(3, 50)
    boots: list[str] = []

    async def sampled(of: KernelImage, _progress: object) -> bytes:
        boots.append(of.key)
        return pool

    monkeypatch.setattr(corpus, "sample", sampled)
    assert asyncio.run(corpus.real("6.1")) == pool
    assert sorted(corpus.split(corpus.pages(3))) == sorted(corpus.split(pool))
    assert boots == ["key"]
    assert sorted(f.suffix for f in corpus.corpus_file(image).parent.iterdir()) == [".json", ".pages"]


def test_an_interrupted_sampling_leaves_nothing(image: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_of: KernelImage, _progress: object) -> bytes:
        raise TimeoutError

    monkeypatch.setattr(corpus, "sample", broken)
    with pytest.raises(TimeoutError):
        asyncio.run(corpus.real("6.1"))
    assert not corpus.corpus_file(image).exists()


def test_pages_may_be_asked_for_inside_an_event_loop(image: KernelImage) -> None:
    corpus.corpus_file(image).parent.mkdir(parents=True)
    corpus.corpus_file(image).write_bytes(corpus.text_like(2))

    async def inside() -> bytes:
        return corpus.pages(4)

    assert len(asyncio.run(inside())) == 4 * PAGE_SIZE
