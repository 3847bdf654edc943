# SPDX-License-Identifier: Apache-2.0
"""A client of the agent for Python: typed answers, and the agent's own errors raised again."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from tmem_host.config import check_socket_path, check_vm_name, state_dir
from tmem_host.errors import BY_SLUG, Denied, TmemError, Unavailable
from tmem_host.models import ChannelInfo, ChannelKind, Health, Problem, StoreInfo, VmCreate, VmInfo, VmList, VmUpdate

Answer = TypeVar("Answer", bound=BaseModel)

#: Seconds. Removing a VM with tens of millions of pages takes seconds.
TIMEOUT: Final = 60.0


def _vm(name: str) -> str:
    """The path of a VM.  Checked here too: a name with a slash would be another route."""
    return f"/vms/{check_vm_name(name)}"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket.  Of the standard library: every command of ``tmem`` starts with this."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


class AgentClient:
    """Talks to the agent of a state folder over its Unix socket.  Blocking; may be shared by threads."""

    def __init__(self, state: Path | str | None = None) -> None:
        folder = state_dir() if state is None else Path(state).absolute()
        self.socket = check_socket_path(folder / "api.sock")

    def health(self) -> Health:
        return self._ask("GET", "/health", Health)

    def store(self) -> StoreInfo:
        return self._ask("GET", "/store", StoreInfo)

    def list_vms(self) -> list[VmInfo]:
        return self._ask("GET", "/vms", VmList).vms

    def create_vm(self, wanted: VmCreate) -> VmInfo:
        return self._ask("POST", "/vms", VmInfo, wanted.model_dump(mode="json"))

    def get_vm(self, name: str) -> VmInfo:
        return self._ask("GET", _vm(name), VmInfo)

    def update_vm(self, name: str, change: VmUpdate) -> VmInfo:
        return self._ask("PATCH", _vm(name), VmInfo, change.model_dump(mode="json", exclude_unset=True))

    def remove_vm(self, name: str) -> None:
        self._request("DELETE", _vm(name))

    def freeze_vm(self, name: str) -> VmInfo:
        return self._ask("POST", f"{_vm(name)}/freeze", VmInfo)

    def thaw_vm(self, name: str) -> VmInfo:
        return self._ask("POST", f"{_vm(name)}/thaw", VmInfo)

    def channel(self, name: str, kind: ChannelKind | None = None) -> ChannelInfo:
        """One of the VM's channels: the first, if none is named."""
        query = f"?kind={kind}" if kind else ""
        return self._ask("GET", f"{_vm(name)}/channel{query}", ChannelInfo)

    def _ask(self, method: str, path: str, answer: type[Answer], body: dict[str, Any] | None = None) -> Answer:
        content = self._request(method, path, body)
        try:
            return answer.model_validate_json(content)
        except ValidationError as error:
            raise TmemError(
                f"the agent at {self.socket} answers in a way that this client does not know",
                "are agent and client of one version?",
            ) from error

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The content of a good answer; else the error that the agent reports."""
        connection = _UnixConnection(self.socket)
        headers = {"Connection": "close"} | ({} if body is None else {"Content-Type": "application/json"})
        try:
            connection.request(method, f"/v1{path}", None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        except TimeoutError as error:
            raise Unavailable(f"the agent at {self.socket} does not answer in time", "see its agent.log") from error
        except PermissionError as error:
            raise Denied(f"no permission on {self.socket}", "be the user that runs the agent") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"no agent answers at {self.socket}", "start one with 'tmem serve'") from error
        finally:
            connection.close()
        if response.status < 300:
            return content
        try:
            problem = Problem.model_validate_json(content)
        except ValidationError:
            raise TmemError(f"the agent at {self.socket} answers {response.status}", "see its agent.log") from None
        raise BY_SLUG.get(problem.kind, TmemError)(problem.detail, problem.hint)
