# SPDX-License-Identifier: Apache-2.0
"""Sizes, names and folders."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tmem_host import config
from tmem_host.config import AgentConfig, check_socket_path, check_vm_name, default_arena, format_size, parse_size
from tmem_host.errors import BY_SLUG, InUse, InvalidInput, NotFound, TmemError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("64MiB", 64 << 20),
        ("64 MB", 64 << 20),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("10k", 10240),
        ("9007199254740993", 9007199254740993),
        (123, 123),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5", "0.3k", "1e9", "12 Q", "1,5G", "M512", -1, True, "1G2"])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(InvalidInput, match=r"size|number"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(str(size)) == size


def test_sizes_for_people() -> None:
    assert [format_size(n) for n in (0, 812, 1536, 3 << 20, 5 << 30, 3 << 41)] == [
        "0 B",
        "812 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
        "6.0 TiB",
    ]


@pytest.mark.parametrize("name", ["a", "web-1", "0", "a.b_c-d", "x" * 63])
def test_names(name: str) -> None:
    assert check_vm_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-a", ".a", "A", "ä", "a b", "x" * 64, "a\n", "a\0"])
def test_what_cannot_be_a_file_name_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_vm_name(name)


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TMEM_CACHE", "TMEM_STATE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert config.cache_dir() == Path("/home/someone/.cache/tmem")
    assert config.state_dir() == Path("/home/someone/.local/state/tmem")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert config.cache_dir() == Path("/home/someone/.cache/tmem")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config.cache_dir() == tmp_path / "tmem"
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "own"))
    assert config.cache_dir() == tmp_path / "own"


def test_each_state_folder_has_its_own_arena(tmp_path: Path) -> None:
    first, second = default_arena(tmp_path / "a"), default_arena(tmp_path / "b")
    assert first != second
    assert first.parent.parent == Path("/dev/shm")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert default_arena(tmp_path / "link") == first


def test_socket_paths_have_a_limit() -> None:
    assert check_socket_path(Path("/" + "s" * 106))
    with pytest.raises(InvalidInput, match="108 bytes"):
        check_socket_path(Path("/" + "s" * 107))
    with pytest.raises(InvalidInput):
        check_socket_path(Path("/" + "ä" * 60))


def test_agent_config_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    assert AgentConfig(state=tmp_path, limit="1G").limit == 1 << 30
    with pytest.raises(ValidationError):
        AgentConfig(state=tmp_path, limit="much")
    with pytest.raises(ValidationError):
        AgentConfig(state=tmp_path, limits=1)  # type: ignore[call-arg]


def test_errors_are_one_line_and_keep_their_kind() -> None:
    error = InUse("two\nlines\tand more", "a\nhint")
    assert str(error) == "two lines and more (a hint)"
    assert error.slug == "in-use"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (InUse, str(error))
    assert BY_SLUG["not-found"] is NotFound
    assert all(issubclass(cls, TmemError) and cls("").slug == slug for slug, cls in BY_SLUG.items())
