# SPDX-License-Identifier: Apache-2.0
"""The API over TCP: tokens, TLS, addresses that are refused, and the command line as a remote client."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

from framework.agents import AgentFactory
from tmem_host import cli
from tmem_host.agent_process import AgentProcess
from tmem_host.client import AgentClient
from tmem_host.connect import UrlDoor
from tmem_host.errors import Denied, InvalidInput, Unauthorised, Unavailable
from tmem_host.models import VmCreate
from tmem_host.tokens import Tokens

MIB = 1 << 20


def address_of(agent: AgentProcess) -> str:
    """Where the running agent says that it listens."""
    found = re.findall(r"API on \S+ and (https?://\S+)", (agent.state / "agent.log").read_text())
    return str(found[-1])


def token(agent: AgentProcess, scope: str) -> str:
    return Tokens(agent.state).add(scope, scope)


@pytest.fixture
def certificate(state: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    cert, key = state / "cert.pem", state / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *names, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def test_a_token_opens_what_its_scope_reaches(make_agent: AgentFactory) -> None:
    agent = make_agent("--listen", "127.0.0.1:0")
    agent.start()
    assert "there is no token yet" in (agent.state / "agent.log").read_text()
    url = address_of(agent)
    # Made while the agent runs.
    reader, operator = (AgentClient(door=UrlDoor(url, token(agent, scope))) for scope in ("read", "operate"))
    assert reader.health().pid == agent.pid
    with pytest.raises(Denied, match="needs a token of scope operate"):
        reader.create_vm(VmCreate(name="web", size_bytes=4 * MIB))
    operator.create_vm(VmCreate(name="web", size_bytes=4 * MIB))
    assert [vm.name for vm in reader.list_vms()] == ["web"]
    for stranger in (AgentClient(door=UrlDoor(url)), AgentClient(door=UrlDoor(url, "x"))):
        with pytest.raises(Unauthorised):
            stranger.list_vms()
    Tokens(agent.state).revoke("read")
    with pytest.raises(Unauthorised):
        reader.list_vms()
    # The socket needs none.
    assert [vm.name for vm in agent.client.list_vms()] == ["web"]
    agent.stop()
    with pytest.raises(Unavailable, match="no agent answers"):
        operator.health()


def test_tls(make_agent: AgentFactory, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    agent = make_agent("--listen", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key))
    agent.start()
    url, value = address_of(agent), token(agent, "read")
    assert url.startswith("https://")
    assert AgentClient(door=UrlDoor(url, value, cert)).health().pid == agent.pid
    with pytest.raises(Unavailable, match="no trusted connection"):
        AgentClient(door=UrlDoor(url, value)).health()
    with pytest.raises(Unavailable):
        AgentClient(door=UrlDoor(url.replace("https", "http"), value)).health()


def test_a_command_line_far_away(
    make_agent: AgentFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = make_agent("--listen", "[::1]:0")
    agent.start()
    file = tmp_path / "token"
    assert cli.run(["token", "add", "me", "--scope", "operate", "--state", str(agent.state)]) == 0
    file.write_text(capsys.readouterr().out)
    there = ["--host", address_of(agent), "--token-file", str(file)]
    assert cli.run([*there, "vm", "add", "web", "--size", "4M", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "web"
    monkeypatch.setenv("TMEM_HOST", there[1])
    monkeypatch.setenv("TMEM_TOKEN_FILE", str(file))
    assert cli.run(["pool", "list"]) == 0
    assert "web" in capsys.readouterr().out
    assert cli.run(["token", "list"]) == 2
    assert "agent's own host" in capsys.readouterr().err
    assert cli.run(["--host", "http://[::1]:1", "vm", "list"]) == 8
    file.write_text("two words")
    assert cli.run(["vm", "list"]) == 2
    assert "holds no token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--listen", "0.0.0.0:0"), 2, "can be reached from elsewhere"),
        (("--listen", "[::]:0"), 2, "can be reached from elsewhere"),
        (("--listen", "7080"), 2, "is no address to listen on"),
        (("--listen", "127.0.0.1:99999"), 2, "is no address to listen on"),
        (("--listen", "192.0.2.1:0", "--insecure-plain"), 2, "cannot be listened on"),
        (("--insecure-plain",), 2, "no address was given"),
        (("--listen", "127.0.0.1:0", "--tls-cert", "/nowhere"), 2, "needs its key"),
        (("--listen", "127.0.0.1:0", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"), 2, "no certificate"),
    ],
)
def test_addresses_that_are_refused(make_agent: AgentFactory, options: tuple[str, ...], code: int, words: str) -> None:
    done = subprocess.run(make_agent(*options).command, capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert last.startswith("tmem: ")
    assert words in last


def test_a_public_address_when_somebody_says_so(make_agent: AgentFactory) -> None:
    agent = make_agent("--listen", "0.0.0.0:0", "--insecure-plain")
    agent.start()
    port = int(address_of(agent).rpartition(":")[2])
    assert AgentClient(door=UrlDoor(f"http://127.0.0.1:{port}", token(agent, "read"))).health().pid == agent.pid


def test_an_address_that_is_taken(make_agent: AgentFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        agent = make_agent("--listen", f"127.0.0.1:{other.getsockname()[1]}")
        done = subprocess.run(agent.command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "another process listens" in done.stderr) == (4, True)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://host/v1", "http://h:99999"])
def test_what_is_no_address_of_an_agent(url: str) -> None:
    with pytest.raises(InvalidInput, match="address"):
        UrlDoor(url)
