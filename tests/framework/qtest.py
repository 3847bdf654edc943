# SPDX-License-Identifier: Apache-2.0
"""A QEMU whose one vCPU is this process: it reads and writes ports and memory by the qtest protocol, and no guest runs.

The guest's memory is a file that both have mapped, so that only accesses to devices go over the socket.
"""

from __future__ import annotations

import mmap
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from qemu.qmp.legacy import QEMUMonitorProtocol

from tmem_host.vm import process

Width = Literal[1, 2, 4]

_SUFFIX: Final = {1: "b", 2: "w", 4: "l"}
#: Seconds that QEMU may take for one access.
_PATIENCE: Final = 60.0


class QtestMachine:
    """A ``pc`` of ``memory_mib`` with the given devices. ``folder`` keeps its memory and what it says."""

    def __init__(self, program: Path, memory_mib: int, devices: Sequence[str], folder: Path) -> None:
        size = memory_mib << 20
        ram = folder / "ram"
        with ram.open("wb") as stream:
            stream.truncate(size)
        self.log = folder / "qemu.log"
        ours, theirs = socket.socketpair()
        monitor, monitors = socket.socketpair()
        argv = [
            *(str(program), "-name", "qtest", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", "qtest", "-machine", "pc,memory-backend=mem0", "-m", f"{memory_mib}M"),
            *("-object", f"memory-backend-file,id=mem0,size={size},mem-path={ram},share=on"),
            *("-chardev", f"socket,id=qtest,fd={theirs.fileno()}", "-qtest", "chardev:qtest"),
            *("-chardev", f"socket,id=qmp,fd={monitors.fileno()}", "-mon", "chardev=qmp,mode=control"),
            *(word for device in devices for word in ("-device", device)),
        ]
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(theirs.fileno(), monitors.fileno()),
                preexec_fn=process.die_with_parent(),
            )
        # Only QEMU has them now: when it ends, our ends say so.
        theirs.close()
        monitors.close()
        ours.settimeout(_PATIENCE)
        self._qtest = ours
        self._answers = ours.makefile("rb")
        with ram.open("r+b") as stream:
            self.memory = mmap.mmap(stream.fileno(), size)
        self.qmp = QEMUMonitorProtocol(monitor, nickname="qtest")
        try:
            self.qmp.connect()
        except BaseException:
            self.close()
            raise

    def _ask(self, line: str) -> int:
        """Sends one line; the number that is answered, else 0."""
        self._qtest.sendall(line.encode() + b"\n")
        answer = self._answers.readline().split()
        assert answer[:1] == [b"OK"], f"{line}: {answer}; {self.log.read_text()}"
        return int(answer[1], 16) if len(answer) > 1 else 0

    def port_in(self, port: int, width: Width) -> int:
        return self._ask(f"in{_SUFFIX[width]} {port:#x}")

    def port_out(self, port: int, width: Width, value: int) -> None:
        self._ask(f"out{_SUFFIX[width]} {port:#x} {value:#x}")

    def read(self, address: int, width: Width) -> int:
        return self._ask(f"read{_SUFFIX[width]} {address:#x}")

    def write(self, address: int, width: Width, value: int) -> None:
        self._ask(f"write{_SUFFIX[width]} {address:#x} {value:#x}")

    def close(self) -> None:
        """Ends QEMU, whatever it is at."""
        self._child.kill()
        self._child.wait()
        self.qmp.close()
        self._answers.close()
        self._qtest.close()
        self.memory.close()
