# SPDX-License-Identifier: Apache-2.0
"""vagrant/settings.toml: what is brought up. Each setting can be overridden by the environment."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tmem_host.config import check_vm_name
from tmem_host.errors import InvalidInput, TmemError
from tmem_host.models import ChannelKind
from tmem_host.vm import images
from tmem_host.vm.routes import KERNELS, Channel, Route, Source, missing
from tmem_host.vm.spec import AccelName

#: TMEM_VAGRANT_GUESTS=3 stands for guests = 3.
ENVIRONMENT: Final = "TMEM_VAGRANT_"
#: Channels that the agent serves, and the kinds of them that a VM of it then has. The port is there in any case: the
#: guest reports on it.
CHANNELS: Final[dict[Channel, tuple[ChannelKind, ...]]] = {
    "vhost-user-blk": ("blk", "serial"),
    "vhost-user-tmem": ("tmem", "serial"),
    "virtio-serial": ("serial",),
}
#: What the guest's agent can set up by itself (tmem_guest's own setting of that name).
SOURCES: Final[tuple[Source, ...]] = ("virtio-blk", "swap-disk", "frontswap")


#: Guests of this host's agent; or one machine that runs an agent, and guests of its own.
Role = Literal["guests", "host"]


def _name(text: str) -> str:
    try:
        return check_vm_name(text)
    except TmemError as error:
        raise ValueError(str(error)) from error


def _network(text: str) -> str:
    network = ipaddress.IPv4Network(text)
    if not 16 <= network.prefixlen <= 29:
        raise ValueError("a network for guests is of /16 to /29")
    return str(network)


class Settings(BaseModel):
    """What vagrant/settings.toml says; its comments there say what each is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    guests: Annotated[int, Field(ge=1, le=64)]
    name: Annotated[str, Field(max_length=48), AfterValidator(_name)]
    memory_mib: Annotated[int, Field(ge=160, le=1 << 20)]
    host_memory_mib: Annotated[int, Field(ge=768, le=1 << 20)]
    vcpus: Annotated[int, Field(ge=1, le=64)]
    kernel: str
    source: Source
    channel: Channel
    swap_mib: Annotated[int, Field(ge=1, le=1 << 24)]
    accel: AccelName
    libvirt: Annotated[str, Field(pattern=r"^qemu[a-z+]*:///system(\?.*)?$")]
    network: Annotated[str, AfterValidator(_network)]
    #: Empty: the user's own.
    state: str = ""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is one of {', '.join(KERNELS)}")
        reason = missing(Route(self.source, self.channel), self.kernel)
        if reason:
            raise ValueError(reason)
        for what, value, choice in (("channel", self.channel, CHANNELS), ("source", self.source, SOURCES)):
            if value not in choice:
                raise ValueError(f"{what} is one of {', '.join(choice)} here")
        return self

    @property
    def kinds(self) -> tuple[ChannelKind, ...]:
        """Channels of each VM of the agent."""
        return CHANNELS[self.channel]

    @property
    def machines(self) -> list[str]:
        """Names of domains, of the agent's VMs, and of hosts: tmem1, tmem2, ..., or tmem-host."""
        if self.role == "host":
            return [f"{self.name}-host"]
        return [f"{self.name}{number}" for number in range(1, self.guests + 1)]


def settings_file() -> Path:
    return images.checkout() / "vagrant" / "settings.toml"


def read(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """The file, and the environment over it. Raises InvalidInput, naming the setting."""
    path = path or settings_file()
    hint = f"see {path.name}, and the variables that begin with {ENVIRONMENT}"
    try:
        fields: dict[str, object] = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", hint) from error
    for key, value in environment.items():
        if key.startswith(ENVIRONMENT):
            fields[key.removeprefix(ENVIRONMENT).lower()] = value
    try:
        return Settings.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidInput(f"{place}: {message}" if place else message, hint) from error
