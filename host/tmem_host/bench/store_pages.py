# SPDX-License-Identifier: Apache-2.0
"""Page contents of the store and channel benches, by name: the same bytes go to every arm."""

from __future__ import annotations

import numpy as np

from tmem_host.config import PAGE_SIZE
from tmem_host.errors import InvalidInput, TmemError

#: Bytes of a synthetic page's chunk, and how many words a page repeats.
_CHUNK = 64
_WORDS = 8

SYNTHETIC = "synthetic"
#: Compresses far better: for benches with so many pages that only such fit.
SMALL = "small"
#: Bytes of noise in a chunk: 23 of 64 become half under lz4, 1 about a seventh.
_NOISE = {SYNTHETIC: 23, SMALL: 1}
CORPUS = "corpus"
SAME_FILLED = "same-filled"
RANDOM = "random"


def contents(kind: str, count: int, seed: int) -> bytes:
    """`count` pages of the kind: synthetic (2:1 under lz4), small, corpus (real pages), same-filled, random.

    Raises InvalidInput for another kind.
    """
    if kind == CORPUS:
        # Imported here: the corpus may have to be read from the cache, and the other kinds do not need it.
        from tmem_host.bench import corpus

        return corpus.pages(count, seed=seed)
    dice = np.random.default_rng(seed)
    if kind in _NOISE:
        return synthetic(dice, count, _NOISE[kind])
    if kind == SAME_FILLED:
        values = dice.integers(1, 256, size=(count, 1), dtype=np.uint8)
        return np.repeat(values, PAGE_SIZE, axis=1).tobytes()
    if kind == RANDOM:
        return dice.bytes(count * PAGE_SIZE)
    raise InvalidInput(f"there are no pages called {kind!r}", "choose synthetic, small, corpus, same-filled or random")


def available(kind: str, seed: int) -> str:
    """Empty when pages of this kind can be had, else why not: the corpus needs a guest image."""
    try:
        contents(kind, 1, seed)
    except TmemError as error:
        return str(error)
    return ""


def synthetic(dice: np.random.Generator, count: int, noise: int) -> bytes:
    """Pages of `noise` random bytes and a repeated word by turns, 64 bytes together: some 60 matches a page."""
    chunks = PAGE_SIZE // _CHUNK
    pages = dice.integers(0, 256, size=(count, chunks, _CHUNK), dtype=np.uint8)
    words = dice.integers(0, 256, size=(count, _WORDS, _CHUNK - noise), dtype=np.uint8)
    chosen = dice.integers(0, _WORDS, size=(count, chunks))
    pages[:, :, noise:] = words[np.arange(count)[:, None], chosen]
    return pages.tobytes()
