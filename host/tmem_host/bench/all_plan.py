# SPDX-License-Identifier: Apache-2.0
"""What `tmem bench all` runs, and what it may keep of an earlier run. Pure: nothing here reads or writes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tmem_host.bench.command import flags_of, parse_settings, reproduce
from tmem_host.bench.results import Results
from tmem_host.errors import Conflict, InvalidInput

ORDER = ("exit", "store", "channel", "swap", "density")
"""All benches, in the order they run: the question of the project first."""

#: What must be the same for figures to stand on one page as one machine's.
_MACHINE = ("cpu", "cpus", "memory_bytes", "kernel")


@dataclass(frozen=True)
class Setting:
    """How one bench is run. Options as text, as on a command line."""

    quick: bool
    seed: int
    options: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, name: str) -> list[str]:
        """What follows `tmem` on the command line."""
        return reproduce(name, self.quick, self.seed, self.options)[1:]

    def said(self) -> str:
        """For people: `--quick --seed 1 rounds=3`."""
        options = [f"{key}={value}" for key, value in sorted(self.options.items())]
        return " ".join([*(["--quick"] if self.quick else []), f"--seed {self.seed}", *options])


def choose(only: str | None, skip: str | None) -> list[str]:
    """The benches to run, in their order. Raises InvalidInput for a name that is none, or when none is left."""
    wanted, left_out = _names(only), _names(skip)
    if unknown := [name for name in [*wanted, *left_out] if name not in ORDER]:
        raise InvalidInput(f"no bench is called {', '.join(unknown)}", f"choose from: {', '.join(ORDER)}")
    chosen = [name for name in ORDER if (name in wanted or only is None) and name not in left_out]
    if not chosen:
        raise InvalidInput("no bench is left to run", "leave out --only or --skip")
    return chosen


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def options_of(settings: Sequence[str], disk_dir: Path | None, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The options of each bench out of `BENCH.NAME=VALUE` and of --disk-dir, which goes to all that use a disk.

    Raises InvalidInput.
    """
    found: dict[str, dict[str, str]] = {
        name: {"disk_dir": str(disk_dir)} if disk_dir and "disk_dir" in flags_of(name) else {} for name in names
    }
    for text in settings:
        name, dot, rest = text.partition(".")
        if not dot or name not in ORDER:
            raise InvalidInput(f"--set {shlex.quote(text)} is not BENCH.NAME=VALUE", "for example --set store.rounds=5")
        if name not in found:
            raise InvalidInput(f"--set {shlex.quote(text)}: {name} is not run", "leave it out, or run that bench too")
        found[name] |= parse_settings([rest])
    return found


def setting_of(results: Results) -> Setting:
    """The setting that a run had, from the command in its results."""
    options: dict[str, str] = {}
    words = iter(results.command[3:])
    for word in words:
        if word == "--set":
            key, _, value = next(words, "").partition("=")
            options[key] = value
        elif word.startswith("--") and word not in ("--quick", "--seed"):
            options[word[2:].replace("-", "_")] = next(words, "")
    return Setting(results.quick, results.seed, options)


def keep(name: str, found: Results | None, wanted: Setting, host: Mapping[str, object]) -> bool:
    """Whether the results that are there stand for a run that is asked for; if not, it is to be run again.

    Raises Conflict when they are of another setting or, complete, of another machine: neither mixing nor overwriting
    can be meant.
    """
    if found is None:
        return False
    before = setting_of(found)
    if not same(before, wanted):
        raise Conflict(
            f"the results of {name} are of another setting: {before.said()}, not {wanted.said()}",
            "resume with that setting, or choose another folder with --out",
        )
    if not found.complete:
        return False
    there = found.properties.host
    if differ := [fact for fact in _MACHINE if fact in there and fact in host and there[fact] != host[fact]]:
        raise Conflict(
            f"the results of {name} are of another machine: {differ[0]} was {there[differ[0]]}, is {host[differ[0]]}",
            "choose another folder with --out",
        )
    return True


def same(one: Setting, other: Setting) -> bool:
    """Whether two settings ask for the same, however it is written."""
    return (
        (one.quick, one.seed) == (other.quick, other.seed)
        and one.options.keys() == other.options.keys()
        and all(_plain(value) == _plain(other.options[key]) for key, value in one.options.items())
    )


def _plain(value: str) -> object:
    """What flags make of their text: `1` is `1.0`, and `d/` is `d`."""
    try:
        return float(value)
    except ValueError:
        return str(Path(value))


def again(settings: Mapping[str, Setting], out: Path) -> list[str]:
    """The argv that goes on where a run was left."""
    first = next(iter(settings.values()))
    argv = ["tmem", "bench", "all", *(["--quick"] if first.quick else []), "--seed", str(first.seed)]
    if tuple(settings) != ORDER:
        argv += ["--only", ",".join(settings)]
    for name, setting in settings.items():
        for key, value in setting.options.items():
            argv += ["--set", f"{name}.{key}={value}"]
    return [*argv, "--out", str(out), "--resume"]
