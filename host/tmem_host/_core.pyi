# SPDX-License-Identifier: Apache-2.0
"""The data plane (Rust, ``host/core/python``).  Every call releases the GIL.

Sizes are bytes, times nanoseconds, a page 4096 bytes unless its pool was made with another size, an object id 24 bytes.
"""

from typing import Any, Literal

MeasuredOp = Literal["put", "get", "flush", "exchange", "put+get", "read", "write"]
PutAnswer = Literal["stored", "no-room", "over-cap", "frozen"]

class CoreError(Exception):
    """One line.  ``kind``: arena-corrupt, arena-truncated, arena-format, arena-locked, no-space, permission, exists,
    not-found, not-authorised, invalid, socket-in-use, lost, io; of micro-VMs: no-kvm, not-offered, hung, failed."""

    kind: str

def journal() -> tuple[list[tuple[Literal["ERROR", "WARN", "INFO"], str]], int]:
    """What the core logged since this was last asked, and how many lines had no room; waits for the first line, or for
    :func:`journal_call`, which ends one wait, also of who comes later."""

def journal_call() -> None: ...

class Store:
    """Pools, objects and pages in an arena file that outlives the process."""

    def __init__(self, path: str, *, limit_bytes: int, accept_loss: bool = False) -> None: ...
    def recovery(self) -> dict[str, Any]: ...
    def vm_create(self, name: str, *, reservation: int = 0, cap: int | None = None, weight: int = 100) -> None: ...
    def vm_set(
        self,
        name: str,
        *,
        reservation: int | None = None,
        cap: int | None = None,
        weight: int | None = None,
        promise: int = 0,
    ) -> None:
        """None leaves as it is; a cap of 0 takes it away; ``promise`` bytes are added to the reservation."""

    def vm_remove(self, name: str) -> None: ...
    def vms(self) -> list[dict[str, Any]]: ...
    def freeze(self, name: str) -> None: ...
    def thaw(self, name: str) -> None: ...
    def shared_authorise(self, name: str, uuid: bytes, allow: bool) -> None:
        """Whether a VM may make or join the shared pool of a uuid (16 bytes): none at first.  Kept in the arena.

        What it joined before stays joined.  :meth:`vms` lists ``authorised`` (hexadecimal).
        """

    def pool_create(
        self,
        vm: str,
        *,
        persistent: bool,
        shared: bool = False,
        uuid: bytes | None = None,
        pages: int | None = None,
        codec: str = "lz4",
        page_size: int = 4096,
        packed: bool = False,
    ) -> int:
        """A shared one wants :meth:`shared_authorise` before; else ``not-authorised``.

        ``page_size``: a power of two from 4096 to 2 MiB.  ``packed``: pages may come compressed by ``codec``.
        """

    def pool_destroy(self, pool: int, *, vm: str | None = None) -> None:
        """``vm``: who leaves a shared pool, which goes with its last member; the first unless one is named."""

    def pool_flush(self, pool: int) -> int:
        """Removes all pages of a pool, which stays: how many."""

    def pool_save(self, pool: int, path: str, *, passes: int = 4, freeze: bool = False) -> dict[str, int]:
        """Writes a persistent pool, while it changes, to a new file of mode 0600, durably.

        ``host/core/store/src/save.rs`` has its format.  ``freeze``: its VM's puts are refused while the last changes
        are written.  ``pages`` that the file comes to, ``records``, ``passes``.
        """

    def pool_restore(self, pool: int, path: str) -> dict[str, int]:
        """Puts them into an empty persistent pool: all of them, or nothing and an error."""

    def pool_set_codec(self, pool: int, codec: str) -> None: ...
    def pools(self) -> list[dict[str, Any]]:
        """``uuid``: of a shared one; ``name``: the uuid by which a guest finds its own again (both hexadecimal), ..."""

    def put(self, pool: int, obj: bytes, index: int, page: bytes) -> PutAnswer: ...
    def get(self, pool: int, obj: bytes, index: int) -> bytes | None: ...
    def flush_page(self, pool: int, obj: bytes, index: int) -> bool: ...
    def flush_object(self, pool: int, obj: bytes) -> int: ...
    def stats(self) -> dict[str, Any]: ...
    def maintain(self) -> None: ...
    def close(self) -> None: ...

