# SPDX-License-Identifier: Apache-2.0
"""Kernel modules that are no part of the kernel's own: handed over with the initramfs or installed; their debugfs."""

import errno
import os

from . import libc
from .protocol import BUSY, FAILED, INVALID, NOT_FOUND, OpError, Request

#: guest/image/init puts there what came with the initramfs.
HANDED = "/run"
#: Below /lib/modules/RELEASE, where those are that did not come with the kernel (kbuild's modules_install; DKMS).
INSTALLED = ("updates", "extra", "updates/dkms", "misc")
DEBUGFS = "/sys/kernel/debug"
#: Bytes of a debugfs file in one answer, at most.
LONGEST = 128 * 1024


def _name(request: Request) -> str:
    name = request.text("name", "tmem")
    if not name.replace("_", "").isalnum():
        raise OpError(INVALID, "name must be a module's name")
    return name


def mount_debugfs() -> None:
    """Raises OpError where the kernel has none, or this is not root."""
    if not os.path.ismount(DEBUGFS):
        try:
            libc.mount("debugfs", DEBUGFS, "debugfs")
        except OSError as error:
            # Somebody else was asked at the same time, and mounted it.
            if error.errno != errno.EBUSY:
                raise OpError(FAILED, f"debugfs cannot be mounted: {error.strerror}") from error


def _words(value: object) -> str:
    """Parameters as the kernel takes them."""
    if not isinstance(value, dict):
        raise OpError(INVALID, "parameters must be an object")
    words = [f"{key}={value}" for key, value in value.items()]
    if any(not word.isprintable() or set(word) & set(" \"'") for word in words):
        raise OpError(INVALID, "parameters must be plain words")
    return " ".join(words)


def find(name: str) -> str:
    """Path of a module that is no part of the kernel's own tree, for this kernel; empty when there is none."""
    installed = f"/lib/modules/{os.uname().release}"
    for path in (f"{HANDED}/{name}.ko", *(f"{installed}/{folder}/{name}.ko" for folder in INSTALLED)):
        if os.path.isfile(path):
            return path
    return ""


def module_load(request: Request) -> dict[str, object]:
    """{name="tmem", parameters={}} -> {name}; what the module says is in the kernel's log."""
    name = _name(request)
    parameters = _words(request.args.get("parameters", {}))
    path = find(name)
    if not path:
        raise OpError(NOT_FOUND, f"there is no {name}.ko: the host handed over none, and none is installed")
    load(name, path, parameters)
    return {"name": name}


def load(name: str, path: str, parameters: str) -> None:
    """Loads the file. Raises OpError: busy when it is loaded already."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OpError(NOT_FOUND, f"{path}: {error.strerror}") from error
    try:
        libc.finit_module(fd, parameters)
    except FileExistsError:
        raise OpError(BUSY, f"{name} is loaded already") from None
    except OSError as error:
        raise OpError(FAILED, f"{name} does not load: {error.strerror}") from error
    finally:
        os.close(fd)


def module_unload(request: Request) -> dict[str, object]:
    """{name="tmem"} -> {name}; refused as busy while something uses the module."""
    name = _name(request)
    unload(name)
    return {"name": name}


def unload(name: str) -> None:
    """Raises OpError: busy while something uses it."""
    try:
        libc.delete_module(name)
    except FileNotFoundError:
        raise OpError(NOT_FOUND, f"{name} is not loaded") from None
    except OSError as error:
        raise OpError(BUSY, f"{name} does not unload: {error.strerror}") from error


def debugfs_path(request: Request) -> str:
    """The file that a request names, below debugfs and nowhere else."""
    parts = request.text("path").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise OpError(INVALID, "path must name a file below debugfs, as in tmem/version")
    return "/".join([DEBUGFS, *parts])


def debugfs_read(request: Request) -> dict[str, object]:
    """{path, write?} -> {text}; writes first, for files that answer; debugfs is mounted on the first call."""
    path = debugfs_path(request)
    mount_debugfs()
    try:
        if request.has("write"):
            with open(path, "w", encoding="ascii") as stream:
                stream.write(request.text("write"))
        with open(path, encoding="ascii", errors="replace") as stream:
            return {"text": stream.read(LONGEST)}
    except FileNotFoundError:
        raise OpError(NOT_FOUND, f"there is no {path}") from None
    except OSError as error:
        raise OpError(FAILED, f"{path}: {error.strerror}") from error
