# SPDX-License-Identifier: Apache-2.0
"""The agent's port and a thread of it, lent to tmem.ko, whose channel "serial" forwards pages from inside an ioctl.

A program that forwarded pages itself would deadlock: it needs memory to free memory. The module needs the context of a
task of user space, though, as a port's file operations know user pointers only (guest/module/serial.c).
"""

import errno
import fcntl
import mmap
import os
import struct
import threading

from . import libc, ports
from .protocol import BUSY, FAILED, NOT_FOUND, OpError, Request

DEVICE = "/dev/tmem"
PORT_NAME = "org.kvm-tmem.pages.0"
#: TMEM_SERVE_BUFFER (guest/module/tmem_ioctl.h) and room for batches of flushes.
BUFFER = 65536

# _IOW(0xb9, 1, struct tmem_serve), _IO(0xb9, 2), _IO(0xb9, 3)
_SERVE = 0x4018B901
_STOP = 0xB902
_WAIT_UP = 0xB903
_STRUCT = struct.Struct("=iIQQ")


class _Loan:
    """The one loan that there can be."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.error = ""


_loan = _Loan()


def _serve(port: int, device: int, buffer: mmap.mmap, address: int) -> None:
    """The thread that is lent; it comes back when the module lets it go."""
    try:
        fcntl.ioctl(device, _SERVE, _STRUCT.pack(port, 0, address, BUFFER))
    except OSError as error:
        # EINTR is how `lend_stop` ends it.
        _loan.error = "" if error.errno == errno.EINTR else f"serving ended: {error.strerror}"
    finally:
        os.close(port)
        os.close(device)
        buffer.close()


def lend(request: Request) -> dict[str, object]:
    """{wait_ms=30000} -> {port}: the channel is up. Lends what is lent already only once."""
    wait = request.number("wait_ms", 30_000, 0, 3_600_000)
    with _loan.lock:
        if _loan.thread is not None and _loan.thread.is_alive():
            raise OpError(BUSY, "the port is lent already")
        try:
            device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise OpError(NOT_FOUND, f"{DEVICE}: {error.strerror}; load tmem with channel=serial") from error
        path = ports.path_of(PORT_NAME)
        if not path:
            os.close(device)
            raise OpError(NOT_FOUND, f"there is no virtio-serial port {PORT_NAME}")
        # The module is handed this descriptor and must not be kept waiting in it.
        port = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        buffer = mmap.mmap(-1, BUFFER, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer.write(bytes(BUFFER))
        address = libc.address_of(buffer)
        # The agent is locked in memory as a whole; a second lock costs nothing and stands by itself.
        libc.mlock(address, BUFFER)
        _loan.error = ""
        _loan.thread = threading.Thread(
            target=_serve, args=(port, os.dup(device), buffer, address), name="lent", daemon=True
        )
        _loan.thread.start()
    try:
        fcntl.ioctl(device, _WAIT_UP, wait)
    except OSError as error:
        raise OpError(FAILED, _loan.error or f"the host does not answer on {path}: {error.strerror}") from error
    finally:
        os.close(device)
    return {"port": path}


def lend_stop(_request: Request) -> dict[str, object]:
    """{} -> {error}: takes the port back; `error` says how serving had ended by itself, if it had."""
    with _loan.lock:
        thread = _loan.thread
        if thread is None:
            raise OpError(NOT_FOUND, "no port is lent")
        if thread.is_alive():
            device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _STOP)
            except OSError as error:
                if error.errno != errno.ESRCH:  # it ended in this moment
                    raise OpError(FAILED, f"{DEVICE}: {error.strerror}") from error
            finally:
                os.close(device)
            thread.join()
        _loan.thread = None
        return {"error": _loan.error}
