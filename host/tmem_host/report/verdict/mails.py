# SPDX-License-Identifier: Apache-2.0
"""The mails of the thread "[GIT PULL] mm: frontswap (for 3.2 window)" on linux-mm that the claims are from.

Each opens as https://lore.kernel.org/all/MESSAGE-ID/.
"""

from __future__ import annotations

from typing import Final

SEED: Final = "31 Oct 2011, message 1b2e4f74-7058-4712-85a7-84198723e3ee@default"
"""Dan Magenheimer to Andrea Arcangeli: the mail this project starts from. It quotes the next two."""
ANDREA_OCT31: Final = "31 Oct 2011, message 20111031223717.GI3466@redhat.com"
DAN_OCT31: Final = "31 Oct 2011, message 60592afd-97aa-4eaf-b86b-f6695d31c7f1@default"
ANDREA_NOV1: Final = "1 Nov 2011, message 20111101012017.GJ3466@redhat.com"
DAN_NOV1: Final = "1 Nov 2011, message bb0996fb-9b83-4de2-a1e4-d9c810c4b48a@default"
"""To James Bottomley."""
RIK_NOV2: Final = "2 Nov 2011, message 4EB1AD53.2000600@redhat.com"
DAN_NOV2: Final = "2 Nov 2011, message cb397723-5297-493d-9bbd-522a6400a5a6@default"
"""To Rik van Riel."""
