# SPDX-License-Identifier: Apache-2.0
"""The devices that carry tmem requests, driven by a guest of one process (``guest/kick.c``) under a stock kernel."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tmem_host.vm import process, qemu
from tmem_host.vm.imagebuild.cpio import Archive
from tmem_host.vm.images import KernelImage, guest_image
from tmem_host.vm.qemubuild import build, recipe
from tmem_host.vm.spec import InlineTmem, Tmem, VhostUserTmem, VmSpec

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
ABI = ROOT / "guest" / "abi" / "tmem_abi.h"
LIMIT = 256 << 20
DEADLINE = 180.0

_SERVER = """
import sys, time
from tmem_host.core import Engine, Store, TmemServer
store = Store(sys.argv[1], limit_bytes=256 << 20)
if not store.vms():
    store.vm_create("guest")
server = TmemServer(Engine(store, "guest"), sys.argv[2], queues=2)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def kick(tmp_path_factory: pytest.TempPathFactory) -> KernelImage:
    """A stock kernel whose init is kick.c."""
    folder = tmp_path_factory.mktemp("kick")
    program = folder / "init"
    source = ROOT / "tests" / "patches" / "guest" / "kick.c"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-I", str(ABI.parent)]
    subprocess.run(["cc", *flags, str(source), "-o", str(program)], check=True)
    archive = Archive()
    for name in ("dev", "proc", "sys"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("init", program.read_bytes(), executable=True)
    (folder / "initramfs").write_bytes(archive.finish())
    stock = guest_image("6.1")
    return KernelImage(stock.series, stock.version, stock.vmlinuz, folder / "initramfs", None)


def start(kernel: KernelImage, device: Tmem, folder: Path, arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    # no_timer_check: under TCG on a busy host the kernel's test of its timer fails now and then
    spec = VmSpec("guest", kernel, 256, 2, tmem=(device,), append=f"no_timer_check {arguments}")
    program = str(build.patched_qemu())
    version, _text = process.qemu_version(program)
    console = folder / "console"
    argv = [program, *qemu.argv(spec, qemu.Runtime(folder, console), version, "tcg")[1:]]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(argv, stderr=log, preexec_fn=process.die_with_parent()), console


def ended(vm: subprocess.Popen[bytes], console: Path) -> str:
    """What the guest said, which ends well or fails the test."""
    try:
        status = vm.wait(DEADLINE)
    finally:
        vm.kill()
    said = console.read_text(errors="replace") if console.exists() else ""
    log = (console.parent / "log").read_text()
    assert status == 0, log
    assert "tmem: end" in said, said[-2000:] + log
    return said


@pytest.mark.parametrize("arm", ["inline", "pio", "bql", "ioeventfd"])
def test_inline_pages(arm: str, kick: KernelImage, tmp_path: Path) -> None:
    doorbell = "pio" if arm == "pio" else "mmio"
    device = InlineTmem(tmp_path / "arena", LIMIT, doorbell=doorbell, bql=arm == "bql", ioeventfd=arm == "ioeventfd")  # type: ignore[arg-type]
    said = ended(*start(kick, device, tmp_path, "threads=2 rounds=500"))
    assert f"tmem: doorbell {doorbell} inline {int(arm != 'ioeventfd')}" in said
    assert "tmem: failed 0 again 0" in said
    assert len(re.findall(r"p50", said)) == 6


@pytest.mark.parametrize("doorbell", ["mmio", "pio"])
def test_resets_while_another_vcpu_kicks(doorbell: str, kick: KernelImage, tmp_path: Path) -> None:
    device = InlineTmem(tmp_path / "arena", LIMIT, doorbell=doorbell)  # type: ignore[arg-type]
    said = ended(*start(kick, device, tmp_path, "what=reset threads=2 rounds=300"))
    assert re.search(r"tmem: resets 300 kicks \d{2,}", said)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Servers of ``tmp_path/sock``; the last is the present one."""
    servers: list[subprocess.Popen[bytes]] = []
    yield servers
    for server in servers:
        server.kill()
        server.wait()


def serve(servers: list[subprocess.Popen[bytes]], folder: Path) -> None:
    socket = folder / "sock"
    socket.unlink(missing_ok=True)
    argv = [sys.executable, "-c", _SERVER, str(folder / "arena"), str(socket)]
    servers.append(subprocess.Popen(argv, preexec_fn=process.die_with_parent()))
    wait_for(socket.is_socket, "the backend listens")


def wait_for(condition: object, what: str) -> None:
    end = time.monotonic() + DEADLINE
    assert callable(condition)
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_backend_is_killed_under_requests(
    kick: KernelImage, tmp_path: Path, backend: list[subprocess.Popen[bytes]]
) -> None:
    serve(backend, tmp_path)
    device = VhostUserTmem(tmp_path / "sock")
    vm, console = start(kick, device, tmp_path, "threads=2 rounds=8000 patience=100")
    try:
        wait_for(lambda: console.exists() and "tmem: doorbell" in console.read_text(errors="replace"), "the guest runs")
        for _ in range(3):
            time.sleep(0.3)
            backend[-1].send_signal(signal.SIGKILL)
            backend[-1].wait()
            serve(backend, tmp_path)
    except BaseException:
        vm.kill()
        raise
    said = ended(vm, console)
    found = re.search(r"tmem: failed (\d+) again (\d+)", said)
    assert found is not None
    assert found[1] == "0", said


def test_the_series_has_the_abi_of_the_guest() -> None:
    def macros(text: str) -> dict[str, str]:
        plain = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        found = re.findall(r"^#define\s+((?:VIRTIO_ID_)?(?:VIRTIO_)?TMEM_?\w*)\s+(\S.*?)\s*$", plain, re.MULTILINE)
        return {name: re.sub(r"\s+", " ", value) for name, value in found}

    def structures(text: str) -> dict[str, str]:
        plain = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        plain = re.sub(r"\b(?:__le|uint)(\d\d)(?:_t)?\b", r"u\1", plain)
        return {name: " ".join(body.split()) for name, body in re.findall(r"struct (\w+) \{(.*?)\};", plain, re.DOTALL)}

    guest = ABI.read_text()
    patches = [path.read_text() for path in recipe.read().patches]
    added = "\n".join(
        line[1:]
        for text in patches
        for part in text.split("diff --git ")
        if part.startswith("a/include/hw/virtio/tmem-abi.h ")
        for line in part.splitlines()
        if line.startswith("+") and not line.startswith("+++")
    )
    ours, theirs = macros(guest), macros(added)
    assert len(theirs) > 50
    assert theirs == {name: ours.get(name) for name in theirs}
    kept, all_of = structures(added), structures(guest)
    assert set(kept) == {"tmem_request", "tmem_item", "tmem_reply", "virtio_tmem_config"}
    assert kept == {name: all_of[name] for name in kept}
