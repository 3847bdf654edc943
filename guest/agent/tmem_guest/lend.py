# SPDX-License-Identifier: Apache-2.0
"""The agent's port and a thread of it, lent to tmem.ko, whose channel "serial" forwards pages from inside an ioctl.

A program that forwarded pages itself would deadlock: it needs memory to free memory. The module needs the context of a
task of user space, though, as a port's file operations know user pointers only (guest/module/serial.c).
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
import threading

from . import libc, ports
from .protocol import BUSY, FAILED, NOT_FOUND, OpError, Request

DEVICE = "/dev/tmem"
PORT_NAME = "org.kvm-tmem.pages.0"
#: TMEM_SERVE_BUFFER (guest/module/tmem_ioctl.h) and room for batches of flushes.
BUFFER = 65536

# _IOW(0xb9, 1, struct tmem_serve), _IO(0xb9, 2), _IO(0xb9, 3), _IOW(0xb9, 4, struct tmem_control)
_SERVE = 0x4018B901
_STOP = 0xB902
_WAIT_UP = 0xB903
_CONTROL = 0x4010B904
_STRUCT = struct.Struct("=iIQQ")
_STRUCT_CONTROL = struct.Struct("=QII")


class _Loan:
    """The one loan that there can be."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.error = ""


_loan = _Loan()


def _serve(port: int, device: int, buffer: mmap.mmap, address: int) -> None:
    """The thread that is lent; it comes back when the module lets it go."""
    # Whoever is told to stop must be awake to hear it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        fcntl.ioctl(device, _SERVE, _STRUCT.pack(port, 0, address, BUFFER))
    except OSError as error:
        # EINTR is how `stop` ends it.
        _loan.error = "" if error.errno == errno.EINTR else f"serving ended: {error.strerror}"
    finally:
        os.close(port)
        os.close(device)
        buffer.close()


def start(wait_ms: int) -> str:
    """Lends the port; its path, once the channel is up. Raises OpError: busy when it is lent already."""
    with _loan.lock:
        if lent():
            raise OpError(BUSY, "the port is lent already")
        path = ports.path_of(PORT_NAME)
        if not path:
            raise OpError(NOT_FOUND, f"there is no virtio-serial port {PORT_NAME}")
        device = _open_device()
        try:
            # The module is handed this descriptor and must not be kept waiting in it.
            port = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            os.close(device)
            raise OpError(BUSY, f"{path}: {error.strerror}; somebody has it open") from error
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
        fcntl.ioctl(device, _WAIT_UP, wait_ms)
    except OSError as error:
        raise OpError(FAILED, _loan.error or f"the host does not answer on {path}: {error.strerror}") from error
    finally:
        os.close(device)
    return path


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise OpError(NOT_FOUND, f"{DEVICE}: {error.strerror}; load tmem with channel=serial") from error


def lent() -> bool:
    """True while the module has the port."""
    return _loan.thread is not None and _loan.thread.is_alive()


def stop() -> str:
    """Takes the port back; says how serving had ended by itself, if it had. Raises OpError when none was lent."""
    with _loan.lock:
        thread = _loan.thread
        if thread is None:
            raise OpError(NOT_FOUND, "no port is lent")
        if thread.is_alive():
            device = _open_device()
            try:
                fcntl.ioctl(device, _STOP)
            except OSError as error:
                if error.errno != errno.ESRCH:  # it ended in this moment
                    raise OpError(FAILED, f"{DEVICE}: {error.strerror}") from error
            finally:
                os.close(device)
            thread.join()
        _loan.thread = None
        return _loan.error


def tell(body: bytes) -> None:
    """Has the module send a control frame in between its requests; one that still waits gives way to it.

    Raises OpError when the port is not lent.
    """
    buffer = ctypes.create_string_buffer(body, len(body))
    device = _open_device()
    try:
        fcntl.ioctl(device, _CONTROL, _STRUCT_CONTROL.pack(ctypes.addressof(buffer), len(body), 0))
    except OSError as error:
        raise OpError(FAILED, f"{DEVICE}: the module sends no report: {error.strerror}") from error
    finally:
        os.close(device)


def lend(request: Request) -> dict[str, object]:
    """{wait_ms=30000} -> {port}: the channel is up. Lends what is lent already only once."""
    return {"port": start(request.number("wait_ms", 30_000, 0, 3_600_000))}


def lend_stop(_request: Request) -> dict[str, object]:
    """{} -> {error}: takes the port back; `error` says how serving had ended by itself, if it had."""
    return {"error": stop()}
