# SPDX-License-Identifier: Apache-2.0
"""Makes the VMs that the state names and those in a recovered arena agree, and never loses a page by it.

============================================= ==================================================================
found                                         done
============================================= ==================================================================
in both                                       kept; the pool's own size and codec count, quotas are the state's
in the state, being removed                   removal is finished
in the state, had no page when last stopped   made again, empty
in the state, may have had pages              refused; with ``--accept-loss`` made again, empty
in the arena only, without a page             forgotten: nobody was ever told that it exists
in the arena only, with pages                 adopted: served on the sockets of its name again
============================================= ==================================================================

A VM of the channels tmem and serial makes pools of its own; they are the guest's business and stay as they are.  "In
both" means that the VM is there, and its device's pool if it has a device.
"""

from __future__ import annotations

import logging
from typing import Any

from tmem_host.config import PAGE_SIZE, check_vm_name
from tmem_host.core import CoreError, Store, core_errors, worst_case_bytes
from tmem_host.errors import Corrupt, InvalidInput
from tmem_host.models import ChannelKind
from tmem_host.state import State, VmEntry

log = logging.getLogger(__name__)


def reconcile(store: Store, state: State, *, accept_loss: bool) -> State:
    """The state as it is from now on, not yet saved; entries of VMs with a device name its pool.

    Raises :class:`Corrupt` before anything was changed when pages would be missing.
    """
    found = {vm["name"]: vm for vm in store.vms()}
    pools: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    for pool in store.pools():
        pools.setdefault(pool["vm"], []).append(pool)

    missing = [name for name, vm in state.vms.items() if _is_missing(vm, found, pools.get(name, []))]
    if missing and not accept_loss:
        raise Corrupt(
            f"the arena has no pool for {', '.join(sorted(missing))}, which may have had pages",
            "bring the right arena back, or start with --accept-loss",
        )

    entries: dict[str, VmEntry] = {}
    with core_errors("the arena and the state cannot be made to agree"):
        for name, entry in state.vms.items():
            own = device_pool(entry, pools.get(name, []))
            if entry.removing:
                if name in found:
                    store.vm_remove(name)
                log.info("VM %s: its removal is finished", name)
            elif name in found and (own is not None or not entry.has_device):
                entries[name] = _kept(store, entry, found[name], pools[name], own)
            else:
                if entry.may_have_pages:
                    log.warning("VM %s: its pages are lost; it begins empty", name)
                entries[name] = _made_again(store, entry, exists=name in found)
        for name in found.keys() - state.vms.keys():
            if not found[name]["pages"]:
                store.vm_remove(name)
                log.info("VM %s: never acknowledged, and empty: forgotten", name)
            else:
                entries[name] = _adopted(found[name], pools[name])
                log.warning("VM %s: not in the state, but has %d pages: adopted", name, found[name]["pages"])
    running = {name: entry.model_copy(update={"pages_at_stop": None}) for name, entry in entries.items()}
    return state.model_copy(update={"vms": running})


