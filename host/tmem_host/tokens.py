# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens of the API over TCP: made and revoked by command, kept as hashes in the state folder.

A token has 256 random bits, so what is kept is one SHA-256 of it: there is nothing to guess that a slow hash would
protect, as there is for passwords, and the look-up stays cheap for whoever polls.  Its value is shown once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tmem_host.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound
from tmem_host.state import first_error, os_error, private_folder, write_private

FILE: Final = "tokens.json"
#: Each may do what those before it may.
SCOPES: Final = ("read", "operate", "admin")
Scope = Literal["read", "operate", "admin"]

_PREFIX: Final = "tmem_"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: The name of who comes over the Unix socket, in the audit log.
_RESERVED: Final = "local"


class Token(BaseModel):
    """A token as it is kept: everything but its value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
    scope: Scope
    #: SHA-256 of the value, hexadecimal.
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    made: datetime


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[Token, ...] = ()


class Tokens:
    """The tokens of a state folder.  What another process changes is seen at the next look-up."""

    def __init__(self, state: Path) -> None:
        self.path = state / FILE
        #: Of the file that was read last: (mtime, size, inode) and what it said.
        self._seen: tuple[tuple[int, int, int], tuple[Token, ...]] | None = None

    def list_(self) -> tuple[Token, ...]:
        """All, in the order they were made.  Raises Corrupt, Denied."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise os_error(error, f"{self.path} cannot be read") from error
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._seen is None or self._seen[0] != mark:
            self._seen = (mark, self._read())
        return self._seen[1]

    def _read(self) -> tuple[Token, ...]:
        try:
            return _File.model_validate_json(self.path.read_bytes()).tokens
        except OSError as error:
            raise Denied(f"{self.path} cannot be read: {error.strerror}", "check its owner and mode") from error
        except ValidationError as error:
            raise Corrupt(f"{self.path}: {first_error(error)}", "move it away and make tokens anew") from error

    def add(self, name: str, scope: str) -> str:
        """Makes a token and returns its value, which nobody can ask for again.  Raises Conflict, InvalidInput."""
        if _NAME.fullmatch(name) is None or name == _RESERVED:
            raise InvalidInput(f"{name!r} cannot name a token", "1 to 63 letters, digits, dots, dashes; not 'local'")
        if scope not in SCOPES:
            raise InvalidInput(f"there is no scope {scope!r}", f"the choice is {', '.join(SCOPES)}")
        value = _PREFIX + secrets.token_urlsafe(32)
        with self._changing() as tokens:
            if any(token.name == name for token in tokens):
                raise Conflict(f"there is a token {name} already", "choose another name, or revoke it first")
            made = Token(name=name, scope=scope, sha256=_hash(value), made=datetime.now(UTC))
            tokens.append(made)
        return value

    def revoke(self, name: str) -> None:
        """From now on nobody gets in with it.  Raises NotFound."""
        with self._changing() as tokens:
            left = [token for token in tokens if token.name != name]
            if len(left) == len(tokens):
                raise NotFound(f"there is no token {name}", "see 'tmem token list'")
            tokens[:] = left

    def find(self, value: str) -> Token | None:
        """The token of that value.  Raises Corrupt, Denied."""
        wanted = _hash(value)
        found = None
        for token in self.list_():
            # All are compared, each in constant time: how long it takes says nothing about how near one was.
            if hmac.compare_digest(token.sha256, wanted):
                found = token
        return found

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        """The tokens to be changed in the block, and written at its end; one process at a time."""
        private_folder(self.path.parent)
        try:
            descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise os_error(error, f"{self.path} cannot be changed") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            tokens = list(self.list_())
            yield tokens
            data = _File(tokens=tuple(tokens)).model_dump(mode="json")
            write_private(self.path, json.dumps(data, indent=2) + "\n")
        finally:
            os.close(descriptor)


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
