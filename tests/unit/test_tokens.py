# SPDX-License-Identifier: Apache-2.0
"""Tokens: made once, found by value, revoked; never kept as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tmem_host.errors import Conflict, Corrupt, InvalidInput, NotFound
from tmem_host.tokens import FILE, Tokens


def test_a_token_from_its_making_to_its_end(state: Path) -> None:
    tokens, other = Tokens(state), Tokens(state)
    assert tokens.find("tmem_x") is None
    value = tokens.add("alice", "operate")
    assert len(value) > 40
    found = other.find(value)
    assert found is not None
    assert (found.name, found.scope) == ("alice", "operate")
    assert other.find(value[:-1]) is None
    assert other.find("") is None
    file = state / FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert value not in file.read_text()
    assert value not in repr(found)
    with pytest.raises(Conflict, match="already"):
        other.add("alice", "read")
    second = other.add("bob", "read")
    assert [token.name for token in tokens.list_()] == ["alice", "bob"]
    other.revoke("alice")
    # Seen by who had read the file before.
    assert tokens.find(value) is None
    assert tokens.find(second) is not None
    with pytest.raises(NotFound):
        tokens.revoke("alice")


@pytest.mark.parametrize(
    ("name", "scope"), [("", "read"), ("local", "read"), ("../x", "read"), ("a\nb", "read"), ("a", "root")]
)
def test_what_cannot_be_a_token(state: Path, name: str, scope: str) -> None:
    with pytest.raises(InvalidInput):
        Tokens(state).add(name, scope)
    assert not (state / FILE).exists()


@pytest.mark.parametrize("text", ["", "{", '{"tokens": [{"name": "x"}]}', json.dumps({"tokens": [], "more": 1})])
def test_a_file_that_cannot_be_trusted_lets_nobody_in_and_stays(state: Path, text: str) -> None:
    (state / FILE).write_text(text)
    tokens = Tokens(state)
    for call in (lambda: tokens.find("tmem_x"), lambda: tokens.add("a", "read"), lambda: tokens.revoke("a")):
        with pytest.raises(Corrupt, match="move it away"):
            call()
    assert (state / FILE).read_text() == text
