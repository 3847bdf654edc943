# SPDX-License-Identifier: Apache-2.0
"""The built module of a kernel series, and a guest image that carries it."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import NotFound, VmFailed
from tmem_host.vm import images
from tmem_host.vm.imagebuild import build, kernel
from tmem_host.vm.imagebuild.cpio import Archive
from tmem_host.vm.modulebuild import kernels

#: Raised when the code that builds (not what goes in) changes what comes out.
_BUILDER: Final = 1
#: Where guest/image/init looks for what it copies to /run of the guest.
GUEST_FOLDER: Final = "extra"


@dataclass(frozen=True)
class GuestModule:
    """tmem.ko for the kernel of ``series``; ``key`` is what it was made from."""

    series: str
    path: Path
    key: str


def module_sources() -> list[Path]:
    """Everything that is compiled or included."""
    root = images.sources().root
    own = [path for path in (root / "module").iterdir() if path.name == "Kbuild" or path.suffix in (".c", ".h")]
    return sorted([*own, *(root / "abi").glob("*.h")])


def module_key(series: str) -> str:
    """Changes with every source file, the kernel, and the compiler."""
    digest = hashlib.sha256(f"{_BUILDER} {kernels.kernel_key(series)} {kernel.compiler_version()}".encode())
    for path in module_sources():
        content = path.read_bytes()
        digest.update(f"\0{path.parent.name}/{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def guest_module(series: str) -> GuestModule:
    """The built module. Raises NotFound when it has not been built."""
    key = module_key(series)
    path = cache_dir() / "modules" / f"{series}-{key}" / "tmem.ko"
    if not path.is_file():
        raise NotFound(f"the module for kernel {series} is not built", "run 'make module'")
    return GuestModule(series, path, key)


def build_module(series: str) -> GuestModule:
    """Builds it unless it is there. Raises VmFailed with the compiler's first words; a warning is an error."""
    try:
        return guest_module(series)
    except NotFound:
        return images.with_pins(lambda: _build_module(series))


def _build_module(series: str) -> GuestModule:
    done = cache_dir() / "modules" / f"{series}-{module_key(series)}"
    done.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=done.parent) as name:
        work = Path(name)
        said = make(series, work, "KCFLAGS=-Werror")
        if said.returncode != 0:
            words = [line for line in said.stdout.splitlines() if "error" in line.lower()] or said.stdout.splitlines()
            raise VmFailed(f"the module does not compile for {series}: {' | '.join(words[:3])}", "see guest/module")
        made = work / "made"
        made.mkdir()
        strip = ["objcopy", "--strip-debug", str(work / "guest" / "module" / "tmem.ko"), str(made / "tmem.ko")]
        subprocess.run(strip, check=True)
        build.keep(made, done)
    return guest_module(series)


def make(series: str, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the kernel's build over a copy of the sources in ``work``, so that theirs stay clean; output in stdout."""
    root = work / "guest"
    for path in module_sources():
        target = root / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    argv = ["make", "-C", str(kernels.kernel_build_folder(series)), f"M={root / 'module'}", f"CC={kernel.COMPILER}"]
    return subprocess.run(
        [*argv, *arguments, "modules"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def with_module(image: images.KernelImage, module: GuestModule) -> images.KernelImage:
    """The image with the module in its initramfs, as an archive behind the other one: no image is built anew for it.

    init copies it to /run, from where the agent's ``module_load`` takes it.
    """
    if module.series != image.series:
        raise NotFound(f"the module is for {module.series}, the guest has {image.series}", "take the same series")
    target = module.path.parent / f"initramfs-{image.key}"
    if not target.is_file():
        archive = Archive()
        archive.folder(GUEST_FOLDER)
        archive.file(f"{GUEST_FOLDER}/tmem.ko", module.path.read_bytes())
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as stream:
            stream.write(image.initramfs.read_bytes() + archive.finish())
        Path(stream.name).replace(target)
    return dataclasses.replace(image, initramfs=target)
