# SPDX-License-Identifier: Apache-2.0
"""What keeps two runs from being compared: another bench, machine, setting or unit. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tmem_host.bench.results import Property, Results
from tmem_host.errors import InvalidInput

GROUPS = ("quick", "complete", "host", "kvm", "accelerator", "guest", "configuration")
"""Differences that a reader may allow, since a figure is still a figure; they are then told beside it."""
_HOST = (
    "cpu",
    "cpus",
    "cpus_usable",
    "virtualised",
    "memory_bytes",
    "governor",
    "clocksource",
    "transparent_hugepage",
    "transparent_hugepage_shmem",
    "swaps",
    "kernel",
    "qemu",
)
"""Host properties that move figures. The tool's commit is not one: comparing two is what this is for."""
_CIRCUMSTANCES = frozenset({"disk_dir", "busy_start", "busy_end", "boot_seconds", "available_bytes", "accelerator_why"})
"""Properties that are observed rather than set, or a path that changes with --out; a disk's filesystem is compared."""
_TOLD = 6


@dataclass(frozen=True)
class Difference:
    """Something that is not the same in both runs."""

    name: str
    """`GROUP`, `GROUP.WHAT`, or one that cannot be allowed: bench, unit, dimensions."""
    a: str
    b: str

    @property
    def allowable(self) -> bool:
        """Whether the figures can be set side by side at all."""
        return self.name.partition(".")[0] in GROUPS

    def allowed_by(self, names: Iterable[str]) -> bool:
        """`names` hold groups and full names."""
        return self.allowable and bool({self.name, self.name.partition(".")[0]} & set(names))

    def __str__(self) -> str:
        return f"{self.name} ({self.a} / {self.b})"


def differences(a: Results, b: Results) -> list[Difference]:
    """All that is unlike, what rules a comparison out first."""
    found = [] if a.bench == b.bench else [Difference("bench", a.bench, b.bench)]
    found += _of_records(a, b)
    if a.quick != b.quick:
        found.append(Difference("quick", _said(a.quick), _said(b.quick)))
    if a.complete != b.complete:
        found.append(Difference("complete", _said(a.complete), _said(b.complete)))
    one, other = a.properties, b.properties
    found += _of_properties("host", {k: one.host.get(k) for k in _HOST}, {k: other.host.get(k) for k in _HOST})
    flavours = one.host.get("kvm_flavour"), other.host.get("kvm_flavour")
    if flavours[0] != flavours[1]:
        found.append(Difference("kvm", _said(flavours[0]), _said(flavours[1])))
    guests = dict(one.guest), dict(other.guest)
    accelerators = [g.pop("accelerator", None) for g in guests]
    if accelerators[0] != accelerators[1]:
        found.append(Difference("accelerator", *map(_said, accelerators)))
    found += _of_properties("guest", *guests)
    return found + _of_properties("configuration", one.configuration, other.configuration)


def _of_records(a: Results, b: Results) -> list[Difference]:
    """Units of metrics, and names of dimensions of arms, that both have."""
    units = [_units(results) for results in (a, b)]
    found = [
        Difference(f"unit of {metric}", unit, units[1][metric])
        for metric, unit in units[0].items()
        if unit != units[1].get(metric, unit)
    ]
    shapes = [_dimensions(results) for results in (a, b)]
    unlike = {
        metric: Difference(f"dimensions of {metric}", names, shapes[1][metric, arm])
        for (metric, arm), names in shapes[0].items()
        if names != shapes[1].get((metric, arm), names)
    }
    return found + list(unlike.values())


def _units(results: Results) -> dict[str, str]:
    """All units of each metric: one, unless something is wrong."""
    found: dict[str, set[str]] = {}
    for r in results.records:
        found.setdefault(r.metric, set()).add(r.unit)
    return {metric: ", ".join(sorted(units)) for metric, units in found.items()}


def _dimensions(results: Results) -> dict[tuple[str, str], str]:
    """Names of the dimensions of each metric of each arm: an arm that failed on one side takes nothing away."""
    names: dict[tuple[str, str], set[str]] = {}
    for r in results.records:
        names.setdefault((r.metric, r.arm), set()).update(r.dimensions)
    return {key: ", ".join(sorted(found)) for key, found in names.items()}


def _of_properties(group: str, a: Mapping[str, Property], b: Mapping[str, Property]) -> list[Difference]:
    return [
        Difference(f"{group}.{name}", _said(a.get(name)), _said(b.get(name)))
        for name in dict.fromkeys([*a, *b])
        if name not in _CIRCUMSTANCES and not _alike(name, a.get(name), b.get(name))
    ]


def _alike(name: str, a: Property, b: Property) -> bool:
    """Equal; or memory sizes within 1 %, since a kernel keeps a little more or less for itself at each boot."""
    if name.endswith("_bytes") and isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=0.01)
    return a == b


def _said(value: Property) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not recorded" if value is None else str(value)


def refuse(found: Sequence[Difference], allowed: Sequence[str]) -> list[Difference]:
    """Returns the differences that were allowed. Raises InvalidInput, naming the others, or a name that is none."""
    for name in allowed:
        if name.partition(".")[0] not in GROUPS:
            raise InvalidInput(
                f"--allow {name} is not a difference that can be allowed", f"one of: {', '.join(GROUPS)}"
            )
    fatal = [d for d in found if not d.allowable]
    left = fatal or [d for d in found if not d.allowed_by(allowed)]
    if not left:
        return list(found)
    told = "; ".join(map(str, left[:_TOLD])) + (f"; and {len(left) - _TOLD} more" if len(left) > _TOLD else "")
    groups = dict.fromkeys(d.name.partition(".")[0] for d in left)
    hint = (
        "give two results of one bench, of versions that name its figures alike"
        if fatal
        else f"to compare all the same: {' '.join(f'--allow {g}' for g in groups)}; it is told beside the figures"
    )
    raise InvalidInput(f"these runs are unlike: {told}", hint)
