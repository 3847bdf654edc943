# SPDX-License-Identifier: Apache-2.0
"""Every error of the API as application/problem+json (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from tmem_host.errors import InvalidInput, NotFound, TmemError, Unauthorised, one_line
from tmem_host.models import Problem

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"


def problem(error: TmemError, status: int | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """``error`` as a response."""
    code = status or error.status
    body = Problem(
        type=f"urn:tmem:error:{error.slug}",
        title=HTTPStatus(code).phrase,
        status=code,
        detail=error.message,
        hint=error.hint,
        kind=error.slug,
    )
    return JSONResponse(body.model_dump(), status_code=code, media_type=MEDIA_TYPE, headers=headers)


def validation_message(errors: Sequence[Any]) -> str:
    """The first finding of a validation, as ``place: what``."""
    if not errors:
        return "the request is not valid"
    first = errors[0]
    place = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
    message = one_line(str(first.get("msg", "not valid"))).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _allowed(request: Request) -> list[str]:
    """Methods of all routes of the path: the framework names those of the first one."""
    found = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in found for method in getattr(route, "methods", None) or ()})


def install(app: FastAPI) -> None:
    """Registers the handlers on ``app``."""

    @app.exception_handler(TmemError)
    async def _tmem(_request: Request, error: TmemError) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else None
        return problem(error, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(InvalidInput(validation_message(error.errors()), "see /openapi.json"))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        cls = NotFound if error.status_code == HTTPStatus.NOT_FOUND else InvalidInput
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_allowed(request))
        return problem(cls(message, "see /openapi.json"), error.status_code, headers)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(TmemError(f"the agent failed: {type(error).__name__}", "see agent.log in the state folder"))


#: For the OpenAPI description of a route.
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "description": description, "content": {MEDIA_TYPE: {}}}
    for status, description in {
        401: "No token, or none that the agent knows (over TCP)",
        403: "The scope of the token, or the operating system, says no",
        404: "Nothing of that name is there",
        409: "Exists already, or not in this state",
        412: "It is no longer what `If-Match` says",
        413: "The body is too large",
        422: "The request is not valid",
        428: "`If-Match` is required",
        429: "Too many requests: `Retry-After` says how many seconds to wait (over TCP)",
        503: "This host lacks something that is needed",
        507: "Quota, limit or file system too small",
    }.items()
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the description of a route: errors that it answers with, besides those that every route has."""
    return {status: RESPONSES[status] for status in statuses}
