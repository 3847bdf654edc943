# SPDX-License-Identifier: Apache-2.0
"""The arms of the exit bench: which kinds of exit are tried with which work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tmem_host._core import exit_kinds
from tmem_host.bench.results import Scalar
from tmem_host.bench.runner import Arm

DELAYS_US: Final = (0, 1, 2, 5, 10, 20, 50, 100)
"""Busy-waits after a put: the udelay experiment."""
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
LATENCIES_US: Final = (1, 10, 100, 1000, 10_000)
"""Of the emulated device: from memory to a hard disk."""

DISK: Final = ("disk-write", "disk-read", "cached-write", "cached-read", "uring-write", "uring-read")
_CODECS: Final = ("lz4-compress", "lz4-decompress", "zstd-compress", "zstd-decompress")
PAIR: Final = "put+get"
"""A put, and a get in an exit of its own: two exits are one sample."""
_STORE: Final = ("put", "get", "flush", "put-zstd", "put-bounce", "put-deferred", "exchange", PAIR)
#: Work that every way out of the guest is tried with.
_MAIN: Final = ("put", "get", "disk-read", "disk-write")
_WAYS: Final = ("shared-poll", "mmio", "ioeventfd-sleep", "ioeventfd-poll", "irqfd-sleep", "irqfd-poll")
#: Bytes copied before the compression itself.
COPIED: Final = {"put": 0, "put-bounce": 4096, "put-deferred": 4096}


@dataclass(frozen=True)
class Turn:
    """What an arm runs."""

    kind: str
    work: str = "nothing"
    n: int = 0

    @property
    def name(self) -> str:
        """As in tables: KIND, KIND+WORK or KIND+WORK-N."""
        if self.work == "nothing":
            return self.kind
        return f"{self.kind}+{self.work}-{self.n}" if self.work in _NUMBERS else f"{self.kind}+{self.work}"

    @property
    def needs(self) -> set[str]:
        """Of kvm, store and disk: what it cannot run without."""
        found = {"kvm"} if self.kind != "bare" else set()
        if self.work in DISK:
            found.add("disk")
        elif self.work in _STORE or self.work == "delay" or self.work.endswith("-batch"):
            found.add("store")
        return found


#: The dimension that a work's number is.
_NUMBERS: Final = {"delay": "delay_us", "put-batch": "n", "get-batch": "n", "device": "latency_us"}


def turns() -> list[Turn]:
    """All of them, in the order of tables: kinds first, then work by way."""
    found = [Turn(kind) for kind in _facts()]
    for kind in ("bare", "pio"):
        found += [Turn(kind, work) for work in ("copy-hot", "copy-cold", *_CODECS, *_STORE, *DISK)]
        found += [Turn(kind, work, n) for work in ("put-batch", "get-batch") for n in BATCHES]
    found += [Turn("pio", "delay", us) for us in DELAYS_US]
    found += [Turn(kind, work) for kind in _WAYS for work in _MAIN]
    found += [Turn("irqfd-sleep", "device", us) for us in LATENCIES_US]
    return found


def arm_of(turn: Turn) -> Arm:
    """The arm with its dimensions."""
    facts = _facts()[turn.kind]
    dimensions: dict[str, Scalar] = {
        "kind": turn.kind,
        "path": str(facts["path"]),
        "bits": int(str(facts["bits"])),
        "work": turn.work,
    }
    if turn.work in _NUMBERS:
        dimensions[_NUMBERS[turn.work]] = turn.n
    return Arm(turn.name, dimensions)


def _facts() -> dict[str, dict[str, object]]:
    return {str(kind["name"]): kind for kind in exit_kinds()}