def device_pool(entry: VmEntry, pools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The pool of the VM's device: the one written down, else the swap pool with the most pages."""
    if not entry.has_device:
        return None
    swap = _swap_pools(pools)
    written = [pool for pool in swap if pool["id"] == entry.pool]
    if written or (entry.pool is not None and entry.guest_makes_pools):
        # The guest may have made others: they are no substitute.
        return written[0] if written else None
    return max(swap, key=lambda pool: int(pool["pages"]), default=None)


def _swap_pools(pools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that a device can have. One with a name is a guest's, which finds it again by that."""
    return [pool for pool in pools if pool["persistent"] and pool["pages_capacity"] is not None and not pool["name"]]


def promised(pools: list[dict[str, Any]], device: int | None) -> int:
    """Bytes that a VM was promised for the swap pools that its guest made: all but its device's."""
    swap = [pool for pool in pools if pool["pages_capacity"] is not None and pool["id"] != device]
    return sum(worst_case_bytes(pool["pages_capacity"], pool["page_size"]) for pool in swap)


def set_quota(store: Store, entry: VmEntry, guest: int) -> None:
    """Gives the store's VM the quota of ``entry``, on top of what its guest was promised (:func:`promised`).

    Raises CoreError; then nothing changed.
    """
    # To the store a cap of 0 is none, and no cap means no change.
    store.vm_set(entry.name, reservation=entry.reservation + guest, cap=entry.cap or 0, weight=entry.weight)


def _is_missing(entry: VmEntry, found: dict[str, Any], pools: list[dict[str, Any]]) -> bool:
    """True if the VM may have had pages that the arena has no place for."""
    if not entry.may_have_pages:
        return False
    if entry.name in found and (not entry.has_device or (entry.pool is None and entry.guest_makes_pools)):
        # Of an adopted VM nobody knows which pools it had: its guest may have destroyed them.
        return False
    return entry.name not in found or device_pool(entry, pools) is None


def _kept(
    store: Store, entry: VmEntry, vm: dict[str, Any], pools: list[dict[str, Any]], own: dict[str, Any] | None
) -> VmEntry:
    guest = promised(pools, own["id"] if own else None)
    if (vm["reservation"] - guest, vm["cap"], vm["weight"]) != (entry.reservation, entry.cap, entry.weight):
        try:
            set_quota(store, entry, guest)
        except CoreError as error:
            # A smaller --limit than before, for one. The guest goes on with what the arena has.
            log.warning("VM %s keeps its old quota: %s", entry.name, error)
            kept = {"reservation": max(0, vm["reservation"] - guest), "cap": vm["cap"], "weight": vm["weight"]}
            entry = entry.model_copy(update=kept)
    if vm["frozen"] != entry.frozen:
        (store.freeze if entry.frozen else store.thaw)(entry.name)
    if own is None:
        return entry
    if own["codec"] != entry.codec:
        store.pool_set_codec(own["id"], entry.codec)
    return entry.model_copy(update={"size_bytes": own["pages_capacity"] * PAGE_SIZE, "pool": own["id"]})


def _made_again(store: Store, entry: VmEntry, *, exists: bool) -> VmEntry:
    if not exists:
        store.vm_create(entry.name, reservation=entry.reservation, cap=entry.cap, weight=entry.weight)
    pool = make_device_pool(store, entry)
    if entry.frozen:
        store.freeze(entry.name)
    return entry.model_copy(update={"pool": pool})


def make_device_pool(store: Store, entry: VmEntry) -> int | None:
    """The pool of the VM's device, if it is to have one."""
    if not entry.has_device:
        return None
    return store.pool_create(entry.name, persistent=True, pages=entry.size_bytes // PAGE_SIZE, codec=entry.codec)


def _adopted(vm: dict[str, Any], pools: list[dict[str, Any]]) -> VmEntry:
    """Which channels it had nobody knows: the one that its only pool tells of, else all."""
    try:
        name = check_vm_name(vm["name"])
    except InvalidInput as error:
        raise Corrupt(f"the arena has pages of a VM named {vm['name']!r}", "this agent did not make it") from error
    swap = _swap_pools(pools)
    own = max(swap, key=lambda pool: int(pool["pages"]), default=None)
    if own is None:
        channels: tuple[ChannelKind, ...] = ("tmem", "serial")
    else:
        channels = ("blk",) if len(pools) == 1 else ("blk", "tmem", "serial")
    return VmEntry(
        name=name,
        size_bytes=own["pages_capacity"] * PAGE_SIZE if own else 0,
        channels=channels,
        pool=own["id"] if own else None,
        codec=own["codec"] if own else "lz4",
        # Its guest may have been given any number, and reconnects only to as many or more.
        queues=16,
        poll_us=0,
        reservation=max(0, vm["reservation"] - promised(pools, own["id"] if own else None)),
        cap=vm["cap"],
        weight=vm["weight"],
        frozen=vm["frozen"],
    )
