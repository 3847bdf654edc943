# SPDX-License-Identifier: Apache-2.0
"""``guest/abi/tmem_abi.h``, the vectors in ``tests/data/abi``, and Python's and the compiler's view of both."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tmem_guest import abi as guest_abi
from tmem_guest import frames as guest_frames
from tmem_host.channel import abi, frames
from tmem_host.channel.abi import Header, Key, Op, Refusal, Reply, Request, Shape, Status, parse
from tmem_host.channel.frames import BadFrame, FrameReader

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "abi"
HEADER = ROOT / "guest" / "abi" / "tmem_abi.h"

#: What Python has under another name than the header, and what it does not need.
_RENAMED = {
    "TMEM_ABI_VERSION": "VERSION",
    "TMEM_REQUEST_FLAGS": "REQUEST_LIST",
    "TMEM_POOL_ORDER_MASK": None,
    "TMEM_POOL_CODEC_MASK": None,
    "VIRTIO_ID_TMEM": None,
    "VIRTIO_TMEM_F_MQ": None,
    "VIRTIO_TMEM_F_INLINE": None,
}


@cache
def load(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())


def slug(member: Op | Status | frames.Kind) -> str:
    return member.name.lower().replace("_", "-")


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``speaker.c`` and every constant of the header, compiled."""
    folder = tmp_path_factory.mktemp("abi")
    lines = "\n".join(f'\tprintf("{name} %llu\\n", (unsigned long long)({name}));' for name in defined())
    constants = f'#include <stdio.h>\n#include "tmem_abi.h"\nint main(void)\n{{\n{lines}\n\treturn 0;\n}}\n'
    (folder / "constants.c").write_text(constants)
    for source in (DATA / "speaker.c", folder / "constants.c"):
        compile_c(source, "-o", str(folder / source.stem))
    return folder


def compile_c(source: Path, *more: str, compiler: str = "cc") -> None:
    argv = [compiler, "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}", str(source), *more]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: str, stdin: str = "") -> list[str]:
    return subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def defined() -> list[str]:
    return re.findall(r"^#define[ \t]+((?:TMEM|VIRTIO)_\w+)[ \t]+\S", HEADER.read_text(), re.MULTILINE)


def test_constants_of_the_compiler(speaker: Path) -> None:
    found = dict(line.split() for line in run(speaker / "constants"))
    assert {name: int(value) for name, value in found.items()} == load("constants")["constants"]


def test_layout_of_the_compiler(speaker: Path) -> None:
    found = dict(line.split() for line in run(speaker / "speaker"))
    assert {name: int(value) for name, value in found.items()} == load("constants")["layout"]


def test_compiler_encodes_the_vectors(speaker: Path) -> None:
    vectors = load("requests")["vectors"]
    order = ("op", "flags", "pool", "object", "index", "count", "offset", "length", "argument", "cookie")
    lines = [
        " ".join(str(n) for name in order for n in (v["fields"][name] if name == "object" else [v["fields"][name]]))
        for v in vectors
    ]
    assert run(speaker / "speaker", "request", stdin="\n".join(lines)) == [v["hex"][:128] for v in vectors]
    items = [item for v in vectors for item in v["items"]]
    encoded = run(speaker / "speaker", "item", stdin="\n".join(" ".join(map(str, item)) for item in items))
    assert "".join(encoded) == "".join(v["hex"][128:] for v in vectors)
    replies = load("replies")["vectors"]
    fields = [[v["fields"][n] for n in ("status", "cookie", "value")] + v["fields"]["done"] for v in replies]
    encoded = run(speaker / "speaker", "reply", stdin="\n".join(" ".join(map(str, f)) for f in fields))
    assert encoded == [v["hex"] for v in replies]


@pytest.mark.parametrize("standard", ["gnu89", "c99", "gnu11", "gnu17"])
def test_header_compiles(standard: str) -> None:
    compile_c(HEADER, f"-std={standard}", "-xc", "-fsyntax-only")


def test_header_compiles_as_cpp() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    compile_c(HEADER, "-std=c++17", "-xc++", "-fsyntax-only", compiler="c++")


def test_header_is_within_its_columns() -> None:
    assert [line for line in HEADER.read_text().splitlines() if len(line.expandtabs(8)) > 100] == []


def python_value(name: str) -> int | None:
    """The header's constant as :mod:`tmem_host.channel` has it; None: it has none."""
    if name in _RENAMED:
        renamed = _RENAMED[name]
        return None if renamed is None else int(getattr(abi, renamed))
    plain = name.removeprefix("TMEM_")
    for module in (abi, frames):
        if isinstance(value := getattr(module, plain, None), int):
            return value
    for prefix, members in (("OP_", Op), ("FEATURE_", abi.Feature), ("FRAME_", frames.Kind), ("", Status)):
        if plain.startswith(prefix) and plain.removeprefix(prefix) in members.__members__:
            return int(members[plain.removeprefix(prefix)])
    raise AssertionError(f"{name} is not in Python")


