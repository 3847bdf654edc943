# SPDX-License-Identifier: Apache-2.0
"""Routes.  Each calls one method of the service; plain functions run in worker threads, so none blocks the loop."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Response

from tmem_host import __version__
from tmem_host.api.problems import RESPONSES, install
from tmem_host.config import VM_NAME
from tmem_host.models import ChannelInfo, ChannelKind, Health, StoreInfo, VmCreate, VmInfo, VmList, VmUpdate
from tmem_host.service import Service

Name = Annotated[str, Path(pattern=f"^{VM_NAME.pattern}$", description="The VM's name", examples=["web-1"])]


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: RESPONSES[status] for status in statuses}


def make_app(service: Service) -> FastAPI:
    """The API of ``service``."""
    v1 = APIRouter(prefix="/v1")

    @v1.get("/health", tags=["agent"])
    def health() -> Health:
        """That the agent answers."""
        return service.health()

    @v1.get("/store", tags=["store"])
    def store() -> StoreInfo:
        """Limits, what is held, and how the arena was found at the start."""
        return service.store_info()

    @v1.get("/vms", tags=["vms"])
    def list_vms() -> VmList:
        """Every VM, by name."""
        return service.list_vms()

    @v1.post("/vms", tags=["vms"], status_code=HTTPStatus.CREATED, responses=_answers(403, 409, 422, 507))
    def create_vm(wanted: VmCreate, response: Response) -> VmInfo:
        """Makes a VM: a pool, and a vhost-user-blk socket for its monitor.  Durable when this answers."""
        made = service.create_vm(wanted)
        response.headers["Location"] = f"/v1/vms/{made.name}"
        return made

    @v1.get("/vms/{name}", tags=["vms"], responses=_answers(404, 422))
    def get_vm(name: Name) -> VmInfo:
        """One VM."""
        return service.get_vm(name)

    @v1.patch("/vms/{name}", tags=["vms"], responses=_answers(404, 409, 422, 507))
    def update_vm(name: Name, change: VmUpdate) -> VmInfo:
        """Changes quota, codec or polling while the guest runs: all of it or nothing."""
        return service.update_vm(name, change)

    @v1.delete("/vms/{name}", tags=["vms"], status_code=HTTPStatus.NO_CONTENT, responses=_answers(404, 422))
    def remove_vm(name: Name) -> None:
        """Forgets a VM and every page of it.  A guest that still swaps gets I/O errors."""
        service.remove_vm(name)

    @v1.post("/vms/{name}/freeze", tags=["vms"], responses=_answers(404, 422))
    def freeze_vm(name: Name) -> VmInfo:
        """Refuses puts, obeys flushes, until thawed."""
        return service.freeze_vm(name)

    @v1.post("/vms/{name}/thaw", tags=["vms"], responses=_answers(404, 422))
    def thaw_vm(name: Name) -> VmInfo:
        """Ends a freeze."""
        return service.thaw_vm(name)

    @v1.get("/vms/{name}/channel", tags=["vms"], responses=_answers(404, 422))
    def channel(name: Name, kind: ChannelKind | None = None) -> ChannelInfo:
        """The state and the counters of one of the VM's channels: the first, if none is named."""
        return service.channel(name, kind)

    app = FastAPI(title="tmem agent", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(v1)
    install(app)
    return app
