# SPDX-License-Identifier: Apache-2.0
"""The cross-check of the exit bench: a minimal loop in C over KVM_RUN, run in turn with the bench's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from tmem_host.bench import comparators_process
from tmem_host.bench.runner import ArmSkipped
from tmem_host.config import cache_dir

SOURCE: Final = Path(__file__).with_name("exit_reference.c")
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


async def build() -> Path:
    """The program, from the cache if it was built before. Raises ArmSkipped without a compiler."""
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise ArmSkipped("there is no C compiler for the reference loop: run scripts/install-deps")
    key = hashlib.sha256("\0".join([SOURCE.read_text(encoding="utf-8"), compiler, *_FLAGS]).encode()).hexdigest()[:16]
    program = cache_dir() / "tools" / f"exit-reference-{key}"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    # Made in a folder of its own and moved: nobody ever runs half of it.
    with tempfile.TemporaryDirectory(prefix=".exit-reference-", dir=program.parent) as scratch:
        made = f"{scratch}/{program.name}"
        await comparators_process.run([*compiler.split(), *_FLAGS, "-o", made, str(SOURCE)], deadline=120)
        os.replace(made, program)  # noqa: PTH105 - pathlib's would be no less blocking here
    return program


async def turn(hz: float, *, warmup: int, samples: int, cpu: int) -> list[float]:
    """Nanoseconds from one exit to the next, as the loop in C sees them. `hz`: ticks a second."""
    program = await build()
    done = await comparators_process.run([str(program), str(warmup), str(samples), str(cpu)], deadline=60)
    return [int(line) * 1e9 / hz for line in done.stdout.split()]