def test_constants_of_python() -> None:
    for name, value in load("constants")["constants"].items():
        assert python_value(name) in (None, value), name


def test_guest_agent_has_the_same_files() -> None:
    for ours, theirs in ((abi, guest_abi), (frames, guest_frames)):
        assert Path(str(ours.__file__)).read_bytes() == Path(str(theirs.__file__)).read_bytes()


def means(request: Request) -> dict[str, Any]:
    """A request in the vectors' words."""
    header, new = request.header, request.new_pool
    keys = [*request.keys, *([request.get] if request.get else [])]
    said: dict[str, Any] = {"op": slug(request.op)}
    if keys:
        said["keys"] = [[*key.object, key.index] for key in keys]
    if request.op in (Op.PUT, Op.EXCHANGE):
        said["packed"] = len(request.data) if request.packed else 0
    if request.op in (Op.READ, Op.WRITE):
        said["part"] = [header.offset, header.length]
    if request.op == Op.HELLO:
        said["features"] = header.argument
    if request.op == Op.FLUSH_OBJECT:
        said["object"] = list(header.object)
    if new is not None:
        said["new_pool"] = {
            "persistent": new.persistent,
            "kind": "shared" if new.shared else "attach" if new.attach else "private",
            "uuid": new.uuid.hex(),
            "page_size": new.shape.page_size,
            "codec": new.codec,
            "pages": new.pages,
        }
    return said


@pytest.mark.parametrize("vector", load("requests")["vectors"], ids=lambda v: str(v["name"]))
def test_request(vector: dict[str, Any]) -> None:
    fields = {**vector["fields"], "object": tuple(vector["fields"]["object"])}
    header = Header(**fields)
    message = bytes.fromhex(vector["hex"]) + b"\xa5" * vector["data"]
    assert Header.decode(message) == header
    if all(item[4] == 0 for item in vector["items"]):
        items = tuple(Key((a, b, c), index) for a, b, c, index, _ in vector["items"])
        assert header.encode(items, b"\xa5" * vector["data"]) == message
    pools = {int(number): Shape(**shape) for number, shape in load("requests")["pools"].items()}
    parsed = parse(message, vector["features"], pools.get, vector["room"])
    if isinstance(parsed, Refusal):
        assert slug(parsed.status) == vector.get("status")
        assert parsed.cookie == header.cookie
    else:
        assert means(parsed) == vector.get("means")
        assert all(byte == 0xA5 for byte in parsed.data)


def test_every_status_and_operation_is_in_the_vectors() -> None:
    vectors = load("requests")["vectors"]
    assert {v["means"]["op"] for v in vectors if "means" in v} == {slug(op) for op in Op}
    parsed = {v["status"] for v in vectors if "status" in v}
    assert parsed >= {"bad-op", "bad-flags", "bad-pool", "bad-length", "bad-version", "not-negotiated"}
    assert {v["name"] for v in load("replies")["vectors"]} >= {slug(status) for status in Status}


def test_replies() -> None:
    for vector in load("replies")["vectors"]:
        fields = vector["fields"]
        low, high = fields["done"]
        reply = Reply(Status(fields["status"]), fields["cookie"], fields["value"], low | high << 64)
        raw = bytes.fromhex(vector["hex"])
        assert reply.encode() == raw
        assert Reply.decode(raw) == Reply.decode(raw + b"data") == reply
        assert Reply.decode(raw[:-1]) is None
    for vector in load("replies")["bad"]:
        assert Reply.decode(bytes.fromhex(vector["hex"])) is None, vector["name"]


@pytest.mark.parametrize("piece", [1, 3, 24, 1 << 20])
@pytest.mark.parametrize("vector", load("frames")["vectors"], ids=lambda v: str(v["name"]))
def test_frames(vector: dict[str, Any], piece: int) -> None:
    reader = FrameReader(bytes.fromhex(load("frames")["sync"]) if vector["side"] == "host" else None)
    stream = bytes.fromhex(vector["hex"])
    found, ended = [], False
    for at in range(0, len(stream), piece):
        try:
            for frame in reader.feed(stream[at : at + piece]):
                found.append({"kind": slug(frame.kind), "hex": frame.body.hex()})  # noqa: PERF401, some come before it
        except BadFrame:
            ended = True
    assert found == vector["frames"]
    assert ended == vector["ends"]
