# SPDX-License-Identifier: Apache-2.0
"""The command line of the agent, for the operator of a guest."""

import argparse
import json
import os
import sys

from . import probe, service, settings

_EPILOG = """\
examples:
  python3 -m tmem_guest probe                    what this guest has for tmem; changes nothing
  python3 -m tmem_guest run                      sets swap up, reports to the host, until it is stopped (as by systemd)
  python3 -m tmem_guest run --config my.toml     the same, with settings: see --help of run
  python3 -m tmem_guest off                      undoes what run did, also after it crashed

exit status:
  0 done   1 something could not be done or undone   2 wrong use or settings   3 there is nothing to do here
  4 the service runs already
"""

_SETTINGS = """\
settings (TOML, {file} if it is there), with their defaults:
  source = "auto"         {sources}
  channel = "auto"        {channels}
  serial = ""             of the virtio disk for swap; else tmem.swap= of the kernel's command line, else the host name
  size_mib = 0            of the module's swap; 0: twice the memory
  cleancache = true       clean file pages too, where kernel and module can
  priority = 0            of the swap device; 0: above all others
  discard = true          freed swap is told to the host
  page_cluster = 0        vm.page-cluster: pages read ahead, as a power of 2
  report_seconds = 2      between two reports to the host; 0: none
  wait_seconds = 30       that the host may take to answer on a lent port
  module = ""             path of tmem.ko
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python3 -m tmem_guest",
        description="The agent of a guest that swaps to its host's memory.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|probe|off")
    epilog = _SETTINGS.format(
        file=settings.FILE, sources=" | ".join(settings.SOURCES), channels=" | ".join(settings.CHANNELS)
    )
    run = commands.add_parser(
        "run", help="set swap up, report, answer the host; undo it all when stopped", epilog=epilog, formatter_class=raw
    )
    run.add_argument("--config", metavar="FILE", help=f"settings (default: {settings.FILE}, if there is one)")
    look = commands.add_parser("probe", help="say what this guest has for tmem", epilog=epilog, formatter_class=raw)
    look.add_argument("--json", action="store_true", help="as one JSON object")
    look.add_argument("--config", metavar="FILE", help="as for run")
    commands.add_parser("off", help="undo what run did")
    return parser


def say(text: str) -> None:
    """One line for people, at once."""
    print(f"tmem-guest: {text}", flush=True)


def _probe(wanted: settings.Settings, as_json: bool) -> int:
    from . import plan

    found = probe.look(wanted.module)
    choice = plan.choose(wanted, found)
    chosen = None if choice.plan is None else f"{choice.plan.source} over {choice.plan.channel}, {choice.plan.device}"
    if as_json:
        told = {**found.as_json(), "would_use": chosen, "not_used": list(choice.reasons)}
        print(json.dumps(told, indent=2))
        return 0
    print("\n".join(probe.lines(found)))
    print(f"run would use {chosen or 'no swap'}")
    for reason in choice.reasons:
        print(f"not used: {reason}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command line."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "probe":
            return _probe(settings.read(options.config), options.json)
        wanted = settings.read(options.config) if options.command == "run" else None
        if os.geteuid() != 0:
            raise settings.BadSettings(f"{options.command} needs root [try sudo]")
        return service.off(say) if wanted is None else service.main(wanted, say)
    except settings.BadSettings as error:
        print(f"tmem-guest: {error}", file=sys.stderr, flush=True)
        return 2
    except service.Running as error:
        print(f"tmem-guest: {error} [stop it first: 'off']", file=sys.stderr, flush=True)
        return 4
