# SPDX-License-Identifier: Apache-2.0
"""The programs that tmem is compared with, taken from Debian 13 whatever the host is.

`qemu-img bench` speaks vhost-user-blk only since QEMU 7.2 and only with libblkio, which Debian has from release 13 on.
So mmdebstrap extracts a small Debian 13 tree (nothing is installed, no maintainer script runs, no root needed) into the
cache folder, and its programs run through the tree's own dynamic loader:

    TREE/usr/lib64/ld-linux-x86-64.so.2 --library-path TREE/usr/lib/x86_64-linux-gnu ... TREE/usr/bin/qemu-img

`python -m tmem_host.bench.comparators build` makes or updates it, `show` says what is there, `remove` deletes all.

Clients considered for the channel bench, all not ours (tried on 2026-11-23 with Debian 13):
- `qemu-img bench` over `virtio-blk-vhost-user`: works; the main client. It writes one repeated byte only, so that pages
  that compress are written beforehand (by the client below) and only read by it.
- `fio --ioengine=libblkio`: Debian's fio 3.39 is built without it ("engine libblkio not loadable").
- `blkio-bench`, an example program of libblkio-dev: writes zeroes only, run time in whole seconds.
- `qemu-img convert` and `qemu-io write -s FILE`: write any content, but without a say over depth, or one at a time.
- libblkio itself, driven by `comparators_blkio.c`: any content, event or polling, latency of each request; built here.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tmem_host.bench.comparators_apt import Mirror, configured_mirrors
from tmem_host.bench.comparators_process import dies_with_parent, last_line
from tmem_host.config import cache_dir
from tmem_host.errors import Conflict, InvalidInput, TmemError, Unavailable, VmFailed

SUITE = "trixie"
PACKAGES = ("qemu-utils", "qemu-block-extra", "libblkio1", "libblkio-dev", "fio")
CLIENT = "tmem-blkio-client"
CLIENT_SOURCE = Path(__file__).with_name("comparators_blkio.c")
#: Raise when the way the tree is made changes: older trees are then not used any more.
RECIPE = "1"
HINT = "run 'python -m tmem_host.bench.comparators build'"

_LOADERS = {
    "x86_64": ("usr/lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
    "aarch64": ("usr/lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
}
_NOT_NEEDED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/lib/systemd",
    "usr/share/bash-completion",
)
_BUILD_SECONDS = 900
_INST = re.compile(r"^Inst (\S+) \((\S+) ")


@dataclass(frozen=True)
class Tree:
    """A finished Debian 13 tree in the cache."""

    folder: Path
    #: Version of each package of the tree.
    versions: dict[str, str]

    @property
    def root(self) -> Path:
        return self.folder / "tree"

    def command(self, program: str, *args: str) -> list[str]:
        """argv that runs `program` of the tree."""
        loader, triplet = _loader()
        libraries = self.root / "usr/lib" / triplet
        # librados finds its private library by RUNPATH, which names the host's folder: hence the second folder.
        path = f"{libraries}:{libraries / 'ceph'}"
        return [
            str(self.root / loader),
            "--library-path",
            path,
            "--argv0",
            program,
            str(self.root / "usr/bin" / program),
            *args,
        ]

    @property
    def env(self) -> dict[str, str]:
        """What the tree's programs need in the environment: QEMU's modules lie in the tree."""
        return {"QEMU_MODULE_DIR": str(self.root / "usr/lib" / _loader()[1] / "qemu")}

    def facts(self) -> dict[str, str]:
        """Versions that belong into a result's properties."""
        return {
            f"comparator_{name.replace('-', '_')}": self.versions[name]
            for name in ("qemu-utils", "libblkio1", "fio")
            if name in self.versions
        }


def find() -> Tree:
    """The newest finished tree. Raises Unavailable with what to run when there is none."""
    trees = sorted(_finished(), key=lambda item: item[0], reverse=True)
    if not trees:
        raise Unavailable("the Debian 13 tree with qemu-img and qemu-storage-daemon is not built", HINT)
    return trees[0][1]


def build(mirror: Mirror | None = None, *, say: IO[str] | None = None) -> Tree:
    """Makes the tree for the package versions that the mirror has now, or returns the one that is there already.

    Without network a tree that was built before is kept and used. Interrupted at any time, it leaves nothing half-made.
    Raises TmemError.
    """
    out = say or sys.stderr
    if shutil.which("mmdebstrap") is None:
        raise Unavailable("mmdebstrap is not installed", "apt install mmdebstrap, or run scripts/install-deps")
    mirrors = [mirror] if mirror else configured_mirrors()
    if not mirrors:
        raise Unavailable("apt on this machine names no Debian mirror", "give one with --mirror URI [--keyring FILE]")
    with _lock():
        reasons: list[str] = []
        for candidate in mirrors:
            print(f"looking up Debian 13 packages at {candidate.uri}", file=out)
            try:
                versions = _versions(candidate)
            except VmFailed as error:
                reasons.append(f"{candidate.uri}: {error.message}")
                continue
            return _build(candidate, versions, out)
        try:
            tree = find()
        except Unavailable:
            raise Unavailable(
                f"no mirror serves {SUITE}: {'; '.join(reasons)}", "see whether the network is up, or give --mirror URI"
            ) from None
        print(f"no mirror answers: the tree built before is used ({tree.folder})", file=out)
        return tree


