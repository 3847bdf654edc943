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
in the arena only, with pages                 adopted: served on the socket of its name again
============================================= ==================================================================
"""

from __future__ import annotations

import logging
from typing import Any

from tmem_host.config import PAGE_SIZE, check_vm_name
from tmem_host.core import CoreError, Store, core_errors
from tmem_host.errors import Corrupt, InvalidInput
from tmem_host.state import State, VmEntry

log = logging.getLogger(__name__)


def reconcile(store: Store, state: State, *, accept_loss: bool) -> tuple[State, dict[str, int]]:
    """The state as it is from now on, not yet saved, and the swap pool of each VM in it.

    Raises :class:`Corrupt` before anything was changed when pages would be missing.
    """
    found = {vm["name"]: vm for vm in store.vms()}
    swap: dict[str, dict[str, Any]] = {}
    for pool in sorted(store.pools(), key=lambda pool: -int(pool["pages"])):
        if pool["persistent"] and pool["pages_capacity"] is not None:
            swap.setdefault(pool["vm"], pool)

    missing = [name for name, vm in state.vms.items() if vm.may_have_pages and name not in swap]
    if missing and not accept_loss:
        raise Corrupt(
            f"the arena has no pool for {', '.join(sorted(missing))}, which may have had pages",
            "bring the right arena back, or start with --accept-loss",
        )

    entries: dict[str, VmEntry] = {}
    pools: dict[str, int] = {}
    with core_errors("the arena and the state cannot be made to agree"):
        for name, entry in state.vms.items():
            if entry.removing:
                if name in found:
                    store.vm_remove(name)
                log.info("VM %s: its removal is finished", name)
            elif name in swap:
                entries[name] = _kept(store, entry, found[name], swap[name])
                pools[name] = swap[name]["id"]
            else:
                if name in missing:
                    log.warning("VM %s: its pages are lost; it begins empty", name)
                entries[name] = entry
                pools[name] = _made_again(store, entry, exists=name in found)
        for name in found.keys() - state.vms.keys():
            if not found[name]["pages"]:
                store.vm_remove(name)
                log.info("VM %s: never acknowledged, and empty: forgotten", name)
            elif name in swap:
                entries[name] = _adopted(found[name], swap[name])
                pools[name] = swap[name]["id"]
                log.warning("VM %s: not in the state, but has %d pages: adopted", name, found[name]["pages"])
    running = {name: entry.model_copy(update={"pages_at_stop": None}) for name, entry in entries.items()}
    return state.model_copy(update={"vms": running}), pools


def set_quota(store: Store, entry: VmEntry) -> None:
    """Gives the store's VM the quota of ``entry``.  Raises CoreError; then nothing changed."""
    # To the store a cap of 0 is none, and no cap means no change.
    store.vm_set(entry.name, reservation=entry.reservation, cap=entry.cap or 0, weight=entry.weight)


def _kept(store: Store, entry: VmEntry, vm: dict[str, Any], pool: dict[str, Any]) -> VmEntry:
    if (vm["reservation"], vm["cap"], vm["weight"]) != (entry.reservation, entry.cap, entry.weight):
        try:
            set_quota(store, entry)
        except CoreError as error:
            # A smaller --limit than before, for one. The guest goes on with what the arena has.
            log.warning("VM %s keeps its old quota: %s", entry.name, error)
            entry = entry.model_copy(update={key: vm[key] for key in ("reservation", "cap", "weight")})
    if pool["codec"] != entry.codec:
        store.pool_set_codec(pool["id"], entry.codec)
    if vm["frozen"] != entry.frozen:
        (store.freeze if entry.frozen else store.thaw)(entry.name)
    return entry.model_copy(update={"size_bytes": pool["pages_capacity"] * PAGE_SIZE})


def _made_again(store: Store, entry: VmEntry, *, exists: bool) -> int:
    if not exists:
        store.vm_create(entry.name, reservation=entry.reservation, cap=entry.cap, weight=entry.weight)
    pool = store.pool_create(entry.name, persistent=True, pages=entry.size_bytes // PAGE_SIZE, codec=entry.codec)
    if entry.frozen:
        store.freeze(entry.name)
    return pool


def _adopted(vm: dict[str, Any], pool: dict[str, Any]) -> VmEntry:
    try:
        name = check_vm_name(vm["name"])
    except InvalidInput as error:
        raise Corrupt(f"the arena has pages of a VM named {vm['name']!r}", "this agent did not make it") from error
    return VmEntry(
        name=name,
        size_bytes=pool["pages_capacity"] * PAGE_SIZE,
        codec=pool["codec"],
        # Its guest may have been given any number, and reconnects only to as many or more.
        queues=16,
        poll_us=0,
        reservation=vm["reservation"],
        cap=vm["cap"],
        weight=vm["weight"],
        frozen=vm["frozen"],
    )
