# SPDX-License-Identifier: Apache-2.0
"""kvm-unit-tests' vmexit, run beside our own figures when the user points to its vmexit.flat.

Its loop calls each test through a pointer: where every guest instruction is emulated (PVM), that is most of its figure.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tmem_host.bench import comparators_process
from tmem_host.bench.runner import ArmSkipped
from tmem_host.errors import InvalidInput, TmemError

#: Tests of x86/vmexit.c that have a counterpart here, and the kind of exit that is it.
TESTS: Final = {
    "cpuid": "cpuid",
    "vmcall": "hypercall",
    "inl_from_kernel": "kernel-device",
    "inl_from_qemu": "pio",
}
_DEADLINE: Final = 40.0
#: CPU models tried in turn: QEMU's KVM refuses the host's own where it cannot set all of its registers.
_MODELS: Final = ("host", "qemu64")
_LINE: Final = re.compile(r"^(\w+) (\d+)$", re.MULTILINE)


def argv(flat: Path, test: str, cpu: str) -> list[str]:
    """QEMU for one test, as kvm-unit-tests' own x86/run starts it."""
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-device", "pc-testdev"),
        *("-machine", "accel=kvm", "-cpu", cpu, "-m", "128"),
        *("-kernel", str(flat), "-append", test),
    ]


def cycles_of(output: str, test: str) -> float:
    """What vmexit printed for `test`: 'NAME CYCLES'. Raises ValueError when it printed nothing of the kind."""
    for name, cycles in _LINE.findall(output.replace("\r", "")):
        if name == test:
            return float(cycles)
    raise ValueError(f"vmexit printed no figure for {test}")


def check(flat: Path) -> None:
    """Raises InvalidInput when there is no such file: better before a run of minutes than at its end."""
    if not flat.is_file():
        raise InvalidInput(f"there is no file {flat}", "give kvm-unit-tests' x86/vmexit.flat with --vmexit")


async def run(flat: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Cycles of each test, and why others have none. Raises ArmSkipped when this host cannot run any."""
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    models = list(_MODELS)
    for test in TESTS:
        try:
            found[test] = await _one(flat, test, models)
        except (TmemError, ValueError) as error:
            missing[test] = str(error)
            if not found:
                break
    if not found:
        raise ArmSkipped(f"kvm-unit-tests' vmexit does not run here: {next(iter(missing.values()))}")
    return found, missing


async def _one(flat: Path, test: str, models: list[str]) -> float:
    """One test on the first CPU model that runs it; those that do not are not tried again."""
    while True:
        try:
            # isa-debug-exit makes QEMU end with (0 << 1) | 1 when all went well.
            done = await comparators_process.run(argv(flat, test, models[0]), deadline=_DEADLINE, good=(0, 1))
            return cycles_of(done.stdout, test)
        except (TmemError, ValueError):
            if len(models) == 1:
                raise
            del models[0]
