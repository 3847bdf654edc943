# SPDX-License-Identifier: Apache-2.0
"""The kernel's own rules over guest/module: checkpatch.pl of the pinned kernel sources, and sparse for every series."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import Unavailable, VmFailed
from tmem_host.vm import images
from tmem_host.vm.imagebuild import build, kernel, lockfile
from tmem_host.vm.modulebuild import module

#: The series whose sources are pinned, because a kernel is built from them.
SOURCE: Final = "5.10"
_SCRIPTS: Final = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")
#: One source for three kernels cannot do without versions.
_MODULE: Final = ("--ignore", "LINUX_VERSION_CODE,CONSTANT_COMPARISON")
#: The ABI's header serves user space, too, which has neither u32 nor BIT(); its lines are as long as this project's.
_ABI: Final = ("--ignore", "PREFER_KERNEL_TYPES,BIT_MACRO", "--max-line-length=120")


def check(series: list[str]) -> None:
    """Raises VmFailed after printing what there is to say."""
    words = images.with_pins(_checkpatch)
    for one in series:
        words += [f"{one}: {line}" for line in _sparse(one)]
    if words:
        print("\n".join(words), file=sys.stderr)
        raise VmFailed(f"checkpatch.pl and sparse have {len(words)} lines to say on guest/module", "see above")
    print(f"tmem: checkpatch.pl and sparse have nothing to say ({', '.join(series)})", file=sys.stderr)


def _checkpatch() -> list[str]:
    folder = _checkpatch_folder()
    words: list[str] = []
    for path in module.module_sources():
        if path.suffix not in (".c", ".h"):
            continue
        argv = ["perl", str(folder / "checkpatch.pl"), "--no-tree", "--strict", "--quiet", "--terse", "--no-summary"]
        argv += [*(_ABI if path.parent.name == "abi" else _MODULE), "--file", str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        words += (done.stdout + done.stderr).splitlines()
    return words


def _checkpatch_folder() -> Path:
    """checkpatch.pl and what it reads, out of the kernel's sources."""
    package = lockfile.read(images.sources().lock).sources[SOURCE]
    done = cache_dir() / "tools" / f"checkpatch-{package.sha256[:16]}"
    if not done.is_dir():
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=done.parent) as name:
            tree = kernel.unpack_source(Path(name), package, [f"scripts/{script}" for script in _SCRIPTS])
            build.keep(tree / "scripts", done)
    return done


def _sparse(series: str) -> list[str]:
    """What sparse says on our own files: the kernels' headers have words of their own."""
    try:
        subprocess.run(["sparse", "--version"], capture_output=True, check=True)
    except OSError as error:
        raise Unavailable("sparse is missing", "install it, or run scripts/install-deps") from error
    parent = cache_dir() / "modules"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".checking-", dir=parent) as name:
        said = module.make(series, Path(name), "C=2", "CHECK=sparse", "CF=-D__CHECK_ENDIAN__", "W=1")
        ours = str(Path(name) / "guest") + os.sep
        words = [line.replace(ours, "") for line in said.stdout.splitlines() if ours in line and ": " in line]
        if said.returncode != 0 and not words:
            words = said.stdout.splitlines()[-3:]
        return [line for line in words if not line.lstrip().startswith(("make", "CC", "CHECK", "LD", "MODPOST"))]
