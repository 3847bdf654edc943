# SPDX-License-Identifier: Apache-2.0
"""Requests that nobody here thought of, made out of the OpenAPI description, with a token and without.

No answer is an error of the server's (but 503 and 507, which are described), and none has a status, a type or a shape
that is not described.  Benches are stand-ins; what follows a run to its end, or boots a guest, has tests of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework import fake_benches
from framework.agents import LIMIT
from tmem_host.agent_process import AgentProcess
from tmem_host.tokens import Tokens

pytestmark = pytest.mark.slow

SETTINGS = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "507"]
"""
#: A description says what one field may be, not how two go together: what fits it may still be refused.
LEFT_OUT = "positive_data_acceptance"


class Agent(AgentProcess):
    """One whose benches are stand-ins."""

    @property
    def command(self) -> list[str]:
        plain = super().command
        return [sys.executable, fake_benches.__file__, *plain[plain.index("serve") :]]


#: Without a token all that fits or does not is answered alike: less is to be seen.
@pytest.mark.parametrize(
    ("scope", "phases", "least"), [("admin", "examples,coverage,fuzzing", 500), (None, "examples,fuzzing", 100)]
)
def test_no_answer_is_undescribed(
    scope: str | None, phases: str, least: int, state: Path, arena: Path, tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    with Agent(state, arena, LIMIT, arguments=("--listen", "127.0.0.1:0", "--rate", "100000")) as agent:
        url = re.findall(r"and (http://\S+)", (state / "agent.log").read_text())[-1]
        program = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(tmp_path / "settings.toml")]
        argv = [*program, "run", f"{url}/openapi.json", "--generation-database", "none", "--seed", "1"]
        argv += ["--phases", phases, "--max-examples", "5", "--exclude-checks", LEFT_OUT]
        argv += ["--exclude-path-regex", "(events|start)$", "--request-timeout", "30", "--warnings", "off"]
        if scope is not None:
            argv += ["--header", f"Authorization: Bearer {Tokens(agent.state).add('st', scope)}"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert agent.client.health().pid == agent.pid
    assert done.returncode == 0, done.stdout[-20_000:]
    tested = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert tested is not None, done.stdout[-2000:]
    assert int(tested[1]) > least
    assert "Traceback" not in (state / "agent.log").read_text()
