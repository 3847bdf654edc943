# SPDX-License-Identifier: Apache-2.0
"""The patched QEMU's recipe and its kept tree, with a small repository in QEMU's place and no mirror."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tmem_host.errors import Conflict, NotFound, VmFailed
from tmem_host.vm.imagebuild.apt import SourcePackage
from tmem_host.vm.qemubuild import build, recipe, tree

FOLDER = Path(__file__).parents[2] / "qemu-patches"


@pytest.fixture
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe without patches, and an empty cache."""
    folder = tmp_path / "patches"
    folder.mkdir()
    for name in ("BASE", "configuration", "requirements.txt"):
        shutil.copy(FOLDER / name, folder)
    recipe.write_series(folder, [])
    monkeypatch.setenv("TMEM_QEMU_PATCHES", str(folder))
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMEM_CAPI_DIR", "")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@localhost")
    return folder


@pytest.fixture
def kept(patches: Path) -> tree.Tree:
    """A tree of two files where the sources would be."""
    made = tree.Tree(patches.parent / "cache" / "qemu" / f"tree-{recipe.read().tree_key()}")
    made.source.mkdir(parents=True)
    for name in ("a.c", "b.c"):
        (made.source / name).write_text("int x;\n")
    made.git("init", "--quiet", "--initial-branch=tmem")
    made.git("add", "--all")
    made.git("commit", "--quiet", "-m", "base")
    made.git("tag", tree.BASE_TAG)
    made.git("update-ref", "refs/tmem/applied", tree.BASE_TAG)
    return made


def commit(kept: tree.Tree, name: str, text: str, subject: str) -> None:
    (kept.source / name).write_text(text)
    kept.git("add", name)
    kept.git("commit", "--quiet", "-m", subject)


def test_the_repositorys_recipe_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMEM_QEMU_PATCHES", raising=False)
    monkeypatch.setenv("TMEM_CAPI_DIR", "")
    found = recipe.read()
    assert found.base.version.startswith("1:10.0")
    assert found.base.dsc.endswith(".dsc")
    assert len(found.base.files) == 3
    unlisted = {path.name for path in FOLDER.glob("*.patch")} - {path.name for path in found.patches}
    assert not unlisted


def test_key_changes_with_everything(patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [recipe.read().key()]
    (patches / "configuration").write_text("--enable-more # why\n")
    keys.append(recipe.read().key())
    (patches / "0001-x.patch").write_text("x")
    recipe.write_series(patches, ["0001-x.patch"])
    keys.append(recipe.read().key())
    (patches / "0001-x.patch").write_text("y")
    keys.append(recipe.read().key())
    monkeypatch.setenv("TMEM_CAPI_DIR", str(tmp_path))
    with pytest.raises(NotFound, match="libtmem_capi"):
        recipe.read()
    (tmp_path / recipe.CAPI_LIBRARY).write_text("1")
    (tmp_path / "tmem_capi.h").write_text("1")
    keys.append(recipe.read().key())
    (tmp_path / recipe.CAPI_LIBRARY).write_text("2")
    keys.append(recipe.read().key())
    assert len(set(keys)) == len(keys)
    assert recipe.read().key() == keys[-1]


def test_tree_is_kept_when_patches_change(patches: Path) -> None:
    before = recipe.read().tree_key()
    (patches / "configuration").write_text("--other\n")
    assert recipe.read().tree_key() == before
    recipe.write_base(recipe.base_file(patches), SourcePackage("qemu", "1:10.0.99", "trixie", {"q.dsc": "00"}))
    assert recipe.read().tree_key() != before


def test_missing_parts(patches: Path) -> None:
    recipe.write_series(patches, ["0001-gone.patch"])
    with pytest.raises(NotFound, match="0001-gone"):
        recipe.read()
    (patches / "BASE").write_text("name = 1\n")
    with pytest.raises(NotFound, match="BASE"):
        recipe.read()


def test_not_built_says_what_to_run(patches: Path) -> None:
    with pytest.raises(NotFound, match="make qemu"):
        build.patched_qemu()


def test_commits_become_patches_and_patches_commits(patches: Path, kept: tree.Tree) -> None:
    commit(kept, "a.c", "int y;\n", "one: first")
    commit(kept, "c.c", "int z;\n", "two: second")
    names = tree.refresh(kept, recipe.read())
    assert names == ["0001-one-first.patch", "0002-two-second.patch"]
    text = (patches / names[0]).read_text()
    assert text.startswith(f"From {'0' * 40} ")
    assert "Subject: [PATCH] one: first" in text
    untouched = (kept.source / "b.c").stat().st_mtime_ns
    # without the second patch
    recipe.write_series(patches, names[:1])
    tree.apply(kept, recipe.read())
    assert not (kept.source / "c.c").exists()
    assert len(kept.commits()) == 1
    recipe.write_series(patches, names)
    tree.apply(kept, recipe.read())
    assert (kept.source / "c.c").read_text() == "int z;\n"
    assert (kept.source / "b.c").stat().st_mtime_ns == untouched
    assert tree.refresh(kept, recipe.read()) == names
    assert (patches / names[0]).read_text() == text


def test_work_that_is_no_patch_is_not_dropped(patches: Path, kept: tree.Tree) -> None:
    commit(kept, "a.c", "int y;\n", "one: first")
    with pytest.raises(Conflict, match="refresh"):
        tree.apply(kept, recipe.read())
    tree.refresh(kept, recipe.read())
    (kept.source / "a.c").write_text("int changed;\n")
    with pytest.raises(Conflict, match="committed"):
        tree.apply(kept, recipe.read())
    with pytest.raises(Conflict, match="committed"):
        tree.refresh(kept, recipe.read())
    tree.apply(kept, recipe.read(), force=True)
    assert (kept.source / "a.c").read_text() == "int y;\n"


def test_patch_that_does_not_apply_is_named(patches: Path, kept: tree.Tree) -> None:
    commit(kept, "a.c", "int y;\n", "one: first")
    (name,) = tree.refresh(kept, recipe.read())
    path = patches / name
    path.write_text(path.read_text().replace("-int x;", "-int q;"))
    for _attempt in range(2):  # a failed attempt is cleaned up by the next
        with pytest.raises(VmFailed, match="0001-one-first"):
            tree.apply(kept, recipe.read())
    path.write_text(path.read_text().replace("-int q;", "-int x;"))
    tree.apply(kept, recipe.read())
    assert (kept.source / "a.c").read_text() == "int y;\n"
