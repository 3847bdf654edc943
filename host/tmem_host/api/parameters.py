# SPDX-License-Identifier: Apache-2.0
"""What routes take besides bodies: names and numbers in paths, pages of lists, versions in headers."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Header, Path, Query

from tmem_host.config import VM_NAME
from tmem_host.errors import InvalidInput, MustMatch

_NAME: Final = f"^{VM_NAME.pattern}$"

Name = Annotated[str, Path(pattern=_NAME, description="The VM's name", examples=["web-1"])]
Number = Annotated[int, Path(ge=0, lt=1 << 16, description="The pool's number", examples=[0])]
Limit = Annotated[int, Query(ge=1, le=1000, description="Entries of one page of the list")]
NameCursor = Annotated[
    str | None, Query(pattern=_NAME, description="`next` of the page before: entries behind it", examples=["web-1"])
]
NumberCursor = Annotated[
    str | None,
    Query(pattern="^[0-9]{1,5}$", description="`next` of the page before: entries behind it", examples=["7"]),
]
IfMatch = Annotated[
    str | None,
    Header(
        description='`"VERSION"` of what is to be changed, from `ETag` or a VM\'s `version`; `*` for whatever is '
        "there. Another version by now: 412, nothing was changed.",
        examples=['"0123456789abcdef"', "*"],
    ),
]
LosePages = Annotated[bool, Query(description="Persistent pages may be lost, also if they are the only copies")]

#: Entries of a page when nobody says.
PAGE: Final = 500

_TAG = re.compile(r'(?:W/)?"(?P<tag>[\x21\x23-\x7e]*)"')


def versions(header: str | None, *, required: bool = False) -> tuple[str, ...] | None:
    """The versions that ``If-Match`` (RFC 9110, 13.1.1) names; None for any.

    Weak tags match nothing.  Raises :class:`MustMatch` when it is required and not there, :class:`InvalidInput` for
    what is no such header.
    """
    if header is None:
        if required:
            raise MustMatch(
                "a change of all settings has to say which it replaces", "send If-Match with the ETag of a GET, or *"
            )
        return None
    if header.strip() == "*":
        return None
    parts = [part.strip() for part in header.split(",")]
    found = [_TAG.fullmatch(part) for part in parts if part]
    if not found or None in found:
        raise InvalidInput("If-Match is a list of tags in quotes, or *", 'send it as If-Match: "VERSION"')
    strong = [match["tag"] for match in found if match is not None and not match[0].startswith("W/")]
    return tuple(strong)


def etag(version: str) -> str:
    """``version`` as the header ``ETag`` has it."""
    return f'"{version}"'
