# SPDX-License-Identifier: Apache-2.0
"""The probe (`guest/probe`): a guest of one process that asks for pages over every channel, and how it is talked to.

    async with probe_vm(devices, pages, folder) as probe:
        await probe.open("pio", "ring", "1")
        turn = await probe.turn("pio", "get", samples=200)

It is compiled when it is first needed and kept in the cache by content. It boots under a stock kernel, as its init.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPClient

from tmem_host.config import PAGE_SIZE, cache_dir
from tmem_host.errors import InvalidInput, Unavailable, VmFailed
from tmem_host.vm import accel, images, process, qemu
from tmem_host.vm.imagebuild import build, kernel
from tmem_host.vm.imagebuild.cpio import Archive
from tmem_host.vm.qemubuild.build import patched_qemu
from tmem_host.vm.spec import AccelName, Disk, Tmem, VmSpec

#: _GNU_SOURCE is the files' own; warnings are errors, as in the module.
_FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread")
#: Bytes of pages that the probe has room for, and the least it takes (guest/probe/main.c).
PAGES_MAX: Final = 4 << 20
PAGES_MIN: Final = 2 << 20
VCPUS: Final = 2
MEMORY_MIB: Final = 256
SERIES: Final = "6.1"
#: The shared memory of ivshmem-plain: pages of three sizes of two vCPUs.
SHARED_BYTES: Final = 16 << 20
#: A boot under TCG on a busy host; then one turn.
BOOT_DEADLINE: Final = 120.0
TURN_DEADLINE: Final = 120.0
#: The longest line: samples of a vCPU.
_LINE_MAX: Final = 1 << 20


def sources() -> list[Path]:
    """What is compiled or included."""
    root = images.sources().root
    return [*sorted((root / "probe").glob("*.[ch]")), *sorted((root / "abi").glob("*.h"))]


def program() -> Path:
    """The compiled probe. Raises Unavailable with the compiler's first words."""
    digest = hashlib.sha256(f"{kernel.compiler_version()} {_FLAGS}".encode())
    for path in sources():
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    done = cache_dir() / "probe" / digest.hexdigest()[:16]
    if not (done / "probe").is_file():
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=done.parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            _compile(made / "probe")
            build.keep(made, done)
    return done / "probe"


def _compile(target: Path) -> None:
    compiler = build.find_tool("cc", "gcc and libc6-dev")
    root = images.sources().root
    files = [str(path) for path in sources() if path.suffix == ".c"]
    argv = [compiler, *_FLAGS, "-I", str(root / "abi"), *files, "-o", str(target)]
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        words = [line for line in said.stderr.splitlines() if "error" in line] or said.stderr.splitlines()
        raise Unavailable(f"the probe does not compile: {' | '.join(words[:3])}", "install gcc and libc6-dev")


def image(pages: bytes, folder: Path) -> images.KernelImage:
    """The stock kernel with the probe and `pages` in its initramfs, written to `folder`."""
    if not PAGES_MIN <= len(pages) <= PAGES_MAX or len(pages) % PAGES_MIN:
        raise InvalidInput(f"the probe cannot have {len(pages)} bytes of pages", "give it 2 or 4 MiB")
    stock = images.guest_image(SERIES)
    archive = Archive()
    archive.file("probe", program().read_bytes(), executable=True)
    archive.file("pages", pages)
    initramfs = folder / "initramfs"
    initramfs.write_bytes(stock.initramfs.read_bytes() + archive.finish())
    return dataclasses.replace(stock, initramfs=initramfs, rootdisk=None)


@dataclass(frozen=True)
class Devices:
    """What the guest has. `tmem` devices are rings 0, 1, ... in that order."""

    tmem: tuple[Tmem, ...] = ()
    disks: tuple[Disk, ...] = ()
    serial: bool = False
    """A port for pages: QEMU listens at `Probe.pages_socket`."""
    shared: Path | None = None
    """Folder for the file of ivshmem-plain."""


@dataclass(frozen=True)
class Turn:
    """What came of a turn. Times in nanoseconds."""

    ns: list[list[int]]
    """Samples by vCPU: the mean of a request over `every` in a row."""
    wall: int
    """From the first request that counts to the end of the last, all vCPUs together."""
    failed: int
    """Requests that were not done, and pages that came back different."""
    status: int
    """The answer to one of those (guest/abi), -1 for none."""


