# SPDX-License-Identifier: Apache-2.0
"""What the swap bench plays on: one guest with every device attached, one host agent, the files of the disk arms."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tmem_host.agent_process import AgentProcess
from tmem_host.bench.disk_folder import cannot_hold
from tmem_host.bench.properties import filesystem_of
from tmem_host.bench.runner import BenchError
from tmem_host.bench.swap_figures import Held
from tmem_host.config import MIB, PAGE_SIZE
from tmem_host.errors import TmemError
from tmem_host.models import Codec, VmCreate, VmUpdate
from tmem_host.vm.direct import DirectVm
from tmem_host.vm.images import KernelImage
from tmem_host.vm.spec import AccelName, Disk, FileDisk, NullDisk, VhostUserBlk, VmSpec

VM: Final = "swap-bench"
#: Serials of the devices; the agent gives its device the name of the VM.
TMEM, DIRECT, CACHED, NULL, CORPUS = VM, "disk-none", "disk-writeback", "null", "corpus"
#: Filesystems that are memory: a file there is no disk.
_WATCH_SECONDS: Final = 0.5


@dataclass(frozen=True)
class StageSpec:
    """What to set up."""

    image: KernelImage
    memory_mib: int
    vcpus: int
    swap_mib: int
    accel: AccelName
    disk_dir: Path
    logs: Path
    """Where console and agent logs stay."""
    corpus: bytes | None
    """Pages that the hog fills its area with; None: it makes them up itself."""
    append: str = ""
    """Added to the guest kernel's command line."""
    tmem: bool = True
    disks: bool = True


