# SPDX-License-Identifier: Apache-2.0
"""What the fleets of the density bench have in common, and figures of fairness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tmem_host.bench.results import Property


@dataclass(frozen=True)
class Fleet:
    """Each guest of a fleet: its memory, its accesses, its computing."""

    frames: int
    """Pages in memory at once."""
    pages: int
    """Pages of the working set."""
    zipf: float
    """Exponent of the popularity of pages."""
    trace: int
    """Page operations before the trace begins anew."""
    compute: float
    """Seconds of computing between two page operations."""
    seed: int

    def arguments(self) -> dict[str, Any]:
        """For `run_fleet`."""
        return {
            "frames": self.frames,
            "pages": self.pages,
            "zipf": self.zipf,
            "trace": self.trace,
            "compute": self.compute,
            "seed": self.seed,
        }

    def facts(self) -> dict[str, Property]:
        """For the configuration of a result."""
        return {
            "frames": self.frames,
            "pages": self.pages,
            "zipf": self.zipf,
            "trace": self.trace,
            "compute_us": self.compute * 1e6,
        }


def jain(served: Sequence[int]) -> float:
    """Jain's fairness index: (sum x)^2 / (n sum x^2), 1 when all have the same, 1/n when one has all.

    Jain, Chiu and Hawe, DEC-TR-301 (1984). 0 when nobody has anything.
    """
    square = sum(x * x for x in served)
    return sum(served) ** 2 / (len(served) * square) if square else 0.0
