# SPDX-License-Identifier: Apache-2.0
"""What the service takes and tells, under the API, the client and the command line alike.

Sizes are bytes of host memory unless a field says otherwise; a page is 4096 bytes.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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


def _examples(*examples: dict[str, Any]) -> ConfigDict:
    """For the API's description."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": list(examples)})


class _Strict(BaseModel):
    """What users write: unknown fields are refused, so that a typing error is not ignored."""

    model_config = ConfigDict(extra="forbid")


class MachineSpec(_Strict):
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


class VmCreate(_Strict):
    """A VM to make.  With the channel ``blk`` it has one swap device of ``size_bytes`` with its own pool; pools of
    the channels ``tmem`` and ``serial`` are the guest's to make.  Each channel has a socket; that of ``serial`` is made
    by the monitor."""

    model_config = _examples({"name": "web-1", "size_bytes": "2G", "cap": "1G"})

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


class VmUpdate(_Strict):
    """What can change while a guest runs.  A field that is left out stays; ``cap: null`` lifts the cap."""

    model_config = _examples({"weight": 50, "cap": "1G"}, {"cap": None})

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


class VmSettings(_Strict):
    """What a VM may take, and how it is served: the whole, as one replaces it."""

    model_config = _examples({"codec": "lz4", "poll_us": 0, "reservation": 0, "cap": None, "weight": 100})

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


def _uuid(text: str) -> str:
    try:
        return UUID(text).hex
    except ValueError:
        raise ValueError("a uuid has 32 hexadecimal digits, with or without dashes") from None


#: 32 hexadecimal digits: the bytes of the uuid in order.
Uuid = Annotated[str, AfterValidator(_uuid)]


class PoolCreate(_Strict):
    """A pool to make for a VM.  Dense with ``pages`` (persistent, private: a swap disk), else sparse."""

    model_config = _examples({"vm": "web-1", "persistent": False}, {"vm": "web-1", "pages": 65536})

    vm: VmName
    persistent: Flag = True
    pages: Annotated[Whole, Field(ge=1, le=(1 << 32) - 1)] | None = None
    #: Of a shared pool, which is made or joined; the VM has to be authorised for it.
    uuid: Uuid | None = None
    codec: Codec = "lz4"
    page_size: Literal[4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152] = 4096

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if self.pages is not None and (not self.persistent or self.uuid is not None):
            raise ValueError("a pool with pages is a swap disk: persistent and private")
        return self


class PoolUpdate(_Strict):
    """What can change of a pool: how what is put from now on is compressed, ``none`` for not at all."""

    model_config = _examples({"codec": "none"})

    codec: Codec


class PoolInfo(BaseModel):
    """One pool of the store."""

    id: int
    #: The first VM that uses it, and all.
    vm: str
    members: list[str]
    #: Of a shared one.
    uuid: str | None
    page_size: int
    #: Pages come compressed.
    packed: bool
    #: A miss may be a lost page: the arena could not be read whole.
    damaged: bool
    persistent: bool
    shared: bool
    codec: str
    #: None for a sparse pool.
    pages_capacity: int | None
    pages: int
    compressed_bytes: int
    held_bytes: int
    same_filled: int
    raw: int
    index_bytes: int
    counters: dict[str, int]


class PoolDetail(PoolInfo):
    """One pool, and how long its operations took."""

    #: By operation: bounds and counts of the histogram's buckets and the sum, in ns; of one operation in eight.
    latency: dict[str, Any]


class PoolList(BaseModel):
    """Pools, by number."""

    pools: list[PoolInfo]
    #: For the next page of the list; None: this was the last.
    next: str | None = None


class Flushed(BaseModel):
    """What a flush did."""

    #: Pages that are gone.
    pages: int


class SaveCreate(_Strict):
    """A file to write a pool to."""

    model_config = _examples({"name": "web-1-swap", "freeze": True})

    #: Of the file, below ``saves`` in the state folder.
    name: VmName
    #: At most so many passes over the pool while its guest goes on; the first writes every page.
    passes: Annotated[Whole, Field(ge=1, le=100)] = 4
    #: Refuse the VM's puts while the last changes are written: the file is the pool as it was at one moment.
    freeze: Flag = False


class SaveInfo(BaseModel):
    """A pool in a file."""

    name: str
    path: str
    bytes: int
    made: datetime


class SaveList(BaseModel):
    """Saved pools, by name."""

    saves: list[SaveInfo]


class Saved(SaveInfo):
    """A pool that was saved just now."""

    pages: int
    passes: int
    seconds: float


