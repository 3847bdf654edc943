# SPDX-License-Identifier: Apache-2.0
"""All hypotheses in the order of their numbers."""

from __future__ import annotations

from tmem_host.report.verdict.model import Hypothesis

HYPOTHESES: tuple[Hypothesis, ...] = ()
