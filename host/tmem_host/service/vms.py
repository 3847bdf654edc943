# SPDX-License-Identifier: Apache-2.0
"""VMs: made, changed, frozen, removed, and the channels that serve them."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tmem_host.channel.control import ControlLoop
from tmem_host.config import PAGE_SIZE, AgentConfig, check_socket_path, format_size
from tmem_host.core import Store, core_errors, worst_case_bytes
from tmem_host.errors import Changed, Conflict, NotFound
from tmem_host.models import (
    ChannelInfo,
    ChannelKind,
    GuestReport,
    MachineInfo,
    PoolInfo,
    VmCreate,
    VmInfo,
    VmList,
    VmSettings,
    VmUpdate,
)
from tmem_host.reconcile import make_device_pool
from tmem_host.service.ground import Ground
from tmem_host.state import State, VmEntry
from tmem_host.vm_channels import VmChannels

log = logging.getLogger(__name__)


class Vms(Ground):
    """The VMs of one state folder."""

    def __init__(self, config: AgentConfig, store: Store, state: State) -> None:
        super().__init__(config, store, state)
        self._channels: dict[str, VmChannels] = {}
        self._control = ControlLoop()

    def start_channels(self) -> None:
        """Listens on every VM's sockets, so that guests go on."""
        with self._changing:
            for entry in self._state.vms.values():
                if entry.name not in self._channels:
                    self._listen(entry)

    # -- reading ------------------------------------------------------------------------------------------------

    def list_vms(self, *, after: str = "", limit: int | None = None) -> VmList:
        """By name, those behind ``after``, at most ``limit``."""
        vms, pools = self._figures()
        entries = sorted(self._state.vms.values(), key=lambda entry: entry.name)
        found = [entry for entry in entries if entry.name in vms and entry.name > after]
        page = found if limit is None else found[:limit]
        more = page[-1].name if len(page) < len(found) else None
        return VmList(vms=[self._info(entry, vms[entry.name], pools) for entry in page], next=more)

    def get_vm(self, name: str) -> VmInfo:
        entry = self.entry(name)
        vms, pools = self._figures()
        if name not in vms:
            raise NotFound(f"there is no VM {name}", "see 'tmem vm list'")
        return self._info(entry, vms[name], pools)

    def settings(self, name: str) -> tuple[VmSettings, str]:
        """What can be set of a VM, and the version of it."""
        entry = self.entry(name)
        return entry.settings, entry.version

    def channel(self, name: str, kind: ChannelKind | None = None) -> ChannelInfo:
        """All that a channel of the VM counts; the first one's when ``kind`` is None."""
        entry = self.entry(name)
        return self._channels_of(entry).info(entry, kind)

    def guest_report(self, name: str) -> GuestReport | None:
        """The latest that the guest said of itself over its channel serial, if it did since the agent runs."""
        return self._channels_of(self.entry(name)).report

    def channel_stats(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What every channel counts: VM, kind, and the counters with ``state``."""
        found: list[tuple[str, str, dict[str, Any]]] = []
        for name, channels in list(self._channels.items()):
            entry = self._state.vms.get(name)
            if entry is not None:
                found += [(name, kind, channels.stats(kind)) for kind in entry.channels]
        return found

    def guest_reports(self) -> dict[str, GuestReport]:
        """The latest that guests said of themselves, by VM."""
        found = {name: channels.report for name, channels in list(self._channels.items())}
        return {name: report for name, report in found.items() if report is not None}

    # -- changing -----------------------------------------------------------------------------------------------

    def create_vm(self, wanted: VmCreate) -> VmInfo:
        """Makes VM, pool and sockets.  Durable when it returns.  Raises Conflict, NoSpace, InvalidInput."""
        if wanted.machine is not None:
            from tmem_host.service.machines import check_machine

            check_machine(wanted.channels, wanted.machine)
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

    def update_vm(self, name: str, change: VmUpdate, *, versions: Collection[str] | None = None) -> VmInfo:
        """Changes quota, codec or polling while the guest runs.  All of it, or nothing and an error.

        ``versions``: the settings have to be one of these, else :class:`Changed`; None: whatever they are.
        """
        with self._changing:
            self._check_open()
            old = self.entry(name)
            if versions is not None and old.version not in versions:
                raise Changed(f"the settings of VM {name} are no longer those", "read them again, then change them")
            new = VmEntry.model_validate({**old.model_dump(), **change.model_dump(exclude_unset=True)})
            if new.cap is not None and new.cap < new.reservation:
                raise Conflict(
                    f"the cap of {name} would be {new.cap} and its reservation {new.reservation} bytes",
                    "lower the reservation with it",
                )
            with contextlib.ExitStack() as undo:
                self._apply(name, old, new, undo)
                self._save(self._state.with_vm(new))
                undo.pop_all()
            log.info("VM %s changed: %s", name, change.model_dump(exclude_unset=True))
            return self.get_vm(name)

    def replace_settings(self, name: str, settings: VmSettings, *, versions: Collection[str] | None = None) -> VmInfo:
        """As :meth:`update_vm`, with all settings."""
        return self.update_vm(name, VmUpdate.model_validate(settings.model_dump()), versions=versions)

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
            entry = self.entry(name)
            guest = self.guests.get(name)
            if guest is not None and guest.state in ("starting", "running", "stopping"):
                raise Conflict(f"the guest of {name} is {guest.state}", f"stop it first: tmem vm stop {name}")
            self._save(self._state.with_vm(entry.model_copy(update={"removing": True})))
            channels = self._channels.pop(name, None)
            if channels is not None:
                with self._logged("on removal"):
                    channels.stop()
            with core_errors(f"VM {name} cannot be removed"):
                self._store.vm_remove(name)
            self._save(self._state.without_vm(name))
            self.guests.pop(name, None)
            shutil.rmtree(self.config.machines / name, ignore_errors=True)
            log.info("VM %s removed", name)

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_sockets(self, entry: VmEntry) -> None:
        """A VM named ``web.tmem`` and the channel tmem of ``web`` would share a socket."""

        def sockets(vm: VmEntry) -> set[Path]:
            # Its guest's agent is spoken to at the last, whoever runs the guest.
            return {self.config.vm_socket(vm.name, kind) for kind in (*vm.channels, "agent")}

        wanted = sockets(entry)
        for other in self._state.vms.values():
            if wanted & sockets(other):
                raise Conflict(f"VM {other.name} has that socket", "choose another name")

    def _unsave(self, name: str) -> None:
        with self._logged(f"the state still names {name}"):
            self._save(self._state.without_vm(name))

    def _forget(self, name: str) -> None:
        with self._logged(f"the store still has {name}"), core_errors(""):
            self._store.vm_remove(name)

    def _listen(self, entry: VmEntry) -> None:
        channels = VmChannels(self.config, self._store, entry, self._control)
        channels.listen(entry)
        self._channels[entry.name] = channels

    def _channels_of(self, entry: VmEntry) -> VmChannels:
        """Before the channels listen: ones that do not."""
        return self._channels.get(entry.name) or VmChannels(self.config, self._store, entry, self._control)

    def _apply(self, name: str, old: VmEntry, new: VmEntry, undo: contextlib.ExitStack) -> None:
        """Makes the core, which is as ``old``, be as ``new``; ``undo`` gets the way back for what was done."""
        with core_errors(f"VM {name} cannot be changed"):
            if (old.reservation, old.cap, old.weight) != (new.reservation, new.cap, new.weight):
                self._change_quota(name, old, new)
                undo.callback(self._change_quota, name, new, old)
            if old.codec != new.codec and new.pool is not None:
                self._store.pool_set_codec(new.pool, new.codec)
                undo.callback(self._store.pool_set_codec, new.pool, old.codec)
            if old.poll_us != new.poll_us and name in self._channels:
                self._channels[name].set_poll(new.poll_us)
                undo.callback(self._channels[name].set_poll, old.poll_us)

    def _change_quota(self, name: str, old: VmEntry, new: VmEntry) -> None:
        """The reservation by its difference, as the guest may make or destroy a pool of its own just now."""
        # To the store a cap of 0 is none, and no cap means no change.
        more = new.reservation - old.reservation
        self._store.vm_set(name, promise=more, cap=new.cap or 0, weight=new.weight)

    def _machine(self, entry: VmEntry) -> MachineInfo | None:
        if entry.machine is None:
            return None
        return self.guests.get(entry.name) or MachineInfo(spec=entry.machine, state="stopped")

    def _set_frozen(self, name: str, *, frozen: bool) -> VmInfo:
        with self._changing:
            self._check_open()
            entry = self.entry(name)
            if entry.frozen != frozen:
                self._save(self._state.with_vm(entry.model_copy(update={"frozen": frozen})))
                with core_errors(f"VM {name} cannot be {'frozen' if frozen else 'thawed'}"):
                    (self._store.freeze if frozen else self._store.thaw)(name)
                log.info("VM %s %s", name, "frozen" if frozen else "thawed")
            return self.get_vm(name)

    def _info(self, entry: VmEntry, vm: dict[str, Any], pools: dict[str, list[dict[str, Any]]]) -> VmInfo:
        channels = self._channels_of(entry).summaries(entry)
        return VmInfo(
            **entry.model_dump(exclude={"removing", "pages_at_stop", "frozen", "channels", "pool", "machine"}),
            version=entry.version,
            frozen=vm["frozen"],
            socket=channels[0].socket,
            channel=channels[0].state,
            channels=channels,
            pages=vm["pages"],
            compressed_bytes=vm["compressed_bytes"],
            held_bytes=vm["held_bytes"],
            freeable_bytes=vm["freeable_bytes"],
            counters=vm["counters"],
            pools=[PoolInfo.model_validate(pool) for pool in pools.get(entry.name, [])],
            machine=self._machine(entry),
        )
