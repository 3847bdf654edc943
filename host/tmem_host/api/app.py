# SPDX-License-Identifier: Apache-2.0
"""The API as a whole.  Each route calls one method of the service; plain functions run in worker threads, so none
blocks the loop."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tmem_host import __version__
from tmem_host.api import agent, domains, pools, runs, vms, web
from tmem_host.api.problems import install
from tmem_host.api.scoped import SCOPE_KEY, ScopedRoute
from tmem_host.api.snapshot import Changes, Snapshots
from tmem_host.audit import FILE as AUDIT_FILE
from tmem_host.audit import AuditLog
from tmem_host.metrics import Requests
from tmem_host.service import Service

_SCHEME: Final = "token"
_ABOUT: Final = """The agent of one host: VMs that swap to its memory, their pools and quotas, and benches.

Over the Unix socket whoever can open it may do everything.  Over TCP every request needs a bearer token; what its scope
(`x-tmem-scope` of a route) does not reach is answered with 403.  Sizes are bytes, or text like `512M`; times are in the
unit that a field's name says.  Errors are `application/problem+json` (RFC 9457) with a `hint` of what to do."""


def make_app(service: Service) -> FastAPI:
    """The API of ``service``."""
    app = FastAPI(title="tmem agent", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None)
    app.state.audit = AuditLog(service.config.state / AUDIT_FILE)
    app.state.requests = requests = Requests()
    app.state.changes = changes = Changes()
    app.state.snapshots = Snapshots(changes)
    metrics = agent.metrics_router(service, requests)
    parts = (
        metrics,
        agent.router(service),
        vms.router(service),
        domains.router(service),
        pools.router(service),
        runs.router(service.runs),
    )
    for part in (*parts, pools.saves_router(service)):
        # Not included: what is there is to be seen, for the description and for tests.
        app.router.routes.extend(part.routes)
    install(app)
    _describe(app)
    web.install(app)
    return app


def scoped_routes(app: FastAPI) -> list[ScopedRoute]:
    """Every route with a scope."""
    return [route for route in app.routes if isinstance(route, ScopedRoute)]


def _describe(app: FastAPI) -> None:
    """Adds to the OpenAPI description who may call what."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            assert isinstance(route, ScopedRoute), route.path
            route.openapi_extra = {**(route.openapi_extra or {}), SCOPE_KEY: route.needs, "security": [{_SCHEME: []}]}
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = plain()
            described.setdefault("components", {})["securitySchemes"] = {
                _SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Over TCP only; made with `tmem token add`.",
                }
            }
        return app.openapi_schema or plain()

    app.openapi = openapi  # type: ignore[method-assign]
