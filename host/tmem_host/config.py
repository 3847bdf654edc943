# SPDX-License-Identifier: Apache-2.0
"""Where things are, and how big: folders, sizes, and what the agent is told at its start.

Folders follow the XDG base directory specification; ``$TMEM_CACHE`` and ``$TMEM_STATE`` come first.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tmem_host.errors import InvalidInput

PAGE_SIZE: Final = 4096
MIB: Final = 1 << 20
GIB: Final = 1 << 30

#: struct sockaddr_un holds 108 bytes with the closing zero (unix(7)).
SOCKET_PATH_MAX: Final = 107

VM_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str | int) -> int:
    """Bytes out of ``512M``, ``1.5G``, ``64MiB`` or a plain number of bytes.  Units are powers of 1024.

    Raises :class:`InvalidInput` for anything else, negative numbers and fractions of a byte included.
    """
    if isinstance(text, bool):
        raise InvalidInput(f"{text!r} is not a size", "write it like 512M or 2G")
    if isinstance(text, int):
        if text < 0:
            raise InvalidInput(f"{text} is not a size", "sizes are not negative")
        return text
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidInput(f"{text!r} is not a size", "write it like 512M or 2G")
    scaled = float(found["number"]) * _UNITS[found["unit"].lower()]
    if "." not in found["number"]:
        return int(found["number"]) * _UNITS[found["unit"].lower()]
    if scaled != int(scaled):
        raise InvalidInput(f"{text!r} is not a whole number of bytes", "write it like 512M or 2G")
    return int(scaled)


def format_size(size: int | float) -> str:
    """``size`` bytes for people: ``1.5 GiB``, ``812 B``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def check_vm_name(name: str) -> str:
    """``name`` if it can name a VM: it becomes a file name, and so is never a path."""
    if VM_NAME.fullmatch(name) is None:
        raise InvalidInput(
            f"{name!r} cannot name a VM",
            "1 to 63 of a-z, 0-9, dot, underscore and dash, beginning with a letter or a digit",
        )
    return name


def _as_size(value: object) -> int:
    """A validator's answer to a bad size is a ValueError, which pydantic turns into its own report."""
    if not isinstance(value, str | int):
        raise ValueError("a size is a number of bytes, or text like 512M")
    try:
        return parse_size(value)
    except InvalidInput as error:
        raise ValueError(str(error)) from error


#: Bytes; accepts what :func:`parse_size` does.
Size = Annotated[
    int,
    BeforeValidator(
        _as_size,
        json_schema_input_type=Annotated[int, Field(ge=0, le=1 << 50)]
        | Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?\s*[kKmMgGtT]?([iI]?[bB])?$", examples=["512M", "2G"])],
    ),
    Field(ge=0, le=1 << 50),
]


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise InvalidInput("there is no home folder", "set HOME, or TMEM_CACHE and TMEM_STATE") from error


def _folder(own: str, xdg: str, below_home: str) -> Path:
    if value := os.environ.get(own):
        return Path(value).absolute()
    # The specification: a relative path in an XDG variable is to be ignored.
    if (value := os.environ.get(xdg)) and Path(value).is_absolute():
        return Path(value) / "tmem"
    return _home() / below_home / "tmem"


def cache_dir() -> Path:
    """The folder for what can be built again: ``$TMEM_CACHE``, ``$XDG_CACHE_HOME/tmem`` or ``~/.cache/tmem``."""
    return _folder("TMEM_CACHE", "XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """The folder of the agent's state: ``$TMEM_STATE``, ``$XDG_STATE_HOME/tmem`` or ``~/.local/state/tmem``."""
    return _folder("TMEM_STATE", "XDG_STATE_HOME", ".local/state")


def default_arena(state: Path) -> Path:
    """The arena of a state folder: in shared memory, so that it outlives the agent but not the host."""
    digest = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:8]
    return Path("/dev/shm") / f"tmem-{os.getuid()}-{digest}" / "arena"


def host_memory() -> int:
    """Bytes of memory in this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_limit(room: int) -> int:
    """Bytes that the store may hold when nobody says: half of the host's memory, 7/8 of ``room`` at most."""
    return min(host_memory() // 2, room * 7 // 8) // MIB * MIB


def check_socket_path(path: Path) -> Path:
    """``path`` if a Unix socket can be bound to it."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        raise InvalidInput(
            f"the socket path {path} has {length} bytes and {SOCKET_PATH_MAX} are possible",
            "choose a shorter state folder with --state",
        )
    return path


class AgentConfig(BaseModel):
    """What an agent is told at its start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Path
    #: None: the one that the state folder remembers, else :func:`default_arena`.
    arena: Path | None = None
    #: Bytes of host memory that the store may hold, index and metadata included; None: :func:`default_limit`.
    limit: Size | None = None
    #: Start with the pages that are left when an arena is missing or damaged.
    accept_loss: bool = False
    #: TCP address of the API, ``HOST:PORT``; None: the Unix socket alone.
    listen: str | None = None
    #: Certificate chain and key of it, in PEM; None: no TLS.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: Tokens may cross a network in plain text.
    insecure_plain: bool = False
    #: Requests a second that one token may send.
    rate: Annotated[float, Field(gt=0, le=1e6)] = 100.0

    @property
    def state_file(self) -> Path:
        return self.state / "state.json"

    @property
    def lock_file(self) -> Path:
        return self.state / "agent.lock"

    @property
    def api_socket(self) -> Path:
        return self.state / "api.sock"

    @property
    def log_file(self) -> Path:
        return self.state / "agent.log"

    @property
    def machines(self) -> Path:
        """Consoles and logs of guests that the agent runs, a folder each."""
        return self.state / "machines"

    @property
    def runs(self) -> Path:
        """Results of runs, a folder each, and their history."""
        return self.state / "runs"

    @property
    def sockets(self) -> Path:
        return self.state / "vms"

    def vm_socket(self, name: str, channel: str = "blk") -> Path:
        """The socket of the VM ``name`` for a channel: ``blk``, ``tmem``, or ``serial``, where the monitor listens; or
        ``agent``, where it listens for whoever speaks to the guest's agent."""
        suffix = ".sock" if channel == "blk" else f".{channel}.sock"
        return self.sockets / f"{check_vm_name(name)}{suffix}"
