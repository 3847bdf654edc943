# SPDX-License-Identifier: Apache-2.0
"""The plots of the channel bench."""

from __future__ import annotations

from tmem_host.bench.results import Results
from tmem_host.report.draw import Plot, line_plot, strip_plot
from tmem_host.report.registry import plot


def _channel_plot(metric: str, op: str, client: str, contents: str, title: str, caption: str) -> None:
    @plot("channel")
    def one(results: Results) -> Plot | None:
        records = results.find(metric, op=op, client=client, contents=contents)
        return line_plot(results, f"{metric}-{op}-{client}", title, caption, records, "depth")


_BAND = "band: 95 % interval. Dashed: polling."
_channel_plot(
    "latency",
    "read",
    "qemu-img",
    "compressible",
    "Read latency by queue depth",
    f"qemu-img bench, pages that compress; mean of the requests in flight; {_BAND}",
)
_channel_plot(
    "latency",
    "write",
    "qemu-img",
    "same-filled",
    "Write latency by queue depth",
    f"qemu-img bench, same-filled pages; mean of the requests in flight; {_BAND}",
)
_channel_plot(
    "throughput",
    "read",
    "qemu-img",
    "compressible",
    "Reads per second by queue depth",
    f"qemu-img bench, pages that compress. Higher is better; {_BAND}",
)
_channel_plot(
    "throughput",
    "write",
    "libblkio-event",
    "compressible",
    "Writes per second by queue depth",
    f"libblkio, pages that compress. Higher is better; {_BAND}",
)
_channel_plot(
    "server_cpu",
    "read",
    "qemu-img",
    "compressible",
    "CPU time of the server per read",
    f"qemu-img bench, pages that compress. Lower is better; {_BAND}",
)


@plot("channel")
def channel_requests(results: Results) -> Plot | None:
    """Latency of single reads at depth 1."""
    return strip_plot(
        results,
        "request-latency",
        "Latency of single reads at depth 1",
        "libblkio waiting for events; pages that compress.",
        results.find("request_latency", op="read", depth=1, client="libblkio-event"),
    )
