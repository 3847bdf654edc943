# SPDX-License-Identifier: Apache-2.0
"""The command line: one line for every error, exit codes, JSON, and nothing imported before it is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tmem_host import cli
from tmem_host.agent_process import AgentProcess

TMEM = [sys.executable, "-m", "tmem_host.cli"]


def tmem(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("vm", "add"), 2, "NAME"),
        (("vm", "add", "web"), 2, "--size"),
        (("vm", "add", "web", "--size", "much"), 2, "512M"),
        (("vm", "add", "web", "--size", "1G", "--codec", "gzip"), 2, "lz4, zstd, none"),
        (("vm", "add", "../web", "--size", "1G"), 2, "cannot name a VM"),
        (("vm", "add", "web", "--size", "5000"), 2, "multiple of 4096"),
        (("vm", "add", "web", "--channel", "serial", "--size", "1G"), 2, "--size is for"),
        (("vm", "add", "web", "--channel", "radio"), 2, "blk, tmem, serial"),
        (("vm", "set", "web"), 2, "nothing to change"),
        (("vm", "set", "web", "--cap", "1G", "--no-cap"), 2, "exclude"),
        (("vm", "show", "../../etc/passwd"), 2, "cannot name a VM"),
        (("nonsense",), 2, "nonsense"),
        (("vm", "list"), 8, "start one with 'tmem serve'"),
        (("store", "--json"), 8, "start one with 'tmem serve'"),
        (("serve", "--limit", "-1"), 2, "512M"),
        (("hog", "--kernel", "2.4", "--accel", "tcg"), 2, "2.4"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TMEM_STATE", str(state))
    found, out, err = tmem(*arguments, capsys=capsys)
    assert (found, out) == (code, "")
    assert err.startswith("tmem: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_state_folder_with_too_long_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = tmem("vm", "list", "--state", "/tmp/" + "d" * 110, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "107" in err


def test_a_vm_by_command(
    agent: AgentProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMEM_STATE", str(agent.state))
    code, out, _ = tmem("vm", "add", "web", "--size", "4M", "--cap", "6M", capsys=capsys)
    assert code == 0
    assert f"path={agent.state}/vms/web.sock" in out
    code, out, _ = tmem("vm", "add", "port", "--channel", "serial", "--channel", "tmem", capsys=capsys)
    assert code == 0
    assert f"path={agent.state}/vms/port.serial.sock,server=on,wait=off" in out
    assert "name=org.kvm-tmem.pages.0" in out
    assert "vhost-user-tmem-pci,chardev=tmem-tmem" in out
    assert tmem("vm", "remove", "port", capsys=capsys)[0] == 0
    code, out, _ = tmem("vm", "add", "db", "--size", "4M", "--codec", "zstd", "--json", capsys=capsys)
    assert json.loads(out)["codec"] == "zstd"
    code, out, _ = tmem("vm", "list", capsys=capsys)
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "db", "web"]
    code, out, _ = tmem("vm", "list", "--json", capsys=capsys)
    assert [vm["name"] for vm in json.loads(out)["vms"]] == ["db", "web"]
    code, out, _ = tmem("vm", "set", "web", "--no-cap", "--weight", "7", "--json", capsys=capsys)
    assert (json.loads(out)["cap"], json.loads(out)["weight"]) == (None, 7)
    code, out, _ = tmem("vm", "freeze", "web", "--json", capsys=capsys)
    assert json.loads(out)["frozen"] is True
    code, out, _ = tmem("vm", "thaw", "web", capsys=capsys)
    assert "frozen       no" in out
    code, out, _ = tmem("store", capsys=capsys)
    assert str(agent.arena) in out
    assert tmem("vm", "remove", "web", capsys=capsys)[0] == 0
    code, _, err = tmem("vm", "show", "web", capsys=capsys)
    assert (code, err) == (3, "tmem: there is no VM web (see 'tmem vm list')\n")
    code, _, err = tmem("vm", "add", "db", "--size", "4M", capsys=capsys)
    assert (code, err.count("\n")) == (4, 1)
    code, _, err = tmem("vm", "add", "big", "--size", "1G", capsys=capsys)
    assert (code, err.count("\n")) == (5, 1)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert tmem("--version", capsys=capsys)[:2] == (0, "tmem 0.1.0\n")
    code, out, _ = tmem("--help", capsys=capsys)
    assert code == 0
    for word in ("serve", "vm", "store", "doctor", "hog", "bench"):
        assert word in out
    for command in (("serve",), ("vm", "add"), ("vm", "set"), ("store",), ("doctor",), ("hog",)):
        code, out, _ = tmem(*command, "--help", capsys=capsys)
        assert code == 0
        assert "Example" in out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tmem_host import cli; cli.run(['--help']); "
        "heavy = {'pydantic', 'httpx', 'fastapi', 'uvicorn', 'numpy', 'scipy', 'tmem_host._core'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*TMEM, "--version"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_completion_offers_commands() -> None:
    env = {**os.environ, "_TMEM_COMPLETE": "complete_bash", "COMP_WORDS": "tmem v", "COMP_CWORD": "1"}
    done = subprocess.run(TMEM, capture_output=True, text=True, env=env, check=False)
    assert done.stdout.split() == ["vm"]


def test_interrupt_is_130(state: Path) -> None:
    # The agent itself takes SIGINT as a wish to stop: use a command that waits for one that does not answer.
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(state / "api.sock"))
        silent.listen()
        waiting = subprocess.Popen([*TMEM, "vm", "list", "--state", str(state)], stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(64)
            waiting.send_signal(signal.SIGINT)
            _, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, err) == (130, "")


def test_doctor_says_what_to_do(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TMEM_CACHE", str(state / "cache"))
    code, out, _ = tmem("doctor", "--no-trial", "--state", state, "--json", capsys=capsys)
    findings = {finding["subject"]: finding for finding in json.loads(out)["findings"]}
    assert code == 8
    assert findings["qemu-system-x86_64"]["state"] == "missing"
    assert findings["qemu-system-x86_64"]["advice"] == "install qemu-system-x86"
    assert findings["guest 6.1"]["advice"] == "run 'make guests'"
    assert findings["agent"]["advice"] == "start one with 'tmem serve'"
    assert findings["core"]["state"] == "ok"
    assert all(finding["advice"] for finding in findings.values() if finding["state"] != "ok")
    code, out, _ = tmem("doctor", "--no-trial", "--state", state, capsys=capsys)
    assert "(install qemu-system-x86)" in out
