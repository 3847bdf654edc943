# SPDX-License-Identifier: Apache-2.0
"""QEMU's source tree, kept between builds: a git repository in which the series is a branch.

Only files that a change of the series really changes are written, so that ninja compiles those and no others. What
somebody has committed in the tree and not yet turned into patches is never thrown away unasked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import Conflict, Unavailable, VmFailed
from tmem_host.vm.imagebuild.apt import PrivateApt
from tmem_host.vm.qemubuild import recipe as recipes
from tmem_host.vm.qemubuild.recipe import Recipe

#: The distribution's tree with its own patches; the branch that is worked on; what the series made of it last.
BASE_TAG: Final = "base"
BRANCH: Final = "tmem"
_APPLIED: Final = "refs/tmem/applied"
#: No configuration but ours decides what patches look like; whoever commits is still who git says they are.
_PLAIN: Final = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
_NOBODY: Final = {
    **{f"GIT_{who}_NAME": "kvm-tmem" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "kvm-tmem@localhost" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": "@0 +0000" for who in ("AUTHOR", "COMMITTER")},
}


@dataclass(frozen=True)
class Tree:
    """The folder of one base: sources, the tools that configure them, and their build."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "src"

    @property
    def build(self) -> Path:
        return self.folder / "build"

    @property
    def tools(self) -> Path:
        return self.folder / "tools"

    @property
    def log(self) -> Path:
        return self.folder / "build.log"

    def git(self, *arguments: str, folder: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """What git says. Raises VmFailed with its last words."""
        done = subprocess.run(
            ["git", "-C", str(folder or self.source), *arguments],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise VmFailed(f"git {arguments[0]} failed: {(done.stderr + done.stdout).strip()[-300:]}", str(self.source))
        return done.stdout.strip()

    def commits(self) -> list[str]:
        """The branch's commits on the base, in order."""
        return self.git("rev-list", "--reverse", f"{BASE_TAG}..{BRANCH}").split()

    def uncommitted(self) -> list[str]:
        return self.git("status", "--porcelain", "--untracked-files=normal").splitlines()


@contextmanager
def locked(recipe: Recipe) -> Iterator[Tree]:
    """The tree of the recipe's base, made if it is not there yet, for nobody else meanwhile."""
    home = cache_dir() / "qemu"
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"tree-{recipe.tree_key()}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        tree = Tree(home / f"tree-{recipe.tree_key()}")
        if not tree.source.is_dir():
            shutil.rmtree(tree.folder, ignore_errors=True)
            _make(recipe, tree)
        yield tree


def _make(recipe: Recipe, tree: Tree) -> None:
    if shutil.which("dpkg-source") is None:
        raise Unavailable("dpkg-source is missing", "install dpkg-dev, or run scripts/install-deps")
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=tree.folder.parent) as name:
        apt = PrivateApt(Path(name) / "apt", recipe.base.release)
        files = apt.fetch_source(recipe.base, cache_dir() / "packages", recipes.PIN)
        made = Tree(Path(name) / "made")
        made.folder.mkdir()
        # The checksums were compared just now, and the archive's signature by apt: dpkg's own check wants the
        # maintainer's key.
        unpack = ["dpkg-source", "--no-check", "-x", str(files / recipe.base.dsc), str(made.source)]
        done = subprocess.run(unpack, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise VmFailed(f"dpkg-source failed: {done.stderr.strip()[-300:]}", "is there room in the cache folder?")
        _slim(made.source)
        made.git("init", "--quiet", f"--initial-branch={BRANCH}", environment=_PLAIN)
        made.git("config", "gc.auto", "0")
        # meson's lock
        (made.source / ".git" / "info" / "exclude").write_text("/subprojects/.wraplock\n")
        # Forced: QEMU's .gitignore leaves out files that Debian's archive has.
        made.git("add", "--all", "--force", environment=_PLAIN)
        message = f"{recipe.base.name} {recipe.base.version} with the distribution's patches"
        made.git("commit", "--quiet", "--no-verify", "-m", message, environment={**_PLAIN, **_NOBODY})
        made.git("tag", BASE_TAG)
        made.git("update-ref", _APPLIED, BASE_TAG)
        made.folder.rename(tree.folder)


def _slim(source: Path) -> None:
    """Drops quilt's state and the firmware's sources, two thirds of the tree: nothing here builds firmware."""
    shutil.rmtree(source / ".pc", ignore_errors=True)
    for path in (source / "roms").iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def apply(tree: Tree, recipe: Recipe, *, force: bool = False) -> None:
    """Brings the branch to the recipe's series.

    Raises Conflict when that would lose commits or changes, and VmFailed naming the patch that does not apply.
    """
    commit = _commit_of(tree, recipe)
    head = tree.git("rev-parse", BRANCH)
    if head == commit and not tree.uncommitted():
        return
    if not force:
        same = tree.git("rev-parse", f"{head}^{{tree}}") == tree.git("rev-parse", f"{commit}^{{tree}}")
        if tree.uncommitted():
            raise Conflict(f"{tree.source} has changes that are not committed", "commit them, or build with --as-is")
        if head != tree.git("rev-parse", _APPLIED) and not same:
            raise Conflict(
                f"{tree.source} has commits that are not in the series",
                "qemu-patches/refresh makes patches of them, --as-is builds them, --force drops them",
            )
    tree.git("checkout", "--quiet", "--force", "-B", BRANCH, commit)
    if force:
        tree.git("clean", "-fdq")
    mark_applied(tree)


def mark_applied(tree: Tree) -> None:
    """Records that the branch is what the series says."""
    tree.git("update-ref", _APPLIED, BRANCH)


def _commit_of(tree: Tree, recipe: Recipe) -> str:
    """The series as a commit: the same patches give the same one, made in a second work tree that nothing builds in."""
    side = tree.folder / "apply"
    tree.git("worktree", "prune")
    if not side.is_dir():
        tree.git("worktree", "add", "--quiet", "--detach", str(side), BASE_TAG)
    if (Path(tree.git("rev-parse", "--absolute-git-dir", folder=side)) / "rebase-apply").exists():
        tree.git("am", "--abort", folder=side)
    tree.git("checkout", "--quiet", "--force", "--detach", BASE_TAG, folder=side)
    tree.git("clean", "-fdqx", folder=side)
    for path in recipe.patches:
        try:
            tree.git(
                *("am", "--quiet", "--no-gpg-sign", "--committer-date-is-author-date", str(path)),
                folder=side,
                environment={**_PLAIN, **_NOBODY},
            )
        except VmFailed as error:
            raise VmFailed(f"{path.name} does not apply: {error.message}", "see 'series' and BASE") from error
    return tree.git("rev-parse", "HEAD", folder=side)


def refresh(tree: Tree, recipe: Recipe) -> list[str]:
    """Writes the branch's commits as patches and the series; returns the patches' names. Raises Conflict."""
    if tree.uncommitted():
        raise Conflict(f"{tree.source} has changes that are not committed", "commit or drop them")
    with tempfile.TemporaryDirectory(prefix="tmem-patches-") as name:
        written = tree.git(
            *("format-patch", "--quiet", "--zero-commit", "--no-signature", "--no-numbered", "--abbrev=12"),
            *("--no-renames", "-o", name, f"{BASE_TAG}..{BRANCH}"),
            environment=_PLAIN,
        )
        assert not written  # --quiet
        fresh = sorted(Path(name).glob("*.patch"))
        for path in recipe.folder.glob("[0-9][0-9][0-9][0-9]-*.patch"):
            path.unlink()
        for path in fresh:
            shutil.copy(path, recipe.folder / path.name)
    names = [path.name for path in fresh]
    recipes.write_series(recipe.folder, names)
    mark_applied(tree)
    return names
