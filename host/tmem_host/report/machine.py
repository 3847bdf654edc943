# SPDX-License-Identifier: Apache-2.0
"""On what results were measured, and what makes them again, in one line each: every part of the page says both."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tmem_host.bench.results import Results


def machine_line(results: Results) -> str:
    """Processor, kernel, what KVM is there, guest: what a figure must not be quoted without."""
    host, guest = results.properties.host, results.properties.guest
    parts = [
        f"{host.get('cpu') or 'unknown CPU'}, {host.get('cpus', '?')} CPUs"
        + (" (itself a virtual machine)" if host.get("virtualised") else ""),
        f"Linux {host.get('kernel', '?')}",
        f"KVM: {kvm_flavour(results)}",
    ]
    if guest:
        kernel = guest.get("kernel_release") or guest.get("kernel")
        parts.append(f"guest: Linux {kernel}, {guest.get('memory_mib', '?')} MiB, {guest.get('vcpus', '?')} vCPU")
        parts.append(f"accelerator: {guest.get('accelerator', 'unknown')}")
    return " · ".join(parts)


def kvm_flavour(results: Results) -> str:
    """What KVM is on the host, as recorded with the run."""
    return str(results.properties.host.get("kvm_flavour") or "not recorded")


def emulated(results: Results) -> bool:
    """Whether the guest ran on an emulated CPU, so that nothing about exits follows."""
    return results.properties.guest.get("accelerator") == "tcg"


def command_line(results: Results) -> str:
    """What makes the results again."""
    return shlex.join(results.command) if results.command else f"tmem bench {results.bench}"


def distinct_machines(all_results: Sequence[Results]) -> list[str]:
    """Each machine once, with the benches that ran there when there are several."""
    found: dict[str, list[str]] = {}
    for results in all_results:
        host_only = results.model_copy(update={"properties": results.properties.model_copy(update={"guest": {}})})
        found.setdefault(machine_line(host_only), []).append(results.bench)
    if len(found) == 1:
        return list(found)
    return [f"{', '.join(dict.fromkeys(benches))}: {line}" for line, benches in found.items()]
