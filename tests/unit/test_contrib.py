# SPDX-License-Identifier: Apache-2.0
"""The systemd units: understood by systemd, sandboxed, and in step with the command line."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tmem_host import cli

UNITS = sorted((Path(__file__).resolve().parents[2] / "contrib/systemd").glob("*.service"))
#: What `systemd-analyze security` may find at most, of 10.
EXPOSURE = 4.0


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_sandboxed(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze (Debian: systemd)")
    argv = ["systemd-analyze", "security", "--offline=yes", str(unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE
    # A directive that systemd does not know is said there.
    assert "Unknown" not in done.stderr


def test_the_agents_unit_starts_a_command_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    (unit,) = (unit for unit in UNITS if unit.name == "tmem.service")
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    program, *arguments = shlex.split(line)
    assert Path(program).name == "tmem"
    assert cli.run([*arguments, "--help"]) == 0
    assert "Run the host agent" in capsys.readouterr().out
