# SPDX-License-Identifier: Apache-2.0
"""VMs with channels of the tmem ABI: sockets, names that would meet, and what a start makes of pools and states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from conformance.guest import ATTACH, PERSISTENT, Guest
from conformance.local import CoreSpeaker
from framework.pages import DENSE, fill, opened, page, wrong
from tmem_host import state as states
from tmem_host.channel.abi import Status
from tmem_host.channel.control import GuestReports
from tmem_host.config import AgentConfig
from tmem_host.core import Store, worst_case_bytes
from tmem_host.errors import Conflict, Corrupt, InvalidInput, NotFound
from tmem_host.models import GuestReport, VmCreate, VmUpdate
from tmem_host.service import Service

MIB = 1 << 20
PAGES = range(0, 256, 3)


@pytest.fixture
def service(config: AgentConfig) -> Iterator[Service]:
    running = Service.open(config)
    running.start_channels()
    yield running
    running.close()


def both(name: str = "web") -> VmCreate:
    return VmCreate(name=name, size_bytes=4 * MIB, channels=("blk", "tmem"))


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": ()},
        {"channels": ("blk", "blk"), "size_bytes": 4 * MIB},
        {"channels": ("radio",)},
        {"channels": ("blk",)},
        {"channels": ("tmem",), "size_bytes": 4 * MIB},
    ],
)
def test_values_out_of_range(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VmCreate.model_validate({"name": "web"} | fields)


def test_each_channel_has_a_socket(service: Service, config: AgentConfig) -> None:
    made = service.create_vm(both())
    assert [(c.kind, c.state) for c in made.channels] == [("blk", "listening"), ("tmem", "listening")]
    paths = [config.vm_socket("web", channel.kind) for channel in made.channels]
    assert [path.name for path in paths] == ["web.sock", "web.tmem.sock"]
    assert all(path.is_socket() and path.stat().st_mode & 0o777 == 0o600 for path in paths)
    assert service.channel("web").kind == "blk"
    assert set(service.channel("web", "tmem").counters["requests"]) >= {"hello", "put", "flush_object"}
    service.update_vm("web", VmUpdate(poll_us=20, codec="zstd"))
    plain = service.create_vm(VmCreate(name="db", channels=("tmem",)))
    assert (plain.size_bytes, plain.reservation, plain.pools) == (0, 0, [])
    with pytest.raises(NotFound, match="no channel blk"):
        service.channel("db", "blk")
    service.remove_vm("web")
    assert not any(path.exists() for path in paths)


def test_a_vm_with_every_channel(service: Service, config: AgentConfig) -> None:
    made = service.create_vm(VmCreate(name="all", size_bytes=4 * MIB, channels=("serial", "blk", "tmem")))
    assert [(c.kind, c.state) for c in made.channels] == [
        ("serial", "waiting"),
        ("blk", "listening"),
        ("tmem", "listening"),
    ]
    # The monitor makes this one.
    assert not config.vm_socket("all", "serial").exists()
    assert service.channel("all").counters["control_refused"] == 0
    assert service.guest_report("all") is None
    assert service.update_vm("all", VmUpdate(poll_us=20)).poll_us == 20
    service.remove_vm("all")
    assert service.create_vm(VmCreate(name="all", channels=("serial",))).channel == "waiting"


def test_two_vms_have_no_socket_in_common(service: Service) -> None:
    service.create_vm(VmCreate(name="web", channels=("tmem",)))
    with pytest.raises(Conflict, match="has that socket"):
        service.create_vm(VmCreate(name="web.tmem", size_bytes=4 * MIB))
    with pytest.raises(Conflict, match="has that socket"):
        # Where the agent in web's guest is spoken to.
        service.create_vm(VmCreate(name="web.agent", size_bytes=4 * MIB))
    assert [vm.name for vm in service.list_vms().vms] == ["web"]


def stopped(config: AgentConfig, *vms: VmCreate) -> None:
    """Those VMs, and no agent."""
    service = Service.open(config)
    for vm in vms:
        service.create_vm(vm)
    service.close()
    # As a kill leaves it: nobody wrote down how many pages there are.
    state = states.load(config.state_file)
    for entry in state.vms.values():
        state = state.with_vm(entry.model_copy(update={"pages_at_stop": None}))
    states.save(config.state_file, state)


def guest_pool(store: Store, vm: str, pages: int) -> int:
    """As a guest makes a swap pool: with room promised for all of it."""
    store.vm_set(vm, promise=worst_case_bytes(pages))
    return store.pool_create(vm, persistent=True, pages=pages)


def test_a_guests_pools_are_not_its_device(config: AgentConfig, arena: Path) -> None:
    stopped(config, both())
    device = states.load(config.state_file).vms["web"].pool
    with opened(arena) as store:
        fill(store, "web", PAGES[:3])
        other = guest_pool(store, "web", 512)
        for number in PAGES:
            assert store.put(other, DENSE, number, page(number)) == "stored"
    for _ in range(2):
        service = Service.open(config)
        service.start_channels()
        entry = states.load(config.state_file).vms["web"]
        assert (entry.pool, entry.size_bytes) == (device, 4 * MIB)
        reserved = service.store_info().reserved_bytes
        assert reserved == entry.reservation + worst_case_bytes(512)
        service.close()
    with opened(arena) as store:
        assert wrong(store, "web", PAGES[:3]) == []
        assert all(store.get(other, DENSE, number) == page(number) for number in PAGES)


def test_a_device_that_is_gone_is_no_other_pool(config: AgentConfig, arena: Path) -> None:
    stopped(config, both())
    with opened(arena) as store:
        device = store.pools()[0]["id"]
        guest_pool(store, "web", 512)
        store.pool_destroy(device)
    with pytest.raises(Corrupt, match="no pool for web"):
        Service.open(config)


def test_a_vm_without_a_device_keeps_its_pages(config: AgentConfig, arena: Path) -> None:
    stopped(config, VmCreate(name="db", channels=("tmem",)), VmCreate(name="lost", channels=("tmem",)))
    with opened(arena) as store:
        pool = store.pool_create("db", persistent=True)
        assert store.put(pool, DENSE, 1, page(1)) == "stored"
        store.vm_remove("lost")
    with pytest.raises(Corrupt, match="lost"):
        Service.open(config)
    service = Service.open(config.model_copy(update={"accept_loss": True}))
    assert [(vm.name, vm.pages) for vm in service.list_vms().vms] == [("db", 1), ("lost", 0)]
    service.close()


@pytest.mark.parametrize(("channels", "more"), [(("blk",), False), (("blk", "tmem", "serial"), True)])
def test_adopted_with_the_channels_that_its_pools_tell_of(
    config: AgentConfig, arena: Path, channels: tuple[str, ...], more: bool
) -> None:
    stopped(config, both())
    config.state_file.unlink()
    with opened(arena) as store:
        fill(store, "web", PAGES)
        if more:
            store.pool_create("web", persistent=False)
    service = Service.open(config)
    service.start_channels()
    assert [channel.kind for channel in service.get_vm("web").channels] == list(channels)
    service.close()


def put_by_the_guest(store: Store, vm: str) -> None:
    """A page in a swap pool that the guest makes and finds again by its name."""
    guest = Guest(CoreSpeaker(store, vm))
    made = guest.try_new_pool(PERSISTENT | ATTACH, b"found by a name.", pages=64)
    assert guest.put(made.value, 1, page(1)).status == Status.OK


def test_a_swap_disk_of_the_guests_own_is_no_device(config: AgentConfig, arena: Path) -> None:
    stopped(config, VmCreate(name="db", channels=("serial",)))
    config.state_file.unlink()
    with opened(arena) as store:
        put_by_the_guest(store, "db")
    service = Service.open(config)
    adopted = service.get_vm("db")
    assert [channel.kind for channel in adopted.channels] == ["tmem", "serial"]
    assert (adopted.size_bytes, adopted.pages) == (0, 1)
    service.close()


def test_a_state_of_an_older_agent_is_understood(config: AgentConfig) -> None:
    stopped(config, VmCreate(name="web", size_bytes=4 * MIB))
    text = config.state_file.read_text()
    for line in ('      "pool": 0,\n', '      "channels": [\n        "blk"\n      ],\n'):
        assert line in text
        text = text.replace(line, "")
    config.state_file.write_text(text)
    Service.open(config).close()
    assert states.load(config.state_file).vms["web"].pool == 0


def told(**fields: object) -> GuestReport | None:
    """What is kept of a report with these fields, and nothing else."""
    reports = GuestReports()
    reports({"op": "report"} | fields)
    return reports.latest()


def test_a_report_keeps_what_it_knows() -> None:
    assert GuestReports().latest() is None
    kept = told(mem_total=1 << 26, psi_some_avg10=12, blkdev_puts=7, colour="red", counters={"x": 1}, age_seconds=-9)
    assert kept is not None
    assert (kept.mem_total, kept.psi_some_avg10, kept.pswpin) == (1 << 26, 12.0, None)
    assert kept.counters == {"blkdev_puts": 7}
    assert GuestReport.model_validate_json(kept.model_dump_json()) == kept
    assert kept.age_seconds is not None
    assert kept.age_seconds >= 0
    assert "colour" not in kept.model_dump()


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "hello"},
        {"op": ["report"]},
        {"mem_total": "much"},
        {"mem_total": -1},
        {"mem_total": 1 << 63},
        {"mem_total": True},
        {"psi_some_avg10": 101},
        {"psi_full_avg10": float("nan")},
        {"pswpin": 1.5},
        {"blkdev_puts": [1]},
        {f"blkdev_{a}{b}": 1 for a in "abcdefghij" for b in "abcdefghij"},
    ],
    ids=str,
)
def test_a_report_of_another_shape_is_refused(fields: dict[str, object]) -> None:
    reports = GuestReports()
    reports({"op": "report", "mem_total": 5})
    with pytest.raises(InvalidInput):
        reports({"op": "report", "mem_total": 6} | fields)
    kept = reports.latest()
    assert kept is not None
    assert kept.mem_total == 5
