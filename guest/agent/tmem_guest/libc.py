# SPDX-License-Identifier: Apache-2.0
"""The few system calls that Python's os module lacks."""

import ctypes
import mmap
import os

_libc = ctypes.CDLL("libc.so.6", use_errno=True)

# sys/swap.h
SWAP_FLAG_PREFER, SWAP_FLAG_DISCARD = 0x8000, 0x10000
# sys/mman.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def swapon(path: str, flags: int) -> None:
    _checked(_libc.swapon(path.encode(), flags))


def swapoff(path: str) -> None:
    _checked(_libc.swapoff(path.encode()))


def mlockall() -> None:
    """Keeps this process in memory: what it has touched and what it will touch."""
    _checked(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT))


def mlock(address: int, length: int) -> None:
    """Keeps a range of this process's memory where it is."""
    _checked(_libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(length)))


def address_of(buffer: mmap.mmap) -> int:
    """Where a writable buffer lies; it must live as long as the address is used."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


# asm/unistd_64.h: libc has no functions for these
_SYS_DELETE_MODULE, _SYS_FINIT_MODULE = 176, 313


def finit_module(fd: int, parameters: str) -> None:
    """Loads the module that is open as fd."""
    _checked(_libc.syscall(_SYS_FINIT_MODULE, fd, parameters.encode(), 0))


def delete_module(name: str) -> None:
    """Unloads a module; never waits for its users."""
    _checked(_libc.syscall(_SYS_DELETE_MODULE, name.encode(), os.O_NONBLOCK))


def mount(source: str, target: str, kind: str) -> None:
    """Mounts a file system without options."""
    _checked(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(0), None))


#: SYSLOG_ACTION_READ_ALL, SYSLOG_ACTION_SIZE_BUFFER (syslog(2))
_READ_ALL, _SIZE_BUFFER = 3, 10


def kernel_log() -> bytes:
    """The kernel's log, all of it, each line after its level and time."""
    size = _libc.klogctl(_SIZE_BUFFER, None, 0)
    buffer = ctypes.create_string_buffer(max(size, 1))
    length = _libc.klogctl(_READ_ALL, buffer, size)
    if length < 0:
        _checked(length)
    return buffer.raw[:length]


def power_off() -> None:
    """Never returns when it works."""
    _checked(_libc.reboot(0x4321FEDC))
