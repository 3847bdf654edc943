# SPDX-License-Identifier: Apache-2.0
"""Which plot functions each bench has."""

from __future__ import annotations

from collections.abc import Callable

from tmem_host.bench.results import Results
from tmem_host.report.draw import Plot, metric_plot

PlotFunction = Callable[[Results], Plot | None]
_plots: dict[str, list[PlotFunction]] = {}


def plot(bench: str) -> Callable[[PlotFunction], PlotFunction]:
    """Adds a plot to the reports of `bench`, in the order written."""

    def register(function: PlotFunction) -> PlotFunction:
        _plots.setdefault(bench, []).append(function)
        return function

    return register


def plots_for(results: Results) -> list[Plot]:
    """All plots that the records allow."""
    made = [p for function in _plots.get(results.bench, []) if (p := function(results)) is not None]
    return made or [p for metric in _metrics(results) if (p := metric_plot(results, metric)) is not None]


def _metrics(results: Results) -> list[str]:
    return list(dict.fromkeys(r.metric for r in results.records if r.arm != "harness"))
