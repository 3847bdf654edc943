# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of the tests' own: real, privileged, and apart from the system's, whose configuration nobody touches.

It runs in a mount and a PID namespace. Its folders (/etc/libvirt, /var/lib/libvirt, ...) are below one of ours, and
whatever it starts (QEMU, dnsmasq) ends with it. Networks are the host's: what the tests define they have to destroy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tmem_host.vm.process import die_with_parent

#: Where libvirt keeps its things, and the folder of ours that stands in for it.
FOLDERS = {
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/log/libvirt": "log",
    "/var/cache/libvirt": "cache",
    "/run/libvirt": "run",
}
#: As root, because /dev/kvm and the agent's sockets are; without a log daemon and control groups, as in a container.
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
"""
LIBVIRTD_CONF = 'auth_unix_rw = "none"\n'
#: Bash is the first process of the namespace, as it reaps what libvirt lets go. A libvirtd that ends is started anew.
SCRIPT = """\
set -eu
while read -r target source; do mkdir -p "$target"; mount --bind "$source" "$target"; done < mounts
while :; do /usr/sbin/libvirtd --pid-file "$PWD/pid" & wait $! || true; rm -f "$PWD/pid"; done
"""
NAMESPACES = ("--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
START_DEADLINE = 30.0


class PrivateLibvirtd:
    """Its URI is for libvirt's clients: ``qemu+unix:///system?socket=...``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "libvirtd.log"
        self.socket = folder / "run" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for name in FOLDERS.values():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
        (self.folder / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        (self.folder / "mounts").write_text("".join(f"{k} {self.folder / v}\n" for k, v in FOLDERS.items()))
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                ["unshare", *NAMESPACES, "bash", "-c", SCRIPT],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
                start_new_session=True,
            )
        self.wait_until_up()

    def virsh(self, *words: str) -> str:
        """What virsh says; the test fails when virsh does."""
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"virsh {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def wait_until_up(self) -> None:
        until = time.monotonic() + START_DEADLINE
        argv = ["virsh", "-q", "-c", self.uri, "uri"]
        while subprocess.run(argv, capture_output=True, check=False).returncode != 0:
            if time.monotonic() > until or self._child is None or self._child.poll() is not None:
                raise RuntimeError(f"libvirtd does not answer: {self.log.read_text()[-500:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to the daemon alone: its domains run on, and it is started again at once."""
        number = (self.folder / "pid").read_text().strip()
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                text = status.read_text()
                if "Name:\tlibvirtd" in text and _in_namespace(text) == number and self._is_ours(status.parent):
                    os.kill(int(status.parent.name), signal.SIGKILL)
                    return
        raise RuntimeError("libvirtd is not running")

    def _is_ours(self, process: Path) -> bool:
        return str(self.folder).encode() in (process / "cmdline").read_bytes()

    def stop(self) -> None:
        """Destroys every domain, network and pool, then ends the daemon and all it started."""
        if self._child is None:
            return
        with contextlib.suppress(pytest.fail.Exception):
            for prefix in ("", "net-", "pool-"):
                for name in self.virsh(f"{prefix}list", "--all", "--name").split():
                    for verb in ("destroy", "undefine"):
                        with contextlib.suppress(pytest.fail.Exception):
                            self.virsh(f"{prefix}{verb}", name)
        self._child.kill()
        self._child.wait()
        self._child = None


def _in_namespace(status: str) -> str:
    """The process id in the innermost namespace, from /proc/PID/status."""
    return next((line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:")), "")


@contextlib.contextmanager
def private_libvirtd(folder: Path) -> Iterator[PrivateLibvirtd]:
    """A running one; skips the test where there is none or no right to start it."""
    if shutil.which("libvirtd", path="/usr/sbin:/usr/bin") is None or shutil.which("virsh") is None:
        pytest.skip("libvirt is not installed (scripts/install-deps vagrant)")
    if os.geteuid() != 0:
        pytest.skip("a libvirtd of the test's own needs root")
    tried = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a libvirtd of the test's own needs namespaces: {tried.stderr.strip()}")
    daemon = PrivateLibvirtd(folder)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
