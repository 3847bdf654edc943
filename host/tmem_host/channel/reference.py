# SPDX-License-Identifier: Apache-2.0
"""The reference implementation: every request of the ABI, in Python, over a dict.

It says what the core (``host/core/engine``) must answer; tests send both the same bytes. It is slow, keeps everything
in this process, and counts memory in its own way (compressed bytes and 24 a page), so only *that* a put is refused for
room can be compared, not when.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import lz4.block
import zstandard

from tmem_host.channel.abi import (
    CODEC_LZ4,
    DATA_MAX,
    FEATURES_ALL,
    POOLS_MAX,
    REPLY_SIZE,
    Key,
    NewPool,
    Op,
    Refusal,
    Reply,
    Request,
    Shape,
    Status,
    parse,
)

_OVERHEAD = 24
#: Codec of a page that is kept as it is.
_PLAIN = 0


@dataclass
class _Vm:
    cap: int | None = None
    reservation: int = 0
    held: int = 0
    frozen: bool = False
    loses: bool = False


@dataclass
class _Pool:
    spec: NewPool
    members: list[str]
    #: Codec and bytes of each page.
    pages: dict[Key, tuple[int, bytes]] = field(default_factory=dict)

    @property
    def promise(self) -> int:
        return self.spec.pages * (self.spec.shape.page_size + _OVERHEAD)


def _unpack(codec: int, data: bytes, size: int) -> bytes | None:
    """The page, or None if the data is not exactly one."""
    try:
        if codec == _PLAIN:
            page = data
        elif codec == CODEC_LZ4:
            page = lz4.block.decompress(data, uncompressed_size=size)
        else:
            with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
                page = reader.read(size + 1)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError):
        return None
    return page if len(page) == size else None


def _pack(page: bytes) -> tuple[int, bytes]:
    packed = lz4.block.compress(page, store_size=False)
    return (CODEC_LZ4, packed) if len(packed) < len(page) else (_PLAIN, page)


class ReferenceHost:
    """A store in this process: VMs, pools, and what an operator may set. ``limit``: bytes."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self._limit = limit
        self._vms: dict[str, _Vm] = {}
        self._pools: dict[int, _Pool] = {}
        self._authorised: set[tuple[bytes, str]] = set()

    def vm_create(self, name: str, *, cap: int | None = None) -> None:
        self._vms[name] = _Vm(cap)

    def set_cap(self, name: str, cap: int | None) -> None:
        self._vms[name].cap = cap

    def freeze(self, name: str, frozen: bool) -> None:
        self._vms[name].frozen = frozen

    def lose(self, name: str, lost: bool) -> None:
        """From now on pages that the VM asks for are answered as lost, and stay where they are; or no longer."""
        self._vms[name].loses = lost

    def authorise(self, name: str, uuid: bytes, allowed: bool) -> None:
        """Lets a VM into the shared pool of a uuid, or keeps it out from now on."""
        (self._authorised.add if allowed else self._authorised.discard)((uuid, name))

    def channel(self, vm: str, features: int = FEATURES_ALL) -> ReferenceChannel:
        """A channel of a VM, on which no HELLO was said."""
        return ReferenceChannel(self, vm, features)

    # What follows is for channels.

    def pool(self, vm: str, number: int) -> _Pool | None:
        found = self._pools.get(number)
        return found if found is not None and vm in found.members else None

    def make(self, vm: str, new: NewPool) -> tuple[Status, int, bool]:
        """Status, the pool's number, and whether it was there."""
        if new.shared and (new.uuid, vm) not in self._authorised:
            return Status.NOT_PERMITTED, 0, False
        for number, pool in self._pools.items():
            ours = pool.spec.shared if new.shared else vm in pool.members and pool.spec.attach
            if any(new.uuid) and pool.spec.uuid == new.uuid and ours:
                if pool.spec != new:
                    return Status.NOT_PERMITTED, 0, False
                if vm not in pool.members:
                    if self._count(vm) >= POOLS_MAX:
                        return Status.NOT_PERMITTED, 0, False
                    pool.members.append(vm)
                return Status.OK, number, True
        if self._count(vm) >= POOLS_MAX:
            return Status.NOT_PERMITTED, 0, False
        made, owner = _Pool(new, [vm]), self._vms[vm]
        if owner.cap is not None and owner.reservation + made.promise > owner.cap:
            return Status.OVER_CAP, 0, False
        if sum(v.reservation for v in self._vms.values()) + made.promise > self._limit:
            return Status.NO_ROOM, 0, False
        owner.reservation += made.promise
        number = min(set(range(len(self._pools) + 1)) - set(self._pools))
        self._pools[number] = made
        return Status.OK, number, False

    def _count(self, vm: str) -> int:
        return sum(vm in pool.members for pool in self._pools.values())

    def destroy(self, vm: str, number: int) -> None:
        pool = self._pools[number]
        pool.members.remove(vm)
        if not pool.members:
            for key in list(pool.pages):
                self.flush(vm, pool, key)
            self._vms[vm].reservation -= pool.promise
            del self._pools[number]

    def flush(self, vm: str, pool: _Pool, key: Key) -> bool:
        page = pool.pages.pop(key, None)
        if page is None:
            return False
        if not pool.spec.shared:
            self._vms[vm].held -= len(page[1]) + _OVERHEAD
        return True

    def put(self, vm: str, pool: _Pool, key: Key, page: tuple[int, bytes]) -> Status:
        """Rule 1: the old page is gone, whatever becomes of the new one."""
        self.flush(vm, pool, key)
        owner, size = self._vms[vm], len(page[1]) + _OVERHEAD
        if owner.frozen:
            return Status.FROZEN
        if _unpack(*page, pool.spec.shape.page_size) is None:
            return Status.BAD_DATA
        if not pool.spec.shared:
            if owner.cap is not None and owner.held + size > owner.cap:
                return Status.OVER_CAP
            if sum(max(v.held, v.reservation) for v in self._vms.values()) + size > self._limit:
                return Status.NO_ROOM
            owner.held += size
        pool.pages[key] = page
        return Status.OK

    def get(self, vm: str, pool: _Pool, key: Key, *, whole: bool = True) -> bytes | None:
        """The page. Rule 4: a get, not a read of a part, removes it from a private ephemeral pool."""
        kept = pool.pages.get(key)
        if kept is None:
            return None
        if whole and not pool.spec.persistent and not pool.spec.shared:
            self.flush(vm, pool, key)
        return _unpack(*kept, pool.spec.shape.page_size)

    def frozen(self, vm: str) -> bool:
        return self._vms[vm].frozen

    def loses(self, vm: str) -> bool:
        return self._vms[vm].loses