@dataclass
class Probe:
    """A running probe."""

    accelerator: accel.Accelerator
    kernel: str
    console: Path
    pages_socket: Path
    qemu_version: str
    _child: asyncio.subprocess.Process
    _qmp: Path
    _log: Path
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    names: list[str] = field(default_factory=list)

    async def open(self, name: str, kind: str, which: str = "-", *, deadline: float = 30.0) -> dict[str, str]:
        """Opens a channel (kinds in guest/probe/main.c); for a ring: its `doorbell`, and whether it is `inline`."""
        words = (await self._ask(f"open {name} {kind} {which}", deadline))[0].split()
        self.names.append(name)
        return dict(zip(words[1::2], words[2::2], strict=True))

    async def turn(
        self,
        name: str,
        op: str,
        *,
        batch: int = 1,
        page_bytes: int = PAGE_SIZE,
        length: int = 0,
        vcpus: int = 1,
        samples: int,
        every: int = 1,
        warmup: int = 20,
        deadline: float = TURN_DEADLINE,
    ) -> Turn:
        """So many requests of one kind. Raises VmFailed when one was not answered well, or a page came back wrong."""
        line = f"turn {name} {op} {batch} {page_bytes} {length} {vcpus} {samples} {every} {warmup}"
        said = await self._ask(line, deadline)
        wall, failed, status = map(int, said[-1].split()[1:])
        if failed:
            raise VmFailed(f"{failed} requests of {op} over {name} went wrong in the guest (status {status})")
        return Turn([[int(x) for x in one.split()[2:]] for one in said[:-1]], wall, failed, status)

    async def clock(self, samples: int = 200) -> list[int]:
        """What it takes to read the guest's clock, nanoseconds: one such time is in every sample."""
        return [int(x) for x in (await self._ask(f"clock {samples}", 30.0))[0].split()[2:]]

    async def resets(self, name: str, rounds: int) -> dict[str, int]:
        """One vCPU resets a device `rounds` times while another kicks it: how many `kicks`, and the last `status`."""
        words = (await self._ask(f"resets {name} {rounds}", TURN_DEADLINE))[0].split()
        return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=True)}

    async def patience(self, seconds: int) -> None:
        """How long a request over a ring waits for its answer, 10 s at first."""
        await self._ask(f"patience {seconds}", 30.0)

    async def query_tmem(self) -> list[Mapping[str, Any]]:
        """Counters of the inline devices (QMP's query-tmem)."""
        client = QMPClient("probe")
        await client.connect(str(self._qmp))
        try:
            found = await client.execute("query-tmem")
        finally:
            await client.disconnect()
        assert isinstance(found, list)  # so says the schema
        return found

    async def _ask(self, line: str, deadline: float) -> list[str]:
        self._writer.write(line.encode() + b"\n")
        await self._writer.drain()
        said = []
        while True:
            said.append(await self.line(deadline))
            head = said[-1].split(" ", 1)[0]
            if head == "error":
                raise VmFailed(f"the probe says: {said[-1].removeprefix('error ')}")
            if head != "ns" or line.startswith("clock"):
                return said

    async def line(self, deadline: float) -> str:
        """The next line. Raises VmFailed when none comes, with the guest's last words."""
        try:
            raw = await asyncio.wait_for(self._reader.readline(), deadline)
        except (TimeoutError, OSError, ValueError) as error:
            raise VmFailed(f"the probe is silent ({type(error).__name__}): {self._last_words()}") from None
        if not raw.endswith(b"\n"):
            raise VmFailed(f"the probe ended: {self._last_words()}")
        return raw.decode(errors="replace").strip()

    def _last_words(self) -> str:
        return process.last_line(self._log) or process.last_line(self.console) or "no word"

    async def off(self) -> int:
        """Powers the guest off; QEMU's exit status."""
        with contextlib.suppress(OSError):
            self._writer.write(b"off\n")
            await self._writer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._child.wait()), 20.0)
        return await process.kill(self._child)


@contextlib.asynccontextmanager
async def probe_vm(
    devices: Devices, pages: bytes, folder: Path, *, wanted: AccelName = "auto", program_path: str | None = None
) -> AsyncIterator[Probe]:
    """Boots the probe; console, log and command line stay in `folder`. Raises TmemError."""
    path = program_path or str(patched_qemu())
    version, text = process.qemu_version(path)
    accelerator = await accel.find_accelerator(path, images.guest_image(SERIES), wanted=wanted)
    runtime = Path(tempfile.mkdtemp(prefix="tmem-probe-"))
    child = None
    writer = None
    try:
        run = qemu.Runtime(runtime, folder / "console.log")
        argv = [path, *_arguments(devices, pages, run, version, accelerator.name)]
        log = folder / "qemu.log"
        child = await process.spawn(argv, log=log)
        reader, writer = await _connect(run.agent, child, log)
        probe = Probe(accelerator, "", run.console, run.pages, text, child, run.qmp, log, reader, writer)
        words = (await probe.line(BOOT_DEADLINE)).split()
        if words[:2] != ["ready", "kernel"]:
            raise VmFailed(f"the probe says: {' '.join(words)}")
        probe.kernel = words[2]
        yield probe
    finally:
        if writer is not None:
            writer.close()
        if child is not None:
            await process.kill(child)
        shutil.rmtree(runtime, ignore_errors=True)


def _arguments(devices: Devices, pages: bytes, run: qemu.Runtime, version: qemu.Version, name: accel.Name) -> list[str]:
    """QEMU's, also written beside the console; makes the image."""
    extra: tuple[str, ...] = ()
    if devices.shared is not None:
        memory = f"memory-backend-file,id=shared,share=on,mem-path={qemu.comma(devices.shared / 'ivshmem')}"
        extra = ("-object", f"{memory},size={SHARED_BYTES}", "-device", "ivshmem-plain,memdev=shared")
    spec = VmSpec(
        "probe",
        image(pages, run.folder),
        MEMORY_MIB,
        VCPUS,
        disks=devices.disks,
        tmem=devices.tmem,
        append="rdinit=/probe",
        pages_port=devices.serial,
        extra_args=extra,
    )
    arguments = qemu.argv(spec, run, version, name)[1:]
    run.console.parent.mkdir(parents=True, exist_ok=True)
    (run.console.parent / "argv.txt").write_text(shlex.join(arguments) + "\n")
    return arguments


async def _connect(
    socket: Path, child: asyncio.subprocess.Process, log: Path
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Waits until QEMU listens. Raises VmFailed when it ends before."""
    loop = asyncio.get_running_loop()
    end = loop.time() + BOOT_DEADLINE
    while True:
        with contextlib.suppress(OSError):
            return await asyncio.open_unix_connection(str(socket), limit=_LINE_MAX)
        if child.returncode is not None or loop.time() > end:
            raise VmFailed(f"QEMU does not start: {process.last_line(log) or 'no word'}", f"see {log}")
        await asyncio.sleep(0.01)
