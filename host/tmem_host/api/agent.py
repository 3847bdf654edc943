# SPDX-License-Identifier: Apache-2.0
"""Routes of the agent itself: that it answers, its store and tiers, its host."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from tmem_host.api.problems import answers
from tmem_host.api.scoped import ScopedRoute, scoped_router
from tmem_host.metrics import CONTENT_TYPE, Requests, render
from tmem_host.models import Health, HostInfo, StoreInfo, TierList
from tmem_host.service import Service


def router(service: Service) -> APIRouter:
    """The routes that are about no VM."""
    agent = scoped_router("")

    @agent.get("/health")
    def health() -> Health:
        """That the agent answers."""
        return service.health()

    @agent.get("/host")
    def host() -> HostInfo:
        """What this host is, what it can and cannot do, and what to install."""
        return service.host_info()

    @agent.get("/store")
    def store() -> StoreInfo:
        """Limits, what is held, and how the arena was found at the start."""
        return service.store_info()

    @agent.get("/tiers")
    def tiers() -> TierList:
        """Where pages lie."""
        return service.tiers()

    return agent


def metrics_router(service: Service, requests: Requests) -> APIRouter:
    """The route that Prometheus scrapes, where it looks for it."""
    router = APIRouter(tags=["agent"], route_class=ScopedRoute, responses=answers(401, 403, 413, 422, 429))
    content: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @router.get("/metrics", response_class=Response, responses=content)
    def metrics() -> Response:
        """What the agent counts, for Prometheus."""
        return Response(render(service.measured()) + requests.text(), media_type=CONTENT_TYPE)

    return router
