# SPDX-License-Identifier: Apache-2.0
"""The box: the Debian tree, the guest's agent and workloads, and a key to log in with, as a disk that Vagrant can take.

It holds no kernel. A machine is started with one of the guests' (:mod:`tmem_host.vm.boxbuild.kernel`), so that another
kernel needs no other box.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import Unavailable, VmFailed
from tmem_host.vm import images
from tmem_host.vm.boxbuild import base, nested, units
from tmem_host.vm.imagebuild import build

#: Raised when the code that builds (not what goes in) changes what comes out.
_BUILDER: Final = 1
#: A machine's disk; sparse, and an ext4 file system grows no larger.
DISK_GIB: Final = 2
LABEL: Final = "tmem-box"
_AGENT_FOLDER: Final = "usr/lib/python3/dist-packages/tmem_guest"


@dataclass(frozen=True)
class Box:
    """A built box: ``file`` for Vagrant, ``name`` to call it by, the private ``key`` of its user vagrant."""

    name: str
    file: Path
    key: Path


def box_key(folder: Path, series: str | None) -> str:
    """Changes with the Debian tree and with every file that is laid over it. ``series``: as for :func:`build_box`."""
    origin = images.sources()
    more = nested.packages() if series else ()
    digest = hashlib.sha256(f"{_BUILDER} {DISK_GIB} {base.base_key(folder, more)} {' '.join(build.HOG_FLAGS)}".encode())
    files = sorted(path for path in (folder / "files").rglob("*") if path.is_file())
    if series:
        digest.update(images.guest_image(series).key.encode())
        files += nested.files()
    for path in [*files, units.unit("tmem-guest"), *origin.files()]:
        content = path.read_bytes()
        digest.update(f"\0{path.name} {path.stat().st_mode & 0o111}\0{len(content)}\0".encode() + content)
    digest.update(_public_key().encode())
    return digest.hexdigest()[:16]


def build_box(series: str | None = None) -> Box:
    """Builds what is missing. An interrupted build leaves nothing under the box's name.

    With ``series`` it is one for a nested host, which runs the agent, and guests with that kernel.
    """
    if series:
        nested.check()
    with _lock():
        _make_key()
        folder = base.box_folder()
        key = box_key(folder, series)
        done = cache_dir() / "boxes" / f"box-{key}"
        built = Box(f"tmem/debian-{key}", done / "tmem.box", _private_key())
        if built.file.is_file():
            return built
        tree = base.base_tree(nested.packages() if series else ())
        with tempfile.TemporaryDirectory(prefix=".building-", dir=done.parent) as name:
            work = Path(name)
            _lay_over(folder, work / "over")
            if series:
                nested.lay_over(series, work / "over")
            _disk(tree, work / "over", work / "disk")
            made = work / "made"
            made.mkdir()
            _pack(work / "disk", made / "tmem.box")
            made.rename(done)
        return built


def _lay_over(folder: Path, over: Path) -> None:
    """What comes on top of the Debian tree, all of it to be root's but the key of the user vagrant."""
    origin = images.sources()
    shutil.copytree(folder / "files", over)
    (over / "etc" / "sudoers.d" / "vagrant").chmod(0o440)
    (over / units.FOLDER).mkdir(parents=True, exist_ok=True)
    shutil.copy2(units.unit("tmem-guest"), over / units.FOLDER)
    # Links to modules that host and guest share are followed.
    shutil.copytree(origin.agent, over / _AGENT_FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
    programs = over / "usr" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    build.compile_hog(origin.hog, programs / "hog")
    build.compile_work(origin.work, programs / "work")
    (over / "authorized_keys").write_text(_public_key())


#: Run as root, or by fakeroot, so that the files belong to whom they should.
_ASSEMBLE: Final = """\
set -eu
base=$1 over=$2 root=$3 image=$4 label=$5 size=$6
mkdir "$root"
tar --extract --file "$base" --directory "$root" --numeric-owner --preserve-permissions
install -D -m 600 "$over/authorized_keys" "$root/home/vagrant/.ssh/authorized_keys"
chown --reference "$root/home/vagrant" "$root/home/vagrant/.ssh" "$root/home/vagrant/.ssh/authorized_keys"
rm "$over/authorized_keys"
chown -R 0:0 "$over"
cp -a "$over/." "$root/"
for unit in "$over"/etc/systemd/system/*.service; do
    target=$(sed -n 's/^WantedBy=//p' "$unit")
    mkdir -p "$root/etc/systemd/system/$target.wants"
    ln -sf "../${unit##*/}" "$root/etc/systemd/system/$target.wants/${unit##*/}"
done
mke2fs -q -t ext4 -m 0 -E lazy_itable_init=1,lazy_journal_init=1 -L "$label" -d "$root" "$image" "$size"
rm -rf "$root"
"""


def _disk(tree: Path, over: Path, image: Path) -> None:
    for tool, package in (("mke2fs", "e2fsprogs"), ("qemu-img", "qemu-utils")):
        build.find_tool(tool, package)
    argv = ["sh", "-c", _ASSEMBLE, "sh", str(tree), str(over), str(image.with_suffix(".tree")), str(image)]
    argv += [LABEL, f"{DISK_GIB}G"]
    if os.geteuid() != 0:
        argv = [build.find_tool("fakeroot", "fakeroot"), "--", *argv]
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    if done.returncode != 0:
        raise VmFailed(f"the box's disk cannot be made: {done.stderr.strip()[-200:]}", "is there room in the cache?")


def _pack(disk: Path, target: Path) -> None:
    """Vagrant's format for libvirt: an archive of a qcow2 file and a word about it."""
    work = target.parent
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(work / "box.img")], check=True)
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GIB}
    (work / "metadata.json").write_text(json.dumps(metadata))
    with gzip.open(target, "wb", compresslevel=1) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("metadata.json", "box.img"):
            archive.add(work / name, name)
    for name in ("metadata.json", "box.img"):
        (work / name).unlink()


def _private_key() -> Path:
    return cache_dir() / "boxes" / "key"


def _public_key() -> str:
    return _private_key().with_suffix(".pub").read_text()


def _make_key() -> None:
    """One pair for all boxes of this cache: no box holds a key that anybody else has, too."""
    key = _private_key()
    if key.is_file() and key.with_suffix(".pub").is_file():
        return
    if shutil.which("ssh-keygen") is None:
        raise Unavailable("ssh-keygen is missing", "install openssh-client, or run 'scripts/install-deps vagrant'")
    key.unlink(missing_ok=True)
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tmem-box", "-f", str(key)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


@contextmanager
def _lock() -> Iterator[None]:
    """One build at a time in this cache."""
    folder = cache_dir() / "boxes"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
