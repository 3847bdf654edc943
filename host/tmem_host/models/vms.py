# SPDX-License-Identifier: Apache-2.0
"""VMs, their channels and guests."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tmem_host.config import PAGE_SIZE, Size
from tmem_host.models.pools import PoolInfo
from tmem_host.models.words import (
    MAX_DEVICE,
    MIN_DEVICE,
    Cap,
    ChannelKind,
    Channels,
    Codec,
    PollUs,
    Strict,
    VmName,
    Weight,
    Whole,
    examples,
)


class MachineSpec(Strict):
    """A guest that the agent itself runs: a QEMU that is its child and ends with it."""

    #: Guest kernel, as ``make guests`` builds them.
    kernel: Annotated[str, Field(pattern=r"^[0-9][0-9a-z.-]{0,31}$")] = "6.1"
    memory_mib: Annotated[Whole, Field(ge=64, le=1 << 20)] = 256
    vcpus: Annotated[Whole, Field(ge=1, le=64)] = 1
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    #: What gives pages up in the guest, set up as soon as it runs: virtio-blk swaps to the VM's device; the others are
    #: of tmem.ko, over the channel tmem or serial.
    source: Literal["virtio-blk", "swap-disk", "frontswap", "none"] = "virtio-blk"
    #: Of the sources of tmem.ko: what they may hold.
    swap_mib: Annotated[Whole, Field(ge=16, le=1 << 20)] = 512


class VmCreate(Strict):
    """A VM to make.  With the channel ``blk`` it has one swap device of ``size_bytes`` with its own pool; pools of
    the channels ``tmem`` and ``serial`` are the guest's to make.  Each channel has a socket; that of ``serial`` is made
    by the monitor."""

    model_config = examples({"name": "web-1", "size_bytes": "2G", "cap": "1G"})

    name: VmName
    #: None when there is no device.
    size_bytes: Size | None = None
    channels: Channels = ("blk",)
    codec: Codec = "lz4"
    queues: Annotated[Whole, Field(ge=1, le=16)] = 2
    #: Microseconds that the channel spins after the last request before it sleeps; 0: it sleeps at once.
    poll_us: PollUs = 0
    #: Host memory promised; None: what the device, if there is one, takes when nothing on it compresses.  What swap
    #: pools of the guest's own take is promised on top when they are made.
    reservation: Size | None = None
    #: Host memory at most; None: no cap but the store's limit.
    cap: Cap | None = None
    weight: Weight = 100
    #: A guest to run on it; None: somebody else's monitor connects.
    machine: MachineSpec | None = None

    @model_validator(mode="after")
    def _device(self) -> Self:
        if ("blk" in self.channels) != (self.size_bytes is not None):
            raise ValueError("size_bytes is for the channel blk, which needs it")
        size = self.size_bytes
        if size is not None and (size % PAGE_SIZE or not MIN_DEVICE <= size <= MAX_DEVICE):
            raise ValueError(f"size_bytes is a multiple of {PAGE_SIZE}, from {MIN_DEVICE} to {MAX_DEVICE}")
        if self.cap is not None and self.reservation is not None and self.cap < self.reservation:
            raise ValueError("cap is below reservation")
        return self


class VmUpdate(Strict):
    """What can change while a guest runs.  A field that is left out stays; ``cap: null`` lifts the cap."""

    model_config = examples({"weight": 50, "cap": "1G"}, {"cap": None})

    codec: Codec | None = None
    poll_us: PollUs | None = None
    reservation: Size | None = None
    cap: Cap | None = None
    weight: Weight | None = None

    @model_validator(mode="after")
    def _only_cap_can_be_null(self) -> Self:
        for name in self.model_fields_set - {"cap"}:
            if getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        return self


class VmSettings(Strict):
    """What a VM may take, and how it is served: the whole, as one replaces it."""

    model_config = examples({"codec": "lz4", "poll_us": 0, "reservation": 0, "cap": None, "weight": 100})

    codec: Codec
    poll_us: PollUs
    reservation: Size
    cap: Cap | None
    weight: Weight


class ChannelSummary(BaseModel):
    """One channel of a VM, and what went through it."""

    kind: ChannelKind
    socket: str
    #: listening, connected or broken; of serial: waiting (no monitor), connected, or in-step (the guest answers).
    state: str
    #: Requests by operation.
    requests: dict[str, int]
    #: What the store did not take or give, and requests that were refused, by reason.
    refused: dict[str, int]
    #: Descriptor chains that were no requests, and streams that ended for bytes which were no frame, by reason.
    malformed: dict[str, int]


class ChannelInfo(BaseModel):
    """One channel with all that it counts."""

    kind: ChannelKind
    socket: str
    #: As :attr:`ChannelSummary.state`.
    state: str
    queues: int
    poll_us: int
    #: As :meth:`_core.BlkServer.stats`, :meth:`_core.TmemServer.stats` and :meth:`SerialPort.stats` say.
    counters: dict[str, Any]


#: A counter of a guest's kernel; a Python int has no bound of its own.
GuestCount = Annotated[int, Field(ge=0, lt=1 << 63)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class GuestReport(BaseModel):
    """What a guest last said of itself, as ``{"op": "report", ...}``.  None: it did not say.

    A guest may lie: nothing but the operator's eye may depend on it.  Unknown fields are dropped, values of other types
    refuse the report.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    uptime_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    #: Bytes (/proc/meminfo).
    mem_total: GuestCount | None = None
    mem_available: GuestCount | None = None
    swap_total: GuestCount | None = None
    swap_free: GuestCount | None = None
    #: Pages since the guest booted (/proc/vmstat).
    pswpin: GuestCount | None = None
    pswpout: GuestCount | None = None
    #: Percent of the last 10 seconds in which some, or all, tasks waited for memory (/proc/pressure/memory).
    psi_some_avg10: Percent | None = None
    psi_full_avg10: Percent | None = None
    #: The module's, by source and name, as ``blkdev_puts``.
    counters: Annotated[dict[str, GuestCount], Field(max_length=64)] = {}
    #: Seconds since it came: the host's word.
    age_seconds: float | None = None


class MachineInfo(BaseModel):
    """The guest that the agent runs on a VM."""

    spec: MachineSpec
    state: Literal["stopped", "starting", "running", "stopping", "failed"]
    #: Why it failed.
    reason: str = ""
    #: What it runs under.
    accelerator: str = ""
    #: Seconds from QEMU's start to the first word of the guest's agent.
    boot_seconds: float | None = None


class Shared(BaseModel):
    """Shared pools that a VM may make or join."""

    uuids: list[str]


class VmInfo(BaseModel):
    """A VM as it is now."""

    name: str
    #: Of the swap device; 0: there is none.
    size_bytes: int
    codec: str
    queues: int
    poll_us: int
    reservation: int
    cap: int | None
    weight: int
    #: Changes with the settings (codec, poll_us, reservation, cap, weight): what ``If-Match`` wants, without quotes.
    version: str
    frozen: bool
    #: The socket of the first channel.
    socket: str
    #: State of the first channel.
    channel: str
    channels: list[ChannelSummary]
    pages: int
    compressed_bytes: int
    #: Host memory held for this VM: slots, and its share of the index.
    held_bytes: int
    #: What could be taken back at once: ephemeral pages.
    freeable_bytes: int
    counters: dict[str, int]
    pools: list[PoolInfo]
    #: The guest that the agent runs on it, if it does.
    machine: MachineInfo | None = None


class VmList(BaseModel):
    """VMs, by name."""

    vms: list[VmInfo]
    #: For the next page of the list; None: this was the last.
    next: str | None = None
