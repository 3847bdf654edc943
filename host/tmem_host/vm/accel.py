# SPDX-License-Identifier: Apache-2.0
"""An accelerator that works, found by trying.

/dev/kvm can exist, open and run small guests and still not boot a stock kernel in any useful time, so the very kernel
that is to run is booted to its first line, under a deadline.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tmem_host.config import cache_dir
from tmem_host.errors import Denied, NotFound, TmemError, Unavailable
from tmem_host.vm import process, qemu
from tmem_host.vm.images import KernelImage
from tmem_host.vm.spec import AccelName, VmSpec

KVM: Final = Path("/dev/kvm")
#: guest/image/init prints it first of all.
MARKER: Final = b"tmem-guest: kernel "
#: TCG needs 2 to 3 s for the same on the slowest machine tried; KVM in hardware well below 1 s.
DEADLINE: Final = 8.0

Name = Literal["kvm", "tcg"]


@dataclass(frozen=True)
class Trial:
    """One attempt: ``works``, and why or why not in one line."""

    name: Name
    works: bool
    why: str


@dataclass(frozen=True)
class Accelerator:
    """The choice, its reason, and everything that was tried."""

    name: Name
    why: str
    tried: tuple[Trial, ...] = ()


async def find_accelerator(
    qemu_path: str,
    kernel: KernelImage,
    *,
    wanted: AccelName = "auto",
    deadline: float = DEADLINE,
    kvm: Path = KVM,
    use_cache: bool = True,
) -> Accelerator:
    """KVM where it boots this kernel, else TCG. With ``wanted`` kvm: Denied or Unavailable when it does not."""
    if wanted == "tcg":
        return Accelerator("tcg", "asked for")
    path = process.find_qemu(qemu_path)
    _check_kernel(kernel)
    trial = await _kvm_trial(path, kernel, deadline, kvm, use_cache)
    if trial.works:
        return Accelerator("kvm", trial.why, (trial,))
    if wanted == "kvm":
        if _forbidden(kvm):
            raise Denied(f"no KVM: {trial.why}", _permission_hint(kvm))
        raise Unavailable(f"no KVM: {trial.why}", "use accel 'auto' or 'tcg'")
    return Accelerator("tcg", f"no KVM: {trial.why}", (trial,))


def _forbidden(kvm: Path) -> bool:
    return kvm.exists() and not os.access(kvm, os.R_OK | os.W_OK)


def _check_kernel(kernel: KernelImage) -> None:
    for path in (kernel.vmlinuz, kernel.initramfs):
        if not path.is_file():
            raise NotFound(f"there is no {path}", "run 'make guests'")


def _permission_hint(kvm: Path) -> str:
    return f"join the group that owns {kvm} (often 'kvm'), or run as root; without it guests run under TCG"


async def _kvm_trial(path: str, kernel: KernelImage, deadline: float, kvm: Path, use_cache: bool) -> Trial:
    refused = _refusal(kvm)
    if refused is not None:
        return refused
    file = cache_dir() / "accelerators" / f"{_cache_key(path, kernel, kvm)}.json"
    cached = _read_cache(file) if use_cache else None
    if cached is not None:
        return cached
    trial = await boot_trial(path, kernel, "kvm", deadline)
    _write_cache(file, trial)
    return trial


def _refusal(kvm: Path) -> Trial | None:
    """What costs nothing to find out, and is never cached: a permission may be given at any moment."""
    if not kvm.exists():
        return Trial("kvm", False, f"{kvm} does not exist")
    if _forbidden(kvm):
        return Trial("kvm", False, f"no permission on {kvm}")
    return None


def _read_cache(file: Path) -> Trial | None:
    try:
        return Trial(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_cache(file: Path, trial: Trial) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as stream:
        json.dump(dataclasses.asdict(trial), stream)
    Path(stream.name).replace(file)


def _cache_key(path: str, kernel: KernelImage, kvm: Path) -> str:
    """Another QEMU, kernel, boot of the host, or KVM device: another answer."""
    device = kvm.stat()
    parts = [
        process.qemu_version(path)[1],
        kernel.version,
        kernel.key,
        Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        f"{device.st_rdev} {device.st_ino} {device.st_ctime_ns}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


async def boot_trial(path: str, kernel: KernelImage, name: Name, deadline: float) -> Trial:
    """Boots the kernel to MARKER on its console and kills it. Always ends within about ``deadline`` seconds."""
    spec = VmSpec("tmem-trial", kernel, qemu_path=path)
    argv = [
        *(path, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "256M"),
        *qemu.accelerator_arguments(name),
        *qemu.boot_arguments(spec, "tmem.probe"),
        *("-serial", "stdio"),
    ]
    with tempfile.TemporaryDirectory(prefix="tmem-trial-") as folder:
        log = Path(folder) / "stderr"
        child = await process.spawn(argv, stdout=asyncio.subprocess.PIPE, log=log)
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline):
                seen = await _wait_for_marker(child)
        except TimeoutError:
            return Trial(name, False, f"Linux {kernel.version} did not start within {deadline:g} s under {name}")
        finally:
            await process.kill(child)
        if seen:
            return Trial(name, True, f"Linux {kernel.version} started in {time.monotonic() - began:.1f} s under {name}")
        return Trial(name, False, f"QEMU ended: {process.last_line(log) or 'without a word'}")


async def _wait_for_marker(child: asyncio.subprocess.Process) -> bool:
    assert child.stdout is not None  # spawned with a pipe
    text = b""
    while data := await child.stdout.read(4096):
        text = text[-len(MARKER) :] + data
        if MARKER in text:
            return True
    return False


def main() -> int:
    """``python -m tmem_host.vm.accel [SERIES]``: says which accelerator works and why."""
    import sys

    from tmem_host.vm.images import guest_image

    try:
        kernel = guest_image(sys.argv[1] if len(sys.argv) > 1 else "6.1")
        found = asyncio.run(find_accelerator("qemu-system-x86_64", kernel))
    except TmemError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{found.name}: {found.why}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
