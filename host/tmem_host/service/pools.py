# SPDX-License-Identifier: Apache-2.0
"""Pools: listed, made, flushed, destroyed; and which shared ones a VM may join.

Freezing, cap, weight and reservation are a VM's, as in Xen: see :mod:`tmem_host.service.vms`.  The pool of a VM's
device comes and goes with the VM.  A persistent page is somebody's only copy: what takes such pages along is refused
until the caller says that they may be lost.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from tmem_host.core import core_errors, worst_case_bytes
from tmem_host.errors import Conflict, InvalidInput, NotFound
from tmem_host.models import Flushed, PoolCreate, PoolDetail, PoolInfo, PoolList, PoolUpdate, Shared, VmUpdate
from tmem_host.service.vms import Vms

log = logging.getLogger(__name__)

#: The arena's table of pools has 16-bit numbers.
_NUMBERS = range(1 << 16)


class Pools(Vms):
    """The pools of all VMs."""

    def list_pools(self, *, vm: str | None = None, after: int | None = None, limit: int | None = None) -> PoolList:
        """By number, those behind ``after``, at most ``limit``; with ``vm`` only those that it uses."""
        if vm is not None:
            self.entry(vm)
        found = sorted(self._store.pools(), key=lambda pool: int(pool["id"]))
        found = [pool for pool in found if (vm is None or vm in pool["members"])]
        found = [pool for pool in found if after is None or pool["id"] > after]
        page = found if limit is None else found[:limit]
        more = str(page[-1]["id"]) if len(page) < len(found) else None
        return PoolList(pools=[PoolInfo.model_validate(pool) for pool in page], next=more)

    def get_pool(self, number: int) -> PoolDetail:
        """One pool with its latencies.  Raises NotFound."""
        return PoolDetail.model_validate(self._pool(number))

    def create_pool(self, wanted: PoolCreate) -> PoolDetail:
        """Makes a pool, or joins a shared one that is there.  Raises NotFound, Denied, NoSpace, Conflict.

        A swap pool's worst case is promised on top of the VM's reservation, as when its guest makes one.
        """
        with self._changing:
            self._check_open()
            entry = self.entry(wanted.vm)
            promise = 0 if wanted.pages is None else worst_case_bytes(wanted.pages, wanted.page_size)
            with contextlib.ExitStack() as undo, core_errors(f"the pool of {wanted.vm} cannot be made"):
                if promise:
                    total = self._reservation(wanted.vm) + promise
                    if entry.cap is not None and total > entry.cap:
                        raise Conflict(
                            f"with that pool {total} bytes would be promised to {wanted.vm}, "
                            f"and its cap is {entry.cap}",
                            "raise the cap first",
                        )
                    self._store.vm_set(wanted.vm, promise=promise)
                    undo.callback(self._store.vm_set, wanted.vm, promise=-promise)
                number = self._store.pool_create(
                    wanted.vm,
                    persistent=wanted.persistent,
                    shared=wanted.uuid is not None,
                    uuid=None if wanted.uuid is None else bytes.fromhex(wanted.uuid),
                    pages=wanted.pages,
                    codec=wanted.codec,
                    page_size=wanted.page_size,
                )
                undo.pop_all()
            log.info("pool %d of VM %s made", number, wanted.vm)
            return self.get_pool(number)

    def update_pool(self, number: int, change: PoolUpdate) -> PoolDetail:
        """How what is put from now on is compressed.  What is there stays as it is."""
        with self._changing:
            self._check_open()
            pool = self._pool(number)
            if self._is_device(pool):
                self.update_vm(pool["vm"], VmUpdate(codec=change.codec))
            else:
                with core_errors(f"pool {number} cannot be changed"):
                    self._store.pool_set_codec(number, change.codec)
                log.info("pool %d: codec %s", number, change.codec)
            return self.get_pool(number)

    def flush_pool(self, number: int, *, lose_pages: bool = False) -> Flushed:
        """Removes all pages; the pool stays.  Of a persistent one only with ``lose_pages``, unless it is empty."""
        with self._changing:
            self._check_open()
            self._check_loss(self._pool(number), lose_pages)
            with core_errors(f"pool {number} cannot be flushed"):
                pages = self._store.pool_flush(number)
            log.info("pool %d flushed: %d pages", number, pages)
            return Flushed(pages=pages)

    def destroy_pool(self, number: int, *, vm: str | None = None, lose_pages: bool = False) -> None:
        """Destroys a pool; from a shared one ``vm`` leaves, and the last takes it along."""
        with self._changing:
            self._check_open()
            pool = self._pool(number)
            if self._is_device(pool):
                raise Conflict(f"pool {number} is the device of VM {pool['vm']}", "remove the VM, or flush the pool")
            member = vm or pool["vm"]
            if member not in pool["members"]:
                raise NotFound(f"VM {member} does not use pool {number}", "see 'tmem pool list'")
            if pool["shared"] and vm is None and len(pool["members"]) > 1:
                raise InvalidInput(f"{len(pool['members'])} VMs share pool {number}", "say which one leaves it")
            if len(pool["members"]) == 1:
                self._check_loss(pool, lose_pages)
            with core_errors(f"pool {number} cannot be destroyed"):
                self._store.pool_destroy(number, vm=member)
                if pool["pages_capacity"] is not None:
                    self._store.vm_set(member, promise=-worst_case_bytes(pool["pages_capacity"], pool["page_size"]))
            log.info("pool %d destroyed for VM %s", number, member)

    def shared(self, name: str) -> Shared:
        """The shared pools that a VM may make or join."""
        self.entry(name)
        vm = next((vm for vm in self._store.vms() if vm["name"] == name), None)
        return Shared(uuids=sorted(vm["authorised"]) if vm else [])

    def authorise(self, name: str, uuid: str, *, allow: bool) -> None:
        """Whether a VM may make or join the shared pool of ``uuid``.  What it joined before stays joined."""
        with self._changing:
            self._check_open()
            self.entry(name)
            with core_errors(f"VM {name} cannot be authorised"):
                self._store.shared_authorise(name, bytes.fromhex(uuid), allow)
            log.info("VM %s may %s the shared pool %s", name, "join" if allow else "no longer join", uuid)

    # -- inside -------------------------------------------------------------------------------------------------

    def _pool(self, number: int) -> dict[str, Any]:
        pool = next((pool for pool in self._store.pools() if pool["id"] == number), None)
        if pool is None or number not in _NUMBERS:
            raise NotFound(f"there is no pool {number}", "see 'tmem pool list'")
        return pool

    def _is_device(self, pool: dict[str, Any]) -> bool:
        return any(entry.pool == pool["id"] for entry in self._state.vms.values())

    def _reservation(self, name: str) -> int:
        """What the store promised a VM, pools of its guest included."""
        return next((int(vm["reservation"]) for vm in self._store.vms() if vm["name"] == name), 0)

    def _check_loss(self, pool: dict[str, Any], lose_pages: bool) -> None:
        if pool["persistent"] and pool["pages"] and not lose_pages:
            raise Conflict(
                f"pool {pool['id']} has {pool['pages']} persistent pages, and they may be the only copies",
                "say lose_pages (--lose-pages) if they may go",
            )
