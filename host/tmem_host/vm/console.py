# SPDX-License-Identifier: Apache-2.0
"""What a guest's kernel complained about."""

from __future__ import annotations

import re
from typing import Final

#: How the kernel begins its reports: warnings, oopses, lockdep, KASAN, hung tasks, and their traces.
_COMPLAINT: Final = re.compile(
    r"WARNING:|BUG:|\bOops\b|Call Trace|general protection|kernel panic|INFO: task|INFO: possible|INFO: rcu"
    r"|possible .* deadlock|UBSAN|kmemleak: \d+ new|suspicious RCU",
    re.IGNORECASE,
)
#: The boot's own, of no module of ours.
_KNOWN: Final = ("Spectre", "MDS CPU bug", "RETBleed", "Speculative")


def complaints(text: str) -> list[str]:
    """Lines of a console or a kernel log that no healthy run has."""
    return [line for line in text.splitlines() if _COMPLAINT.search(line) and not any(word in line for word in _KNOWN)]
