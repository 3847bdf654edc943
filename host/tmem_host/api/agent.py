# SPDX-License-Identifier: Apache-2.0
"""Routes of the agent itself: that it answers, its store and tiers, its host."""

from __future__ import annotations

from fastapi import APIRouter

from tmem_host.api.scoped import scoped_router
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
