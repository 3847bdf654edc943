# SPDX-License-Identifier: Apache-2.0
"""The state folder: which VMs should exist.  What pages they have is in the arena.

``state.json`` is replaced as a whole: written beside, synced, renamed, folder synced.  A reader finds the old text or
the new one.  A file that cannot be read as such is never written over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tmem_host.config import MIB, AgentConfig, default_arena, default_limit, format_size
from tmem_host.errors import Corrupt, Denied, InUse, InvalidInput, NoSpace, TmemError, one_line
from tmem_host.models import Channels, Codec, MachineSpec, PollUs, VmName, VmSettings, Weight

SCHEMA: Final = "tmem-state/1"

#: Below that a store has no room for its tables and one block of pages a processor.
MIN_LIMIT: Final = 16 * MIB


class VmEntry(BaseModel):
    """A VM that should exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: VmName
    #: Of the swap device; 0: there is none.
    size_bytes: Annotated[int, Field(ge=0)]
    channels: Channels = ("blk",)
    #: Number of the device's pool in the arena.  None: there is no device, or nobody wrote down which it is.
    pool: Annotated[int, Field(ge=0)] | None = None
    codec: Codec
    queues: Annotated[int, Field(ge=1, le=16)]
    poll_us: PollUs
    reservation: Annotated[int, Field(ge=0)]
    cap: Annotated[int, Field(ge=0)] | None
    weight: Weight
    frozen: bool = False
    #: The guest that the agent runs on it, when it is told to.
    machine: MachineSpec | None = None
    #: Its removal has begun: a restart goes on with it.
    removing: bool = False
    #: Pages it had when the agent last stopped in good order; None while an agent runs, and after it was killed.
    pages_at_stop: Annotated[int, Field(ge=0)] | None = None

    @property
    def settings(self) -> VmSettings:
        return VmSettings.model_construct(**{name: getattr(self, name) for name in VmSettings.model_fields})

    @functools.cached_property
    def version(self) -> str:
        """Another one for other settings."""
        return hashlib.sha256(self.settings.model_dump_json().encode("ascii")).hexdigest()[:16]

    @property
    def has_device(self) -> bool:
        return "blk" in self.channels

    @property
    def guest_makes_pools(self) -> bool:
        return "tmem" in self.channels or "serial" in self.channels

    @property
    def may_have_pages(self) -> bool:
        return not self.removing and self.pages_at_stop != 0


