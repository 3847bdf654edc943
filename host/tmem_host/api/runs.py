# SPDX-License-Identifier: Apache-2.0
"""Routes of runs: benches as jobs, followed by server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from tmem_host.api.parameters import PAGE, Limit, NumberCursor
from tmem_host.api.problems import answers
from tmem_host.api.scoped import CALLER_KEY, scoped_router
from tmem_host.models import RunCreate, RunInfo, RunList, RunResults
from tmem_host.runs import LOG_MAX, Runs, as_sse

RunNumber = Annotated[int, Path(ge=1, lt=1 << 62, description="The run's number", examples=[1])]
After = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, lt=1 << 62, description="The last event that was seen: go on behind it"),
]
Tail = Annotated[int, Query(ge=1, le=LOG_MAX, description="Bytes from its end")]


def _text(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {"schema": {"type": "string"}}}}}


def router(runs: Runs) -> APIRouter:
    """The routes below ``/runs``."""
    jobs = scoped_router("/runs")

    @jobs.get("", responses=answers(422))
    def list_runs(limit: Limit = PAGE, cursor: NumberCursor = None) -> RunList:
        """Runs, the latest first, a page of them."""
        return runs.list_(before=None if cursor is None else int(cursor), limit=limit)

    @jobs.post("", status_code=HTTPStatus.CREATED, responses=answers(409, 422))
    def create_run(wanted: RunCreate, request: Request, response: Response) -> RunInfo:
        """Queues a bench; one runs at a time.  Follow it by its events."""
        made = runs.create(wanted, request.scope[CALLER_KEY].name)
        response.headers["Location"] = f"/v1/runs/{made.id}"
        return made

    @jobs.get("/{number}", responses=answers(404, 422))
    def get_run(number: RunNumber) -> RunInfo:
        """One run: its state, and how far it is."""
        return runs.get(number)

    @jobs.delete("/{number}", responses=answers(404, 422))
    def cancel_run(number: RunNumber) -> RunInfo:
        """Ends a run in good order, or takes it out of the queue.  It stays in the history; twice is as once."""
        return runs.cancel(number)

    @jobs.get("/{number}/results", responses=answers(404, 422))
    def run_results(number: RunNumber) -> RunResults:
        """What it measured: raw samples with their units."""
        return runs.results(number)

    @jobs.get("/{number}/report", response_class=FileResponse, responses={**answers(404, 422), **_text("text/html")})
    def run_report(number: RunNumber) -> FileResponse:
        """Its report: one HTML page that needs nothing else."""
        return FileResponse(runs.report(number), media_type="text/html")

    @jobs.get("/{number}/log", response_class=PlainTextResponse, responses={**answers(404, 422), **_text("text/plain")})
    def run_log(number: RunNumber, tail: Tail = LOG_MAX) -> PlainTextResponse:
        """The end of what it printed."""
        return PlainTextResponse(runs.log(number, tail))

    @jobs.get(
        "/{number}/events",
        response_class=StreamingResponse,
        responses={**answers(404, 422), **_text("text/event-stream")},
    )
    def run_events(number: RunNumber, last_event_id: After = None) -> StreamingResponse:
        """What it tells, as server-sent events: `state`, `progress`, `note`, `log`; up to its end.

        Cut off, send the last event's `id` as `Last-Event-ID` and it goes on behind it.
        """
        runs.get(number)

        async def stream() -> AsyncIterator[str]:
            async for event in runs.follow(number, last_event_id or 0):
                yield as_sse(event)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return jobs
