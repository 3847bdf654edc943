# SPDX-License-Identifier: Apache-2.0
"""What tests say about agents."""

from __future__ import annotations

from collections.abc import Callable

from tmem_host.agent_process import AgentProcess

#: Bytes of the store of a test that does not say otherwise.
LIMIT = 64 << 20

#: The fixture ``make_agent``: options of ``tmem serve``, ``limit`` and ``folder``.
AgentFactory = Callable[..., AgentProcess]
