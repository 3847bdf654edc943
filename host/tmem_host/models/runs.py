# SPDX-License-Identifier: Apache-2.0
"""Runs of benches."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, Field

from tmem_host.models.words import Flag, Strict, Whole, examples

RunState = Literal["queued", "running", "cancelling", "done", "failed", "cancelled", "interrupted"]
#: Options of benches that name files of the host: not to be had from afar.
_HOST_OPTIONS: Final = frozenset({"disk_dir", "vmexit", "out", "state"})


def _settings(given: dict[str, str | int | float]) -> dict[str, str | int | float]:
    for name, value in given.items():
        if re.fullmatch(r"(?:[a-z][a-z0-9-]{0,31}\.)?[a-z][a-z0-9_]{0,31}", name) is None:
            raise ValueError(f"{name!r} is no option of a bench")
        if name.rpartition(".")[2] in _HOST_OPTIONS:
            raise ValueError(f"{name} names a file of the host: run 'tmem bench' there")
        if isinstance(value, str) and not (value.isprintable() and len(value) <= 200):
            raise ValueError(f"the value of {name} is not a line of at most 200 characters")
    return given


class RunCreate(Strict):
    """A bench to run on the agent's host, as ``tmem bench`` does."""

    model_config = examples(
        {"bench": "store", "quick": True, "rounds": 3, "settings": {"parts": "cost"}},
        {"bench": "guest", "quick": True, "arms": "zipf,redis", "settings": {"vm": "web-1", "seconds": 10}},
    )

    bench: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$", description="As `tmem bench --help` lists them")]
    quick: Flag = True
    seed: Annotated[Whole, Field(ge=0, le=(1 << 32) - 1)] = 1
    #: Only these arms, and how often each runs; None: the bench's own.
    arms: Annotated[str, Field(pattern=r"^[a-z0-9,.+_-]{1,500}$")] | None = None
    rounds: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    #: Any other options of the bench, as with ``--set``.
    settings: Annotated[dict[str, str | int | float], Field(max_length=50), AfterValidator(_settings)] = Field(
        default_factory=dict
    )


class RunProgress(BaseModel):
    """How far a run is."""

    step: str = ""
    detail: str = ""
    #: Of so many steps, as far as they are planned.
    done: int = 0
    steps: int = 0
    left_seconds: float | None = None


class RunInfo(BaseModel):
    """A run of a bench: waiting, under way, or in the history."""

    id: int
    options: RunCreate
    state: RunState
    #: Why it failed, or which arms of it did; empty when none.
    reason: str
    #: Who asked for it.
    who: str
    created: datetime
    started: datetime | None
    ended: datetime | None
    progress: RunProgress
    #: There are results, a report.
    results: bool
    report: bool


class RunList(BaseModel):
    """Runs, the latest first."""

    runs: list[RunInfo]
    #: For the next page of the list; None: this was the last.
    next: str | None = None


class RunResults(BaseModel):
    """What a run measured: each ``results.json`` as it is, one unless all benches ran."""

    results: list[dict[str, Any]]
