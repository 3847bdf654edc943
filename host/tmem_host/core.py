# SPDX-License-Identifier: Apache-2.0
"""The one door to the native core: finds it, and turns its errors into this package's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tmem_host.errors import (
    Conflict,
    Corrupt,
    Denied,
    InUse,
    InvalidInput,
    NoSpace,
    NotFound,
    TmemError,
    Unavailable,
    VmFailed,
)

try:
    from tmem_host import _core
except ImportError as _missing:
    raise Unavailable(f"the native core is not built: {_missing}", "run 'make build'") from _missing

if TYPE_CHECKING:
    from collections.abc import Mapping

Store = _core.Store
BlkServer = _core.BlkServer
StreamServer = _core.StreamServer
TmemServer = _core.TmemServer
TmemClient = _core.TmemClient
StreamClient = _core.StreamClient
RequestPlan = _core.RequestPlan
measure_engine = _core.measure_engine
Engine = _core.Engine
CoreError = _core.CoreError
worst_case_bytes = _core.worst_case_bytes
journal = _core.journal
journal_call = _core.journal_call

_RESTORE = "nothing was changed; bring back an intact copy, or start with --accept-loss to go on with what is left"

#: By :attr:`_core.CoreError.kind`: the error, and what to do next.
_KINDS: Final[Mapping[str, tuple[type[TmemError], str]]] = {
    "arena-corrupt": (Corrupt, _RESTORE),
    "arena-truncated": (Corrupt, _RESTORE),
    "arena-format": (
        Corrupt,
        "nothing was changed; start the version that made it, or remove it if no guest has pages in it",
    ),
    "arena-locked": (InUse, "stop the process that has it, or choose another file with --arena"),
    "no-space": (NoSpace, "lower --reservation or --size, raise --limit, or make room where the arena is"),
    "permission": (Denied, "check owner and mode, or choose another path"),
    "not-authorised": (Denied, "authorise the VM for that uuid first"),
    "exists": (Conflict, "choose another name, or remove the one that is there"),
    "not-found": (NotFound, "see 'tmem vm list'"),
    "invalid": (InvalidInput, "see 'tmem --help'"),
    "socket-in-use": (InUse, "stop the process that listens there, or choose another state folder"),
    "lost": (Corrupt, "the page was lost with the arena's damage"),
    "io": (TmemError, "see the log"),
    "no-kvm": (Unavailable, "see 'tmem doctor'"),
    "not-offered": (Unavailable, "see 'tmem doctor'"),
    "hung": (VmFailed, "leave this kind out"),
    "failed": (VmFailed, "see the message"),
}


@contextlib.contextmanager
def core_errors(what: str) -> Iterator[None]:
    """Turns :class:`_core.CoreError` into the matching error of :mod:`tmem_host.errors`, prefixed by ``what``."""
    try:
        yield
    except CoreError as error:
        cls, hint = _KINDS.get(error.kind, (TmemError, "see the log"))
        raise cls(f"{what}: {error}" if what else str(error), hint) from error
