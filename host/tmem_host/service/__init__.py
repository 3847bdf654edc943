# SPDX-License-Identifier: Apache-2.0
"""What the agent does, with no word of HTTP: VMs, quotas, the store's figures, channels.

A VM here is a VM of the store and its channels: vhost-user-blk with one dense persistent pool (its swap device), and
vhost-user-tmem and virtio-serial, whose pools the guest makes.  The state folder says which VMs should exist, the arena
which pages they have.  The order of every change follows from that:

* create: store and pool first, then ``state.json``, then the channels, then the answer.  A crash in between leaves a
  VM in the arena that nobody was told of; it has no page, and the next start forgets it.
* remove: ``removing`` in ``state.json`` first, then the channels, the store's VM, the entry.  A crash in between is
  gone on with at the next start.

Calls may come from several threads.  Changes are made one at a time; reading waits for none.
"""

from __future__ import annotations

import logging
from collections import Counter

from tmem_host import state as states
from tmem_host.config import AgentConfig
from tmem_host.core import Store, core_errors
from tmem_host.metrics import Measured
from tmem_host.runs import Runs
from tmem_host.service.machines import Machines
from tmem_host.service.saves import Saves
from tmem_host.state import State

log = logging.getLogger(__name__)


class Service(Saves):
    """All of it.  Made by :meth:`open`, ended by :meth:`close`; who started guests closes :attr:`machines` first."""

    def __init__(self, config: AgentConfig, store: Store, state: State) -> None:
        super().__init__(config, store, state)
        self.machines = Machines(self)
        self.runs = Runs(config.runs)

    def measured(self) -> Measured:
        """Everything that is counted, at about one moment."""
        states = Counter(info.state for info in self.guests.values())
        return Measured(
            store=self._store.stats(),
            recovery=self.recovery,
            vms=self._store.vms(),
            pools=self._store.pools(),
            channels=self.channel_stats(),
            guests=self.guest_reports(),
            runs=self.runs.counts(),
            machines={state: states[state] for state in ("starting", "running", "stopping", "failed")},
        )

    def close(self) -> None:
        """Ends runs, channels and store in good order.  Pages stay in the arena, VMs in the state."""
        self.runs.close()
        with self._changing:
            if self._closed:
                return
            self._closed = True
            for channels in self._channels.values():
                with self._logged("at the end"):
                    channels.stop()
            self._channels = {}
            self._control.close()
            pages = {vm["name"]: int(vm["pages"]) for vm in self._store.vms()}
            state = self._state
            for entry in state.vms.values():
                state = state.with_vm(entry.model_copy(update={"pages_at_stop": pages.get(entry.name, 0)}))
            with self._logged("the state was not written"):
                states.save(self.config.state_file, state)
            with self._logged("the store did not close in good order"), core_errors(""):
                self._store.close()
