# SPDX-License-Identifier: Apache-2.0
"""Packages of a chosen Debian release, fetched through a private apt directory.

The mirror, its keyring, proxies and credentials are the ones that the machine's apt is set up with; only the suites are
ours. Nothing is installed, no rights are needed, and the system's own lists are not touched.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.errors import NotFound, Unavailable

#: Everything in the guest comes from this release: its 6.1 kernel, and 6.12 from its security suite.
RELEASE: Final = "bookworm"
SUITES: Final = (RELEASE, f"{RELEASE}-security")

_SUITE = re.compile(r"(?:[a-z]+)(?P<part>-security|-updates|-backports|-proposed-updates)?")
_KEYRING = re.compile(r"signed-by\s*[:=]\s*(?P<path>/[^\s\]]*debian[^\s\]]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """One binary package, pinned: exact version, and the SHA-256 of its file."""

    name: str
    version: str
    sha256: str


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def mirrors(index_targets: str) -> dict[str, str]:
    """Suite -> URI of the archive it is in, derived from lines ``URI|RELEASE|COMPONENT|ORIGIN`` about the machine.

    Any suite of Debian will do to find its archive, so a machine with another release works too.
    """
    found: dict[str, str] = {}
    for line in index_targets.splitlines():
        uri, release, component, origin = line.split("|")
        matched = _SUITE.fullmatch(release)
        # Before the first update the origin is unknown and apt leaves the variable as it is.
        if component != "main" or matched is None or not (origin.startswith("Debian") or "$" in origin):
            continue
        if "$" in origin and "debian" not in uri:
            continue
        found.setdefault(SUITES[1] if matched["part"] == "-security" else SUITES[0], uri)
    missing = [suite for suite in SUITES if suite not in found]
    if missing:
        raise Unavailable(
            f"apt on this machine knows no Debian archive for {', '.join(missing)}",
            "guest images come from Debian's packages: add Debian's main and security archives to apt's sources",
        )
    return found


class PrivateApt:
    """apt with a directory of its own at ``folder``. Every call raises Unavailable with apt's last words on failure."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Unavailable("apt-get and dpkg-deb are missing", "guest images are built on Debian and its relatives")
        self.folder = folder
        self._options = [
            *("-o", f"Dir::Etc::sourcelist={folder}/sources.list", "-o", "Dir::Etc::sourceparts=-"),
            *("-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"),
            *("-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"),
            # apt's own unprivileged user cannot write into a private folder
            *("-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3"),
        ]
        self._updated = False

    def _run(self, argv: list[str], cwd: Path | None = None) -> str:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            words = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
            raise Unavailable(
                f"{argv[0]} failed: {words[-1] if words else done.returncode}", "is the mirror reachable?"
            )
        return done.stdout

    def update(self) -> None:
        """Reads the package lists, once."""
        if self._updated:
            return
        form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
        archives = mirrors(self._run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]))
        keyring = _keyring()
        option = f"[arch=amd64 signed-by={keyring}]" if keyring else "[arch=amd64]"
        for part in ("lists/partial", "cache/archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        lines = [f"deb {option} {archives[suite]} {suite} main\n" for suite in SUITES]
        (self.folder / "sources.list").write_text("".join(lines))
        self._run(["apt-get", *self._options, "update"])
        self._updated = True

    def newest(self, name: str) -> Package:
        """The candidate of that name, and its checksum as the signed lists have it."""
        self.update()
        fields = self.show(name)
        return Package(name, fields["Version"], fields["SHA256"])

    def show(self, name: str) -> dict[str, str]:
        """The newest version's control fields."""
        self.update()
        text = self._run(["apt-cache", *self._options, "show", "--no-all-versions", name])
        pairs = (line.split(": ", 1) for line in text.split("\n\n")[0].splitlines() if not line.startswith(" "))
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def fetch(self, package: Package, store: Path) -> Path:
        """The package's file in ``store``, downloaded unless it is there; its checksum is always compared."""
        kept = store / f"{package.sha256}.deb"
        if kept.exists() and sha256_of(kept) == package.sha256:
            return kept
        self.update()
        work = self.folder / "download"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            self._run(["apt-get", *self._options, "download", f"{package.name}={package.version}"], cwd=work)
        except Unavailable as error:
            raise NotFound(
                f"{package.name} {package.version} cannot be had from the mirror: {error.message}",
                "if the mirror has moved on, pin its present versions with 'python -m tmem_host.vm.images lock'",
            ) from error
        (file,) = work.glob("*.deb")
        if sha256_of(file) != package.sha256:
            raise NotFound(
                f"{package.name} {package.version} on the mirror is not the file that was pinned",
                "look why; 'python -m tmem_host.vm.images lock' pins what the mirror has now",
            )
        store.mkdir(parents=True, exist_ok=True)
        file.replace(kept)
        return kept


def unpack(package_file: Path, root: Path) -> None:
    """Unpacks a package's tree below ``root``, running none of its scripts."""
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["dpkg-deb", "-x", str(package_file), str(root)], check=True)


def _keyring() -> str:
    """The keyring that the machine's sources name for Debian, or nothing: then apt uses its trusted keys."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in sources:
        if path.is_file() and path.suffix in (".list", ".sources"):
            for line in path.read_text(errors="replace").splitlines():
                matched = None if line.lstrip().startswith("#") else _KEYRING.search(line)
                if matched and Path(matched["path"]).is_file():
                    return matched["path"]
    return ""
