# SPDX-License-Identifier: Apache-2.0
"""What attaching changes in a domain's XML, and the way back: functions from text to text.

The document is edited, not written anew: whatever somebody else put into it stays as it was. What was added is found
again by its alias, and what was there before is kept in the domain's metadata:

    <tmem:attached xmlns:tmem="..." vm="web" made="yes" controller="no" memory="yes"><memoryBacking/></tmem:attached>

``made``: the agent's VM was made for it. ``controller``: whether the domain had a virtio-serial controller. ``memory``:
its memory was made shared; the element within, if there is one, is the memoryBacking that it had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from tmem_host.errors import Conflict, InvalidInput, NotFound

NAMESPACE: Final = "urn:kvm-tmem:libvirt:1"
_PREFIX: Final = "tmem"
#: libvirt keeps aliases that begin with ua-, whatever else it does to a device.
DISK_ALIAS: Final = "ua-tmem-disk"
PORT_ALIAS: Final = "ua-tmem-port"
AGENT_ALIAS: Final = "ua-tmem-agent"
#: Whatever is ours, in the order in which it is taken away: what may hold pages first.
ALIASES: Final = (DISK_ALIAS, PORT_ALIAS, AGENT_ALIAS)
#: Seconds between two attempts of QEMU to find the agent again; libvirt takes whole ones.
RECONNECT: Final = 1
_MEMORY: Final = "memoryBacking"
#: The stubs tell apart which node may be whose child, which a domain's XML settles.
Node = Any
#: Sources of memory that another process can map.
_SHAREABLE: Final = ("memfd", "file")


@dataclass(frozen=True)
class Port:
    """A virtio-serial port: QEMU listens at ``path``, the guest finds it by its name."""

    alias: str
    path: Path
    name: str


@dataclass(frozen=True)
class Wanted:
    """What a domain is to get: a swap disk served at ``disk``, and ports."""

    vm: str
    disk: Path
    ports: tuple[Port, ...]
    queues: int = 1
    #: The agent's VM was made for this domain, and goes with it.
    made: bool = False


@dataclass(frozen=True)
class Attached:
    """What an attached domain says of itself."""

    vm: str
    made: bool


def parse(xml: str) -> minidom.Document:
    """Raises InvalidInput for what is no domain."""
    try:
        document = minidom.parseString(xml)
    except ExpatError as error:
        raise InvalidInput(f"the domain's XML cannot be read: {error}", "see 'virsh dumpxml'") from error
    if document.documentElement is None or document.documentElement.tagName != "domain":
        raise InvalidInput("this XML is no domain", "see 'virsh dumpxml'")
    return document


# -- looking ----------------------------------------------------------------------------------------------------------


def attached(xml: str) -> Attached | None:
    """None for a domain that has nothing of ours."""
    mark = _mark(parse(xml))
    return None if mark is None else Attached(mark.getAttribute("vm"), mark.getAttribute("made") == "yes")


def shares_memory(xml: str) -> bool:
    """Whether another process can map the guest's memory: what vhost-user needs."""
    return _shared(parse(xml))


def disk_target(xml: str) -> str:
    """The first of vda, vdb, ... that no disk has."""
    taken = {
        target.getAttribute("dev") for disk in _devices(parse(xml), "disk") for target in _children(disk, "target")
    }
    return next(name for name in _disk_names() if name not in taken)


def port_names(*xmls: str | None) -> set[str]:
    """Names of the virtio-serial ports in any of these."""
    channels = [channel for xml in xmls if xml is not None for channel in _devices(parse(xml), "channel")]
    return {target.getAttribute("name") for channel in channels for target in _children(channel, "target")}


