# SPDX-License-Identifier: Apache-2.0
"""The agent, its store and its host; errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class StoreInfo(BaseModel):
    """The store as a whole."""

    arena: str
    limit_bytes: int
    held_bytes: int
    arena_bytes: int
    index_bytes: int
    metadata_bytes: int
    compressed_bytes: int
    reserved_bytes: int
    #: What could be taken back at once: ephemeral pages.
    freeable_bytes: int
    pages: int
    #: How the arena was found at the agent's start, as :meth:`_core.Store.recovery` says.
    recovery: dict[str, Any]


class TierInfo(BaseModel):
    """One place where pages lie."""

    #: memory: compressed, in the arena.
    kind: Literal["memory"]
    path: str
    limit_bytes: int
    held_bytes: int
    pages: int


class TierList(BaseModel):
    """Tiers, the fastest first."""

    tiers: list[TierInfo]


class HostFinding(BaseModel):
    """One thing that was looked at, as ``tmem doctor`` does: works, works without something, or nothing runs."""

    subject: str
    state: Literal["ok", "limited", "missing"]
    found: str
    advice: str


class HostInfo(BaseModel):
    """The host of the agent."""

    name: str
    kernel: str
    cpus: int
    memory_bytes: int
    #: 1, 5 and 15 minutes.
    load: list[float]
    findings: list[HostFinding]


class Health(BaseModel):
    """That the agent answers, and who it is."""

    status: Literal["ok"] = "ok"
    version: str
    pid: int
    #: Seconds since the agent began to serve.
    uptime_seconds: float
    vms: int


class Problem(BaseModel):
    """An error as RFC 9457 (problem details) has it, with the hint and the kind of this project."""

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""
    kind: str