def worst_case_bytes(pages: int, page_size: int = 4096) -> int:
    """Bytes of slots that a dense pool of ``pages`` pages of ``page_size`` bytes can need at worst."""

class BlkServer:
    """Serves one dense pool as a vhost-user-blk device on a Unix socket."""

    def __init__(
        self,
        store: Store,
        pool: int,
        socket: str,
        *,
        queues: int = 2,
        queue_size: int = 256,
        poll_us: int = 0,
        serial: str = "",
    ) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def set_poll(self, poll_us: int) -> None: ...
    def stop(self) -> None: ...

class Engine:
    """One channel of a VM: requests and replies of ``guest/abi/tmem_abi.h`` as bytes.

    All channels of a VM share its pools: make one with :meth:`__init__`, others from it with :meth:`channel`.
    """

    def __init__(
        self, store: Store, vm: str, *, features: int = ..., codec: str = "lz4", hidden: int | None = None
    ) -> None:
        """``features``: what HELLO may agree on, of what there is.  ``hidden``: a pool that requests do not reach."""

    @property
    def features(self) -> int: ...
    def channel(self) -> Engine: ...
    def lose(self, every: int) -> None:
        """Fault injection: on all channels of the VM each ``every``-th get or read is answered as lost, though the
        page stays; 0: none."""

    def reset(self) -> None:
        """As if HELLO had not been said."""

    def request(self, message: bytes, room: int | None = None) -> bytes:
        """The reply to a request. ``room``: bytes of data it may have, as many as any request fetches by default."""

    def stats(self) -> dict[str, int]:
        """Requests by operation, answers by status, pages that were copied and that were not; ``injected``: pages that
        :meth:`lose` took."""

class TmemServer:
    """Serves a VM's requests (``guest/abi/tmem_abi.h``) as a vhost-user device of virtio id 63 on a Unix socket.

    It is a channel of ``engine``'s VM of its own, all queues together: see :meth:`Engine.channel`.
    """

    def __init__(self, engine: Engine, socket: str, *, queues: int = 2, poll_us: int = 0) -> None: ...
    def stats(self) -> dict[str, Any]:
        """As :meth:`BlkServer.stats`; operations and refusals are the ABI's."""

    def set_poll(self, poll_us: int) -> None: ...
    def stop(self) -> None: ...

class StreamServer:
    """The host's end of a VM's virtio-serial port: connects to ``socket``, where the monitor listens, and serves.

    It is a channel of ``engine``'s VM of its own: see :meth:`Engine.channel`.  ``control``: a connected stream socket's
    descriptor, given away: control frames come out of its other end as lines, and lines written there go to the guest
    as control frames.  64 KiB of them a second come through in the long run, and no more than 64.
    """

    def __init__(self, engine: Engine, socket: str, control: int) -> None: ...
    def stats(self) -> dict[str, Any]:
        """``state`` (waiting, connected, in-step); ``requests``, ``refused``, ``malformed`` as of
        :meth:`TmemServer.stats`; ``received``, ``sent`` (bytes); ``control``, ``control_dropped`` (frames)."""

    def stop(self) -> None: ...

class RequestPlan:
    """So many requests of ``batch`` pages, which lie at index 0 and on of object 0; ``start``: which to begin with.

    ``put+get``: two requests, one after the other.  ``flush``: each page is put before, untimed.  ``read``, ``write``:
    ``length`` bytes from anywhere in a page; what is written is what is there.
    """

    def __init__(
        self,
        op: MeasuredOp,
        pool: int,
        requests: int,
        *,
        batch: int = 1,
        page_bytes: int = 4096,
        length: int = 0,
        start: int = 0,
    ) -> None: ...

class TmemClient:
    """Our own driver of a :class:`TmemServer`, with no QEMU and no guest: what the channel costs without a VM.

    One queue, one request at a time.  ``spins``: it looks for the answer all the time, else it sleeps.
    """

    def __init__(self, socket: str, *, spins: bool = False) -> None: ...
    def request(self, message: bytes, room: int | None = None) -> bytes:
        """As :meth:`Engine.request`."""

    def measure(self, pages: bytes, plan: RequestPlan) -> list[int]:
        """Nanoseconds of each request, from before it is written to after its reply is seen."""

    def close(self) -> None: ...