def _disk_names() -> Iterator[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    yield from (f"vd{one}" for one in letters)
    yield from (f"vd{one}{two}" for one in letters for two in letters)


# -- devices ----------------------------------------------------------------------------------------------------------


def disk_xml(wanted: Wanted, target: str) -> str:
    """The swap disk. It connects again by itself, so that the agent may be restarted under the guest."""
    document = minidom.Document()
    disk = _element(document, "disk", type="vhostuser", device="disk")
    disk.appendChild(_element(document, "driver", name="qemu", type="raw", queues=str(wanted.queues)))
    source = _element(document, "source", type="unix", path=str(wanted.disk))
    source.appendChild(_element(document, "reconnect", enabled="yes", timeout=str(RECONNECT)))
    disk.appendChild(source)
    disk.appendChild(_element(document, "target", dev=target, bus="virtio"))
    disk.appendChild(_element(document, "alias", name=DISK_ALIAS))
    return str(disk.toxml())


def port_xml(port: Port) -> str:
    """The virtio-serial port, at which QEMU listens."""
    document = minidom.Document()
    channel = _element(document, "channel", type="unix")
    channel.appendChild(_element(document, "source", mode="bind", path=str(port.path)))
    channel.appendChild(_element(document, "target", type="virtio", name=port.name))
    channel.appendChild(_element(document, "alias", name=port.alias))
    return str(channel.toxml())


def device(xml: str, alias: str) -> str | None:
    """The device of ours with that alias, as it is in ``xml``; None when it is not there."""
    found = _by_alias(parse(xml), alias)
    return None if found is None else str(found.toxml())


# -- editing ----------------------------------------------------------------------------------------------------------


def attach(xml: str, wanted: Wanted) -> str:
    """The domain with shared memory, the disk and the ports. Raises Conflict, InvalidInput."""
    document = parse(xml)
    root = _root(document)
    if _mark(document) is not None:
        raise Conflict("the domain is attached already", "detach it first: tmem vm detach")
    mark = document.createElementNS(NAMESPACE, f"{_PREFIX}:attached")
    mark.setAttribute(f"xmlns:{_PREFIX}", NAMESPACE)
    mark.setAttribute("vm", wanted.vm)
    mark.setAttribute("made", "yes" if wanted.made else "no")
    mark.setAttribute("controller", "yes" if _has_controller(document) else "no")
    shared = _shared(document)
    mark.setAttribute("memory", "no" if shared else "yes")
    if not shared:
        before = _child(root, _MEMORY)
        if before is not None:
            mark.appendChild(_clone(before))
        _replace(root, before, _shared_backing(document, before))
    _ensured(document, "metadata").appendChild(mark)
    devices = _ensured(document, "devices")
    devices.appendChild(_imported(document, disk_xml(wanted, disk_target(xml))))
    for port in wanted.ports:
        devices.appendChild(_imported(document, port_xml(port)))
    return _text(document)


def detach(xml: str) -> str:
    """The domain as it was before :func:`attach`, and with what others changed since. Raises NotFound."""
    document = parse(xml)
    root = _root(document)
    mark = _mark(document)
    if mark is None:
        raise NotFound("the domain is not attached", "see 'virsh dumpxml'")
    for alias in ALIASES:
        found = _by_alias(document, alias)
        if found is not None:
            _remove(found)
    if mark.getAttribute("controller") == "no":
        _remove_idle_controllers(document)
    before, now = _child(mark, _MEMORY), _child(root, _MEMORY)
    # Unless somebody has changed it since, in which case it is his.
    if mark.getAttribute("memory") == "yes" and now is not None and _same(now, _shared_backing(document, before)):
        _replace(root, now, None if before is None else before)
    metadata = mark.parentNode
    _remove(mark)
    if metadata is not None and not _elements(metadata):
        _remove(metadata)
    return _text(document)


def _shared_backing(document: minidom.Document, before: minidom.Element | None) -> minidom.Element:
    """``before`` with what makes it shared, as a new element."""
    backing = document.createElement(_MEMORY) if before is None else _clone(before)
    source = _child(backing, "source")
    if _child(backing, "hugepages") is None and (source is None or source.getAttribute("type") not in _SHAREABLE):
        _replace(backing, source, _element(document, "source", type="memfd"))
    _replace(backing, _child(backing, "access"), _element(document, "access", mode="shared"))
    return backing


def _shared(document: minidom.Document) -> bool:
    """Raises InvalidInput when a NUMA cell says otherwise of itself: that would outdo what is said for all."""
    root = _root(document)
    cells = [cell.getAttribute("memAccess") for numa in _path(root, "cpu", "numa") for cell in _children(numa, "cell")]
    if "private" in cells:
        raise InvalidInput("a NUMA cell of the domain says memAccess='private'", "take that out with 'virsh edit'")
    if cells and all(access == "shared" for access in cells):
        return True
    backing = _child(root, _MEMORY)
    if backing is None:
        return False
    access = _child(backing, "access")
    source = _child(backing, "source")
    kind = "" if source is None else source.getAttribute("type")
    shareable = kind in _SHAREABLE or _child(backing, "hugepages") is not None
    return shareable and access is not None and access.getAttribute("mode") == "shared"


def _has_controller(document: minidom.Document) -> bool:
    return any(each.getAttribute("type") == "virtio-serial" for each in _devices(document, "controller"))


def _remove_idle_controllers(document: minidom.Document) -> None:
    """Those of virtio-serial, which libvirt added for our port, if nobody else has a port on them by now."""
    ports = [*_devices(document, "channel"), *_devices(document, "console")]
    if any(target.getAttribute("type") == "virtio" for port in ports for target in _children(port, "target")):
        return
    for controller in _devices(document, "controller"):
        if controller.getAttribute("type") == "virtio-serial":
            _remove(controller)


# -- the document -----------------------------------------------------------------------------------------------------


def _root(document: minidom.Document) -> minidom.Element:
    assert document.documentElement is not None  # parse() saw to it
    return document.documentElement


def _text(document: minidom.Document) -> str:
    return str(_root(document).toxml())


def _element(document: minidom.Document, tag: str, /, **attributes: str) -> minidom.Element:
    made = document.createElement(tag)
    for key, value in attributes.items():
        made.setAttribute(key, value)
    return made


def _ensured(document: minidom.Document, name: str) -> minidom.Element:
    """The child of the root that is called ``name``, made when it is not there."""
    root = _root(document)
    found = _child(root, name)
    if found is None:
        found = document.createElement(name)
        root.appendChild(found)
    return found


def _imported(document: minidom.Document, xml: str) -> minidom.Element:
    node: minidom.Element = document.importNode(_root(minidom.parseString(xml)), True)
    return node


def _clone(node: Node) -> minidom.Element:
    made: minidom.Element = node.cloneNode(True)
    return made


def _elements(parent: Node) -> list[minidom.Element]:
    return [node for node in parent.childNodes if isinstance(node, minidom.Element)]


def _children(parent: Node, name: str) -> list[minidom.Element]:
    return [node for node in _elements(parent) if node.tagName == name]


def _child(parent: Node, name: str) -> minidom.Element | None:
    return next(iter(_children(parent, name)), None)


def _path(parent: Node, *names: str) -> list[minidom.Element]:
    found = [parent]
    for name in names:
        found = [child for node in found for child in _children(node, name)]
    return [node for node in found if isinstance(node, minidom.Element)]


def _devices(document: minidom.Document, kind: str) -> list[minidom.Element]:
    return _path(_root(document), "devices", kind)


def _by_alias(document: minidom.Document, alias: str) -> minidom.Element | None:
    for node in (*_devices(document, "disk"), *_devices(document, "channel")):
        if any(each.getAttribute("name") == alias for each in _children(node, "alias")):
            return node
    return None


def _mark(document: minidom.Document) -> minidom.Element | None:
    for metadata in _children(_root(document), "metadata"):
        for node in _elements(metadata):
            if node.namespaceURI == NAMESPACE and node.localName == "attached":
                return node
    return None


def _replace(parent: Node, old: minidom.Element | None, new: minidom.Element | None) -> None:
    if new is not None:
        parent.insertBefore(new, old)
    if old is not None:
        parent.removeChild(old)


def _remove(node: Node) -> None:
    if node.parentNode is not None:
        node.parentNode.removeChild(node)


def _same(one: minidom.Element, other: minidom.Element) -> bool:
    """Whether two elements say the same, in whatever order and with whatever white space between."""

    def key(node: minidom.Element) -> tuple[object, ...]:
        words = "".join(each.data for each in node.childNodes if isinstance(each, minidom.Text)).strip()
        return (
            node.tagName,
            tuple(sorted(node.attributes.items())),
            words,
            tuple(sorted((key(child) for child in _elements(node)), key=repr)),
        )

    return key(one) == key(other)
