# SPDX-License-Identifier: Apache-2.0
"""Who may call a route: every route has a scope, looked at before anything of the request is parsed.

``read`` sees, ``operate`` changes, ``admin`` does what cannot be taken back or touches the host itself.  A route that
says nothing has ``read`` for GET and ``operate`` for all else, so that a new one is never open by accident.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from tmem_host.api.problems import answers
from tmem_host.audit import AuditLog
from tmem_host.errors import Denied, InvalidInput, TmemError, Unauthorised
from tmem_host.metrics import Requests
from tmem_host.tokens import SCOPES, Scope

log = logging.getLogger(__name__)

#: The key of a route's scope in the OpenAPI description.
SCOPE_KEY: Final = "x-tmem-scope"
#: The key of the caller in the request's scope; the door that lets it in writes it, None for who said no name.
CALLER_KEY: Final = "tmem.caller"
#: Bodies up to this size are written to the audit log: settings, not data.
_AUDITED_BODY: Final = 4096


@dataclass(frozen=True)
class Caller:
    """Who sent a request: ``local`` over the Unix socket, else the name of a token."""

    name: str
    scope: Scope


#: Who opens the Unix socket is the user that runs the agent, or root.
LOCAL: Final = Caller("local", "admin")


def admin() -> dict[str, Any]:
    """``openapi_extra`` of a route that only ``admin`` may call."""
    return {SCOPE_KEY: "admin"}


def scoped_router(noun: str) -> APIRouter:
    """A router of ``/v1/NOUN``, whose routes have scopes and describe the errors that all of them answer with."""
    return APIRouter(
        prefix=f"/v1{noun}",
        tags=[noun.removeprefix("/") or "agent"],
        route_class=ScopedRoute,
        responses=answers(401, 403, 413, 422, 429),
    )


class ScopedRoute(APIRoute):
    """A route with a scope; what changes something is written to the audit log."""

    @property
    def needs(self) -> Scope:
        declared = (self.openapi_extra or {}).get(SCOPE_KEY)
        if declared in SCOPES:
            return declared  # type: ignore[no-any-return]
        return "read" if self.methods and self.methods <= {"GET", "HEAD"} else "operate"

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        needs = self.needs
        changes = needs != "read"
        name, path = self.name, self.path

        async def checked(request: Request) -> Response:
            caller: Caller | None = request.scope[CALLER_KEY]
            who = "nobody" if caller is None else caller.name
            audit: AuditLog | None = request.app.state.audit if changes else None
            requests: Requests = request.app.state.requests
            status, body = 500, b""
            began = time.monotonic()
            try:
                if caller is None:
                    raise Unauthorised("this needs a token", "make one with 'tmem token add' on the agent's host")
                if SCOPES.index(caller.scope) < SCOPES.index(needs):
                    raise Denied(
                        f"{name} needs a token of scope {needs}, {who} has {caller.scope}",
                        "make one with 'tmem token add'",
                    )
                if changes:
                    body = await request.body()
                response = await handle(request)
                status = response.status_code
            except TmemError as error:
                status = error.status
                raise
            except HTTPException as error:
                status = error.status_code
                if status == HTTPStatus.BAD_REQUEST:
                    # fastapi's word for a body that no parser takes, as one nested too deeply
                    status = InvalidInput.status
                    raise InvalidInput("the body cannot be parsed", "see /openapi.json") from error
                raise
            except RequestValidationError:
                status = InvalidInput.status
                raise
            finally:
                requests.answered(request.method, path, status, time.monotonic() - began)
                if changes:
                    request.app.state.changes.count += 1
                if audit is not None:
                    audit.record(who, request.method, request.url.path, name, status, _told(body))
            return response

        return checked


def _told(body: bytes) -> Any:
    """The body as the audit log has it: parsed, if it is short JSON."""
    if not body or len(body) > _AUDITED_BODY:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return None
