# SPDX-License-Identifier: Apache-2.0
"""How guest images are made and found, without a mirror."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tmem_host.errors import InvalidInput, NotFound, Unavailable
from tmem_host.vm import images
from tmem_host.vm.imagebuild import apt, kernel, lockfile, modules
from tmem_host.vm.imagebuild.cpio import Archive

LOCK = lockfile.Lock({"6.1": apt.Package("linux-image-x", "6.1.1", "aa"), "6.12": apt.Package("y", "6.12", "bb")}, ())


def test_mirrors_are_the_machines_own() -> None:
    targets = (
        "http://m/debian/|bookworm|main|Debian\nhttp://m/debian/|bookworm-updates|main|Debian\n"
        "http://other/|nodistro|main|Other\nhttp://m/sec/|bookworm-security|main|Debian\n"
    )
    assert apt.mirrors(targets) == {"main": "http://m/debian/", "security": "http://m/sec/"}


def test_mirrors_of_another_release_and_before_the_first_update() -> None:
    targets = "http://m/debian/|trixie|main|$(ORIGIN)\nhttp://m/debian-security/|trixie-security|main|$(ORIGIN)\n"
    assert apt.mirrors(targets)["security"] == "http://m/debian-security/"


def test_no_debian_archive() -> None:
    with pytest.raises(Unavailable, match="no security archive"):
        apt.mirrors("http://m/debian/|bookworm|main|Debian\n")


def test_lock_is_read_as_written(tmp_path: Path) -> None:
    lock = lockfile.Lock(LOCK.kernels, (apt.Package("libc6", "2.36", "cc"),))
    lockfile.write(tmp_path / "lock", lock)
    assert lockfile.read(tmp_path / "lock") == lock
    (tmp_path / "lock").write_text("[kernel]\n")
    with pytest.raises(NotFound):
        lockfile.read(tmp_path / "lock")


def module_file(folder: Path, name: str, depends: str, *, xz: bool = False) -> None:
    image = b"\x7fELF....\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    if xz:
        (folder / f"{name}.ko.xz").write_bytes(lzma.compress(image))
    else:
        (folder / f"{name}.ko").write_bytes(image)


def test_modules_in_an_order_in_which_they_load(tmp_path: Path) -> None:
    module_file(tmp_path, "virtio", "virtio_ring")
    module_file(tmp_path, "virtio_ring", "")
    module_file(tmp_path, "virtio-pci", "virtio,virtio_ring", xz=True)
    found = modules.resolve(tmp_path, ["virtio_pci", "built_in", "virtio"])
    assert [module.name for module in found] == ["virtio_ring", "virtio", "virtio_pci"]
    assert found[2].image.startswith(b"\x7fELF")


def test_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = Archive()
    archive.folder("bin")
    archive.file("bin/x", b"hello", executable=True)
    archive.link("bin/y", "x")
    data = archive.finish()
    assert len(data) % 512 == 0
    if shutil.which("cpio") is None:
        pytest.skip("there is no cpio to read it with")
    subprocess.run(["cpio", "-i", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin" / "y").read_bytes() == b"hello"
    assert os.access(tmp_path / "bin" / "x", os.X_OK)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the guest's sources and an empty cache."""
    guest = tmp_path / "guest"
    shutil.copytree(Path(__file__).parents[2] / "guest", guest, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("TMEM_GUEST_SOURCES", str(guest))
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    return guest


def test_key_changes_with_every_source(checkout: Path) -> None:
    origin = images.sources()
    keys = {images.image_key("6.1", origin, LOCK), images.image_key("6.12", origin, LOCK)}
    for path in origin.files():
        path.write_text(path.read_text() + "\n")
        keys.add(images.image_key("6.1", origin, LOCK))
    assert len(keys) == 2 + len(origin.files())
    assert images.image_key("6.1", origin, LOCK) == images.image_key("6.1", origin, LOCK)


def test_missing_image_says_what_to_run(checkout: Path) -> None:
    with pytest.raises(NotFound, match="make guests"):
        images.guest_image("6.1")
    with pytest.raises(InvalidInput):
        images.guest_image("5.0")


def test_half_an_image_is_none(checkout: Path, tmp_path: Path) -> None:
    origin = images.sources()
    folder = tmp_path / "cache" / "guests" / f"6.1-{images.image_key('6.1', origin, lockfile.read(origin.lock))}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"series": "6.1", "version": "6.1.0"}')
    with pytest.raises(NotFound, match="vmlinuz"):
        images.guest_image("6.1")


def test_failed_build_leaves_nothing(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable):
        images.build_image("6.1")
    assert list((tmp_path / "cache" / "guests").iterdir()) == []
    assert images.main(["build", "--kernel", "6.1"]) == Unavailable.exit_code


def test_no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMEM_GUEST_SOURCES", str(tmp_path))
    with pytest.raises(NotFound, match="checkout"):
        images.sources()


def test_kernels_of_our_own_change_with_their_fragments(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "compiler_version", lambda: "gcc 12")
    origin = images.sources()
    lock = lockfile.read(origin.lock)

    def keys() -> list[str]:
        return [images.image_key(name, origin, lock) for name in kernel.FLAVOURS]

    before = keys()
    assert len(set(before)) == len(kernel.FLAVOURS)
    (checkout / "image" / "kernels" / "debug.config").write_text("CONFIG_X=y\n")
    assert [old == new for old, new in zip(before, keys(), strict=True)] == [True, False]
    (checkout / "image" / "kernels" / "minimal.config").write_text("CONFIG_X=y\n")
    assert keys()[0] != before[0]


def test_what_a_kernels_build_leaves(tmp_path: Path) -> None:
    built = tmp_path / "tree" / "build"
    files = {
        "Makefile": "all:",
        "scripts/x": "",
        "include/linux/a.h": "",
        "arch/x86/include/asm/a.h": "",
        "arch/x86/Makefile": "",
        "mm/huge.c": "",
        "build/include/config/kernel.release": "5.10.1-tmem\n",
        "build/arch/x86/boot/bzImage": "kernel",
        "build/arch/x86/include/generated/a.h": "",
        "build/.config": "",
        "build/Makefile": f"include {tmp_path}/tree/Makefile\n",
        "build/Module.symvers": "",
        "build/mm/zsmalloc.ko": "module",
    }
    for name, text in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    kernel._collect(tmp_path / "tree", tmp_path / "made")
    left = {str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert {"boot/vmlinuz-5.10.1-tmem", "lib/modules/5.10.1-tmem/zsmalloc.ko", "source/build/.config"} <= left
    assert {"source/arch/x86/Makefile", "source/build/arch/x86/include/generated/a.h"} <= left
    assert not [name for name in left if name.endswith(".c")]
    assert str(tmp_path) not in (tmp_path / "made" / "source" / "build" / "Makefile").read_text()
    assert not (built / "mm" / "zsmalloc.ko").exists()
