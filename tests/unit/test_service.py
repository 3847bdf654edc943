# SPDX-License-Identifier: Apache-2.0
"""The service on a real store: what it does, what it refuses, and what a crash between two steps comes to."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from framework.pages import fill, opened, swap_pool, wrong
from tmem_host import state as states
from tmem_host.config import AgentConfig
from tmem_host.core import Store
from tmem_host.errors import Conflict, Corrupt, InUse, InvalidInput, NoSpace, NotFound
from tmem_host.models import PoolCreate, VmCreate, VmUpdate
from tmem_host.service import Service
from tmem_host.state import State

MIB = 1 << 20
PAGES = range(0, 256, 3)


def wanted(called: str = "web", **changes: object) -> VmCreate:
    return VmCreate.model_validate({"name": called, "size_bytes": 4 * MIB} | changes)


@pytest.fixture
def service(config: AgentConfig) -> Iterator[Service]:
    running = Service.open(config)
    running.start_channels()
    yield running
    running.close()


def crashed(service: Service) -> None:
    """As if the process had died: channels and store are gone, nothing was written."""
    for channel in service._channels.values():
        channel.stop()
    service._store.close()
    service._closed = True


def test_a_vm_comes_and_goes(service: Service, config: AgentConfig, state: Path) -> None:
    made = service.create_vm(wanted())
    assert (made.name, made.size_bytes, made.channel, made.pages) == ("web", 4 * MIB, "listening", 0)
    assert made.reservation >= 4 * MIB
    assert [pool.pages_capacity for pool in made.pools] == [1024]
    path = config.vm_socket("web")
    assert path.is_socket()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (state / "vms").stat().st_mode & 0o777 == 0o700
    assert list(states.load(config.state_file).vms) == ["web"]
    assert service.list_vms().vms == [service.get_vm("web")]
    assert service.channel("web").state == "listening"
    service.remove_vm("web")
    assert not path.exists()
    assert service.list_vms().vms == []
    assert states.load(config.state_file).vms == {}
    assert service.store_info().reserved_bytes == 0


def test_what_cannot_be_is_refused_and_leaves_nothing(service: Service, config: AgentConfig) -> None:
    service.create_vm(wanted())
    with pytest.raises(Conflict, match="already"):
        service.create_vm(wanted())
    with pytest.raises(NoSpace, match="does not fit"):
        service.create_vm(wanted("big", size_bytes=1 << 30))
    for call in (service.get_vm, service.remove_vm, service.freeze_vm, service.thaw_vm, service.channel):
        with pytest.raises(NotFound):
            call("nobody")
    assert [vm.name for vm in service.list_vms().vms] == ["web"]
    assert list(states.load(config.state_file).vms) == ["web"]


def test_a_big_device_fits_when_less_is_promised(service: Service) -> None:
    assert service.create_vm(wanted("big", size_bytes=1 << 40, reservation=0)).reservation == 0
    assert service.create_vm(wanted("capped", size_bytes=1 << 30, cap=8 * MIB)).reservation == 8 * MIB


@pytest.mark.parametrize(
    "changes",
    [
        {"size_bytes": 4097},
        {"size_bytes": 4096},
        {"size_bytes": 1 << 50},
        {"codec": "gzip"},
        {"queues": 0},
        {"queues": 17},
        {"poll_us": -1},
        {"weight": 0},
        {"cap": 0},
        {"cap": MIB, "reservation": 2 * MIB},
        {"name": "../x"},
        {"more": 1},
    ],
)
def test_values_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VmCreate.model_validate({"name": "web", "size_bytes": 4 * MIB} | changes)


def test_change(service: Service, config: AgentConfig) -> None:
    service.create_vm(wanted(cap=6 * MIB))
    changed = service.update_vm("web", VmUpdate(codec="zstd", poll_us=50, weight=7, reservation=MIB))
    assert (changed.codec, changed.poll_us, changed.weight, changed.reservation, changed.cap) == (
        "zstd",
        50,
        7,
        MIB,
        6 * MIB,
    )
    assert changed.pools[0].codec == "zstd"
    assert service.update_vm("web", VmUpdate(cap=None)).cap is None
    assert states.load(config.state_file).vms["web"].cap is None
    assert service.update_vm("web", VmUpdate()).codec == "zstd"


def test_a_change_is_all_or_nothing(service: Service, config: AgentConfig) -> None:
    service.create_vm(wanted())
    before, promised = service.get_vm("web"), reservation(service)
    with pytest.raises(NoSpace):
        service.update_vm("web", VmUpdate(codec="none", weight=3, reservation=1 << 40))
    with pytest.raises(Conflict, match="reservation"):
        service.update_vm("web", VmUpdate(weight=3, cap=4096))
    assert (service.get_vm("web"), reservation(service)) == (before, promised)
    assert states.load(config.state_file).vms["web"].weight == 100


def test_a_change_that_cannot_be_written_is_undone(
    service: Service, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.create_vm(wanted())
    before, promised = service.get_vm("web"), reservation(service)
    monkeypatch.setattr(states, "save", failing_save)
    with pytest.raises(NoSpace):
        service.update_vm("web", VmUpdate(codec="none", weight=3, reservation=6 * MIB))
    with pytest.raises(NoSpace):
        service.create_vm(wanted("db"))
    monkeypatch.undo()
    assert (service.get_vm("web"), reservation(service)) == (before, promised)
    assert [vm.name for vm in service.list_vms().vms] == ["web"]
    assert service.create_vm(wanted("db")).name == "db"


def test_a_new_reservation_leaves_what_pools_were_promised(service: Service) -> None:
    service.create_vm(wanted(channels=("blk", "tmem"), reservation=MIB))
    pool = service.create_pool(PoolCreate(vm="web", persistent=True, pages=256))
    with_pool = reservation(service)
    assert with_pool > 2 * MIB
    service.update_vm("web", VmUpdate(reservation=3 * MIB))
    assert reservation(service) == with_pool + 2 * MIB
    service.destroy_pool(pool.id)
    assert reservation(service) == 3 * MIB


def reservation(service: Service) -> int:
    """What the store promised the VM, its pools included."""
    return service._reservation("web")


def failing_save(_path: Path, _state: State) -> None:
    raise NoSpace("the disk is full", "make room")


def test_freeze_and_thaw_survive_a_restart(service: Service, config: AgentConfig) -> None:
    service.create_vm(wanted())
    assert service.freeze_vm("web").frozen
    assert service.freeze_vm("web").frozen
    service.close()
    again = Service.open(config)
    assert again.get_vm("web").frozen
    assert not again.thaw_vm("web").frozen
    again.close()


def test_a_socket_in_use_is_said_and_leaves_no_vm(service: Service, config: AgentConfig) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(config.vm_socket("web")))
        other.listen()
        with pytest.raises(InUse, match=r"web\.sock"):
            service.create_vm(wanted())
    assert service.list_vms().vms == []
    assert states.load(config.state_file).vms == {}
    assert service.store_info().reserved_bytes == 0
    # nobody listens any more: what is left of it is replaced
    assert service.create_vm(wanted()).channel == "listening"


def test_a_socket_path_that_is_too_long_is_said(service: Service) -> None:
    service.config = service.config.model_copy(update={"state": Path("/tmp") / ("d" * 60)})
    with pytest.raises(InvalidInput, match="107"):
        service.create_vm(wanted("n" * 60))


def test_a_restart_finds_every_vm_and_page(config: AgentConfig, arena: Path) -> None:
    first = Service.open(config)
    first.create_vm(wanted("a", codec="zstd", queues=3, poll_us=20))
    first.create_vm(wanted("b", cap=5 * MIB, weight=9))
    before = {vm.name: vm for vm in first.list_vms().vms}
    crashed(first)
    with opened(arena) as store:
        fill(store, "a", PAGES)
        fill(store, "b", PAGES)
    again = Service.open(config)
    again.start_channels()
    after = {vm.name: vm for vm in again.list_vms().vms}
    for name, vm in after.items():
        assert vm.pages == len(PAGES)
        for field in ("size_bytes", "codec", "queues", "poll_us", "reservation", "cap", "weight", "socket"):
            assert getattr(vm, field) == getattr(before[name], field)
    assert again.recovery["pages"] == 2 * len(PAGES)
    again.close()
    assert {vm.name: vm.pages_at_stop for vm in states.load(config.state_file).vms.values()} == {
        "a": len(PAGES),
        "b": len(PAGES),
    }
    with opened(arena) as store:
        assert wrong(store, "a", PAGES) == wrong(store, "b", PAGES) == []


# -- a crash between two steps, and what the next start makes of it ------------------------------------------------


def prepared(config: AgentConfig, arena: Path, pages: range) -> None:
    """A VM 'web' with ``pages``, and no agent."""
    first = Service.open(config)
    first.create_vm(wanted())
    crashed(first)
    with opened(arena) as store:
        fill(store, "web", pages)


def edit_state(config: AgentConfig, change: Callable[[State], State]) -> None:
    states.save(config.state_file, change(states.load(config.state_file)))


def restarted(config: AgentConfig) -> list[tuple[str, int]]:
    again = Service.open(config)
    found = [(vm.name, vm.pages) for vm in again.list_vms().vms]
    again.close()
    return found


def test_made_in_the_arena_but_never_acknowledged(config: AgentConfig, arena: Path) -> None:
    prepared(config, arena, range(0))
    edit_state(config, lambda state: state.without_vm("web"))
    assert restarted(config) == []
    with opened(arena) as store:
        assert store.vms() == []


def test_pages_without_a_state_are_adopted(config: AgentConfig, arena: Path) -> None:
    prepared(config, arena, PAGES)
    config.state_file.unlink()
    assert restarted(config) == [("web", len(PAGES))]
    adopted = states.load(config.state_file).vms["web"]
    assert (adopted.size_bytes, adopted.codec) == (4 * MIB, "lz4")
    with opened(arena) as store:
        assert wrong(store, "web", PAGES) == []


def test_a_removal_that_began_is_finished(config: AgentConfig, arena: Path) -> None:
    prepared(config, arena, PAGES)
    edit_state(config, lambda state: state.with_vm(state.vms["web"].model_copy(update={"removing": True})))
    assert restarted(config) == []
    with opened(arena) as store:
        assert store.vms() == []


def test_another_arena_is_refused_and_untouched(config: AgentConfig, arena: Path, shared: Path) -> None:
    prepared(config, arena, PAGES)
    arena.rename(shared / "kept")
    with opened(arena) as store:
        store.vm_create("other")
    before = config.state_file.read_bytes()
    with pytest.raises(Corrupt, match="no pool for web"):
        Service.open(config)
    assert config.state_file.read_bytes() == before
    assert restarted(config.model_copy(update={"accept_loss": True})) == [("web", 0)]


def test_a_missing_arena_is_refused_until_the_loss_is_accepted(config: AgentConfig, arena: Path) -> None:
    prepared(config, arena, PAGES)
    arena.unlink()
    with pytest.raises(Corrupt, match="is missing and web may have pages"):
        Service.open(config)
    assert not arena.exists()
    assert restarted(config.model_copy(update={"accept_loss": True})) == [("web", 0)]


def test_an_empty_vm_needs_no_arena(config: AgentConfig, arena: Path) -> None:
    first = Service.open(config)
    first.create_vm(wanted())
    first.close()
    arena.unlink()
    assert restarted(config) == [("web", 0)]


def test_a_quota_that_no_longer_fits_keeps_the_guest_going(config: AgentConfig, arena: Path) -> None:
    prepared(config, arena, PAGES)
    edit_state(config, lambda state: state.with_vm(state.vms["web"].model_copy(update={"reservation": 1 << 40})))
    assert restarted(config) == [("web", len(PAGES))]
    assert states.load(config.state_file).vms["web"].reservation < 1 << 30


def test_the_promise_holds_when_nothing_compresses(config: AgentConfig, arena: Path) -> None:
    first = Service.open(config)
    first.create_vm(wanted("greedy", size_bytes=256 * MIB, reservation=0))
    first.create_vm(wanted("promised"))
    crashed(first)
    with opened(arena) as store:
        noise = bytes(range(256)) * 16
        pool, index = swap_pool(store, "greedy"), 0
        store.pool_set_codec(pool, "none")
        while store.put(pool, bytes(24), index, index.to_bytes(8, "little") + noise[8:]) == "stored":
            index += 1
        mine = swap_pool(store, "promised")
        store.pool_set_codec(mine, "none")
        answers = {store.put(mine, bytes(24), at, at.to_bytes(8, "little") + noise[8:]) for at in range(1024)}
        assert answers == {"stored"}
        assert index > 1000


def test_a_store_is_one_process(config: AgentConfig, arena: Path, service: Service) -> None:
    with pytest.raises(InUse, match="arena"):
        Service.open(config)
    assert isinstance(service._store, Store)
