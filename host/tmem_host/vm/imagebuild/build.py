# SPDX-License-Identifier: Apache-2.0
"""Puts a guest together: kernel, initramfs (drivers, init) and root disk (Python, agent, workloads, zram's modules)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.errors import Unavailable, VmFailed
from tmem_host.vm.imagebuild import apt, modules
from tmem_host.vm.imagebuild.cpio import Archive

PYTHON: Final = "python3.11"
LIBRARIES: Final = "lib/x86_64-linux-gnu"
#: Of the hog and the workloads. They keep page loops loops: a call to memcpy or memset would be another thing to time.
HOG_FLAGS: Final = ("-O2", "-static", "-fno-tree-loop-distribute-patterns", "-Wall", "-Wextra")


@dataclass(frozen=True)
class Sources:
    """The parts of the repository that go into a guest."""

    root: Path

    @property
    def agent(self) -> Path:
        return self.root / "agent" / "tmem_guest"

    @property
    def hog(self) -> Path:
        return self.root / "hog" / "hog.c"

    @property
    def work(self) -> list[Path]:
        """The workloads' sources, headers among them."""
        return sorted((self.root / "work").glob("*.[ch]"))

    @property
    def init(self) -> Path:
        return self.root / "image" / "init"

    @property
    def contents(self) -> Path:
        return self.root / "image" / "contents.toml"

    @property
    def lock(self) -> Path:
        return self.root / "image" / "packages.toml"

    def files(self) -> list[Path]:
        """Everything whose change makes another guest."""
        return [self.hog, *self.work, self.init, self.contents, *sorted(self.agent.glob("*.py"))]


def find_tool(name: str, package: str) -> str:
    # mke2fs is in sbin, which an ordinary user's PATH may lack
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Unavailable(f"{name} is missing", f"install {package}, or run scripts/install-deps")
    return found


def compile_hog(source: Path, target: Path) -> None:
    """The memory hog. Raises Unavailable without a compiler or a static libc, with the compiler's first words."""
    _compile([source, source.parents[1] / "work" / "base.c"], target)


def compile_work(sources: list[Path], target: Path) -> None:
    """The workloads, out of :attr:`Sources.work`. Raises Unavailable as :func:`compile_hog` does."""
    _compile([path for path in sources if path.suffix == ".c"], target, "-lm")


def _compile(sources: list[Path], target: Path, *libraries: str) -> None:
    compiler = find_tool("cc", "gcc and libc6-dev")
    argv = [compiler, *HOG_FLAGS, "-o", str(target), *map(str, sources), *libraries]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.splitlines()[:1]
        raise Unavailable(f"{target.name} does not compile: {why}", "install gcc and libc6-dev")


def initramfs(kernel_tree: Path, busybox: Path, sources: Sources) -> bytes:
    """Uncompressed: unpacking is a copy, and under TCG decompression costs more than loading."""
    wanted = tomllib.loads(sources.contents.read_text())["modules"]["initramfs"]
    found = modules.resolve(kernel_tree / "lib" / "modules", wanted)
    archive = Archive()
    for folder in ("bin", "dev", "lib", "lib/modules", "proc", "root", "sys"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), executable=True)
    archive.file("init", sources.init.read_bytes(), executable=True)
    for module in found:
        archive.file(f"lib/modules/{module.name}.ko", module.image)
    archive.file("lib/modules/initramfs.order", "".join(f"{module.name}\n" for module in found).encode())
    return archive.finish()


def root_tree(kernel_tree: Path, userland: Path, programs: Path, sources: Sources, root: Path) -> None:
    """Fills ``root`` with the tree of the read-only root disk. ``programs``: a folder of what goes into its /bin."""
    contents = tomllib.loads(sources.contents.read_text())
    stdlib = root / "usr" / "lib" / PYTHON
    for folder in ("bin", "dev", "proc", "run", "sys", "lib/modules", LIBRARIES, "lib64", "usr/bin"):
        (root / folder).mkdir(parents=True)
    shutil.copy(userland / "bin" / "busybox", root / "bin" / "busybox")
    for program in programs.iterdir():
        shutil.copy(program, root / "bin" / program.name)
    _copy_libraries(userland, root)
    shutil.copy(userland / "usr" / "bin" / PYTHON, root / "usr" / "bin" / PYTHON)
    _copy_stdlib(userland / "usr" / "lib" / PYTHON, stdlib, contents["python"])
    shutil.copytree(sources.agent, stdlib / "tmem_guest", ignore=shutil.ignore_patterns("__pycache__"))
    _compile_python(userland, stdlib)
    check_python(root)
    zram = modules.resolve(kernel_tree / "lib" / "modules", contents["modules"]["zram"])
    for module in zram:
        (root / "lib" / "modules" / f"{module.name}.ko").write_bytes(module.image)
    (root / "lib" / "modules" / "zram.order").write_text("".join(f"{module.name}\n" for module in zram))


