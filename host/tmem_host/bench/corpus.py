# SPDX-License-Identifier: Apache-2.0
"""Page contents for benches: real pages sampled from a running guest's memory, and made-up ones.

How well pages compress decides every figure of a compressing store, and made-up pages decide it by themselves. So the
default is the *real page corpus*: anonymous pages (what a kernel swaps) read out of a guest's memory by its agent
while a heap full of ordinary data is alive. It is kept in the cache folder, keyed by the guest image (kernel and agent
alike), and made by booting that guest when it is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lz4.block
import numpy as np
import zstandard

from tmem_host.bench import stats
from tmem_host.bench.results import Property
from tmem_host.config import PAGE_SIZE, cache_dir
from tmem_host.errors import InvalidInput
from tmem_host.vm.images import KernelImage, guest_image

#: Pages kept in the cache, and the memory of the guest that they are sampled from: with 256 MiB nothing is swapped or
#: reclaimed while it is sampled.
CORPUS_PAGES: Final = 4096
GUEST_MIB: Final = 256
SAMPLE_SEED: Final = 1

_CHUNK_WORDS: Final = 32
_WORDS: Final = PAGE_SIZE // 8
_VOCABULARY: Final = 2000


@dataclass(frozen=True)
class CorpusFacts:
    """How a set of pages compresses: ratios are page size over compressed size, per page and over all."""

    pages: int
    same_filled_share: float
    lz4_ratio: float
    zstd_ratio: float
    lz4_percentiles: tuple[float, ...]
    zstd_percentiles: tuple[float, ...]

    #: What the percentiles stand for.
    PERCENTILES = (10, 25, 50, 75, 90)

    def properties(self) -> dict[str, Property]:
        """As the configuration of a result."""
        return {
            "corpus_pages": self.pages,
            "corpus_same_filled_share": round(self.same_filled_share, 4),
            "corpus_lz4_ratio": round(self.lz4_ratio, 3),
            "corpus_zstd_ratio": round(self.zstd_ratio, 3),
            "corpus_lz4_ratio_percentiles": {
                f"p{p}": round(v, 2) for p, v in zip(self.PERCENTILES, self.lz4_percentiles, strict=True)
            },
            "corpus_zstd_ratio_percentiles": {
                f"p{p}": round(v, 2) for p, v in zip(self.PERCENTILES, self.zstd_percentiles, strict=True)
            },
        }


def facts(pages: bytes) -> CorpusFacts:
    """Compression of each page alone by lz4 (default level) and zstd (level 1), as a store of single pages does it."""
    views = split(pages)
    zstd = zstandard.ZstdCompressor(level=1)
    lz4_sizes = np.array([len(lz4.block.compress(page, store_size=False)) for page in views], dtype=float)
    zstd_sizes = np.array([len(zstd.compress(page)) for page in views], dtype=float)
    same = sum(is_same_filled(page) for page in views)
    return CorpusFacts(
        pages=len(views),
        same_filled_share=same / len(views),
        lz4_ratio=PAGE_SIZE / float(lz4_sizes.mean()),
        zstd_ratio=PAGE_SIZE / float(zstd_sizes.mean()),
        lz4_percentiles=tuple(stats.quantile(PAGE_SIZE / lz4_sizes, p / 100) for p in CorpusFacts.PERCENTILES),
        zstd_percentiles=tuple(stats.quantile(PAGE_SIZE / zstd_sizes, p / 100) for p in CorpusFacts.PERCENTILES),
    )


def split(pages: bytes) -> list[bytes]:
    """The single pages. Raises ValueError when it is not a whole number of them."""
    if not pages or len(pages) % PAGE_SIZE:
        raise ValueError("not a whole number of pages")
    return [pages[at : at + PAGE_SIZE] for at in range(0, len(pages), PAGE_SIZE)]


def is_same_filled(page: bytes) -> bool:
    """Whether the page is one 8-byte word all over."""
    return page == page[:8] * _WORDS


# ---- made-up pages, the same for the same seed


def synthetic(count: int, percent: int, seed: int = 1) -> bytes:
    """`count` pages of which `percent` % compresses away: in every 256 bytes random words first, then a repeated one.

    The same shape as the guest hog's synthetic:PERCENT.
    """
    if not 0 <= percent <= 100:
        raise InvalidInput(f"{percent} % of a page cannot compress away", "choose 0 to 100")
    dice = np.random.default_rng(seed)
    words = dice.integers(0, 1 << 63, size=(count, _WORDS), dtype=np.uint64)
    filler = np.repeat(dice.integers(1, 1 << 63, size=(count, 1), dtype=np.uint64), _WORDS, axis=1)
    random_words = (_CHUNK_WORDS * (100 - percent) + 50) // 100
    keep = np.arange(_WORDS) % _CHUNK_WORDS < random_words
    return np.where(keep, words, filler).astype("<u8").tobytes()


def text_like(count: int, seed: int = 1) -> bytes:
    """`count` pages of words drawn by Zipf's law from a made-up vocabulary: what logs and documents look like."""
    dice = np.random.default_rng(seed)
    lengths = dice.integers(2, 11, size=_VOCABULARY)
    words = [bytes(dice.integers(97, 123, size=n, dtype=np.uint8)) for n in lengths]
    weights = 1 / np.arange(1, _VOCABULARY + 1)
    # The shortest word and its space are 3 bytes: so many words fill the pages for sure.
    chosen = dice.choice(_VOCABULARY, size=count * PAGE_SIZE // 3 + 1, p=weights / weights.sum())
    return b" ".join([words[i] for i in chosen])[: count * PAGE_SIZE]


# ---- the real page corpus


def corpus_file(image: KernelImage) -> Path:
    """Where the corpus of a guest image is kept."""
    return cache_dir() / "corpus" / f"{image.series}-{image.key}.pages"


async def sample(image: KernelImage, progress: Callable[[str], None] = lambda _text: None) -> bytes:
    """Boots the guest and samples its anonymous pages: `CORPUS_PAGES`, or as many as there are. Raises VmFailed."""
    from tmem_host.vm.direct import DirectVm
    from tmem_host.vm.spec import VmSpec

    progress(f"sampling real pages from a {image.series} guest (once, then cached)")
    async with DirectVm(VmSpec("tmem-corpus", image, memory_mib=GUEST_MIB)) as vm:
        return await vm.agent.sample_pages(CORPUS_PAGES, kind="anon", seed=SAMPLE_SEED, workload=True)


async def real(series: str = "6.1", progress: Callable[[str], None] = lambda _text: None) -> bytes:
    """The real page corpus of a guest kernel, from the cache if it is there. Raises NotFound without a guest image."""
    image = guest_image(series)
    file = corpus_file(image)
    try:
        found = file.read_bytes()
    except FileNotFoundError:
        found = b""
    if not found or len(found) % PAGE_SIZE:
        found = await sample(image, progress)
        _keep(file, found, image)
    return found


def _keep(file: Path, pages: bytes, image: KernelImage) -> None:
    """Puts the pages in the cache under their final name only when they are whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"kernel": image.version, "kind": "anon", "seed": SAMPLE_SEED, **facts(pages).properties()}
    for target, data in ((file.with_suffix(".json"), json.dumps(about, indent=1).encode()), (file, pages)):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).replace(target)


def draw(pool: bytes, count: int, seed: int) -> bytes:
    """`count` pages out of the pool in random order: each once, then, when they do not suffice, each again."""
    array = np.frombuffer(pool, dtype=np.uint8).reshape(-1, PAGE_SIZE)
    dice = np.random.default_rng(seed)
    order = np.concatenate([dice.permutation(len(array)) for _ in range(-(-count // len(array)))])
    return bytes(array[order[:count]].tobytes())


def pages(count: int, *, seed: int = 1, series: str = "6.1") -> bytes:
    """`count` real pages, for callers that are not asynchronous; may be called while an event loop runs.

    Takes as long as the boot of a guest when the corpus is not in the cache. Raises what `real` raises.
    """
    found: list[bytes] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(asyncio.run(real(series)))
        except BaseException as error:
            failed.append(error)

    # A thread of its own: an event loop may be running in this one.
    thread = threading.Thread(target=work, name="corpus")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return draw(found[0], count, seed)


async def contents(name: str, count: int, *, seed: int, series: str, progress: Callable[[str], None]) -> bytes:
    """`count` pages by name: corpus, text, random, zero, synthetic:PERCENT. Raises InvalidInput for another name."""
    head, _, percent = name.partition(":")
    if name == "corpus":
        return draw(await real(series, progress), count, seed)
    if name == "text":
        return text_like(count, seed)
    if name == "random":
        return synthetic(count, 0, seed)
    if name == "zero":
        return bytes(count * PAGE_SIZE)
    if head == "synthetic" and percent.isdecimal():
        return synthetic(count, int(percent), seed)
    raise InvalidInput(f"there are no pages called {name!r}", "choose corpus, text, random, zero or synthetic:PERCENT")
