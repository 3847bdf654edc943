# SPDX-License-Identifier: Apache-2.0
"""The Debian 13 tree: where it comes from, how it is kept, how its programs are run."""

from __future__ import annotations

import io
import json
import platform
import shutil
from pathlib import Path

import pytest

from tmem_host.bench import comparators
from tmem_host.bench.comparators_apt import Mirror, parse_deb822, parse_one_line
from tmem_host.errors import Conflict, Unavailable, VmFailed

VERSIONS = dict.fromkeys(comparators.PACKAGES, "1.0-1")
MIRROR = Mirror("http://mirror.example/debian", None)

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="Debian 13 tree for amd64 and arm64"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path))
    return tmp_path / "comparators"


def finished(cache: Path, versions: dict[str, str] = VERSIONS, recipe: str = comparators.RECIPE) -> Path:
    """A tree as `build` leaves it."""
    folder = cache / f"debian13-{comparators._key(versions)}"
    (folder / "tree").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"recipe": recipe, "packages": versions}))
    return folder


def test_deb822_gives_the_whole_archives_and_their_keys() -> None:
    text = """# comment
Types: deb
# a remark inside
URIs: http://one.example/debian https://two.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://one.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""
    key = "/usr/share/keyrings/debian.gpg"
    assert list(parse_deb822(text)) == [
        Mirror("http://one.example/debian", key),
        Mirror("https://two.example/debian", key),
    ]


def test_deb822_with_the_key_written_into_it_falls_back_to_the_trusted_keys() -> None:
    key = "Signed-By:\n -----BEGIN PGP-----\n .\n abc\n"
    text = f"Types: deb\nURIs: http://one.example\nSuites: sid\nComponents: main\n{key}"
    assert list(parse_deb822(text)) == [Mirror("http://one.example", None)]


def test_one_line_sources() -> None:
    text = """
deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian bookworm main # remark
deb http://two.example/debian bookworm-backports main
# deb http://three.example/debian bookworm main
deb-src http://four.example/debian bookworm main
deb http://five.example/debian bookworm contrib
deb http://six.example/debian bookworm main
"""
    assert list(parse_one_line(text)) == [
        Mirror("http://one.example/debian", "/k.gpg"),
        Mirror("http://six.example/debian", None),
    ]


def test_source_line() -> None:
    assert Mirror("http://m", "/k.gpg").line("trixie") == "deb [signed-by=/k.gpg] http://m trixie main"
    assert Mirror("http://m", None).line("trixie") == "deb http://m trixie main"


def test_find_says_what_to_run_when_nothing_is_built(cache: Path) -> None:
    with pytest.raises(Unavailable, match=r"comparators build"):
        comparators.find()


def test_find_takes_the_newest_tree_that_this_version_made(cache: Path) -> None:
    good = finished(cache)
    other = finished(cache, {**VERSIONS, "fio": "9"}, recipe="0")
    (cache / "debian13-broken").mkdir()
    (cache / "debian13-broken/manifest.json").write_text("{")
    assert other != good
    assert comparators.find().folder == good


def test_programs_run_through_the_trees_own_loader(cache: Path) -> None:
    finished(cache)
    tree = comparators.find()
    argv = tree.command("qemu-img", "--version")
    assert argv[0].startswith(str(tree.root))
    assert argv[-2:] == [str(tree.root / "usr/bin/qemu-img"), "--version"]
    assert tree.env["QEMU_MODULE_DIR"].startswith(str(tree.root))
    assert tree.facts()["comparator_qemu_utils"] == "1.0-1"


def test_a_failed_build_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_mirror: Mirror, target: Path) -> None:
        target.mkdir()
        raise VmFailed("mmdebstrap failed: E: broken")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(comparators, "_versions", lambda _mirror: VERSIONS)
    monkeypatch.setattr(comparators, "_mmdebstrap", breaks)
    with pytest.raises(VmFailed, match="broken"):
        comparators.build(MIRROR, say=io.StringIO())
    assert [p.name for p in cache.iterdir()] == [".lock"]


def test_what_a_killed_build_left_is_cleared(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(cache)
    (cache / ".building-dead/tree").mkdir(parents=True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(comparators, "_versions", lambda _mirror: VERSIONS)
    assert comparators.build(MIRROR, say=io.StringIO()).folder == folder
    assert not (cache / ".building-dead").exists()


def test_without_network_the_tree_built_before_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_mirror: Mirror) -> dict[str, str]:
        raise VmFailed("mmdebstrap failed: Err:1 cannot resolve")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(comparators, "_versions", offline)
    with pytest.raises(Unavailable, match=r"cannot resolve.*network"):
        comparators.build(MIRROR, say=io.StringIO())
    folder = finished(cache)
    assert comparators.build(MIRROR, say=io.StringIO()).folder == folder


def test_two_builds_at_once_are_refused(cache: Path) -> None:
    with comparators._lock(), pytest.raises(Conflict), comparators._lock():
        pass


def test_no_mmdebstrap(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(Unavailable, match="mmdebstrap"):
        comparators.build(MIRROR, say=io.StringIO())


def test_command_line_prints_one_line_and_its_code(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert comparators.main(["show"]) == Unavailable.exit_code
    error = capsys.readouterr().err
    assert error.startswith("tmem: ")
    assert error.count("\n") == 1
    assert comparators.main(["build", "--mirror", "http://m", "--keyring", "/no/such"]) == 2


def test_remove(cache: Path) -> None:
    finished(cache)
    assert comparators.remove() == 1
    with pytest.raises(Unavailable):
        comparators.find()
