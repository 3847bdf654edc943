# SPDX-License-Identifier: Apache-2.0
"""The conformance suite: one table of cases for everything that answers requests of ``guest/abi/tmem_abi.h``.

A *speaker* takes the bytes of a request and gives those of the reply: the core in this process, the reference, a
device. To run the table against a new one, subclass :class:`Speaker` (:mod:`conformance.speaker` says what it needs;
:mod:`conformance.local` has two) and add::

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_conformance(case: Case, my_speaker: Speaker) -> None:
        case.run(my_speaker)

Every speaker runs every case, but for features that its host does not offer, and for what a request of a stream cannot
say: how much room there is for the reply. A case leaves nothing behind, so one speaker can run all of them.
"""

from __future__ import annotations

from conformance import negotiation, operations, pools, refusals, rules
from conformance.speaker import Case, Speaker

CASES: list[Case] = [*rules.CASES, *operations.CASES, *pools.CASES, *negotiation.CASES, *refusals.CASES]

__all__ = ["CASES", "Case", "Speaker"]
