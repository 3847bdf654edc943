# SPDX-License-Identifier: Apache-2.0
"""``python -m tmem_host.vm.modulebuild build|check [--kernel SERIES ...]``: the guest's module."""

from __future__ import annotations

import argparse
import sys

from tmem_host.errors import TmemError
from tmem_host.vm import images
from tmem_host.vm.images import ALL, USUAL
from tmem_host.vm.modulebuild import check, module


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tmem_host.vm.modulebuild", description="The guest's module.")
    parser.add_argument("command", choices=("build", "check"), help="build what is missing; checkpatch.pl and sparse")
    parser.add_argument("--kernel", action="append", choices=ALL, help=f"default: {', '.join(USUAL)}")
    options = parser.parse_args(arguments)
    series = options.kernel or list(USUAL)
    try:
        if options.command == "check":
            check.check(series)
            return 0
        for one in series:
            built = module.build_module(one)
            print(f"module {one}: {built.path}")
        # Pins that were renewed on the way may name other kernels than those of the images that there are.
        for one in series:
            images.build_image(one)
    except TmemError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
