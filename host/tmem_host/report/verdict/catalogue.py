# SPDX-License-Identifier: Apache-2.0
"""All hypotheses in the order of their numbers."""

from __future__ import annotations

from tmem_host.report.verdict import density, exit_cost, exit_work, guest, guest_later, interface
from tmem_host.report.verdict.model import Hypothesis

HYPOTHESES: tuple[Hypothesis, ...] = tuple(
    sorted(
        (
            *exit_cost.HYPOTHESES,
            *exit_work.HYPOTHESES,
            *density.HYPOTHESES,
            *guest.HYPOTHESES,
            *guest_later.HYPOTHESES,
            *interface.HYPOTHESES,
        ),
        key=lambda h: h.number,
    )
)
