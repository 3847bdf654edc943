# SPDX-License-Identifier: Apache-2.0
"""Frames between host and guest agent, apart from any I/O.

One frame is one line of JSON, at most MAX_FRAME bytes with its newline. A request is ``{"id": int, "op": str, ...}``;
the answers to it carry the same id: any number of ``{"id", "event": str, ...}``, then one ``{"id", "ok": bool, ...}``.
Whatever is not a request becomes a Refusal, never an exception: the next frame is read as if nothing had happened.
"""

import json

MAX_FRAME = 256 * 1024

# kinds of refusal and failure, the `kind` of an answer whose ok is false
INVALID, NOT_FOUND, BUSY, FAILED = "invalid", "not-found", "busy", "failed"


class OpError(Exception):
    """An operation that cannot be done; `kind` is one of the kinds above, the text is one line."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Request:
    """A well-formed request; its arguments are read, and refused, through the typed getters."""

    __slots__ = ("args", "id", "op")

    def __init__(self, request_id: int, op: str, args: dict[str, object]) -> None:
        self.id = request_id
        self.op = op
        self.args = args

    def text(self, name: str, default: str | None = None) -> str:
        value = self.args.get(name, default)
        if not isinstance(value, str):
            raise OpError(INVALID, f"{name} must be a string")
        return value

    def number(self, name: str, default: int | None = None, low: int = 0, high: int = 1 << 62) -> int:
        value = self.args.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise OpError(INVALID, f"{name} must be a whole number from {low} to {high}")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self.args.get(name, default)
        if not isinstance(value, bool):
            raise OpError(INVALID, f"{name} must be true or false")
        return value

    def has(self, name: str) -> bool:
        return self.args.get(name) is not None


class Refusal:
    """A frame that is no request; `id` is its id where one could be read."""

    __slots__ = ("id", "reason")

    def __init__(self, request_id: int | None, reason: str) -> None:
        self.id = request_id
        self.reason = reason


def parse(line: bytes) -> Request | Refusal:
    """Reads one frame without its newline."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return Refusal(None, "not JSON")
    if not isinstance(value, dict):
        return Refusal(None, "not an object")
    request_id = value.pop("id", None)
    if not isinstance(request_id, int) or isinstance(request_id, bool) or request_id < 0:
        return Refusal(None, "id must be a whole number from 0")
    op = value.pop("op", None)
    if not isinstance(op, str):
        return Refusal(request_id, "op must be a string")
    return Request(request_id, op, value)


class FrameReader:
    """Cuts a byte stream into frames. Holds at most MAX_FRAME bytes, whatever arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[Request | Refusal]:
        frames: list[Request | Refusal] = []
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if self._skipping:
                self._skipping = False
            elif end >= MAX_FRAME:
                frames.append(Refusal(None, f"frame longer than {MAX_FRAME} bytes"))
            elif line.strip():
                frames.append(parse(line))
        if len(self._buffer) >= MAX_FRAME:
            if not self._skipping:
                frames.append(Refusal(None, f"frame longer than {MAX_FRAME} bytes"))
            self._skipping = True
            self._buffer.clear()
        return frames


def encode(frame: dict[str, object]) -> bytes:
    return json.dumps(frame, separators=(",", ":")).encode() + b"\n"


def encode_event(request_id: int, event: str, line: bytes) -> bytes:
    """An event whose ``data`` is a line of JSON made by another program, passed on unread."""
    return b'{"id":%d,"event":"%s","data":%s}\n' % (request_id, event.encode(), line)
