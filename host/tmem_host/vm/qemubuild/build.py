# SPDX-License-Identifier: Apache-2.0
"""Configures and compiles the kept tree, and puts what came out into the cache under its key."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tmem_host.config import cache_dir
from tmem_host.errors import NotFound, Unavailable, VmFailed
from tmem_host.vm.imagebuild import pins
from tmem_host.vm.imagebuild.apt import PrivateApt
from tmem_host.vm.qemubuild import recipe as recipes
from tmem_host.vm.qemubuild import tree as trees
from tmem_host.vm.qemubuild.recipe import Recipe
from tmem_host.vm.qemubuild.tree import Tree

#: The release with QEMU 10.0.
RELEASE: Final = "trixie"
PROGRAM: Final = "qemu-system-x86_64"
#: The meson option of the patches that takes the folder of the core's C ABI; passed when the tree has it.
CAPI_OPTION: Final = "tmem_capi"
#: QEMU's own tests of what the patches add are built with it, and kept next to it.
_QTEST: Final = re.compile(r"^(tests/qtest/[a-z0-9-]*tmem[a-z0-9-]*-test):", re.MULTILINE)


def _home(recipe: Recipe) -> Path:
    return cache_dir() / "qemu" / recipe.key()


def patched_qemu() -> Path:
    """The built binary of the present series. Raises NotFound when it has not been built."""
    path = _home(recipes.read()) / PROGRAM
    if not path.is_file():
        raise NotFound("the patched QEMU is not built", "run 'make qemu'")
    return path


def qtests() -> list[Path]:
    """QEMU's unit tests of our devices, built with the binary."""
    return sorted((patched_qemu().parent / "tests" / "qtest").glob("*-test"))


def pin(path: Path) -> None:
    """Writes to ``path`` which source package the mirror has now."""
    with tempfile.TemporaryDirectory(prefix="tmem-apt-") as name:
        recipes.write_base(path, PrivateApt(Path(name), RELEASE).newest_source("qemu"))


def build(*, force: bool = False) -> Path:
    """Builds the present series unless it is there, and returns the binary's path. Raises TmemError."""
    return pins.renewing(recipes.base_file(recipes.patches_folder()), pin, lambda: _build(force=force))


def _build(*, force: bool) -> Path:
    recipe = recipes.read()
    done = _home(recipe)
    if (done / PROGRAM).is_file():
        return done / PROGRAM
    with trees.locked(recipe) as tree:
        trees.apply(tree, recipe, force=force)
        compile_tree(tree, recipe)
        _keep(tree, done)
    return done / PROGRAM


def build_as_is() -> Path:
    """Compiles the tree with whatever has been changed in it; returns the binary in the build folder."""
    recipe = recipes.read()
    with trees.locked(recipe) as tree:
        compile_tree(tree, recipe)
        return tree.build / PROGRAM


def compile_tree(tree: Tree, recipe: Recipe) -> None:
    """Configures if need be and compiles what is checked out. Raises VmFailed with the compiler's first error."""
    tree.log.write_text("")
    _configure(tree, recipe)
    print(f"tmem: compiling QEMU {recipe.base.version}; log: {tree.log}", file=sys.stderr)
    # A patch may have brought new targets.
    _run(["ninja", "build.ninja"], tree, "QEMU cannot be configured")
    targets = _run(["ninja", "-t", "targets", "all"], tree, "ninja does not run")
    tests = [found[1] for found in _QTEST.finditer(targets)]
    _run(["ninja", PROGRAM, *tests], tree, "QEMU does not compile")


def _configure(tree: Tree, recipe: Recipe) -> None:
    """QEMU's configure if it was not run like this before; a change of the C ABI's option alone needs only meson.

    After a full configure everything is compiled again, as its Python environment is new.
    """
    wanted = [list(recipe.configuration), recipe.requirements.read_text()]
    option = _capi(tree, recipe)
    state = tree.folder / "configured.json"
    before = json.loads(state.read_text()) if state.is_file() else None
    if before == [wanted, option]:
        return
    state.unlink(missing_ok=True)
    print(f"tmem: configuring QEMU {recipe.base.version}", file=sys.stderr)
    # meson refuses to go on without an option that it once was given
    if before is not None and before[0] == wanted and option:
        meson = str(tree.build / "pyvenv" / "bin" / "meson")
        # An option that a patch has brought is unknown until meson has read its file again.
        _run(["ninja", "build.ninja"], tree, "QEMU cannot be configured")
        _run([meson, "setup", "--reconfigure", *option, ".", str(tree.source)], tree, "QEMU cannot be configured")
    else:
        _configure_all(tree, recipe, option)
    state.write_text(json.dumps([wanted, option]))


def _configure_all(tree: Tree, recipe: Recipe, option: list[str]) -> None:
    if shutil.which("ninja") is None:
        raise Unavailable("ninja is missing", "install ninja-build, or run scripts/install-deps")
    tree.build.mkdir(exist_ok=True)
    shutil.rmtree(tree.tools, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(tree.tools)], tree, "no virtual environment for meson")
    pip = [str(tree.tools / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    _run([*pip, "--only-binary", ":all:", "-r", str(recipe.requirements)], tree, "meson cannot be had")
    program = [str(tree.source / "configure"), f"--python={tree.tools / 'bin' / 'python'}"]
    _run([*program, *recipe.configuration, *option], tree, "QEMU cannot be configured")


def _capi(tree: Tree, recipe: Recipe) -> list[str]:
    """The meson option, if the tree has it, for a copy of the C ABI whose place never changes."""
    options = (tree.source / "meson_options.txt").read_text()
    if f"option('{CAPI_OPTION}'" not in options:
        return []
    if recipe.capi is None:
        return [f"-D{CAPI_OPTION}="]
    staged = tree.folder / "capi"
    staged.mkdir(exist_ok=True)
    for path in recipe.capi_files():
        target = staged / path.name
        if not target.is_file() or target.read_bytes() != path.read_bytes():
            shutil.copyfile(path, target)
    return [f"-D{CAPI_OPTION}={staged}"]


def _run(argv: list[str], tree: Tree, failure: str) -> str:
    """What the command said, which goes to the log while it runs, in the build folder."""
    with tree.log.open("ab") as log:
        begin = log.tell()
        done = subprocess.run(
            argv, cwd=tree.build, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    with tree.log.open("rb") as log:
        log.seek(begin)
        text = log.read().decode(errors="replace")
    if done.returncode != 0:
        errors = [line for line in text.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
        print("\n".join(errors[:20]), file=sys.stderr)
        raise VmFailed(f"{failure}: {(errors or text.splitlines() or ['no word'])[0][:200]}", f"see {tree.log}")
    return text


def _keep(tree: Tree, done: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".keeping-", dir=done.parent) as name:
        made = Path(name) / "made"
        for path in [tree.build / PROGRAM, *(tree.build / "tests" / "qtest").glob("*tmem*-test")]:
            target = made / path.relative_to(tree.build)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        said = subprocess.run([made / PROGRAM, "--version"], capture_output=True, text=True, check=False)
        if said.returncode != 0:
            raise VmFailed(f"the QEMU that was built does not start: {said.stderr.strip()[-200:]}", f"see {tree.log}")
        shutil.rmtree(done, ignore_errors=True)
        made.rename(done)
