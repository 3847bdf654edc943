# SPDX-License-Identifier: Apache-2.0
"""The web page: files as they are, which ask the API like any other client. They hold nothing of the agent's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER: Final = Path(__file__).resolve().parents[1] / "web"

#: Nothing from elsewhere, nothing inline, no frame around it: what a VM's name could carry stays text.
_STRICT: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: Of the page that a report takes the place of: reports carry their style, script and pictures themselves.
_REPORT: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Another agent version may serve the same address tomorrow.
    "Cache-Control": "no-cache",
}


class _Page(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(Headers(_HEADERS))
        response.headers["Content-Security-Policy"] = _REPORT if path == "report.html" else _STRICT
        return response


def install(app: FastAPI) -> None:
    """Serves the page at ``/``; after all routes, as it takes what none of them does."""
    app.mount("/", _Page(directory=FOLDER, html=True), name="web")
