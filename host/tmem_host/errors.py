# SPDX-License-Identifier: Apache-2.0
"""The one tree of errors that this package raises.

::

    TmemError                  exit 1   anything a user can be told in one line
    ├── InvalidInput           exit 2   a value that cannot be: a name, a size, an option
    │   ├── MustMatch          exit 2   a change of the whole that does not say what it replaces
    │   └── TooLarge           exit 2   a request's body beyond the limit
    ├── NotFound               exit 3   no such VM, kernel, file
    ├── Conflict               exit 4   exists already, or is in use by somebody else
    │   ├── Changed            exit 4   somebody else changed it meanwhile
    │   └── InUse              exit 4   a socket, a state folder or an arena that a live process holds
    ├── NoSpace                exit 5   the quota, the limit, the tmpfs or the disk is too small
    ├── Denied                 exit 6   the operating system or a token's scope says no
    │   └── Unauthorised       exit 6   no token, or none that the agent knows
    ├── Corrupt                exit 7   state or arena that cannot be trusted; nothing was overwritten
    ├── Unavailable            exit 8   the agent does not answer, or this host lacks something
    │   └── TooMany            exit 8   more requests than a client may send
    └── VmFailed               exit 9   a virtual machine or a process of ours died or hung

Every error has a *message* that says what is wrong and a *hint* that says what to do next, both one line.  A refusal
that is part of the protocol (no room, over cap, frozen) is a value, never one of these.
"""

from __future__ import annotations

from typing import ClassVar


def one_line(text: str) -> str:
    """``text`` with every run of white space, line breaks included, made one space."""
    return " ".join(text.split())


class TmemError(Exception):
    """What a user can be told in one line: what is wrong, and what to do next."""

    exit_code: ClassVar[int] = 1
    #: The HTTP status that the API answers with.
    status: ClassVar[int] = 500

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(str(self))

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[type[TmemError], tuple[str, str]]:
        return type(self), (self.message, self.hint)

    @property
    def slug(self) -> str:
        """The kind of error in the API's words, as in ``not-found``."""
        name = type(self).__name__
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


class InvalidInput(TmemError):
    """A value that cannot be: a name, a size, an option."""

    exit_code = 2
    status = 422


class MustMatch(InvalidInput):
    """A change of the whole has to say which version it replaces."""

    status = 428


class TooLarge(InvalidInput):
    """A request's body is beyond the limit."""

    status = 413


class NotFound(TmemError):
    """No such VM, kernel image or file."""

    exit_code = 3
    status = 404


class Conflict(TmemError):
    """Exists already, or cannot be done in the state that something is in."""

    exit_code = 4
    status = 409


class Changed(Conflict):
    """It is no longer what the one who wants to change it has seen."""

    status = 412


class InUse(Conflict):
    """A socket, a state folder or an arena that a live process holds."""


class NoSpace(TmemError):
    """The quota, the limit, the tmpfs or the disk is too small."""

    exit_code = 5
    status = 507


class Denied(TmemError):
    """The operating system says no, or the scope of a token does."""

    exit_code = 6
    status = 403


class Unauthorised(Denied):
    """A request without a token, or with one that the agent does not know."""

    status = 401


class Corrupt(TmemError):
    """State or an arena that cannot be trusted.  Nothing was overwritten."""

    exit_code = 7


class Unavailable(TmemError):
    """The agent does not answer, or this host lacks something that is needed."""

    exit_code = 8
    status = 503


class TooMany(Unavailable):
    """More requests than a client may send."""

    status = 429
    #: Seconds after which one more is let in.
    wait: float = 0.0


class VmFailed(TmemError):
    """A virtual machine, or another process that this package started, died or hung."""

    exit_code = 9


#: By the slug that the API reports, for clients to raise the same error again.
BY_SLUG: dict[str, type[TmemError]] = {
    cls("").slug: cls
    for cls in (
        TmemError,
        InvalidInput,
        MustMatch,
        TooLarge,
        NotFound,
        Conflict,
        Changed,
        InUse,
        NoSpace,
        Denied,
        Unauthorised,
        Corrupt,
        Unavailable,
        TooMany,
        VmFailed,
    )
}
