#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints an apt source for another suite of the mirror that this machine already uses.

``apt_suite.py SUITE`` reads the machine's own apt sources (``sources.list`` one-line entries and deb822
``*.sources``), takes the first enabled binary entry that carries the release's main suite, and prints the same
entry, options and keyring kept, for SUITE.  Nothing on the machine is changed and no mirror is named here.

Formats: sources.list(5).  Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ONE_LINE = re.compile(r"^deb\s+(?P<options>\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>\S.*)$")


def codename(os_release: Path) -> str:
    """The release's codename (``bookworm``) out of os-release(5); empty when there is none."""
    for line in os_release.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip().strip('"')
    return ""


def stanzas(text: str) -> Iterable[dict[str, str]]:
    """The deb822 stanzas of a ``.sources`` file, field names in lower case, folded values joined by newlines."""
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0].isspace() and last:
            fields[last] += "\n" + line.rstrip()
        else:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()


def from_deb822(text: str, base: str, suite: str) -> str | None:
    """The entry for ``suite`` derived from the first enabled stanza of ``text`` that carries ``base``."""
    for fields in stanzas(text):
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        if enabled and "deb" in fields.get("types", "").split() and base in fields.get("suites", "").split():
            derived = {**fields, "types": "deb", "suites": suite}
            # A value that begins on the next line (an embedded key) keeps its fold.
            return "".join(f"{name.title()}: {value}\n" for name, value in derived.items())
    return None


def from_one_line(text: str, base: str, suite: str) -> str | None:
    """The entry for ``suite`` derived from the first ``deb`` line of ``text`` that carries ``base``."""
    for line in text.splitlines():
        found = ONE_LINE.match(line.split("#", 1)[0].strip())
        if found and found["suite"] == base:
            return f"deb {found['options'] or ''}{found['uri']} {suite} {found['components'].strip()}\n"
    return None


def derive(etc_apt: Path, base: str, suite: str) -> tuple[str, str] | None:
    """The entry for ``suite``: the suffix of its file name (``sources`` or ``list``) and its text.

    None when no source on this machine carries ``base``.
    """
    parts = etc_apt / "sources.list.d"
    for path in sorted(parts.glob("*.sources")) if parts.is_dir() else []:
        if (text := from_deb822(path.read_text(encoding="utf-8"), base, suite)) is not None:
            return "sources", text
    one_line = [etc_apt / "sources.list", *(sorted(parts.glob("*.list")) if parts.is_dir() else [])]
    for path in one_line:
        if path.is_file() and (text := from_one_line(path.read_text(encoding="utf-8"), base, suite)) is not None:
            return "list", text
    return None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="print an apt source for another suite of this machine's own mirror")
    parser.add_argument("suite", help="a suite, or a suffix of the release's own such as '-backports'")
    parser.add_argument("--etc-apt", type=Path, default=Path("/etc/apt"))
    parser.add_argument("--os-release", type=Path, default=Path("/etc/os-release"))
    parser.add_argument("--into", type=Path, help="write FOLDER/tmem.sources or FOLDER/tmem.list instead of printing")
    options = parser.parse_args(argv)
    base = codename(options.os_release)
    suite = base + options.suite if options.suite.startswith("-") else options.suite
    found = derive(options.etc_apt, base, suite)
    if not base or found is None:
        print(
            f"tmem: no apt source carries {base or 'this release'} (add {suite} to the apt sources by hand)",
            file=sys.stderr,
        )
        return 1
    suffix, text = found
    if options.into is None:
        sys.stdout.write(text)
    else:
        (options.into / f"tmem.{suffix}").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
