# SPDX-License-Identifier: Apache-2.0
"""What runs before anything is installed: the apt source of another suite, and the list of packages."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

DEB822 = """\
# made by an installer
Types: deb
URIs: mirror+file:/etc/apt/mirrors.list
Suites: bookworm bookworm-updates
# a comment in between
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: https://mirror.example/security
Suites: bookworm-security
Components: main
"""
DISABLED = "Types: deb\nEnabled: no\nURIs: https://off.example/\nSuites: bookworm\nComponents: main\n"


@pytest.fixture(scope="module")
def apt_suite() -> ModuleType:
    spec = importlib.util.spec_from_file_location("apt_suite", SCRIPTS / "apt_suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    return tmp_path


def derive(
    module: ModuleType, etc: Path, capsys: pytest.CaptureFixture[str], suite: str = "-backports"
) -> tuple[int, str]:
    arguments = ["--etc-apt", str(etc), "--os-release", str(etc / "os-release"), "--", suite]
    code: int = module.main(arguments)
    said = capsys.readouterr()
    return code, said.out or said.err


def test_deb822(apt_suite: ModuleType, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "sources.list.d" / "a.sources").write_text(DISABLED)
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822)
    code, text = derive(apt_suite, etc, capsys)
    assert code == 0
    assert text == (
        "Types: deb\nUris: mirror+file:/etc/apt/mirrors.list\nSuites: bookworm-backports\nComponents: main contrib\n"
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )


def test_one_line(apt_suite: ModuleType, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "sources.list").write_text(
        "# deb http://commented.example/ bookworm main\n"
        "deb-src http://mirror.example/d bookworm main\n"
        "deb [signed-by=/k.gpg arch=amd64] http://mirror.example/d bookworm main contrib # why\n"
    )
    assert derive(apt_suite, etc, capsys) == (
        0,
        "deb [signed-by=/k.gpg arch=amd64] http://mirror.example/d bookworm-backports main contrib\n",
    )
    assert derive(apt_suite, etc, capsys, "trixie")[1].split()[4] == "trixie"


def test_nothing_to_derive_from(apt_suite: ModuleType, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "sources.list.d" / "other.list").write_text("deb http://mirror.example/other stable main\n")
    code, said = derive(apt_suite, etc, capsys)
    assert (code, said.count("\n")) == (1, 1)
    assert "bookworm-backports" in said


def test_the_packages_can_be_listed_without_rights() -> None:
    listed = subprocess.run([SCRIPTS / "install-deps", "--list"], capture_output=True, text=True, check=True)
    assert {"qemu-system-x86", "mmdebstrap", "python3-venv"} <= set(listed.stdout.split())
    assert not {"vagrant", "libvirt-dev"} & set(listed.stdout.split())
    listed = subprocess.run([SCRIPTS / "install-deps", "vagrant", "--list"], capture_output=True, text=True, check=True)
    assert {"qemu-system-x86", "vagrant", "libvirt-dev"} <= set(listed.stdout.split())
    wrong = subprocess.run([SCRIPTS / "install-deps", "--nonsense"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1


def test_missing_tools_are_one_line() -> None:
    for arguments in (("python3", "/no/cargo"), ("/no/python", "cargo")):
        done = subprocess.run([SCRIPTS / "check-toolchain", *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith("tmem: ")
