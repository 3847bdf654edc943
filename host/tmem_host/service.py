# SPDX-License-Identifier: Apache-2.0
"""What the agent does, with no word of HTTP: VMs, quotas, the store's figures, channels.

A VM here is a VM of the store and its channels: vhost-user-blk with one dense persistent pool (its swap device), and
vhost-user-tmem, whose pools the guest makes.  The state folder says which VMs should exist, the arena which pages they
have.  The order of every change follows from that:

* create: store and pool first, then ``state.json``, then the channels, then the answer.  A crash in between leaves a
  VM in the arena that nobody was told of; it has no page, and the next start forgets it.
* remove: ``removing`` in ``state.json`` first, then the channels, the store's VM, the entry.  A crash in between is
  gone on with at the next start.

Calls may come from several threads.  Changes are made one at a time; reading waits for none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from tmem_host import __version__
from tmem_host import state as states
from tmem_host.config import PAGE_SIZE, AgentConfig, check_socket_path, default_arena, format_size
from tmem_host.core import Store, core_errors, worst_case_bytes
from tmem_host.errors import Conflict, NotFound, TmemError
from tmem_host.models import ChannelInfo, ChannelKind, Health, PoolInfo, StoreInfo, VmCreate, VmInfo, VmList, VmUpdate
from tmem_host.reconcile import make_device_pool, promised, reconcile, set_quota
from tmem_host.state import State, VmEntry
from tmem_host.vm_channels import VmChannels

log = logging.getLogger(__name__)


class Service:
    """The VMs of one state folder, on one open store.  Made by :meth:`open`, ended by :meth:`close`."""

    def __init__(self, config: AgentConfig, store: Store, state: State) -> None:
        self.config = config
        self._store = store
        self._state = state
        self._channels: dict[str, VmChannels] = {}
        #: Guards every change of the three above; readers take a reference and look.
        self._changing = threading.RLock()
        self._closed = False
        self._started = time.monotonic()
        self.recovery: dict[str, Any] = store.recovery()

    @classmethod
    def open(cls, config: AgentConfig) -> Service:
        """Opens the store, which finds its pages again, and makes VMs and arena agree.  No channel listens yet.

        The state folder is this process's (:func:`tmem_host.state.locked`).  Raises :class:`TmemError`; whatever it
        raises, neither state nor arena was written over.
        """
        state = states.load(config.state_file)
        arena = states.choose_arena(config, state)
        states.check_arena_present(arena, state, accept_loss=config.accept_loss)
        states.check_arena_place(arena, own_folder=arena == default_arena(config.state))
        states.private_folder(config.sockets)
        limit = states.choose_limit(arena, config.limit)
        with core_errors(f"the arena {arena} cannot be opened"):
            store = Store(str(arena), limit_bytes=limit, accept_loss=config.accept_loss)
        try:
            fresh = bool(store.recovery()["fresh"])
            states.check_arena_present(arena, state, fresh=fresh, accept_loss=config.accept_loss)
            state = state.model_copy(update={"arena": arena})
            state = reconcile(store, state, accept_loss=config.accept_loss)
            states.save(config.state_file, state)
        except BaseException:
            store.close()
            raise
        return cls(config, store, state)

    def start_channels(self) -> None:
        """Listens on every VM's sockets, so that guests go on."""
        with self._changing:
            for entry in self._state.vms.values():
                if entry.name not in self._channels:
                    self._listen(entry)

    def close(self) -> None:
        """Ends channels and store in good order.  Pages stay in the arena, VMs in the state."""
        with self._changing:
            if self._closed:
                return
            self._closed = True
            for channels in self._channels.values():
                with self._logged("at the end"):
                    channels.stop()
            self._channels = {}
            pages = {vm["name"]: int(vm["pages"]) for vm in self._store.vms()}
            state = self._state
            for entry in state.vms.values():
                state = state.with_vm(entry.model_copy(update={"pages_at_stop": pages.get(entry.name, 0)}))
            with self._logged("the state was not written"):
                states.save(self.config.state_file, state)
            with self._logged("the store did not close in good order"), core_errors(""):
                self._store.close()

    # -- reading ------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        uptime = time.monotonic() - self._started
        return Health(version=__version__, pid=os.getpid(), uptime_seconds=uptime, vms=len(self._state.vms))

    def store_info(self) -> StoreInfo:
        stats = self._store.stats()
        fields = {name: stats[name] for name in StoreInfo.model_fields if name in stats}
        return StoreInfo.model_validate({**fields, "arena": str(self._state.arena), "recovery": self.recovery})

    def list_vms(self) -> VmList:
        vms, pools = self._figures()
        entries = sorted(self._state.vms.values(), key=lambda entry: entry.name)
        return VmList(vms=[self._info(entry, vms[entry.name], pools) for entry in entries if entry.name in vms])

    def get_vm(self, name: str) -> VmInfo:
        entry = self._entry(name)
        vms, pools = self._figures()
        if name not in vms:
            raise NotFound(f"there is no VM {name}", "see 'tmem vm list'")
        return self._info(entry, vms[name], pools)

    def channel(self, name: str, kind: ChannelKind | None = None) -> ChannelInfo:
        """All that a channel of the VM counts; the first one's when ``kind`` is None."""
        entry = self._entry(name)
        return self._channels_of(entry).info(entry, kind)

    # -- changing -----------------------------------------------------------------------------------------------

    def create_vm(self, wanted: VmCreate) -> VmInfo:
        """Makes VM, pool and sockets.  Durable when it returns.  Raises Conflict, NoSpace, InvalidInput."""
        size = wanted.size_bytes or 0
        reservation = worst_case_bytes(size // PAGE_SIZE) if wanted.reservation is None else wanted.reservation
        if wanted.cap is not None:
            # What is promised is never more than what may be held.
            reservation = min(reservation, wanted.cap)
        entry = VmEntry(**{**wanted.model_dump(), "size_bytes": size, "reservation": reservation})
        for kind in entry.channels:
            check_socket_path(self.config.vm_socket(entry.name, kind))
        with self._changing:
            self._check_open()
            if entry.name in self._state.vms:
                raise Conflict(f"there is a VM {entry.name} already", "choose another name, or remove it first")
            self._check_sockets(entry)
            with contextlib.ExitStack() as undo:
                with core_errors(f"VM {entry.name} cannot be made"):
                    self._store.vm_create(entry.name, reservation=entry.reservation, cap=entry.cap, weight=entry.weight)
                    undo.callback(self._forget, entry.name)
                    entry = entry.model_copy(update={"pool": make_device_pool(self._store, entry)})
                self._save(self._state.with_vm(entry))
                undo.callback(self._unsave, entry.name)
                self._listen(entry)
                undo.pop_all()
            channels = " and ".join(entry.channels)
            log.info("VM %s made: %s, %s, codec %s", entry.name, channels, format_size(size), entry.codec)
            return self.get_vm(entry.name)

    def update_vm(self, name: str, change: VmUpdate) -> VmInfo:
        """Changes quota, codec or polling while the guest runs.  All of it, or nothing and an error."""
        with self._changing:
            self._check_open()
            old = self._entry(name)
            new = VmEntry.model_validate({**old.model_dump(), **change.model_dump(exclude_unset=True)})
            if new.cap is not None and new.cap < new.reservation:
                raise Conflict(
                    f"the cap of {name} would be {new.cap} and its reservation {new.reservation} bytes",
                    "lower the reservation with it",
                )
            with contextlib.ExitStack() as undo:
                undo.callback(self._apply, name, new, old)
                self._apply(name, old, new)
                self._save(self._state.with_vm(new))
                undo.pop_all()
            log.info("VM %s changed: %s", name, change.model_dump(exclude_unset=True))
            return self.get_vm(name)

    def freeze_vm(self, name: str) -> VmInfo:
        """Puts are refused and flushes obeyed until :meth:`thaw_vm`.  Nothing happens when it is frozen already."""
        return self._set_frozen(name, frozen=True)

    def thaw_vm(self, name: str) -> VmInfo:
        """Ends :meth:`freeze_vm`."""
        return self._set_frozen(name, frozen=False)

    def remove_vm(self, name: str) -> None:
        """Ends the channels and forgets the VM with all its pages."""
        with self._changing:
            self._check_open()
            entry = self._entry(name)
            self._save(self._state.with_vm(entry.model_copy(update={"removing": True})))
            channels = self._channels.pop(name, None)
            if channels is not None:
                with self._logged("on removal"):
                    channels.stop()
            with core_errors(f"VM {name} cannot be removed"):
                self._store.vm_remove(name)
            self._save(self._state.without_vm(name))
            log.info("VM %s removed", name)

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Conflict("the agent is stopping", "ask the next one")

    def _entry(self, name: str) -> VmEntry:
        entry = self._state.vms.get(name)
        if entry is None:
            raise NotFound(f"there is no VM {name}", "see 'tmem vm list'")
        return entry

    def _check_sockets(self, entry: VmEntry) -> None:
        """A VM named ``web.tmem`` and the channel tmem of ``web`` would share a socket."""
        wanted = {self.config.vm_socket(entry.name, kind) for kind in entry.channels}
        for other in self._state.vms.values():
            if wanted & {self.config.vm_socket(other.name, kind) for kind in other.channels}:
                raise Conflict(f"VM {other.name} has that socket", "choose another name")

    def _save(self, state: State) -> None:
        states.save(self.config.state_file, state)
        self._state = state

    def _unsave(self, name: str) -> None:
        with self._logged(f"the state still names {name}"):
            self._save(self._state.without_vm(name))

    def _forget(self, name: str) -> None:
        with self._logged(f"the store still has {name}"), core_errors(""):
            self._store.vm_remove(name)

    def _listen(self, entry: VmEntry) -> None:
        channels = VmChannels(self.config, self._store, entry)
        channels.listen(entry)
        self._channels[entry.name] = channels

    def _channels_of(self, entry: VmEntry) -> VmChannels:
        """Before the channels listen: ones that do not."""
        return self._channels.get(entry.name) or VmChannels(self.config, self._store, entry)

    def _apply(self, name: str, old: VmEntry, new: VmEntry) -> None:
        """Makes the core be as ``new``; it is as ``old``, or somewhere between."""
        with core_errors(f"VM {name} cannot be changed"):
            if (old.reservation, old.cap, old.weight) != (new.reservation, new.cap, new.weight):
                pools = [pool for pool in self._store.pools() if pool["vm"] == name]
                set_quota(self._store, new, promised(pools, new.pool))
            if old.codec != new.codec and new.pool is not None:
                self._store.pool_set_codec(new.pool, new.codec)
            if old.poll_us != new.poll_us and name in self._channels:
                self._channels[name].set_poll(new.poll_us)

    def _set_frozen(self, name: str, *, frozen: bool) -> VmInfo:
        with self._changing:
            self._check_open()
            entry = self._entry(name)
            if entry.frozen != frozen:
                self._save(self._state.with_vm(entry.model_copy(update={"frozen": frozen})))
                with core_errors(f"VM {name} cannot be {'frozen' if frozen else 'thawed'}"):
                    (self._store.freeze if frozen else self._store.thaw)(name)
                log.info("VM %s %s", name, "frozen" if frozen else "thawed")
            return self.get_vm(name)

    def _figures(self) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
        """The store's VMs by name, and its pools by VM."""
        pools: dict[str, list[dict[str, Any]]] = {}
        for pool in self._store.pools():
            pools.setdefault(pool["vm"], []).append(pool)
        return {vm["name"]: vm for vm in self._store.vms()}, pools

    def _info(self, entry: VmEntry, vm: dict[str, Any], pools: dict[str, list[dict[str, Any]]]) -> VmInfo:
        channels = self._channels_of(entry).summaries(entry)
        return VmInfo(
            **entry.model_dump(exclude={"removing", "pages_at_stop", "frozen", "channels", "pool"}),
            frozen=vm["frozen"],
            socket=channels[0].socket,
            channel=channels[0].state,
            channels=channels,
            pages=vm["pages"],
            compressed_bytes=vm["compressed_bytes"],
            held_bytes=vm["held_bytes"],
            counters=vm["counters"],
            pools=[PoolInfo.model_validate(pool) for pool in pools.get(entry.name, [])],
        )

    @contextlib.contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        """For steps after which others must still come: an error is logged, not raised."""
        try:
            yield
        except TmemError as error:
            log.error("%s: %s", what, error)