class ReferenceChannel:
    """One channel of a VM: the bytes of a request become those of its reply."""

    def __init__(self, host: ReferenceHost, vm: str, features: int) -> None:
        self.features = features
        self._host = host
        self._vm = vm
        self._agreed: int | None = None

    def channel(self) -> ReferenceChannel:
        """Another channel of the same VM."""
        return ReferenceChannel(self._host, self._vm, self.features)

    def reset(self) -> None:
        """As if HELLO had not been said."""
        self._agreed = None

    def request(self, message: bytes, room: int | None = None) -> bytes:
        """The reply to a request, with what it fetches. ``room``: bytes of data that the reply may have."""
        request = parse(message, self._agreed, self._shape, DATA_MAX if room is None else room)
        if isinstance(request, Refusal):
            return request.reply.encode()
        reply = self._act(request)
        assert len(reply) <= REPLY_SIZE + DATA_MAX
        return reply

    def _shape(self, number: int) -> Shape | None:
        pool = self._host.pool(self._vm, number)
        return pool.spec.shape if pool else None

    def _act(self, request: Request) -> bytes:
        cookie, header = request.header.cookie, request.header
        if request.op == Op.HELLO:
            self._agreed = header.argument & self.features
            return Reply(Status.OK, cookie, self._agreed).encode()
        if request.new_pool is not None:
            status, number, there = self._host.make(self._vm, request.new_pool)
            return Reply(status, cookie, number, int(there)).encode()
        pool = self._host.pool(self._vm, header.pool)
        assert pool is not None, "the parser saw it"
        if request.op == Op.DESTROY_POOL:
            self._host.destroy(self._vm, header.pool)
            return Reply(Status.OK, cookie).encode()
        if request.op == Op.FLUSH_OBJECT:
            keys = [key for key in pool.pages if key.object == header.object]
            return Reply(Status.OK, cookie, sum(self._host.flush(self._vm, pool, key) for key in keys)).encode()
        if request.op == Op.FLUSH_PAGE:
            flushed = [self._host.flush(self._vm, pool, key) for key in request.keys]
            done = sum(was << i for i, was in enumerate(flushed))
            return Reply(Status.OK, cookie, sum(flushed), done).encode()
        return self._pages(request, pool)

    def _pages(self, request: Request, pool: _Pool) -> bytes:
        size, key = pool.spec.shape.page_size, request.keys[0]
        if request.op == Op.NEW_PAGE:
            return self._reply(request, [self._put(pool, key, bytes(size))])
        if request.op == Op.PUT:
            if request.packed:
                codec = pool.spec.codec
                return self._reply(request, [self._host.put(self._vm, pool, key, (codec, request.data))])
            pages = (request.data[i * size : (i + 1) * size] for i in range(len(request.keys)))
            return self._reply(request, [self._put(pool, k, p) for k, p in zip(request.keys, pages, strict=True)])
        if request.op == Op.GET:
            return self._fetched(request, (self._get(pool, key) for key in request.keys))
        if request.op == Op.EXCHANGE:
            return self._exchange(request, pool)
        offset, end = request.header.offset, request.header.offset + request.header.length
        if request.op == Op.WRITE and self._host.frozen(self._vm):
            return self._reply(request, [self._put(pool, key, bytes(size))])
        if request.op == Op.READ:
            part = self._get(pool, key, whole=False)
            return self._fetched(request, [part if isinstance(part, Status) else part[offset:end]])
        page = self._host.get(self._vm, pool, key, whole=False)
        if page is None:
            return self._reply(request, [Status.MISS])
        return self._reply(request, [self._put(pool, key, page[:offset] + request.data + page[end:])])

    def _put(self, pool: _Pool, key: Key, page: bytes) -> Status:
        return self._host.put(self._vm, pool, key, _pack(page))

    def _get(self, pool: _Pool, key: Key, *, whole: bool = True) -> bytes | Status:
        """The page, or why not."""
        if self._host.loses(self._vm):
            return Status.LOST
        page = self._host.get(self._vm, pool, key, whole=whole)
        return Status.MISS if page is None else page

    def _exchange(self, request: Request, pool: _Pool) -> bytes:
        assert request.get is not None
        packed = (pool.spec.codec, request.data) if request.packed else _pack(request.data)
        stored = self._host.put(self._vm, pool, request.keys[0], packed)
        if stored != Status.OK:
            return self._reply(request, [stored])
        page = self._get(pool, request.get)
        if isinstance(page, Status):
            return self._reply(request, [stored, page])
        return self._reply(request, [stored, Status.OK], page)

    def _fetched(self, request: Request, parts: Iterable[bytes | Status]) -> bytes:
        """The data ends with the last page that is there; those before that are not are zeroes."""
        found = list(parts)
        statuses = [part if isinstance(part, Status) else Status.OK for part in found]
        pages = [b"" if isinstance(part, Status) else part for part in found]
        size = max((len(page) for page in pages), default=0)
        last = max((i + 1 for i, page in enumerate(pages) if page), default=0)
        return self._reply(request, statuses, b"".join(page or bytes(size) for page in pages[:last]))

    @staticmethod
    def _reply(request: Request, statuses: list[Status], data: bytes = b"") -> bytes:
        done = sum((status == Status.OK) << i for i, status in enumerate(statuses))
        first = next((status for status in statuses if status != Status.OK), Status.OK)
        return Reply(first, request.header.cookie, done.bit_count(), done).encode(data)