@dataclass
class Stage:
    """A context manager; `vm` is running inside it. `missing` says why a device is not there, by its serial."""

    spec: StageSpec
    missing: dict[str, str] = field(default_factory=dict)
    disk_filesystem: str = ""
    boots: int = 0
    _vm: DirectVm | None = None
    _agent: AgentProcess | None = None
    _state: Path | None = None
    _shared: Path | None = None
    _files: dict[str, Path] = field(default_factory=dict)

    async def __aenter__(self) -> Stage:
        try:
            self._prepare_files()
            if self.spec.tmem:
                self._start_agent()
            await self._boot()
        except BaseException:
            await self._close(in_order=False)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._close(in_order=kind is None)

    @property
    def vm(self) -> DirectVm:
        """The running guest."""
        if self._vm is None:
            raise BenchError("the guest is not running", "")
        return self._vm

    def need(self, serial: str) -> None:
        """Raises BenchError with the reason when the device is not there."""
        if serial in self.missing:
            raise BenchError(self.missing[serial])

    # ---- devices

    def _prepare_files(self) -> None:
        self.spec.logs.mkdir(parents=True, exist_ok=True)
        folder = self.spec.disk_dir
        if self.spec.disks:
            self.disk_filesystem = filesystem_of(folder)
            for serial in (DIRECT, CACHED):
                if reason := cannot_hold(folder, 2 * self.spec.swap_mib * MIB, direct=serial == DIRECT):
                    self.missing[serial] = reason
                    continue
                handle, name = tempfile.mkstemp(prefix=f"tmem-{serial}-", suffix=".img", dir=folder)
                os.truncate(handle, self.spec.swap_mib * MIB)
                os.close(handle)
                self._files[serial] = Path(name)
        if self.spec.corpus is not None:
            handle, name = tempfile.mkstemp(prefix="tmem-corpus-", suffix=".pages")
            with os.fdopen(handle, "wb") as stream:
                stream.write(self.spec.corpus)
            self._files[CORPUS] = Path(name)

    def _start_agent(self) -> None:
        """An agent with one VM, whose device holds the whole hog. Without it only the tmem arms are missing."""
        self._state = Path(tempfile.mkdtemp(prefix="tmem-bench-"))
        self._shared = Path(tempfile.mkdtemp(prefix="tmem-bench-", dir="/dev/shm"))
        size = self.spec.swap_mib * MIB
        # Room for pages that do not compress at all, with index and blocks half full: no arm may be refused a page.
        agent = AgentProcess(self._state, self._shared / "arena", size + size // 4 + 64 * MIB)
        try:
            agent.start()
            self._agent = agent
            agent.client.create_vm(VmCreate(name=VM, size_bytes=size, queues=self.spec.vcpus))
        except (TmemError, ImportError, OSError) as error:
            self.missing[TMEM] = f"the host agent cannot serve: {' '.join(str(error).split())}"
            self._save_agent_log()

    async def _boot(self) -> None:
        disks: list[Disk] = []
        if self.spec.tmem and TMEM not in self.missing and self._agent is not None:
            socket = Path(self._agent.client.get_vm(VM).socket)
            disks.append(VhostUserBlk(socket, queues=self.spec.vcpus, serial=TMEM))
        size = self.spec.swap_mib * MIB
        if DIRECT in self._files:
            disks.append(FileDisk(self._files[DIRECT], DIRECT, cache="none", size=size))
        if CACHED in self._files:
            disks.append(FileDisk(self._files[CACHED], CACHED, cache="writeback", size=size))
        if CORPUS in self._files:
            disks.append(FileDisk(self._files[CORPUS], CORPUS, read_only=True))
        disks.append(NullDisk(size, NULL))
        self.boots += 1
        self._vm = DirectVm(
            VmSpec(
                VM,
                self.spec.image,
                memory_mib=self.spec.memory_mib,
                vcpus=self.spec.vcpus,
                disks=tuple(disks),
                accel=self.spec.accel,
                workdir=self.spec.logs / f"boot-{self.boots}",
                append=self.spec.append,
            )
        )
        await self._vm.start()

    async def reboot(self) -> None:
        """A fresh guest, and a fresh agent if it has gone: after an arm that left either in a state nobody knows."""
        if self._vm is not None:
            await self._vm.kill()
            self._vm = None
        if self._agent is not None and not self.agent_alive():
            self._agent.kill()
            self._agent.start()
        await self._boot()

    def agent_alive(self) -> bool:
        """Whether the host agent runs and answers."""
        try:
            return self._agent is not None and self._agent.client.health().status == "ok"
        except TmemError:
            return False

    # ---- tmem

    async def set_channel(self, codec: Codec, poll_us: int) -> None:
        """Codec of the pages to come, and how long the channel spins. The pool must be empty: one codec at a time."""
        agent = self._need_agent()
        await asyncio.to_thread(agent.client.update_vm, VM, VmUpdate(codec=codec, poll_us=poll_us))

    def _need_agent(self) -> AgentProcess:
        self.need(TMEM)
        if self._agent is None:
            raise BenchError("the host agent does not run", "")
        return self._agent

    async def held(self, serial: str) -> Held | None:
        """What the device's pages occupy now; None where nothing is counted (null)."""
        if serial == TMEM:
            info = await asyncio.to_thread(self._need_agent().client.get_vm, VM)
            return Held(info.pages, info.compressed_bytes, info.held_bytes)
        if serial == "zram":
            seen = await self.vm.agent.request("zram_stat")
            return Held(seen["orig_data_size"] // PAGE_SIZE, seen["compr_data_size"], seen["mem_used_total"])
        if serial in self._files:
            return Held(0, 0, self._files[serial].stat().st_blocks * 512)
        return None

    @contextlib.asynccontextmanager
    async def watching(self, serial: str) -> AsyncIterator[list[Held]]:
        """Looks at what the device holds twice a second while the body runs."""
        seen: list[Held] = []

        async def watch() -> None:
            while (now := await self.held(serial)) is not None:
                seen.append(now)
                await asyncio.sleep(_WATCH_SECONDS)

        task = asyncio.create_task(watch())
        try:
            yield seen
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, TmemError):
                await task

    # ---- processor time

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time used so far by QEMU (the guest included) and by the agent."""
        found = {"qemu": cpu_of(self.vm.pid)}
        if self._agent is not None:
            found["agent"] = cpu_of(self._agent.pid)
        return found

    async def watch_cost(self, looks: int = 40) -> float | None:
        """Seconds of agent CPU that one look at what it holds costs: the harness's share of the agent's CPU time."""
        if self._agent is None:
            return None
        before = cpu_of(self._agent.pid)
        for _ in range(looks):
            await self.held(TMEM)
        return (cpu_of(self._agent.pid) - before) / looks

    # ---- end

    async def _close(self, *, in_order: bool) -> None:
        try:
            if self._vm is not None:
                await (self._vm.stop() if in_order else self._vm.kill())
        finally:
            self._vm = None
            self._stop_agent(in_order)
            for file in self._files.values():
                file.unlink(missing_ok=True)
            for folder in (self._state, self._shared):
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)

    def _stop_agent(self, in_order: bool) -> None:
        agent, self._agent = self._agent, None
        if agent is None:
            return
        try:
            agent.stop() if in_order else agent.kill()
        finally:
            self._save_agent_log()

    def _save_agent_log(self) -> None:
        if self._state is not None and (self._state / "agent.log").is_file():
            shutil.copy(self._state / "agent.log", self.spec.logs / "agent.log")


def cpu_of(pid: int) -> float:
    """Seconds of CPU time, user and system, that a process has used: 0 when it has gone (proc(5): utime, stime)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    # The name in brackets may hold spaces and brackets itself: fields are counted from its end.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
