# SPDX-License-Identifier: Apache-2.0
"""Fixtures that tests of every ring share: a state folder, an arena in shared memory, agents that are always reaped."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from framework.agents import LIMIT, AgentFactory
from tmem_host.agent_process import AgentProcess
from tmem_host.config import AgentConfig

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from tmem_host.service import Service


def pytest_configure() -> None:
    # A shell that starts a job in the background lets it ignore SIGINT, and so would every child of ours: tests that
    # interrupt would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def state() -> Iterator[Path]:
    """An empty folder with a short path: sockets go into it, and their paths have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def shared() -> Iterator[Path]:
    """An empty folder in shared memory, where arenas live."""
    folder = Path(tempfile.mkdtemp(prefix="tmem-t-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def arena(shared: Path) -> Path:
    """Where an arena may be made."""
    return shared / "arena"


@pytest.fixture
def config(state: Path, arena: Path) -> AgentConfig:
    return AgentConfig(state=state, arena=arena, limit=LIMIT)


@pytest.fixture
def service(config: AgentConfig) -> Iterator[Service]:
    """The agent's service in this process, its channels listening."""
    from tmem_host.service import Service

    running = Service.open(config)
    running.start_channels()
    yield running
    running.close()


@pytest.fixture
def app(service: Service) -> FastAPI:
    """The API over ``service``."""
    from tmem_host.api.app import make_app

    return make_app(service)


@pytest.fixture
def api(app: FastAPI) -> httpx.AsyncClient:
    """A client of ``app`` in this process, below ``/v1``, as one comes over the Unix socket."""
    from framework.api import client_of
    from tmem_host.api.doors import LocalDoor

    return client_of(LocalDoor(app))


@pytest.fixture
def make_agent(state: Path, arena: Path) -> Iterator[AgentFactory]:
    """Makes agents, not yet started, on the test's state folder and arena; kills what is left of them at the end."""
    made: list[AgentProcess] = []

    def make(*arguments: str, limit: int | str | None = LIMIT, folder: Path = state) -> AgentProcess:
        agent = AgentProcess(folder, arena, limit, arguments=arguments)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.kill()


@pytest.fixture
def agent(make_agent: AgentFactory) -> AgentProcess:
    """A running agent."""
    running = make_agent()
    running.start()
    return running
