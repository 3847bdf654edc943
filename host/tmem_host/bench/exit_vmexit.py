# SPDX-License-Identifier: Apache-2.0
"""kvm-unit-tests' vmexit, run beside our own figures when the user points to its vmexit.flat.

It needs a QEMU whose KVM runs a guest from its first instruction, so it is skipped where only micro-VMs run.
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
_DEADLINE: Final = 60.0
_LINE: Final = re.compile(r"^(\w+) (\d+)$", re.MULTILINE)


def argv(flat: Path, test: str) -> list[str]:
    """QEMU for one test, as kvm-unit-tests' own x86/run starts it."""
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-device", "pc-testdev"),
        *("-machine", "accel=kvm", "-cpu", "host", "-m", "128"),
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


async def run(flat: Path) -> dict[str, float]:
    """Cycles of each test. Raises ArmSkipped with the reason when this host cannot run them."""
    found: dict[str, float] = {}
    reason = ""
    for test in TESTS:
        try:
            # isa-debug-exit makes QEMU end with (0 << 1) | 1 when all went well.
            done = await comparators_process.run(argv(flat, test), deadline=_DEADLINE, good=(0, 1))
            found[test] = cycles_of(done.stdout, test)
        except (TmemError, ValueError) as error:
            reason = reason or f"{test}: {error}"
            if not found:
                break
    if not found:
        raise ArmSkipped(f"kvm-unit-tests' vmexit does not run here: {reason}")
    return found
