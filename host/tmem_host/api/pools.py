# SPDX-License-Identifier: Apache-2.0
"""Routes of pools."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from tmem_host.api.parameters import PAGE, Limit, LosePages, Name, Number, NumberCursor
from tmem_host.api.problems import answers
from tmem_host.api.scoped import admin, scoped_router
from tmem_host.config import VM_NAME
from tmem_host.models import (
    Flushed,
    PoolCreate,
    PoolDetail,
    PoolList,
    PoolUpdate,
    Restored,
    RestoreFrom,
    SaveCreate,
    Saved,
    SaveList,
)
from tmem_host.service import Service

Of = Annotated[str | None, Query(pattern=f"^{VM_NAME.pattern}$", description="Only those that this VM uses")]
Member = Annotated[str | None, Query(pattern=f"^{VM_NAME.pattern}$", description="Who leaves a shared pool")]


def router(service: Service) -> APIRouter:
    """The routes below ``/pools``."""
    pools = scoped_router("/pools")

    @pools.get("", responses=answers(404, 422))
    def list_pools(vm: Of = None, limit: Limit = PAGE, cursor: NumberCursor = None) -> PoolList:
        """Pools by number, a page of them."""
        return service.list_pools(vm=vm, after=None if cursor is None else int(cursor), limit=limit)

    @pools.post("", status_code=HTTPStatus.CREATED, responses=answers(403, 404, 409, 422, 507))
    def create_pool(wanted: PoolCreate, response: Response) -> PoolDetail:
        """Makes a pool for a VM, or joins it to a shared one that is there.

        A swap pool's worst case is promised on top of the VM's reservation.
        """
        made = service.create_pool(wanted)
        response.headers["Location"] = f"/v1/pools/{made.id}"
        return made

    @pools.get("/{number}", responses=answers(404, 422))
    def get_pool(number: Number) -> PoolDetail:
        """One pool, with its latencies."""
        return service.get_pool(number)

    @pools.patch("/{number}", responses=answers(404, 409, 422, 507))
    def update_pool(number: Number, change: PoolUpdate) -> PoolDetail:
        """Turns compression on, off (`none`) or to another codec, for what is put from now on."""
        return service.update_pool(number, change)

    @pools.post("/{number}/save", status_code=HTTPStatus.CREATED, responses=answers(404, 409, 422, 507))
    def save_pool(number: Number, wanted: SaveCreate) -> Saved:
        """Writes a persistent pool to a file of the agent's state folder, while its guest goes on."""
        return service.save_pool(number, wanted)

    @pools.post("/{number}/restore", openapi_extra=admin(), responses=answers(404, 409, 422, 507))
    def restore_pool(number: Number, wanted: RestoreFrom, lose_pages: LosePages = False) -> Restored:
        """Puts a save's pages into a pool of the same kind that no guest uses: all of them, or none.

        What does not check is refused as a whole.  Pages that are there go only with `lose_pages`: 409 else.
        """
        return service.restore_pool(number, wanted.name, lose_pages=lose_pages)

    @pools.post("/{number}/flush", openapi_extra=admin(), responses=answers(404, 409, 422))
    def flush_pool(number: Number, lose_pages: LosePages = False) -> Flushed:
        """Removes all pages; the pool stays.  Persistent ones only with `lose_pages`: 409 else."""
        return service.flush_pool(number, lose_pages=lose_pages)

    @pools.delete(
        "/{number}", status_code=HTTPStatus.NO_CONTENT, openapi_extra=admin(), responses=answers(404, 409, 422)
    )
    def destroy_pool(number: Number, vm: Member = None, lose_pages: LosePages = False) -> None:
        """Destroys a pool that is no VM's device; from a shared one `vm` leaves, and the last takes it along."""
        service.destroy_pool(number, vm=vm, lose_pages=lose_pages)

    return pools


def saves_router(service: Service) -> APIRouter:
    """The routes below ``/saves``."""
    saves = scoped_router("/saves")

    @saves.get("")
    def list_saves() -> SaveList:
        """Saved pools, by name."""
        return service.list_saves()

    @saves.delete(
        "/{name}", status_code=HTTPStatus.NO_CONTENT, openapi_extra=admin(), responses=answers(403, 404, 422, 507)
    )
    def delete_save(name: Name) -> None:
        """Removes a save."""
        service.delete_save(name)

    return saves
