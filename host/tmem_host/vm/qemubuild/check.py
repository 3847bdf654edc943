# SPDX-License-Identifier: Apache-2.0
"""QEMU's own rules over the series: checkpatch.pl on every patch, and that each one builds."""

from __future__ import annotations

import subprocess
import sys

from tmem_host.errors import VmFailed
from tmem_host.vm.qemubuild import build, recipe, tree


def check(*, each: bool) -> None:
    """Raises VmFailed after printing what checkpatch.pl has to say, or with the patch that does not build."""
    found = recipe.read()
    with tree.locked(found) as kept:
        _checkpatch(kept, found)
        if each:
            tree.apply(kept, found)
            _build_each(kept, found)


def _checkpatch(kept: tree.Tree, found: recipe.Recipe) -> None:
    wrong = []
    for path in found.patches:
        argv = ["perl", "scripts/checkpatch.pl", "--strict", "--quiet", "--no-summary", str(path)]
        done = subprocess.run(argv, cwd=kept.source, capture_output=True, text=True, check=False)
        if done.returncode != 0 or done.stdout.strip():
            print(f"{path.name}:\n{done.stdout}{done.stderr}", file=sys.stderr)
            wrong.append(path.name)
    if wrong:
        raise VmFailed(f"checkpatch.pl objects to {', '.join(wrong)}", "see above")
    print(f"tmem: checkpatch.pl has nothing to say on {len(found.patches)} patches", file=sys.stderr)


def _build_each(kept: tree.Tree, found: recipe.Recipe) -> None:
    """From the first patch to the last, and leaves the branch where it was."""
    commits = kept.commits()
    try:
        for path, commit in zip(found.patches, commits, strict=True):
            kept.git("checkout", "--quiet", "--detach", commit)
            try:
                build.compile_tree(kept, found)
            except VmFailed as error:
                raise VmFailed(f"{path.name}: {error.message}", error.hint) from error
            print(f"tmem: {path.name} builds", file=sys.stderr)
    finally:
        kept.git("checkout", "--quiet", tree.BRANCH)