class RestoreFrom(_Strict):
    """The save to restore."""

    model_config = _examples({"name": "web-1-swap"})

    name: VmName


class Restored(BaseModel):
    """What was put into the pool."""

    pages: int
    seconds: float


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


class StoreInfo(BaseModel):
    """The store as a whole."""

    arena: str
    limit_bytes: int
    held_bytes: int
    arena_bytes: int
    index_bytes: int
    metadata_bytes: int
    compressed_bytes: int
    reserved_bytes: int
    #: What could be taken back at once: ephemeral pages.
    freeable_bytes: int
    pages: int
    #: How the arena was found at the agent's start, as :meth:`_core.Store.recovery` says.
    recovery: dict[str, Any]


RunState = Literal["queued", "running", "cancelling", "done", "failed", "cancelled", "interrupted"]
#: Options of benches that name files of the host: not to be had from afar.
_HOST_OPTIONS: Final = frozenset({"disk_dir", "vmexit", "out", "state"})


def _settings(given: dict[str, str | int | float]) -> dict[str, str | int | float]:
    for name, value in given.items():
        if re.fullmatch(r"(?:[a-z][a-z0-9-]{0,31}\.)?[a-z][a-z0-9_]{0,31}", name) is None:
            raise ValueError(f"{name!r} is no option of a bench")
        if name.rpartition(".")[2] in _HOST_OPTIONS:
            raise ValueError(f"{name} names a file of the host: run 'tmem bench' there")
        if isinstance(value, str) and not (value.isprintable() and len(value) <= 200):
            raise ValueError(f"the value of {name} is not a line of at most 200 characters")
    return given


class RunCreate(_Strict):
    """A bench to run on the agent's host, as ``tmem bench`` does."""

    model_config = _examples(
        {"bench": "store", "quick": True, "rounds": 3, "settings": {"parts": "cost"}},
        {"bench": "guest", "quick": True, "arms": "zipf,redis", "settings": {"vm": "web-1", "seconds": 10}},
    )

    bench: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$", description="As `tmem bench --help` lists them")]
    quick: Flag = True
    seed: Annotated[Whole, Field(ge=0, le=(1 << 32) - 1)] = 1
    #: Only these arms, and how often each runs; None: the bench's own.
    arms: Annotated[str, Field(pattern=r"^[a-z0-9,.+_-]{1,500}$")] | None = None
    rounds: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    #: Any other options of the bench, as with ``--set``.
    settings: Annotated[dict[str, str | int | float], Field(max_length=50), AfterValidator(_settings)] = Field(
        default_factory=dict
    )


class RunProgress(BaseModel):
    """How far a run is."""

    step: str = ""
    detail: str = ""
    #: Of so many steps, as far as they are planned.
    done: int = 0
    steps: int = 0
    left_seconds: float | None = None


class RunInfo(BaseModel):
    """A run of a bench: waiting, under way, or in the history."""

    id: int
    options: RunCreate
    state: RunState
    #: Why it failed, or which arms of it did; empty when none.
    reason: str
    #: Who asked for it.
    who: str
    created: datetime
    started: datetime | None
    ended: datetime | None
    progress: RunProgress
    #: There are results, a report.
    results: bool
    report: bool


class RunList(BaseModel):
    """Runs, the latest first."""

    runs: list[RunInfo]
    #: For the next page of the list; None: this was the last.
    next: str | None = None


class RunResults(BaseModel):
    """What a run measured: each ``results.json`` as it is, one unless all benches ran."""

    results: list[dict[str, Any]]


class TierInfo(BaseModel):
    """One place where pages lie."""

    #: memory: compressed, in the arena.
    kind: Literal["memory"]
    path: str
    limit_bytes: int
    held_bytes: int
    pages: int


class TierList(BaseModel):
    """Tiers, the fastest first."""

    tiers: list[TierInfo]


class HostFinding(BaseModel):
    """One thing that was looked at, as ``tmem doctor`` does: works, works without something, or nothing runs."""

    subject: str
    state: Literal["ok", "limited", "missing"]
    found: str
    advice: str


class HostInfo(BaseModel):
    """The host of the agent."""

    name: str
    kernel: str
    cpus: int
    memory_bytes: int
    #: 1, 5 and 15 minutes.
    load: list[float]
    findings: list[HostFinding]


class Health(BaseModel):
    """That the agent answers, and who it is."""

    status: Literal["ok"] = "ok"
    version: str
    pid: int
    #: Seconds since the agent began to serve.
    uptime_seconds: float
    vms: int


class Problem(BaseModel):
    """An error as RFC 9457 (problem details) has it, with the hint and the kind of this project."""

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""
    kind: str
