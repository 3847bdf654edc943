# SPDX-License-Identifier: Apache-2.0
"""Pins of packages that the mirror has dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmem_host.errors import NotFound, Unavailable
from tmem_host.vm import images
from tmem_host.vm.imagebuild import apt, lockfile, pins

LIBC = (apt.Package("libc6", "2.36", "00"),)
OLD = lockfile.Lock({"6.1": apt.Package("linux-image-x", "6.1.1", "aa")}, LIBC)
NEW = lockfile.Lock({"6.1": apt.Package("linux-image-x", "6.1.2", "bb")}, LIBC)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's pins, over an empty cache."""
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    lockfile.write(tmp_path / "packages.toml", OLD)
    return tmp_path / "packages.toml"


def builds(lock: Path, mirror: set[str]) -> str:
    """A build that takes the kernel of the pins from a mirror with these versions."""
    version = lockfile.read(lock).kernels["6.1"].version
    if version not in mirror:
        raise apt.PackageGone(f"the mirror has {version} no more", "")
    return version


def renew(path: Path) -> None:
    lockfile.write(path, NEW)


def test_what_is_pinned_is_taken_while_it_is_there(lock: Path) -> None:
    assert pins.renewing(lock, renew, lambda: builds(lock, {"6.1.1", "6.1.2"})) == "6.1.1"
    assert pins.pinned(lock) == lock


def test_what_the_mirror_has_now_takes_its_place_for_good(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pins.renewing(lock, renew, lambda: builds(lock, {"6.1.2"})) == "6.1.2"
    assert "6.1.1 no more; taking what the mirror has now" in capsys.readouterr().err
    # Also for a build that finds the old version in a cache: everything is of one set.
    assert pins.renewing(lock, renew, lambda: builds(lock, {"6.1.1", "6.1.2"})) == "6.1.2"
    assert lockfile.read(lock) == NEW
    assert "6.1.1" in lock.read_text()


def test_pins_that_the_repository_renews_are_tried_first(lock: Path) -> None:
    pins.renewing(lock, renew, lambda: builds(lock, {"6.1.2"}))
    lockfile.write(lock, lockfile.Lock({"6.1": apt.Package("linux-image-x", "6.1.3", "cc")}, LIBC))
    assert pins.renewing(lock, renew, lambda: builds(lock, {"6.1.2", "6.1.3"})) == "6.1.3"


def test_a_mirror_that_has_neither_is_an_error(lock: Path) -> None:
    with pytest.raises(apt.PackageGone, match=r"6\.1\.2 no more"):
        pins.renewing(lock, renew, lambda: builds(lock, set()))

    def unreachable(path: Path) -> None:
        path.write_text("half")
        raise Unavailable("no mirror", "")

    lockfile.write(lock, lockfile.Lock({"6.1": apt.Package("linux-image-x", "6.1.4", "dd")}, LIBC))
    with pytest.raises(Unavailable):
        pins.renewing(lock, unreachable, lambda: builds(lock, set()))
    assert pins.pinned(lock) == lock


@pytest.mark.slow
def test_the_mirror_says_what_is_gone(tmp_path: Path) -> None:
    """Of a package that it has, a version that it has not; and a package that it never had."""
    private = apt.PrivateApt(tmp_path / "apt")
    try:
        private.update()
    except Unavailable as error:
        pytest.skip(f"no mirror: {error.message}")
    for name in ("busybox-static", "linux-image-6.1.0-1-nobodys-amd64"):
        with pytest.raises(apt.PackageGone, match="no more"):
            private.fetch(apt.Package(name, "1:0.0-1", "00"), tmp_path / "store")
    gone = apt.SourcePackage("busybox", "1:0.0-1", apt.RELEASE, {"busybox.dsc": "00"})
    with pytest.raises(apt.PackageGone, match="no more"):
        private.fetch_source(gone, tmp_path / "store", "pin")
    other = apt.Package("busybox-static", private.newest("busybox-static").version, "00")
    with pytest.raises(NotFound, match="not the file that was pinned") as wrong:
        private.fetch(other, tmp_path / "store")
    assert not isinstance(wrong.value, apt.PackageGone)


def test_the_repositorys_own_pins_are_read(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMEM_GUEST_SOURCES", raising=False)
    assert set(lockfile.read(images.sources().lock).kernels) == set(images.SERIES)
