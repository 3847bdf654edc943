# SPDX-License-Identifier: Apache-2.0
"""Pools, and pools in files."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tmem_host.models.words import Codec, Flag, Strict, Uuid, VmName, Whole, examples


class PoolCreate(Strict):
    """A pool to make for a VM.  Dense with ``pages`` (persistent, private: a swap disk), else sparse."""

    model_config = examples({"vm": "web-1", "persistent": False}, {"vm": "web-1", "pages": 65536})

    vm: VmName
    persistent: Flag = True
    pages: Annotated[Whole, Field(ge=1, le=(1 << 32) - 1)] | None = None
    #: Of a shared pool, which is made or joined; the VM has to be authorised for it.
    uuid: Uuid | None = None
    codec: Codec = "lz4"
    page_size: Literal[4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152] = 4096

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if self.pages is not None and (not self.persistent or self.uuid is not None):
            raise ValueError("a pool with pages is a swap disk: persistent and private")
        return self


class PoolUpdate(Strict):
    """What can change of a pool: how what is put from now on is compressed, ``none`` for not at all."""

    model_config = examples({"codec": "none"})

    codec: Codec


class PoolInfo(BaseModel):
    """One pool of the store."""

    id: int
    #: The first VM that uses it, and all.
    vm: str
    members: list[str]
    #: Of a shared one.
    uuid: str | None
    page_size: int
    #: Pages come compressed.
    packed: bool
    #: A miss may be a lost page: the arena could not be read whole.
    damaged: bool
    persistent: bool
    shared: bool
    codec: str
    #: None for a sparse pool.
    pages_capacity: int | None
    pages: int
    compressed_bytes: int
    held_bytes: int
    same_filled: int
    raw: int
    index_bytes: int
    counters: dict[str, int]


class PoolDetail(PoolInfo):
    """One pool, and how long its operations took."""

    #: By operation: bounds and counts of the histogram's buckets and the sum, in ns; of one operation in eight.
    latency: dict[str, Any]


class PoolList(BaseModel):
    """Pools, by number."""

    pools: list[PoolInfo]
    #: For the next page of the list; None: this was the last.
    next: str | None = None


class Flushed(BaseModel):
    """What a flush did."""

    #: Pages that are gone.
    pages: int


class SaveCreate(Strict):
    """A file to write a pool to."""

    model_config = examples({"name": "web-1-swap", "freeze": True})

    #: Of the file, below ``saves`` in the state folder.
    name: VmName
    #: At most so many passes over the pool while its guest goes on; the first writes every page.
    passes: Annotated[Whole, Field(ge=1, le=100)] = 4
    #: Refuse the VM's puts while the last changes are written: the file is the pool as it was at one moment.
    freeze: Flag = False


class SaveInfo(BaseModel):
    """A pool in a file."""

    name: str
    path: str
    bytes: int
    made: datetime


class SaveList(BaseModel):
    """Saved pools, by name."""

    saves: list[SaveInfo]


class Saved(SaveInfo):
    """A pool that was saved just now."""

    pages: int
    passes: int
    seconds: float


class RestoreFrom(Strict):
    """The save to restore."""

    model_config = examples({"name": "web-1-swap"})

    name: VmName


class Restored(BaseModel):
    """What was put into the pool."""

    pages: int
    seconds: float