def _build(mirror: Mirror, versions: dict[str, str], out: IO[str]) -> Tree:
    folder = _home() / f"debian13-{_key(versions)}"
    if (folder / "manifest.json").is_file():
        print(f"up to date: {folder}", file=out)
        return Tree(folder, versions)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=_home()))
    try:
        work.chmod(0o755)
        print(f"extracting {len(versions)} packages (about 60 MiB to fetch)", file=out)
        _mmdebstrap(mirror, work / "tree")
        for name in _NOT_NEEDED:
            shutil.rmtree(work / "tree" / name, ignore_errors=True)
        tree = Tree(work, versions)
        print("compiling the libblkio client", file=out)
        _compile_client(tree)
        _try(tree)
        (work / "manifest.json").write_text(
            json.dumps({"recipe": RECIPE, "packages": versions}, indent=1), encoding="utf-8"
        )
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"ready: {folder}", file=out)
    return Tree(folder, versions)


def _versions(mirror: Mirror) -> dict[str, str]:
    """Package versions that an extraction would take now: mmdebstrap resolves, nothing is fetched but the index."""
    with tempfile.TemporaryDirectory(prefix="tmem-debian13-") as scratch:
        text = _run([*_mmdebstrap_argv(mirror, Path(scratch) / "tree"), "--simulate", "--verbose"])
    found = {match[1]: match[2] for line in text.splitlines() if (match := _INST.match(line))}
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        raise VmFailed(f"it has no {', '.join(missing)}")
    return dict(sorted(found.items()))


def _mmdebstrap(mirror: Mirror, target: Path) -> None:
    _run(_mmdebstrap_argv(mirror, target))


def _mmdebstrap_argv(mirror: Mirror, target: Path) -> list[str]:
    """Extraction only: as root directly, else `chrootless`, which needs no namespaces and leaves files of ours."""
    mode = "root" if os.geteuid() == 0 else "chrootless"
    return [
        "mmdebstrap",
        "--variant=extract",
        f"--mode={mode}",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        str(target),
        mirror.line(SUITE),
    ]


def _compile_client(tree: Tree) -> None:
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise Unavailable("there is no C compiler", "apt install gcc libc6-dev, or run scripts/install-deps")
    usr = tree.root / "usr"
    output = usr / "bin" / CLIENT
    _run(
        [
            *compiler.split(),
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            f"-I{usr / 'include'}",
            "-o",
            str(output),
            str(CLIENT_SOURCE),
            f"-L{usr / 'lib' / _loader()[1]}",
            "-lblkio",
        ]
    )


def _try(tree: Tree) -> None:
    """Runs each program once: a tree that does not work here is not kept."""
    for program in ("qemu-img", "qemu-storage-daemon", "qemu-io", "fio"):
        _run(tree.command(program, "--version"), env=tree.env)
    try:
        _run(tree.command(CLIENT), env=tree.env)
    except VmFailed as error:
        if "usage" not in error.message:
            raise


def remove() -> int:
    """Deletes all trees, unfinished ones too; returns how many. Raises Conflict while one is being built."""
    with _lock():
        entries = [p for p in _home().iterdir() if p.name.startswith(("debian13-", ".building-"))]
        for entry in entries:
            shutil.rmtree(entry)
    return len(entries)


def _key(versions: dict[str, str]) -> str:
    """Cache key: the tree's packages, our client's source, and how it is made."""
    recipe = [
        RECIPE,
        platform.machine(),
        CLIENT_SOURCE.read_text(encoding="utf-8"),
        json.dumps(versions, sort_keys=True),
    ]
    return hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]


def _finished() -> Iterator[tuple[float, Tree]]:
    for manifest in _home().glob("debian13-*/manifest.json"):
        try:
            data = json.loads(manifest.read_text(encoding="utf-8"))
            packages: dict[str, str] = data["packages"]
            usable = data["recipe"] == RECIPE and manifest.parent.name == f"debian13-{_key(packages)}"
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a manifest of ours
        if usable:
            yield manifest.stat().st_mtime, Tree(manifest.parent, packages)


def _home() -> Path:
    folder = cache_dir() / "comparators"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _lock() -> Iterator[None]:
    """One builder at a time; also clears what a killed one left."""
    with (_home() / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("another process is building the comparators", "wait for it to end") from None
        for left in _home().glob(".building-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _loader() -> tuple[str, str]:
    try:
        return _LOADERS[platform.machine()]
    except KeyError:
        raise Unavailable(
            f"no Debian 13 tree for {platform.machine()}", f"run on one of: {', '.join(_LOADERS)}"
        ) from None


def _run(argv: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Runs a build step; its standard output and error together. Raises VmFailed with its last line."""
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_BUILD_SECONDS,
            preexec_fn=dies_with_parent(),
        )
    except FileNotFoundError:
        raise Unavailable(f"{argv[0]} is not installed", "run scripts/install-deps") from None
    except subprocess.TimeoutExpired:
        raise VmFailed(f"{argv[0]} did not end within {_BUILD_SECONDS} s", "see whether the network is up") from None
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if line.startswith(("E:", "Err:"))]
        raise VmFailed(f"{Path(argv[0]).name} failed: {errors[0] if errors else last_line(done.stdout)}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m tmem_host.bench.comparators", description="The Debian 13 tree of the benches."
    )
    parser.add_argument("action", choices=("build", "show", "remove"))
    parser.add_argument("--mirror", help="URI of a Debian mirror (default: what apt uses here)")
    parser.add_argument("--keyring", help="keyring of the mirror (default: apt's trusted keys)")
    options = parser.parse_args(argv)
    try:
        if options.keyring and not Path(options.keyring).is_file():
            raise InvalidInput(f"there is no keyring {options.keyring}", "give the path of a keyring file")
        if options.action == "build":
            mirror = (
                Mirror(options.mirror, options.keyring and str(Path(options.keyring).resolve()))
                if options.mirror
                else None
            )
            build(mirror)
        elif options.action == "remove":
            print(f"removed: {remove()}")
        else:
            tree = find()
            print(tree.folder)
            for name in PACKAGES:
                print(f"  {name} {tree.versions[name]}")
    except TmemError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
