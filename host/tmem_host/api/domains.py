# SPDX-License-Identifier: Apache-2.0
"""Routes that give a VM's disk and port to a libvirt domain that somebody else defined, and take them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from tmem_host.api.parameters import Name
from tmem_host.api.problems import answers
from tmem_host.api.scoped import admin, scoped_router
from tmem_host.config import Size
from tmem_host.errors import Conflict, Unavailable, VmFailed
from tmem_host.service import Service
from tmem_host.vm.libvirt_link import SYSTEM, Link

# What edits domains is imported by who asks for it: the API's start does not wait for that.

#: This host's libvirtd only: a URI can also name a program to run, or another host.
_LOCAL = r"^qemu(\+unix)?:///(system|session)(\?socket=/[A-Za-z0-9._/-]{1,100})?$"
Connect = Annotated[str, Field(pattern=_LOCAL, max_length=150, description="Where libvirtd answers")]
Domain = Annotated[
    str | None, Field(min_length=1, max_length=250, pattern=r"^[^/\n\x00]+$", description="None: called like the VM")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    domain: Domain = None
    connect: Connect = SYSTEM
    #: A running domain stays as it is; it holds from its next start on.
    next_start: bool = False


class DomainAttach(_Body):
    """A domain to attach."""

    #: Of the swap device of a VM that is made for it; None: the domain's memory.
    size_bytes: Size | None = None
    #: Shut a running domain down and start it, if that is what it takes.
    restart: bool = False


class DomainDetach(_Body):
    """A domain to detach."""

    #: The guest has no pages there, or may lose them.
    force: bool = False


class DomainInfo(BaseModel):
    """What was done to a domain, and when it holds."""

    domain: str
    vm: str
    when: Literal["now", "restarted", "next start"]
    #: libvirt's name of the disk, as vdb; empty after a detach.
    disk: str
    #: Of the disk, as the guest sees it.
    serial: str
    #: The VM was made for the domain, and went with the disk.
    removed: bool


Answer = TypeVar("Answer")


def router(service: Service) -> APIRouter:
    """``attach`` and ``detach`` below ``/vms/NAME``."""
    domains = scoped_router("/vms")

    @domains.post("/{name}/attach", responses=answers(404, 409, 422, 507), openapi_extra=admin())
    def attach(name: Name, wanted: DomainAttach) -> DomainInfo:
        """Gives a libvirt domain the VM's disk and port; makes the VM unless it is there.

        A running domain whose memory is not shared has to be restarted for that: 409, and nothing is done, unless
        `restart` or `next_start` says that it may.  libvirt not answering is 409, too.
        """
        from tmem_host.vm import libvirt_attach as attaching

        request = attaching.Request(name, wanted.size_bytes, wanted.restart, wanted.next_start)
        with _linked(wanted.connect) as link:
            done = _asked(lambda: attaching.attach(service, link, wanted.domain or name, request))
        return DomainInfo.model_validate(done, from_attributes=True)

    @domains.post("/{name}/detach", responses=answers(404, 409, 422, 507), openapi_extra=admin())
    def detach(name: Name, wanted: DomainDetach) -> DomainInfo:
        """Takes back what attach gave: the domain's XML is again what it was.

        409 when its guest runs and may have pages there, unless `force` or `next_start`.
        """
        from tmem_host.vm import libvirt_attach as attaching

        with _linked(wanted.connect) as link:
            done = _asked(
                lambda: attaching.detach(
                    service, link, wanted.domain or name, vm=name, force=wanted.force, next_start=wanted.next_start
                )
            )
        return DomainInfo.model_validate(done, from_attributes=True)

    return domains


@contextmanager
def _linked(uri: str) -> Iterator[Link]:
    link = Link(uri)
    try:
        yield link
    finally:
        link.close()


def _asked(work: Callable[[], Answer]) -> Answer:
    """The agent is well when libvirt or a guest is not: that is a state of theirs, no failure of ours."""
    try:
        return work()
    except (Unavailable, VmFailed) as error:
        raise Conflict(error.message, error.hint) from error
