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

#: Everything in a guest's user space comes from this release, and kernels do unless their lock names another one.
RELEASE: Final = "bookworm"

_SUITE = re.compile(r"(?:[a-z]+)(?P<part>-security|-updates|-backports|-proposed-updates)?")
#: A line below Checksums-Sha256: digest, size, name.
_SOURCE_FILE = re.compile(r"^ (?P<sha256>[0-9a-f]{64}) \d+ (?P<name>\S+)$", re.MULTILINE)
_KEYRING = re.compile(r"signed-by\s*[:=]\s*(?P<path>/[^\s\]]*debian[^\s\]]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """One binary package, pinned: exact version, and the SHA-256 of its file. ``release`` is where it comes from."""

    name: str
    version: str
    sha256: str
    release: str = RELEASE


@dataclass(frozen=True)
class SourcePackage:
    """One source package, pinned: ``files`` maps each of its file names (one is NAME.dsc) to its SHA-256."""

    name: str
    version: str
    release: str
    files: dict[str, str]

    @property
    def dsc(self) -> str:
        (name,) = (name for name in self.files if name.endswith(".dsc"))
        return name


class PackageGone(NotFound):
    """The mirror answers, and has no such version any more."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def mirrors(index_targets: str) -> dict[str, str]:
    """URIs of Debian's "main" and "security" archive, out of lines ``URI|RELEASE|COMPONENT|ORIGIN`` about the machine.

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
        found.setdefault("security" if matched["part"] == "-security" else "main", uri)
    missing = [archive for archive in ("main", "security") if archive not in found]
    if missing:
        raise Unavailable(
            f"apt on this machine knows no {' and no '.join(missing)} archive of Debian",
            "guests and QEMU come from Debian's packages: add Debian's main and security archives to apt's sources",
        )
    return found


class PrivateApt:
    """apt with a directory of its own at ``folder``, for one release of Debian, its security suite included.

    Every call raises Unavailable with apt's last words on failure.
    """

    def __init__(self, folder: Path, release: str = RELEASE) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Unavailable("apt-get and dpkg-deb are missing", "guests are built on Debian and its relatives")
        self.folder = folder
        self.release = release
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
        suites = {self.release: archives["main"], f"{self.release}-security": archives["security"]}
        for part in ("lists/partial", "cache/archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        lines = [
            f"{kind} {option} {uri} {suite} main\n" for suite, uri in suites.items() for kind in ("deb", "deb-src")
        ]
        (self.folder / "sources.list").write_text("".join(lines))
        self._run(["apt-get", *self._options, "update"])
        self._updated = True

    def newest(self, name: str) -> Package:
        """The candidate of that name, and its checksum as the signed lists have it."""
        self.update()
        fields = self.show(name)
        return Package(name, fields["Version"], fields["SHA256"], self.release)

    def show(self, name: str) -> dict[str, str]:
        """The newest version's control fields."""
        self.update()
        text = self._run(["apt-cache", *self._options, "show", "--no-all-versions", name])
        return _fields(text.split("\n\n")[0])

    def newest_source(self, name: str) -> SourcePackage:
        """The newest source package of that name, and its files' checksums as the signed lists have them."""
        self.update()
        text = self._run(["apt-cache", *self._options, "showsrc", "--only-source", name])
        best: SourcePackage | None = None
        for stanza in filter(str.strip, text.split("\n\n")):
            files = {found["name"]: found["sha256"] for found in _SOURCE_FILE.finditer(stanza)}
            offered = SourcePackage(name, _fields(stanza)["Version"], self.release, files)
            if best is None or _newer(offered.version, best.version):
                best = offered
        if best is None:
            raise NotFound(f"{self.release} has no source package {name}", "see what the mirror carries")
        return best

    def fetch(self, package: Package, store: Path) -> Path:
        """The package's file in ``store``, downloaded unless it is there; its checksum is always compared."""
        kept = store / f"{package.sha256}.deb"
        if kept.exists() and sha256_of(kept) == package.sha256:
            return kept
        work = self._download(["download"], package, "python -m tmem_host.vm.images lock")
        (file,) = work.glob("*.deb")
        _compare(file, package.sha256, package)
        store.mkdir(parents=True, exist_ok=True)
        file.replace(kept)
        return kept

    def fetch_source(self, package: SourcePackage, store: Path, pin: str) -> Path:
        """The folder in ``store`` with the package's files, downloaded unless it is there; checksums always compared.

        ``pin`` is the command that pins what the mirror has now.
        """
        kept = store / f"{package.name}-{package.files[package.dsc]}"
        if not kept.is_dir():
            work = self._download(["source", "--download-only", "--only-source"], package, pin)
            for name, sha256 in package.files.items():
                _compare(work / name, sha256, package)
            store.mkdir(parents=True, exist_ok=True)
            work.rename(kept)
        for name, sha256 in package.files.items():
            _compare(kept / name, sha256, package)
        return kept

    def _download(self, command: list[str], package: Package | SourcePackage, pin: str) -> Path:
        """The folder into which apt put what it fetched."""
        self.update()
        work = self.folder / "download"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            self._run(["apt-get", *self._options, *command, f"{package.name}={package.version}"], cwd=work)
        except Unavailable as error:
            if not self._offers(package):
                raise PackageGone(
                    f"the mirror has {package.name} {package.version} no more", f"pin what it has now with '{pin}'"
                ) from error
            raise NotFound(
                f"{package.name} {package.version} cannot be had from the mirror: {error.message}", "try again later"
            ) from error
        return work

    def _offers(self, package: Package | SourcePackage) -> bool:
        show = ["show"] if isinstance(package, Package) else ["showsrc", "--only-source"]
        try:
            text = self._run(["apt-cache", *self._options, *show, package.name])
        except Unavailable:
            # It knows no package of that name.
            return False
        return any(_fields(stanza).get("Version") == package.version for stanza in text.split("\n\n"))


class Releases:
    """A PrivateApt for each release that is asked for, below one folder; each reads its package lists once, if ever."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, PrivateApt] = {}

    def __getitem__(self, release: str) -> PrivateApt:
        if release not in self._made:
            self._made[release] = PrivateApt(self._folder / release, release)
        return self._made[release]


def _compare(file: Path, sha256: str, package: Package | SourcePackage) -> None:
    if not file.is_file() or sha256_of(file) != sha256:
        raise NotFound(
            f"{file.name} of {package.name} {package.version} is not the file that was pinned",
            "look why; if the mirror is right, pin what it has now",
        )


def _fields(stanza: str) -> dict[str, str]:
    pairs = (line.split(": ", 1) for line in stanza.splitlines() if not line.startswith(" "))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _newer(one: str, other: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", one, "gt", other], check=False).returncode == 0


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
