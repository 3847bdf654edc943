# SPDX-License-Identifier: Apache-2.0
"""The state folder: written as a whole, refused when it cannot be trusted, held by one process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tmem_host import state as states
from tmem_host.config import AgentConfig
from tmem_host.errors import Corrupt, Denied, InUse, InvalidInput, NoSpace
from tmem_host.state import State, VmEntry


def entry(name: str = "web", **changes: object) -> VmEntry:
    fields: dict[str, object] = {
        "name": name,
        "size_bytes": 1 << 20,
        "codec": "lz4",
        "queues": 2,
        "poll_us": 0,
        "reservation": 0,
        "cap": None,
        "weight": 100,
    }
    return VmEntry.model_validate(fields | changes)


def test_what_was_saved_is_loaded(state: Path) -> None:
    file = state / "state.json"
    assert states.load(file) == State()
    saved = State(arena=Path("/dev/shm/x")).with_vm(entry()).with_vm(entry("db", frozen=True, cap=1 << 20))
    states.save(file, saved)
    assert states.load(file) == saved
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.iterdir()] == ["state.json"]
    assert states.load(file).without_vm("db").vms == {"web": entry()}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": "tmem-state/2"}',
        '{"schema": "tmem-state/1", "vms": {"web": {}}}',
        '{"schema": "tmem-state/1", "vms": {}, "more": 1}',
    ],
)
def test_what_is_no_state_is_refused_and_left_alone(state: Path, text: str) -> None:
    file = state / "state.json"
    file.write_text(text)
    with pytest.raises(Corrupt, match="nothing was changed"):
        states.load(file)
    assert file.read_text() == text


def test_bytes_that_are_no_text_are_refused(state: Path) -> None:
    file = state / "state.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Corrupt):
        states.load(file)


def test_a_path_for_a_name_is_refused(state: Path) -> None:
    good = json.loads(State().with_vm(entry()).model_dump_json(by_alias=True))
    for key, name in (("../../etc", "../../etc"), ("web", "db")):
        vms = {key: {**good["vms"]["web"], "name": name}}
        (state / "state.json").write_text(json.dumps({**good, "vms": vms}))
        with pytest.raises(Corrupt):
            states.load(state / "state.json")


def test_a_write_that_fails_leaves_the_old_state(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = state / "state.json"
    states.save(file, State().with_vm(entry()))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match=r"state\.json"):
        states.save(file, State())
    monkeypatch.undo()
    assert states.load(file) == State().with_vm(entry())
    assert [path.name for path in state.iterdir()] == ["state.json"]


def test_one_agent_a_folder(config: AgentConfig) -> None:
    with states.locked(config):
        with pytest.raises(InUse, match=f"process id {os.getpid()}"), states.locked(config):
            pytest.fail("locked twice")
        assert config.state.stat().st_mode & 0o777 == 0o700
    with states.locked(config):
        pass


def test_a_folder_that_others_write_to_is_refused(state: Path) -> None:
    open_to_all = state / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(Denied, match="other users"):
        states.private_folder(open_to_all)
    (state / "link").symlink_to(state / "elsewhere")
    with pytest.raises(InvalidInput):
        states.private_folder(state / "link")
    (state / "elsewhere").mkdir()
    with pytest.raises(Denied, match="link"):
        states.private_folder(state / "link")
    (state / "file").touch()
    with pytest.raises(InvalidInput, match="not a folder"):
        states.private_folder(state / "file")


def test_where_an_arena_may_lie(state: Path) -> None:
    states.check_arena_place(state / "new" / "arena", own_folder=True)
    assert (state / "new").stat().st_mode & 0o777 == 0o700
    states.check_arena_place(Path("/dev/shm/tmem-test-arena-that-is-not-there"), own_folder=False)
    with pytest.raises(Denied, match="other users"):
        states.check_arena_place(Path("/dev/shm/tmem-test-arena-that-is-not-there"), own_folder=True)
    (state / "new").chmod(0o777)
    with pytest.raises(Denied, match="everybody"):
        states.check_arena_place(state / "new" / "arena", own_folder=False)
    (state / "link").symlink_to(state / "elsewhere")
    with pytest.raises(Denied, match="no file of this user"):
        states.check_arena_place(state / "link", own_folder=False)


def test_pages_stay_with_their_arena(config: AgentConfig) -> None:
    there = config.state / "there"
    known = State(arena=there).with_vm(entry())
    with pytest.raises(InvalidInput, match="have their pages in"):
        states.choose_arena(config, known)
    assert states.choose_arena(config.model_copy(update={"arena": None}), known) == there
    empty = State(arena=there).with_vm(entry(pages_at_stop=0))
    assert states.choose_arena(config, empty) == config.arena


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (entry(pages_at_stop=None), True),
        (entry(pages_at_stop=7), True),
        (entry(pages_at_stop=0), False),
        (entry(removing=True), False),
    ],
)
def test_an_arena_that_is_gone_is_noticed(arena: Path, found: VmEntry, refused: bool) -> None:
    known = State(arena=arena).with_vm(found)
    if refused:
        with pytest.raises(Corrupt, match=r"web may have pages.*--accept-loss"):
            states.check_arena_present(arena, known, accept_loss=False)
    else:
        states.check_arena_present(arena, known, accept_loss=False)
    states.check_arena_present(arena, known, accept_loss=True)
    arena.touch()
    states.check_arena_present(arena, known, accept_loss=False)


def test_a_limit_has_to_fit(arena: Path) -> None:
    assert states.choose_limit(arena, 32 << 20) == 32 << 20
    with pytest.raises(NoSpace, match="--limit"):
        states.choose_limit(arena, 1 << 49)
    with pytest.raises(NoSpace, match="least"):
        states.choose_limit(arena, 1 << 20)
    assert states.choose_limit(arena, None) >= 16 << 20
