# SPDX-License-Identifier: Apache-2.0
"""What all parts of the service stand on: one open store, the state, and the lock of changes."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from tmem_host import __version__
from tmem_host import state as states
from tmem_host.config import AgentConfig, default_arena, host_memory
from tmem_host.core import Store, core_errors
from tmem_host.errors import Conflict, NotFound, TmemError
from tmem_host.models import Health, HostFinding, HostInfo, MachineInfo, StoreInfo, TierInfo, TierList
from tmem_host.reconcile import reconcile
from tmem_host.state import State, VmEntry

if TYPE_CHECKING:
    from tmem_host.doctor import Finding

log = logging.getLogger(__name__)

#: How long what was found about the host is told again.
_EXAMINED_SECONDS: Final = 60.0


class Ground:
    """Store and state of one state folder.  Calls may come from several threads: changes are made one at a time,
    reading waits for none."""

    def __init__(self, config: AgentConfig, store: Store, state: State) -> None:
        self.config = config
        self._store = store
        self._state = state
        #: Guards every change of the two above and of what listens; readers take a reference and look.
        self._changing = threading.RLock()
        self._closed = False
        #: How guests are that the agent runs, by VM; :mod:`tmem_host.service.machines` writes it.
        self.guests: dict[str, MachineInfo] = {}
        self._started = time.monotonic()
        self._examined: tuple[float, list[Finding]] = (float("-inf"), [])
        self.recovery: dict[str, Any] = store.recovery()

    @classmethod
    def open(cls, config: AgentConfig) -> Self:
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

    def health(self) -> Health:
        uptime = time.monotonic() - self._started
        return Health(version=__version__, pid=os.getpid(), uptime_seconds=uptime, vms=len(self._state.vms))

    def store_info(self) -> StoreInfo:
        stats = self._store.stats()
        fields = {name: stats[name] for name in StoreInfo.model_fields if name in stats}
        return StoreInfo.model_validate({**fields, "arena": str(self._state.arena), "recovery": self.recovery})

    def tiers(self) -> TierList:
        """The arena: there is no other tier."""
        info = self.store_info()
        return TierList(
            tiers=[
                TierInfo(
                    kind="memory",
                    path=info.arena,
                    limit_bytes=info.limit_bytes,
                    held_bytes=info.held_bytes,
                    pages=info.pages,
                )
            ]
        )

    def host_info(self) -> HostInfo:
        """Facts, and what ``tmem doctor`` finds without booting anything, at most a minute old."""
        from tmem_host.doctor import examine

        when, found = self._examined
        if time.monotonic() - when > _EXAMINED_SECONDS:
            # That an agent answers need not be asked of this one.
            found = [finding for finding in examine(self.config.state, trial=False) if finding.subject != "agent"]
            self._examined = (time.monotonic(), found)
        return HostInfo(
            name=platform.node(),
            kernel=platform.release(),
            cpus=os.cpu_count() or 1,
            memory_bytes=host_memory(),
            load=list(os.getloadavg()),
            findings=[HostFinding.model_validate(finding.model_dump()) for finding in found],
        )

    def entry(self, name: str) -> VmEntry:
        """What the state says of a VM.  Raises NotFound."""
        entry = self._state.vms.get(name)
        if entry is None:
            raise NotFound(f"there is no VM {name}", "see 'tmem vm list'")
        return entry

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Conflict("the agent is stopping", "ask the next one")

    def _save(self, state: State) -> None:
        states.save(self.config.state_file, state)
        self._state = state

    def _figures(self) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
        """The store's VMs by name, and its pools by VM."""
        pools: dict[str, list[dict[str, Any]]] = {}
        for pool in self._store.pools():
            pools.setdefault(pool["vm"], []).append(pool)
        return {vm["name"]: vm for vm in self._store.vms()}, pools

    @contextlib.contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        """For steps after which others must still come: an error is logged, not raised."""
        try:
            yield
        except TmemError as error:
            log.error("%s: %s", what, error)
