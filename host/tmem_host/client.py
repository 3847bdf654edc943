# SPDX-License-Identifier: Apache-2.0
"""A client of the agent for Python: typed answers, and the agent's own errors raised again.

Over the Unix socket of a state folder, or over TCP with a token: see :mod:`tmem_host.connect`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel, ValidationError

from tmem_host.config import check_vm_name, state_dir
from tmem_host.connect import Door, SocketDoor
from tmem_host.errors import BY_SLUG, Denied, TmemError, Unavailable
from tmem_host.models import (
    ChannelInfo,
    ChannelKind,
    Flushed,
    GuestReport,
    Health,
    HostInfo,
    PoolCreate,
    PoolDetail,
    PoolInfo,
    PoolList,
    PoolUpdate,
    Problem,
    Restored,
    RunCreate,
    RunInfo,
    RunList,
    RunResults,
    SaveCreate,
    Saved,
    SaveInfo,
    SaveList,
    Shared,
    StoreInfo,
    TierList,
    VmCreate,
    VmInfo,
    VmList,
    VmSettings,
    VmUpdate,
)

Answer = TypeVar("Answer", bound=BaseModel)


def _vm(name: str) -> str:
    """The path of a VM.  Checked here too: a name with a slash would be another route."""
    return f"/vms/{check_vm_name(name)}"


class AgentClient:
    """Talks to one agent.  Blocking; may be shared by threads."""

    def __init__(self, state: Path | str | None = None, *, door: Door | None = None) -> None:
        """The agent of a state folder, unless there is another ``door``."""
        self.door = door or SocketDoor(
            (state_dir() if state is None else Path(state).absolute()) / "api.sock",
        )

    # -- the agent ----------------------------------------------------------------------------------------------

    def health(self) -> Health:
        return self._ask("GET", "/health", Health)

    def host(self) -> HostInfo:
        return self._ask("GET", "/host", HostInfo)

    def store(self) -> StoreInfo:
        return self._ask("GET", "/store", StoreInfo)

    def tiers(self) -> TierList:
        return self._ask("GET", "/tiers", TierList)

    def metrics(self) -> str:
        """As Prometheus reads them."""
        return self._request("GET", "/metrics", base="").decode()

    # -- VMs ----------------------------------------------------------------------------------------------------

    def list_vms(self) -> list[VmInfo]:
        found: list[VmInfo] = []
        page = VmList(vms=[], next="")
        while page.next is not None:
            page = self._ask("GET", f"/vms{_query(cursor=page.next)}", VmList)
            found += page.vms
        return found

    def create_vm(self, wanted: VmCreate) -> VmInfo:
        return self._ask("POST", "/vms", VmInfo, wanted.model_dump(mode="json"))

    def get_vm(self, name: str) -> VmInfo:
        return self._ask("GET", _vm(name), VmInfo)

    def update_vm(self, name: str, change: VmUpdate, *, version: str | None = None) -> VmInfo:
        """``version``: of the settings that are to be changed; :class:`Changed` when they are others by now."""
        body = change.model_dump(mode="json", exclude_unset=True)
        return self._ask("PATCH", _vm(name), VmInfo, body, match=version)

    def replace_settings(self, name: str, settings: VmSettings, *, version: str) -> VmSettings:
        """As :meth:`update_vm`, with all settings."""
        body = settings.model_dump(mode="json")
        return self._ask("PUT", f"{_vm(name)}/settings", VmSettings, body, match=version)

    def remove_vm(self, name: str) -> None:
        self._request("DELETE", _vm(name))

    def freeze_vm(self, name: str) -> VmInfo:
        return self._ask("POST", f"{_vm(name)}/freeze", VmInfo)

    def thaw_vm(self, name: str) -> VmInfo:
        return self._ask("POST", f"{_vm(name)}/thaw", VmInfo)

    def start_vm(self, name: str) -> VmInfo:
        """Begins to; the machine's state says how far it is."""
        return self._ask("POST", f"{_vm(name)}/start", VmInfo)

    def stop_vm(self, name: str) -> VmInfo:
        return self._ask("POST", f"{_vm(name)}/stop", VmInfo)

    def console(self, name: str, tail: int | None = None) -> str:
        """The end of the console of a guest that the agent runs."""
        return self._request("GET", f"{_vm(name)}/console{_query(tail=tail)}").decode("utf-8", "replace")

    def channel(self, name: str, kind: ChannelKind | None = None) -> ChannelInfo:
        """One of the VM's channels: the first, if none is named."""
        return self._ask("GET", f"{_vm(name)}/channel{_query(kind=kind)}", ChannelInfo)

    def guest(self, name: str) -> GuestReport:
        return self._ask("GET", f"{_vm(name)}/guest", GuestReport)

    def shared(self, name: str) -> list[str]:
        return self._ask("GET", f"{_vm(name)}/shared", Shared).uuids

    def authorise(self, name: str, uuid: str, *, allow: bool) -> None:
        self._request("PUT" if allow else "DELETE", f"{_vm(name)}/shared/{uuid}")

    # -- pools --------------------------------------------------------------------------------------------------

    def list_pools(self, vm: str | None = None) -> list[PoolInfo]:
        found: list[PoolInfo] = []
        page = PoolList(pools=[], next="")
        while page.next is not None:
            page = self._ask("GET", f"/pools{_query(vm=vm, cursor=page.next)}", PoolList)
            found += page.pools
        return found

    def create_pool(self, wanted: PoolCreate) -> PoolDetail:
        return self._ask("POST", "/pools", PoolDetail, wanted.model_dump(mode="json"))

    def get_pool(self, number: int) -> PoolDetail:
        return self._ask("GET", f"/pools/{number}", PoolDetail)

    def update_pool(self, number: int, change: PoolUpdate) -> PoolDetail:
        return self._ask("PATCH", f"/pools/{number}", PoolDetail, change.model_dump(mode="json"))

    def flush_pool(self, number: int, *, lose_pages: bool = False) -> int:
        """Pages that are gone."""
        return self._ask("POST", f"/pools/{number}/flush{_query(lose_pages=lose_pages or None)}", Flushed).pages

    def destroy_pool(self, number: int, *, vm: str | None = None, lose_pages: bool = False) -> None:
        self._request("DELETE", f"/pools/{number}{_query(vm=vm, lose_pages=lose_pages or None)}")

    def save_pool(self, number: int, wanted: SaveCreate) -> Saved:
        return self._ask("POST", f"/pools/{number}/save", Saved, wanted.model_dump(mode="json"))

    def restore_pool(self, number: int, name: str, *, lose_pages: bool = False) -> Restored:
        query = _query(lose_pages=lose_pages or None)
        return self._ask("POST", f"/pools/{number}/restore{query}", Restored, {"name": name})

    def list_saves(self) -> list[SaveInfo]:
        return self._ask("GET", "/saves", SaveList).saves

    def delete_save(self, name: str) -> None:
        self._request("DELETE", f"/saves/{check_vm_name(name)}")

    # -- runs ---------------------------------------------------------------------------------------------------

    def list_runs(self, limit: int = 50) -> list[RunInfo]:
        """The latest."""
        return self._ask("GET", f"/runs{_query(limit=limit)}", RunList).runs

    def create_run(self, wanted: RunCreate) -> RunInfo:
        return self._ask("POST", "/runs", RunInfo, wanted.model_dump(mode="json"))

    def get_run(self, number: int) -> RunInfo:
        return self._ask("GET", f"/runs/{number}", RunInfo)

    def cancel_run(self, number: int) -> RunInfo:
        return self._ask("DELETE", f"/runs/{number}", RunInfo)

    def run_results(self, number: int) -> list[dict[str, Any]]:
        return self._ask("GET", f"/runs/{number}/results", RunResults).results

    def run_report(self, number: int) -> bytes:
        """HTML."""
        return self._request("GET", f"/runs/{number}/report")

    def run_log(self, number: int) -> str:
        return self._request("GET", f"/runs/{number}/log").decode("utf-8", "replace")

    def follow_run(self, number: int, after: int = 0) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Events behind the number ``after``, as they come, up to the run's end: number, kind, data."""
        headers = {"Last-Event-ID": str(after)} if after else {}
        with self._answer("GET", f"/v1/runs/{number}/events", headers=headers) as response:
            seq, kind = after, ""
            for raw in response:
                field, _, value = raw.decode("utf-8", "replace").rstrip("\n").partition(": ")
                if field == "id":
                    seq = int(value)
                elif field == "event":
                    kind = value
                elif field == "data":
                    yield seq, kind, json.loads(value)

    # -- inside -------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        body: dict[str, Any] | None = None,
        *,
        match: str | None = None,
    ) -> Answer:
        headers = {} if match is None else {"If-Match": match if match == "*" else f'"{match}"'}
        content = self._request(method, path, body, headers)
        try:
            return answer.model_validate_json(content)
        except ValidationError as error:
            raise TmemError(
                f"the agent at {self.door} answers in a way that this client does not know",
                "are agent and client of one version?",
            ) from error

    def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        *,
        base: str = "/v1",
    ) -> bytes:
        """The content of a good answer; else the error that the agent reports."""
        with self._answer(method, f"{base}{path}", body, headers) as response:
            return response.read()

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A good answer, to be read in the block; else the error that the agent reports."""
        every = {"Connection": "close", **self.door.headers(), **(headers or {})}
        if body is not None:
            every["Content-Type"] = "application/json"
        connection = self.door.connection()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), every)
            response = connection.getresponse()
            if response.status >= 300:
                raise self._problem(response.status, response.read())
            yield response
        except TimeoutError as error:
            raise Unavailable(f"the agent at {self.door} does not answer in time", "see its agent.log") from error
        except PermissionError as error:
            raise Denied(f"no permission on {self.door}", "be the user that runs the agent") from error
        except (OSError, http.client.HTTPException) as error:
            raise self.door.unavailable(error) from error
        finally:
            connection.close()

    def _problem(self, status: int, content: bytes) -> TmemError:
        try:
            problem = Problem.model_validate_json(content)
        except ValidationError:
            return TmemError(f"the agent at {self.door} answers {status}", "see its agent.log")
        return BY_SLUG.get(problem.kind, TmemError)(problem.detail, problem.hint)


def _query(**given: str | int | None) -> str:
    """A query of what was given."""
    named = {name: str(value).lower() for name, value in given.items() if value not in (None, "")}
    return f"?{urlencode(named)}" if named else ""


@contextlib.asynccontextmanager
async def temporary_vm(client: AgentClient, wanted: VmCreate) -> AsyncIterator[VmInfo]:
    """A VM of the agent, removed when the block ends. An agent that ended does not hide what the block failed with."""
    made = await asyncio.to_thread(client.create_vm, wanted)
    try:
        yield made
    except BaseException:
        with contextlib.suppress(TmemError):
            await asyncio.to_thread(client.remove_vm, wanted.name)
        raise
    await asyncio.to_thread(client.remove_vm, wanted.name)
