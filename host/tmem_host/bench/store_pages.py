# SPDX-License-Identifier: Apache-2.0
"""Page contents of the store and channel benches, by name: the same bytes go to every arm."""

from __future__ import annotations

import numpy as np

from tmem_host.config import PAGE_SIZE
from tmem_host.errors import InvalidInput

#: A chunk of a synthetic page: that many bytes nobody can compress, then a word that the page holds many times.
_CHUNK, _NOISE = 64, 23
_WORDS = 8

SYNTHETIC = "synthetic"
CORPUS = "corpus"
SAME_FILLED = "same-filled"
RANDOM = "random"


def contents(kind: str, count: int, seed: int) -> bytes:
    """`count` pages of the kind: synthetic (2:1 under lz4), corpus (real pages), same-filled, random.

    Raises InvalidInput for another kind.
    """
    if kind == CORPUS:
        # Imported here: the corpus may have to be read from the cache, and the other kinds do not need it.
        from tmem_host.bench import corpus

        return corpus.pages(count, seed=seed)
    dice = np.random.default_rng(seed)
    if kind == SYNTHETIC:
        return synthetic(dice, count)
    if kind == SAME_FILLED:
        values = dice.integers(1, 256, size=(count, 1), dtype=np.uint8)
        return np.repeat(values, PAGE_SIZE, axis=1).tobytes()
    if kind == RANDOM:
        return dice.bytes(count * PAGE_SIZE)
    raise InvalidInput(f"there are no pages called {kind!r}", "choose synthetic, corpus, same-filled or random")


def synthetic(dice: np.random.Generator, count: int) -> bytes:
    """Pages of noise and repeated words by turns, some 60 matches in each: lz4 makes them half."""
    chunks = PAGE_SIZE // _CHUNK
    pages = dice.integers(0, 256, size=(count, chunks, _CHUNK), dtype=np.uint8)
    words = dice.integers(0, 256, size=(count, _WORDS, _CHUNK - _NOISE), dtype=np.uint8)
    chosen = dice.integers(0, _WORDS, size=(count, chunks))
    pages[:, :, _NOISE:] = words[np.arange(count)[:, None], chosen]
    return pages.tobytes()


def tiny(count: int, seed: int, *, length: int = 160) -> bytes:
    """Pages that all compressors make very small, each different: `length` bytes of noise, then zeroes.

    For benches with so many pages that only small ones fit.
    """
    dice = np.random.default_rng(seed)
    pages = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
    pages[:, :length] = dice.integers(0, 256, size=(count, length), dtype=np.uint8)
    return pages.tobytes()
