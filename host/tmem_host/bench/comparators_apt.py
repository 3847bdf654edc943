# SPDX-License-Identifier: Apache-2.0
"""Which Debian mirrors this machine's apt is configured with.

The comparators come from another Debian suite than the host's, but from the same mirrors and under the same keys: no
mirror is named in this program. Both formats of sources.list(5) are read: deb822 (`*.sources`) and one-line (`*.list`).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMMENT = re.compile(r"^\s*#")
_ONE_LINE = re.compile(r"^deb(?:\s+\[(?P<options>[^\]]*)\])?\s+(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>.*)$")
#: Suites that are only parts of an archive: their URI need not serve another release's main suite.
_PARTIAL = re.compile(r"security|backports|updates|proposed|/")


@dataclass(frozen=True)
class Mirror:
    """One place that packages come from."""

    uri: str
    #: What Signed-By names: a path, or None when the source leaves it to apt's trusted keys.
    signed_by: str | None

    def line(self, suite: str, components: str = "main") -> str:
        """The one-line source entry for `suite` at this mirror."""
        option = f" [signed-by={self.signed_by}]" if self.signed_by else ""
        return f"deb{option} {self.uri} {suite} {components}"


def configured_mirrors() -> list[Mirror]:
    """Mirrors of whole archives that apt uses here, in apt's order, each once. Empty when there is no apt."""
    found: dict[Mirror, None] = {}
    for path in _source_files():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # apt reports its own broken files; another file may do
        for mirror in parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text):
            found[mirror] = None
    return list(found)


def parse_deb822(text: str) -> Iterator[Mirror]:
    """Mirrors of a `*.sources` file."""
    lines = [line for line in text.splitlines() if not _COMMENT.match(line)]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}".strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0") or "deb" not in fields.get("types", "").split():
            continue
        if "main" not in fields.get("components", "").split():
            continue
        if all(_PARTIAL.search(suite) for suite in fields.get("suites", "").split()):
            continue
        for uri in fields.get("uris", "").split():
            yield Mirror(uri, _keyring(fields.get("signed-by", "")))


def parse_one_line(text: str) -> Iterator[Mirror]:
    """Mirrors of a `*.list` file."""
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0].strip())
        if match is None or "main" not in match["components"].split() or _PARTIAL.search(match["suite"]):
            continue
        options = dict(part.partition("=")[::2] for part in (match["options"] or "").split())
        yield Mirror(match["uri"], _keyring(options.get("signed-by", "")))


def _keyring(signed_by: str) -> str | None:
    """A path that can be passed on; keys written into the source itself, and fingerprints, cannot."""
    first = re.split(r"[\s,]", signed_by.strip(), maxsplit=1)[0]
    return first if first.startswith("/") else None


def _source_files() -> list[Path]:
    """The files apt reads, as apt itself resolves them (Dir::Etc can be configured)."""
    try:
        shell = subprocess.run(
            ["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    where = dict(re.findall(r"^(LIST|PARTS)='([^']*)'", shell, re.MULTILINE))
    files = [Path(where["LIST"])] if where.get("LIST") else []
    if parts := where.get("PARTS"):
        folder = Path(parts)
        files += sorted(p for p in folder.glob("*") if p.suffix in (".list", ".sources")) if folder.is_dir() else []
    return [f for f in files if f.is_file()]
