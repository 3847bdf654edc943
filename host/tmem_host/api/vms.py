# SPDX-License-Identifier: Apache-2.0
"""Routes of VMs: made, changed, frozen, removed; their settings, channels and shared pools."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse

from tmem_host.api.parameters import PAGE, IfMatch, Limit, Name, NameCursor, etag, versions
from tmem_host.api.problems import answers
from tmem_host.api.scoped import admin, scoped_router
from tmem_host.api.snapshot import Snapshots
from tmem_host.errors import NotFound
from tmem_host.models import (
    ChannelInfo,
    ChannelKind,
    GuestReport,
    Shared,
    Uuid,
    VmCreate,
    VmInfo,
    VmList,
    VmSettings,
    VmUpdate,
)
from tmem_host.service import Service
from tmem_host.service.machines import CONSOLE_MAX

SharedUuid = Annotated[
    Uuid, Path(description="The shared pool's uuid", examples=["00112233-4455-6677-8899-aabbccddeeff"])
]
_ETAG: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"description": "The version of the VM's settings", "schema": {"type": "string"}}}}
}

_CONSOLE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
Tail = Annotated[int, Query(ge=1, le=CONSOLE_MAX, description="Bytes from its end")]


def router(service: Service) -> APIRouter:
    """The routes below ``/vms``."""
    vms = scoped_router("/vms")

    @vms.get("", response_model=VmList, responses=answers(422))
    async def list_vms(request: Request, limit: Limit = PAGE, cursor: NameCursor = None) -> Response:
        """VMs by name, a page of them.  Figures are up to 0.5 s old, changes through the API are seen at once."""

        def make() -> bytes:
            return service.list_vms(after=cursor or "", limit=limit).model_dump_json().encode()

        snapshots: Snapshots = request.app.state.snapshots
        return Response(await snapshots.get(("vms", cursor, limit), make), media_type="application/json")

    @vms.post("", status_code=HTTPStatus.CREATED, responses=answers(403, 409, 422, 507))
    def create_vm(wanted: VmCreate, response: Response) -> VmInfo:
        """Makes a VM: its place in the store, a socket for each channel of its monitor.  Durable when this answers."""
        made = service.create_vm(wanted)
        response.headers["Location"] = f"/v1/vms/{made.name}"
        response.headers["ETag"] = etag(made.version)
        return made

    @vms.get("/{name}", responses={**answers(404, 422), **_ETAG})
    def get_vm(name: Name, response: Response) -> VmInfo:
        """One VM.  The tag is its settings', for `If-Match`: counters move all the time."""
        found = service.get_vm(name)
        response.headers["ETag"] = etag(found.version)
        return found

    @vms.patch("/{name}", responses={**answers(404, 409, 412, 422, 507), **_ETAG})
    def update_vm(name: Name, change: VmUpdate, response: Response, if_match: IfMatch = None) -> VmInfo:
        """Changes quota, codec or polling while the guest runs: all of it or nothing.

        A field that is left out stays as it is, so `If-Match` may be left out, too.
        """
        changed = service.update_vm(name, change, versions=versions(if_match))
        response.headers["ETag"] = etag(changed.version)
        return changed

    @vms.delete(
        "/{name}", status_code=HTTPStatus.NO_CONTENT, openapi_extra=admin(), responses=answers(404, 409, 422, 507)
    )
    def remove_vm(name: Name) -> None:
        """Forgets a VM and every page of it.  A guest that still swaps gets I/O errors."""
        service.remove_vm(name)

    @vms.get("/{name}/settings", responses={**answers(404, 422), **_ETAG})
    def get_settings(name: Name, response: Response) -> VmSettings:
        """What can be set of a VM."""
        settings, version = service.settings(name)
        response.headers["ETag"] = etag(version)
        return settings

    @vms.put("/{name}/settings", responses={**answers(404, 409, 412, 422, 428, 507), **_ETAG})
    def replace_settings(name: Name, settings: VmSettings, response: Response, if_match: IfMatch = None) -> VmSettings:
        """Replaces all settings if they still are those of `If-Match`: 428 without it, 412 if they are not."""
        changed = service.replace_settings(name, settings, versions=versions(if_match, required=True))
        response.headers["ETag"] = etag(changed.version)
        return VmSettings.model_validate(changed.model_dump(include=set(VmSettings.model_fields)))

    @vms.post("/{name}/freeze", responses=answers(404, 409, 422, 507))
    def freeze_vm(name: Name) -> VmInfo:
        """Refuses puts, obeys flushes, until thawed."""
        return service.freeze_vm(name)

    @vms.post("/{name}/thaw", responses=answers(404, 409, 422, 507))
    def thaw_vm(name: Name) -> VmInfo:
        """Ends a freeze."""
        return service.thaw_vm(name)

    @vms.post("/{name}/start", status_code=HTTPStatus.ACCEPTED, responses=answers(404, 409, 422))
    async def start_vm(name: Name) -> VmInfo:
        """Begins to boot the guest of a VM that was made with a machine; its `state` says how far it is.

        What its device held is flushed: it was of a guest that is gone.  A guest that starts or runs goes on.
        """
        return await service.machines.start(name)

    @vms.post("/{name}/stop", status_code=HTTPStatus.ACCEPTED, responses=answers(404, 422))
    async def stop_vm(name: Name) -> VmInfo:
        """Asks the guest to power off, and insists after some seconds."""
        return await service.machines.stop(name)

    @vms.get("/{name}/console", responses={**answers(404, 422), **_CONSOLE}, response_class=PlainTextResponse)
    def console(name: Name, tail: Tail = 65536) -> PlainTextResponse:
        """The end of what the serial console of the agent's own guest said since it was started last."""
        return PlainTextResponse(service.machines.console(name, tail))

    @vms.get("/{name}/channel", responses=answers(404, 422))
    def channel(name: Name, kind: ChannelKind | None = None) -> ChannelInfo:
        """The state and the counters of one of the VM's channels: the first, if none is named."""
        return service.channel(name, kind)

    @vms.get("/{name}/guest", responses=answers(404, 422))
    def guest(name: Name) -> GuestReport:
        """The latest that the guest said of itself over its channel serial."""
        report = service.guest_report(name)
        if report is None:
            raise NotFound(f"the guest of {name} has said nothing yet", "it does over a channel serial")
        return report

    @vms.get("/{name}/shared", responses=answers(404, 422))
    def list_shared(name: Name) -> Shared:
        """Shared pools that the VM may make or join."""
        return service.shared(name)

    @vms.put("/{name}/shared/{uuid}", status_code=HTTPStatus.NO_CONTENT, responses=answers(404, 409, 422, 507))
    def authorise(name: Name, uuid: SharedUuid) -> None:
        """Lets the VM make or join the shared pool of that uuid.  Twice is as once."""
        service.authorise(name, uuid, allow=True)

    @vms.delete("/{name}/shared/{uuid}", status_code=HTTPStatus.NO_CONTENT, responses=answers(404, 409, 422, 507))
    def forbid(name: Name, uuid: SharedUuid) -> None:
        """Takes that back.  What the VM joined before stays joined.  Twice is as once."""
        service.authorise(name, uuid, allow=False)

    return vms
