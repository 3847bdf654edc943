# SPDX-License-Identifier: Apache-2.0
"""``python -m tmem_host.vm.boxbuild build``, which 'make box' runs; the other commands are the Vagrantfile's."""

from __future__ import annotations

import argparse
import json
import sys

from tmem_host.errors import TmemError
from tmem_host.vm.boxbuild import built, settings


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tmem_host.vm.boxbuild", description="Vagrant's box and machines.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the box, and the kernel of vagrant/settings.toml, if they are not there")
    commands.add_parser("plan", help="print what the machines are to be, as JSON")
    for name, text in (
        ("prepare", "before a machine starts: agent, VM and pool"),
        ("forget", "after a machine's end: what only it needed"),
    ):
        commands.add_parser(name, help=text).add_argument("machine")
    options = parser.parse_args(arguments)
    try:
        wanted = settings.read()
        if options.command == "build":
            made = built.build(wanted.kernel, wanted.role)
            image = made.kernel(wanted.kernel)
            print(f"kernel {image.series}: Linux {image.version}, {image.initramfs}")
            box = made.box(wanted.role)
            print(f"box {box.name}: {box.file}")
            return 0
        from tmem_host.vm.boxbuild import machines

        if options.command == "plan":
            print(json.dumps(machines.plan(wanted)))
        elif options.command == "prepare":
            print(machines.prepare(wanted, options.machine))
        else:
            machines.forget(wanted, options.machine)
    except TmemError as error:
        print(f"tmem: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
