# SPDX-License-Identifier: Apache-2.0
"""``python -m tmem_host.vm.qemubuild build|refresh|check``: what the programs in qemu-patches call."""

from __future__ import annotations

import argparse
import sys

from tmem_host.errors import TmemError
from tmem_host.vm.qemubuild import build, check, recipe, tree


def _build(options: argparse.Namespace) -> None:
    if options.pin:
        build.pin(recipe.base_file(recipe.patches_folder()))
        print(f"tmem: BASE is now QEMU {recipe.read().base.version}", file=sys.stderr)
        return
    print(build.build_as_is() if options.as_is else build.build(force=options.force))


def _refresh(_options: argparse.Namespace) -> None:
    found = recipe.read()
    with tree.locked(found) as kept:
        for name in tree.refresh(kept, found):
            print(name)


def _check(options: argparse.Namespace) -> None:
    check.check(each=options.each)


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command line."""
    parser = argparse.ArgumentParser(prog="qemu-patches", description="The patched QEMU.")
    commands = parser.add_subparsers(required=True)
    build_command = commands.add_parser("build", help="build it unless it is in the cache; prints the binary's path")
    how = build_command.add_mutually_exclusive_group()
    how.add_argument("--as-is", action="store_true", help="compile the tree with whatever was changed in it")
    how.add_argument("--force", action="store_true", help="drop commits and changes of the tree that are no patches")
    how.add_argument("--pin", action="store_true", help="only write BASE: what the mirror has now")
    build_command.set_defaults(run=_build)
    commands.add_parser("refresh", help="write the tree's commits as patches").set_defaults(run=_refresh)
    check_command = commands.add_parser("check", help="checkpatch.pl over every patch")
    check_command.add_argument("--each", action="store_true", help="and build after each patch")
    check_command.set_defaults(run=_check)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except TmemError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
