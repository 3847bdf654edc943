# SPDX-License-Identifier: Apache-2.0
"""What 'make box' last built in this checkout: vagrant/built.json.

Machines stay what was built when the sources change under them: one must be able to reach and to destroy them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tmem_host.errors import NotFound
from tmem_host.vm import images
from tmem_host.vm.boxbuild import box, kernel


@dataclass(frozen=True)
class Built:
    """Boxes by role, and the kernels that they can be started with, by series."""

    boxes: dict[str, box.Box]
    kernels: dict[str, images.KernelImage]

    def box(self, role: str) -> box.Box:
        """Raises NotFound for one that was not built, or is no longer there."""
        if role not in self.boxes or not self.boxes[role].file.is_file():
            raise NotFound(f"the box of {role} is not built", "run 'make box'")
        return self.boxes[role]

    def kernel(self, series: str) -> images.KernelImage:
        """Raises NotFound for one that was not built."""
        if series not in self.kernels:
            raise NotFound(f"the box's kernel {series} is not built", "run 'make box'")
        return self.kernels[series]


def _file() -> Path:
    return images.checkout() / "vagrant" / "built.json"


def build(series: str, role: str) -> Built:
    """Builds what is missing of a role's box and of one kernel, and remembers it; what was built before stays known."""
    image = kernel.build_kernel(series)
    made = box.build_box(series if role == "host" else None)
    try:
        known = read()
    except NotFound:
        known = Built({}, {})
    built = Built({**known.boxes, role: made}, {**known.kernels, series: image})
    _file().write_text(json.dumps(asdict(built), default=str, indent=1) + "\n")
    return built


def read() -> Built:
    """Raises NotFound when nothing is built."""
    try:
        content = json.loads(_file().read_text())
        boxes = {role: _box(value) for role, value in content["boxes"].items()}
        kernels = {series: _kernel(value) for series, value in content["kernels"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound("the box is not built", "run 'make box'") from error
    present = {series: image for series, image in kernels.items() if image.initramfs.is_file()}
    return Built(boxes, present)


def _box(fields: dict[str, str]) -> box.Box:
    return box.Box(fields["name"], Path(fields["file"]), Path(fields["key"]))


def _kernel(fields: dict[str, str]) -> images.KernelImage:
    paths = {name: Path(fields[name]) for name in ("vmlinuz", "initramfs")}
    return images.KernelImage(fields["series"], fields["version"], **paths, rootdisk=None, key=fields["key"])
