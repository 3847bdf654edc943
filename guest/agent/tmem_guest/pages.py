# SPDX-License-Identifier: Apache-2.0
"""Samples the guest's own memory: a corpus of real pages.

/dev/mem is closed for RAM (STRICT_DEVMEM), but /proc/kcore reads all of it, and /proc/kpageflags says what each page
frame holds, so pages that a kernel would swap (anonymous ones) can be told from page cache and from the kernel's own.
"""

import base64
import os
import struct
from collections.abc import Callable

from . import procs
from .protocol import FAILED, INVALID, OpError, Request

PAGE = 4096
Emit = Callable[[dict[str, object]], None]
CHUNK_PAGES = 64
# include/uapi/linux/kernel-page-flags.h
_SLAB, _BUDDY, _MMAP, _ANON, _NOPAGE, _PGTABLE, _RESERVED = 7, 10, 11, 12, 20, 26, 32
_FREE = 1 << _BUDDY | 1 << _NOPAGE | 1 << _RESERVED
KINDS = {
    "anon": (1 << _ANON, 0),
    "file": (1 << _MMAP, 1 << _ANON),
    "kernel": (1 << _SLAB, 0),
    "all": (0, 0),
}


def ram_segments(image: bytes) -> list[tuple[int, int, int]]:
    """(first byte in RAM, length, offset in kcore) of each segment of /proc/kcore that maps RAM.

    `image` is the head of the file; segments without a physical address (vmalloc, modules, text) are left out.
    """
    if image[:4] != b"\x7fELF":
        raise OpError(FAILED, "/proc/kcore is not an ELF file")
    offset, size, count = (struct.unpack_from(form, image, at)[0] for form, at in (("<Q", 32), ("<H", 54), ("<H", 56)))
    segments = []
    for i in range(count):
        kind, _flags, start, _virtual, physical, length = struct.unpack_from("<IIQQQQ", image, offset + i * size)
        # elf.h: PT_LOAD is 1; kcore writes -1 where there is no physical address, 0 is the first RAM or the text
        if kind == 1 and physical < 1 << 52 and length:
            segments.append((physical, length, start))
    return segments


def _frames(kind: str) -> list[int]:
    """Numbers of the page frames of that kind."""
    wanted, unwanted = KINDS[kind]
    unwanted |= _FREE
    frames = []
    with open("/proc/kpageflags", "rb") as stream:
        first = 0
        while data := stream.read(8 * 8192):
            for i, flags in enumerate(struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])):
                if flags & wanted == wanted and not flags & unwanted:
                    frames.append(first + i)
            first += len(data) // 8
    return frames


def _workload() -> None:
    """Fills a heap as programs do: text, parsed trees, dictionaries, numbers, records."""
    import json
    import marshal

    root = os.path.dirname(os.__file__)
    kept: list[object] = []
    for name in sorted(os.listdir(root)):
        if name.endswith(".pyc"):
            with open(f"{root}/{name}", "rb") as stream:
                data = stream.read()
            kept.append(marshal.loads(data[16:]))
            words = data.decode("latin-1").split("\0")
            kept.append({word: len(word) for word in words if word.isprintable()})
    records = [
        {"id": i, "name": f"item-{i}", "price": i * 37 % 1000 / 8, "tags": ["a", "b", str(i % 97)]} for i in range(4000)
    ]
    text = json.dumps(records)
    kept.append((text, text.encode(), json.loads(text)))
    globals()["_kept"] = kept


def sample_pages(request: Request, emit: Emit) -> dict[str, object]:
    """{count, kind="anon", seed=1, workload=true}: events `pages` {base64}, then {count, kind, available, zero}.

    With `workload` a child first fills its heap with real data, which is sampled with the rest and then ended.
    """
    count = request.number("count", 1024, 1, 65536)
    kind = request.text("kind", "anon")
    if kind not in KINDS:
        raise OpError(INVALID, f"kind must be one of {sorted(KINDS)}")
    end = procs.spawn_child(_workload)[1] if request.flag("workload", True) else None
    try:
        return _sample(request.number("seed", 1), count, kind, emit)
    finally:
        if end:
            end()


def _sample(seed: int, count: int, kind: str, emit: Emit) -> dict[str, object]:
    frames = _frames(kind)
    available = len(frames)
    # Fisher-Yates with a small generator: the random module would cost more memory than the rest of the agent
    state = seed * 2654435761 + 1
    for i in range(min(count, available)):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        j = i + (state >> 20) % (available - i)
        frames[i], frames[j] = frames[j], frames[i]
    taken = zero = 0
    batch: list[bytes] = []
    fd = os.open("/proc/kcore", os.O_RDONLY | os.O_CLOEXEC)
    try:
        segments = ram_segments(os.pread(fd, 65536, 0))
        for frame in frames:
            if taken == count:
                break
            page = _read_frame(fd, segments, frame * PAGE)
            if page is None:
                continue
            taken += 1
            zero += not page.strip(b"\0")
            batch.append(page)
            if len(batch) == CHUNK_PAGES or taken == count:
                emit({"event": "pages", "data": base64.b64encode(b"".join(batch)).decode()})
                batch = []
        if batch:
            emit({"event": "pages", "data": base64.b64encode(b"".join(batch)).decode()})
    finally:
        os.close(fd)
    if not taken:
        raise OpError(FAILED, f"no page of kind {kind} could be read from /proc/kcore")
    return {"count": taken, "kind": kind, "available": available, "zero": zero}


def _read_frame(fd: int, segments: list[tuple[int, int, int]], physical: int) -> bytes | None:
    for start, length, offset in segments:
        if start <= physical and physical + PAGE <= start + length:
            try:
                page = os.pread(fd, PAGE, offset + physical - start)
            except OSError:
                return None
            return page if len(page) == PAGE else None
    return None