def _copy_libraries(userland: Path, root: Path) -> None:
    folders = (userland / LIBRARIES, userland / "usr" / LIBRARIES)
    for name in ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8"):
        source = next(folder / name for folder in folders if (folder / name).exists())
        shutil.copy(source, root / LIBRARIES / name)
    loader = "ld-linux-x86-64.so.2"
    shutil.copy(userland / LIBRARIES / loader, root / "lib64" / loader)


def _copy_stdlib(source: Path, target: Path, wanted: dict[str, list[str]]) -> None:
    for name in wanted["modules"]:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / f"{name}.py", target / f"{name}.py")
    dynload = target / "lib-dynload"
    dynload.mkdir()
    for name in wanted["extensions"]:
        (file,) = (source / "lib-dynload").glob(f"{name}.cpython-*.so")
        shutil.copy(file, dynload / file.name)


def _compile_python(userland: Path, stdlib: Path) -> None:
    """Leaves only .pyc where the sources were: fewer look-ups at start, and nothing to check.

    The guest's own interpreter does it, run by its own loader, so the host's Python version and libc do not matter.
    """
    argv = [
        str(userland / LIBRARIES / "ld-linux-x86-64.so.2"),
        *("--library-path", f"{userland / LIBRARIES}:{userland / 'usr' / LIBRARIES}"),
        *(str(userland / "usr" / "bin" / PYTHON), "-I", "-S", "-B", "-m", "compileall", "-q", "-b"),
        *("--invalidation-mode", "unchecked-hash", "-s", str(stdlib), "-p", f"/usr/lib/{PYTHON}", str(stdlib)),
    ]
    # It finds its library by the landmark next to the interpreter.
    done = subprocess.run(argv, env={"PATH": os.defpath}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise VmFailed(f"the guest's Python files do not compile: {(done.stdout + done.stderr).strip()[-200:]}")
    for path in stdlib.rglob("*.py"):
        path.unlink()


def check_python(root: Path) -> None:
    """Imports the agent with what is on the root disk and nothing else. Raises VmFailed with what is missing."""
    argv = [
        str(root / "lib64" / "ld-linux-x86-64.so.2"),
        *("--library-path", str(root / LIBRARIES), str(root / "usr" / "bin" / PYTHON), "-I", "-S", "-B"),
        *("-c", "import tmem_guest.__main__, tmem_guest.speak, tmem_guest.cli, tomllib"),
    ]
    done = subprocess.run(argv, env={"PATH": os.defpath}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise VmFailed(
            f"the agent does not start with what is in the image: {done.stderr.strip().splitlines()[-1]}",
            "add the missing module to guest/image/contents.toml",
        )


def root_disk(tree: Path, image: Path) -> None:
    """An ext2 file system of the tree (its driver is built in), made without mounting and without root."""
    size = sum(path.stat().st_size + 4096 for path in tree.rglob("*") if not path.is_symlink())
    blocks = (size * 9 // 8 + (1 << 20)) // 4096
    options = [
        "-q",
        "-F",
        "-t",
        "ext2",
        "-b",
        "4096",
        "-m",
        "0",
        "-O",
        "^resize_inode,^dir_index",
        "-E",
        "root_owner=0:0",
    ]
    # A fixed identity, so that images differ in nothing but time stamps (mke2fs before 1.47.1 has no way to fix those).
    identity = ["-U", "6b766d2d-746d-656d-726f-6f7400000000", "-L", "tmem-root"]
    done = subprocess.run(
        [find_tool("mke2fs", "e2fsprogs"), *options, *identity, "-d", str(tree), str(image), str(blocks)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
    )
    if done.returncode != 0:
        raise Unavailable(f"mke2fs failed: {done.stderr.strip()[-200:]}", "is e2fsprogs 1.45 or newer installed?")


def kernel_image(kernel_tree: Path) -> tuple[str, Path]:
    """(release, bzImage) of an unpacked kernel package."""
    (image,) = (kernel_tree / "boot").glob("vmlinuz-*")
    return image.name.removeprefix("vmlinuz-"), image


def keep(made: Path, done: Path) -> None:
    """Gives a finished folder its name in the cache, unless another build of the same was faster."""
    try:
        made.rename(done)
    except OSError:
        if not done.is_dir():
            raise


def unpack_all(releases: apt.Releases, packages: list[apt.Package], store: Path, root: Path) -> None:
    for package in packages:
        apt.unpack(releases[package.release].fetch(package, store), root)