class State(BaseModel):
    """All of ``state.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    format: Literal["tmem-state/1"] = Field(default=SCHEMA, alias="schema")
    arena: Path | None = None
    vms: dict[str, VmEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _keys_are_names(self) -> Self:
        for key, entry in self.vms.items():
            if key != entry.name:
                raise ValueError(f"the VM under {key!r} says it is {entry.name!r}")
        return self

    def with_vm(self, entry: VmEntry) -> State:
        return self.model_copy(update={"vms": {**self.vms, entry.name: entry}})

    def without_vm(self, name: str) -> State:
        return self.model_copy(update={"vms": {key: vm for key, vm in self.vms.items() if key != name}})


def load(path: Path) -> State:
    """The state in ``path``; an empty one when there is no such file.  Raises :class:`Corrupt`; writes nothing."""
    hint = f"nothing was changed; repair {path}, or move it away: VMs with pages in the arena come back without it"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return State()
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path} is not text", hint) from error
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}", "check its owner and mode") from error
    try:
        return State.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise Corrupt(f"{path} is not JSON, line {error.lineno}: {error.msg}", hint) from error
    except ValidationError as error:
        raise Corrupt(f"{path} is no state of this version: {first_error(error)}", hint) from error


def first_error(error: ValidationError) -> str:
    """The first thing that a validation found, as ``place: what``."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = one_line(str(first["msg"])).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def save(path: Path, state: State) -> None:
    """Replaces ``path`` by ``state``; when it returns, the new text is on the disk.  Else the old one stays."""
    write_private(path, json.dumps(state.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replaces ``path``, mode 0600, by ``text``, durably: the new text or the old one.  Raises NoSpace, Denied."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise os_error(error, f"{path} cannot be written") from error


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def os_error(error: OSError, what: str) -> TmemError:
    """``error`` in the words of this package: full, forbidden, or else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: {error.strerror}", "make room on that file system")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(f"{what}: {error.strerror}", "check owner and mode, or choose another folder")
    return TmemError(f"{what}: {error.strerror or error}", "check the path")


def private_folder(folder: Path) -> None:
    """Makes ``folder`` (mode 0700), or checks that the one which is there belongs to this user alone.

    The default arena lies below a folder that everybody can write to, so somebody else may have come first.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except FileExistsError as error:
        raise InvalidInput(f"{folder} is not a folder", "choose another path") from error
    except OSError as error:
        raise os_error(error, f"{folder} cannot be made") from error
    if not stat.S_ISDIR(found.st_mode):
        raise Denied(f"{folder} is a link, not a folder", "remove it, or choose another path")
    if found.st_uid != os.getuid():
        raise Denied(f"{folder} belongs to user {found.st_uid}", "choose another path")
    if found.st_mode & 0o022:
        raise Denied(f"{folder} can be written to by other users", "chmod go-w it, or choose another path")


def check_arena_place(arena: Path, *, own_folder: bool) -> None:
    """Makes or checks the folder of ``arena``, and that a file which is there is this user's.

    ``own_folder``: it lies in a folder that is for it alone; else in one that somebody chose, which may be shared when
    it has the sticky bit, as ``/dev/shm`` has.
    """
    if own_folder or not arena.parent.exists():
        private_folder(arena.parent)
    mode = arena.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise Denied(f"everybody may replace files in {arena.parent}", "choose another folder with --arena")
    try:
        found = arena.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        raise Denied(f"{arena} is no file of this user", "choose another with --arena")


@contextlib.contextmanager
def locked(config: AgentConfig) -> Iterator[None]:
    """Holds the state folder for this process; :class:`InUse` when another agent does.

    flock(2): the kernel lets go of it with the process, whatever happens.
    """
    private_folder(config.state)
    try:
        descriptor = os.open(config.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise os_error(error, f"{config.lock_file} cannot be opened") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise InUse(
                f"the state folder {config.state} is held by the agent with process id {holder}",
                "stop that agent, or choose another folder with --state",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def choose_arena(config: AgentConfig, state: State) -> Path:
    """The arena to open: the one asked for, else the one remembered, else the default."""
    if config.arena is None:
        return state.arena or default_arena(config.state)
    asked = config.arena.absolute()
    if state.arena is not None and asked != state.arena and any(vm.may_have_pages for vm in state.vms.values()):
        raise InvalidInput(
            f"the VMs of {config.state} have their pages in {state.arena}, not in {asked}",
            "leave --arena out, or choose another state folder",
        )
    return asked


def check_arena_present(arena: Path, state: State, *, fresh: bool | None = None, accept_loss: bool) -> None:
    """Refuses to go on without the pages that VMs had: ``arena`` is missing, or was just made (``fresh``)."""
    waiting = sorted(name for name, vm in state.vms.items() if vm.may_have_pages)
    gone = fresh if fresh is not None else not arena.exists()
    if gone and waiting and not accept_loss:
        raise Corrupt(
            f"the arena {arena} is missing and {', '.join(waiting)} may have pages in it",
            "bring it back; if its guests are gone (the host was restarted), start with --accept-loss",
        )


def choose_limit(arena: Path, asked: int | None) -> int:
    """Bytes that the store may hold: ``asked``, else the default for the file system of ``arena``.

    What the arena has already counts as room.  Raises :class:`NoSpace` for a limit that can never be held.
    """
    try:
        system = os.statvfs(arena.parent)
        there = arena.stat().st_blocks * 512 if arena.exists() else 0
    except OSError as error:
        raise os_error(error, f"{arena} cannot be looked at") from error
    room = system.f_bavail * system.f_frsize + there
    limit = default_limit(room) if asked is None else asked
    if room < limit or limit < MIN_LIMIT:
        raise NoSpace(
            f"{arena.parent} has room for {format_size(room)}, the limit is {format_size(limit)} and "
            f"{format_size(MIN_LIMIT)} are the least",
            "choose another --limit, enlarge that file system, or choose another with --arena",
        )
    return limit