class StreamClient:
    """Monitor and guest of a :class:`StreamServer` in one: listens at ``socket`` and speaks frames, asleep meanwhile.

    The first request waits for the server, up to a minute.
    """

    def __init__(self, socket: str) -> None: ...
    def request(self, message: bytes, room: int | None = None) -> bytes:
        """As :meth:`Engine.request`."""

    def measure(self, pages: bytes, plan: RequestPlan) -> list[int]:
        """As :meth:`TmemClient.measure`."""

    def close(self) -> None: ...

def measure_engine(engine: Engine, pages: bytes, plan: RequestPlan) -> list[int]:
    """As :meth:`TmemClient.measure`, in this process: what a request costs before any channel."""

def bench_store(
    store: Store,
    pool: int,
    pages: bytes,
    *,
    op: str,
    rounds: int,
    batch: int,
    order: str = "sequential",
    span: int | None = None,
    start: int = 0,
) -> list[float]: ...
def bench_codec(pages: bytes, *, codec: str, op: str, rounds: int, batch: int) -> list[float]: ...
def bench_block(path: str, pages: bytes, *, op: str, rounds: int, batch: int) -> list[float]: ...

class ExitRig:
    """Set-up of the exit bench: KVM, a guest's memory holding ``pages``, a calibrated clock.

    Without KVM it can be made all the same: ``no_kvm`` says why there is none, and kind ``bare`` runs.
    """

    def __init__(self, pages: bytes) -> None: ...
    def no_kvm(self) -> str | None: ...
    def cpus(self) -> tuple[int, int | None]:
        """CPU of the vCPU's thread and of the thread that serves."""

    def calibration(self) -> dict[str, Any]:
        """``hz``; ``drift_ppm``, ``read_ns``, ``loop_ns`` (samples); ``skew_ns`` (least, most); ``invariant``."""

    def set_store(self, store: Store, lz4: int, zstd: int) -> None: ...
    def set_disk(self, path: str, pages: int) -> None: ...
    def turn(self, kind: str, work: str, *, n: int = 0, samples: int, warmup: int, seconds: float) -> dict[str, Any]:
        """``ns``: nanoseconds from one request to the next; ``cpu_ns`` per request; ``backlog`` in pages or None."""

def exit_kinds() -> list[dict[str, Any]]:
    """``name``, ``about``, ``path``, ``bits``, ``loops``, ``served`` of each kind of exit."""

def torn_pages(pages: bytes, *, codec_name: str, seconds: float, seed: int) -> dict[str, int]:
    """``pages``, ``undecodable``, ``overruns`` of compressing a page that changes meanwhile."""

def run_fleet(
    classes: list[tuple[str, int, bool, int, int | None, int]],
    corpus: bytes,
    *,
    store: Store | None = None,
    disk: str | None = None,
    frames: int,
    pages: int,
    zipf: float,
    trace: int,
    channel: Literal["sync", "async"],
    workers: int,
    cpus: int,
    time: float,
    compute: float,
    quantum: float | None = None,
    seed: int,
) -> dict[str, Any]:
    """Runs a fleet of micro-VMs for ``time`` seconds, paging through a new store or to a disk file.

    ``classes``: (name, VMs, persistent, reservation, cap or None, weight), sizes in bytes per VM.  ``compute``: seconds
    of computing between two requests; ``quantum``: seconds after which a vCPU's thread gives way at its exit.
    Back come ``creation``, ``seconds`` (s); ``vm_memory`` (bytes per VM); ``ops`` (pages per VM); ``cpu_ns``;
    ``loops``; ``latency_ns``, ``interval_ns`` (samples); ``verified``, ``stored_pages`` (pages); ``stored_slots``,
    ``stored_compressed`` (bytes); ``classes``: ``name``, ``vms``, ``held`` (bytes per VM, samples),
    ``over_cap_bytes``; ``over_cap``, ``no_room``, ``missed``, ``evicted``, ``bad`` (pages).
    """
