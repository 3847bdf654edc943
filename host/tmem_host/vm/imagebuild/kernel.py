# SPDX-License-Identifier: Apache-2.0
"""Kernels built from the distribution's sources, because none of its own has what is needed: cleancache, or checks.

The smallest configuration that boots our guests: ``allnoconfig`` and the fragments in guest/image/kernels.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import Unavailable, VmFailed
from tmem_host.vm.imagebuild import apt, build
from tmem_host.vm.imagebuild.lockfile import Lock

#: Raised when the code that builds (not what goes in) changes what comes out.
_BUILDER: Final = 1
#: For kernels and modules: the distribution's 6.1 and 6.12 were built with it, and 5.10 takes it, too.
COMPILER: Final = "gcc-12"
#: What it takes to build modules for a kernel: of its sources, and of its build folder within them.
_HEADERS: Final = ("Makefile", "scripts", "include", "arch/x86/include", "arch/x86/Makefile", "arch/x86/scripts")
_BUILT: Final = (
    *(".config", "Makefile", "Module.symvers", "scripts", "include", "arch/x86/include"),
    "tools/objtool/objtool",
)


@dataclass(frozen=True)
class Flavour:
    """A kernel of ours: the series whose sources it is built from, and its fragments of configuration."""

    source: str
    fragments: tuple[str, ...]


FLAVOURS: Final = {
    "5.10-cleancache": Flavour("5.10", ("minimal.config",)),
    "5.10-debug": Flavour("5.10", ("minimal.config", "debug.config")),
}


def compiler_version() -> str:
    """Raises Unavailable when it is not installed."""
    if shutil.which(COMPILER) is None:
        raise Unavailable(f"{COMPILER} is missing", "install it, or run scripts/install-deps")
    done = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _fragment(name: str, origin: build.Sources) -> str:
    return "\n".join((origin.root / "image" / "kernels" / part).read_text() for part in FLAVOURS[name].fragments)


def kernel_key(name: str, origin: build.Sources, lock: Lock) -> str:
    """Changes with sources, configuration and compiler."""
    source = lock.sources[FLAVOURS[name].source]
    parts = [str(_BUILDER), name, source.sha256, _fragment(name, origin), compiler_version()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def built_kernel(name: str, origin: build.Sources, lock: Lock) -> Path:
    """A tree as of a kernel's package (boot, lib/modules), and source/build for modules; minutes if missing."""
    done = cache_dir() / "kernels" / f"{name}-{kernel_key(name, origin, lock)}"
    if done.is_dir():
        return done
    done.parent.mkdir(parents=True, exist_ok=True)
    print(f"tmem: building kernel {name}, which takes some minutes", file=sys.stderr)
    with _alone(done), tempfile.TemporaryDirectory(prefix=".building-", dir=done.parent) as folder:
        if done.is_dir():
            return done
        work = Path(folder)
        tree = unpack_source(work, lock.sources[FLAVOURS[name].source])
        _compile(tree, _fragment(name, origin), f"-tmem-{name.split('-')[1]}")
        made = work / "made"
        _collect(tree, made)
        build.keep(made, done)
    return done


@contextmanager
def _alone(done: Path) -> Iterator[None]:
    """Two builds of one kernel at a time would take twice as long, and one of them for nothing."""
    with (done.parent / f"{done.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def unpack_source(work: Path, package: apt.Package, members: list[str] | None = None) -> Path:
    """Unpacks the kernel's source package below ``work``, or just some of its files; returns the tree."""
    build.unpack_all(apt.Releases(work / "apt"), [package], cache_dir() / "packages", work / "package")
    (archive,) = (work / "package" / "usr" / "src").glob("linux-source-*.tar.xz")
    root = archive.name.removesuffix(".tar.xz")
    wanted = [f"{root}/{member}" for member in members or []]
    subprocess.run(["tar", "-xJf", str(archive), "-C", str(work), *wanted], check=True)
    archive.unlink()
    return work / root


def _make(tree: Path, *arguments: str) -> None:
    argv = ["make", "-s", "O=build", f"CC={COMPILER}", f"HOSTCC={COMPILER}", *arguments]
    # Equal inputs, equal kernels.
    plain = {"KBUILD_BUILD_TIMESTAMP": "@0", "KBUILD_BUILD_USER": "tmem", "KBUILD_BUILD_HOST": "tmem"}
    done = subprocess.run(
        argv,
        cwd=tree,
        env={**os.environ, **plain},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise VmFailed(f"the kernel does not build: {' | '.join(words[:3])}", "see guest/image/kernels")


def _compile(tree: Path, fragment: str, suffix: str) -> None:
    (tree / "fragment").write_text(fragment)
    _make(tree, "KCONFIG_ALLCONFIG=fragment", "allnoconfig")
    configured = (tree / "build" / ".config").read_text().splitlines()
    missing = [line for line in fragment.splitlines() if line.startswith("CONFIG_") and line not in configured]
    if missing:
        raise VmFailed(f"the kernel's configuration lacks {', '.join(missing)}", "something that they need is not set")
    _make(tree, f"LOCALVERSION={suffix}", f"-j{os.cpu_count() or 1}", "bzImage", "modules")


def _collect(tree: Path, made: Path) -> None:
    """Moves what guests and modules need out of the build."""
    built = tree / "build"
    release = (built / "include" / "config" / "kernel.release").read_text().strip()
    for source, target in [
        (built / "arch" / "x86" / "boot" / "bzImage", made / "boot" / f"vmlinuz-{release}"),
        *((path, made / "lib" / "modules" / release / path.name) for path in built.rglob("*.ko")),
        *((built / part, made / "source" / "build" / part) for part in _BUILT),
        *((tree / part, made / "source" / part) for part in _HEADERS),
    ]:
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    (made / "lib" / "modules" / release).mkdir(parents=True, exist_ok=True)
    # It names where it was made.
    (made / "source" / "build" / "Makefile").write_text("include ../Makefile\n")
