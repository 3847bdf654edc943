# SPDX-License-Identifier: Apache-2.0
"""Which plots each bench gets. A new bench adds a module beside these and its name to the import below.

    @plot("density")
    def cost_over_vms(results: Results) -> Plot | None:
        ...

A function returns None when the records it needs are not there. A bench without functions gets a bar plot per metric.
"""

from __future__ import annotations

from tmem_host.report import (
    plots_channel,
    plots_channel_guest,
    plots_density,
    plots_exit,
    plots_exit_curves,
    plots_guest,
    plots_store,
    plots_swap,
)
from tmem_host.report.registry import plots_for

__all__ = [
    "plots_channel",
    "plots_channel_guest",
    "plots_density",
    "plots_exit",
    "plots_exit_curves",
    "plots_for",
    "plots_guest",
    "plots_store",
    "plots_swap",
]
