# SPDX-License-Identifier: Apache-2.0
"""What fields of several models are made of."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tmem_host.config import PAGE_SIZE, Size, check_vm_name
from tmem_host.errors import InvalidInput

Codec = Literal["lz4", "zstd", "none"]
#: How requests reach the host: vhost-user-blk; vhost-user-tmem and virtio-serial, which carry the tmem ABI.
ChannelKind = Literal["blk", "tmem", "serial"]

#: The number of a dense pool's pages has 32 bits.
MAX_DEVICE: Final = ((1 << 32) - 1) * PAGE_SIZE
#: mkswap(8) wants ten pages; below that nothing can be kept.
MIN_DEVICE: Final = 16 * PAGE_SIZE


def _vm_name(name: str) -> str:
    try:
        return check_vm_name(name)
    except InvalidInput as error:
        raise ValueError(str(error)) from error


VmName = Annotated[str, AfterValidator(_vm_name)]


def _whole(value: object) -> object:
    """Refuses what pydantic would make a number of: ``true`` and ``"5"``."""
    if isinstance(value, bool | str):
        raise ValueError("this is a whole number, not a truth value and not text")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, Field(strict=True)]
Weight = Annotated[Whole, Field(ge=1, le=10_000)]
Cap = Annotated[Size, Field(ge=PAGE_SIZE)]
PollUs = Annotated[Whole, Field(ge=0, le=10_000)]


def _some_once(kinds: tuple[ChannelKind, ...]) -> tuple[ChannelKind, ...]:
    if not kinds or len(set(kinds)) != len(kinds):
        raise ValueError("name at least one channel, and each once")
    return kinds


Channels = Annotated[tuple[ChannelKind, ...], AfterValidator(_some_once)]


def examples(*given: dict[str, Any]) -> ConfigDict:
    """For the API's description."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": list(given)})


class Strict(BaseModel):
    """What users write: unknown fields are refused, so that a typing error is not ignored."""

    model_config = ConfigDict(extra="forbid")


def _uuid(text: str) -> str:
    try:
        return UUID(text).hex
    except ValueError:
        raise ValueError("a uuid has 32 hexadecimal digits, with or without dashes") from None


#: 32 hexadecimal digits: the bytes of the uuid in order.
Uuid = Annotated[str, AfterValidator(_uuid)]
