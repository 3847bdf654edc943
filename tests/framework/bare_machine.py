# SPDX-License-Identifier: Apache-2.0
"""A QEMU in which no guest runs but this process: it reads and writes ports and registers, and has all of the memory.

The guest's memory is a file that both have mapped. An access to a device is done by one of two: QEMU's main loop, as
the qtest protocol asks, or a vCPU, whose program (``poke.S``) does what a mailbox in memory says.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import struct
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from qemu.qmp.legacy import QEMUMonitorProtocol

from tmem_host.vm import process
from tmem_host.vm.qemu import comma

Width = Literal[1, 2, 4]

#: Seconds that QEMU may take for one access.
_PATIENCE: Final = 60.0


def firmware(name: str, folder: Path) -> Path:
    """Builds ``name``.S, which lies beside this file: what QEMU starts in place of a BIOS."""
    thing, image = folder / f"{name}.o", folder / f"{name}.bin"
    subprocess.run(["cc", "-m32", "-c", str(Path(__file__).with_name(f"{name}.S")), "-o", str(thing)], check=True)
    link = ["ld", "-m", "elf_i386", "-Ttext", "0", "-e", "0", "--oformat", "binary"]
    subprocess.run([*link, str(thing), "-o", str(image)], check=True)
    return image


class BareMachine(ABC):
    """A ``pc`` of ``memory_mib`` with the given devices. ``folder`` keeps its memory and what it says.

    ``extra``: arguments that the devices refer to.
    """

    def __init__(
        self, program: Path, memory_mib: int, devices: Sequence[str], folder: Path, extra: Sequence[str] = ()
    ) -> None:
        size = memory_mib << 20
        ram = folder / "ram"
        with ram.open("w+b") as stream:
            stream.truncate(size)
            self.memory = mmap.mmap(stream.fileno(), size)
        self.log = folder / "qemu.log"
        how, inherited = self._how(folder)
        monitor, theirs = socket.socketpair()
        argv = [
            *(str(program), "-name", "bare", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "pc,memory-backend=mem0", "-m", f"{memory_mib}M"),
            *("-object", f"memory-backend-file,id=mem0,size={size},mem-path={comma(ram)},share=on"),
            *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
            *how,
            *extra,
            *(word for device in devices for word in ("-device", device)),
        ]
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[end.fileno() for end in (theirs, *inherited)],
                preexec_fn=process.die_with_parent(),
            )
        # Only QEMU has them now: when it ends, our ends say so.
        for end in (theirs, *inherited):
            end.close()
        self._monitor = monitor
        # The client takes the thread's loop, or makes one and leaves it behind: this one is closed with the machine.
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self.qmp = QEMUMonitorProtocol(monitor, nickname="bare")
        asyncio.set_event_loop(None)
        try:
            self.qmp.connect()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _how(self, folder: Path) -> tuple[list[str], list[socket.socket]]:
        """Arguments that choose who does the accesses, and what QEMU inherits for it."""

    @abstractmethod
    def _access(self, *, port: bool, out: bool, width: Width, address: int, value: int = 0) -> int:
        """One access to a port or a register: what was read."""

    def port_in(self, port: int, width: Width) -> int:
        return self._access(port=True, out=False, width=width, address=port)

    def port_out(self, port: int, width: Width, value: int) -> None:
        self._access(port=True, out=True, width=width, address=port, value=value)

    def read(self, address: int, width: Width) -> int:
        return self._access(port=False, out=False, width=width, address=address)

    def write(self, address: int, width: Width, value: int) -> None:
        self._access(port=False, out=True, width=width, address=address, value=value)

    def close(self) -> None:
        """Ends QEMU, whatever it is at."""
        self._child.kill()
        self._child.wait()
        try:
            self.qmp.close()
        finally:
            self._monitor.close()
            self._loop.close()
            self.memory.close()


class QtestMachine(BareMachine):
    """Accesses are done by the main loop. There is no vCPU."""

    def _how(self, folder: Path) -> tuple[list[str], list[socket.socket]]:
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(_PATIENCE)
        self._answers = self._ours.makefile("rb")
        chardev = f"socket,id=qtest,fd={theirs.fileno()}"
        return ["-accel", "qtest", "-chardev", chardev, "-qtest", "chardev:qtest"], [theirs]

    def _access(self, *, port: bool, out: bool, width: Width, address: int, value: int = 0) -> int:
        verb = ("out" if out else "in") if port else ("write" if out else "read")
        line = f"{verb}{'.bw.l'[width]} {address:#x}" + (f" {value:#x}" if out else "")
        self._ours.sendall(line.encode() + b"\n")
        answer = self._answers.readline().split()
        assert answer[:1] == [b"OK"], f"{line}: {answer}; {self.log.read_text()}"
        return int(answer[1], 16) if len(answer) > 1 else 0

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._answers.close()
            self._ours.close()


class VcpuMachine(BareMachine):
    """Accesses are done by the vCPU's thread, as a guest's are."""

    #: As poke.S has it: which turn is asked for, which is done; what is to be done; where; the value.
    _ASKED, _DONE, _WHAT, _VALUE = 0x7000, 0x7004, 0x7008, 0x7010

    def _how(self, folder: Path) -> tuple[list[str], list[socket.socket]]:
        self._turn = 0
        return ["-accel", "tcg", "-bios", str(firmware("poke", folder))], []

    def _access(self, *, port: bool, out: bool, width: Width, address: int, value: int = 0) -> int:
        what = (not port) * 6 + out * 3 + (1, 2, 4).index(width)
        struct.pack_into("<III", self.memory, self._WHAT, what, address, value)
        # A byte, which comes whole; the program looks at the rest after it.
        self._turn = self._turn + 1 & 0xFF
        self.memory[self._ASKED] = self._turn
        end = time.monotonic() + _PATIENCE
        while self.memory[self._DONE] != self._turn:
            assert self._child.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "the vCPU does not answer"
            time.sleep(0)
        found: int = struct.unpack_from("<I", self.memory, self._VALUE)[0]
        return 0 if out else found
