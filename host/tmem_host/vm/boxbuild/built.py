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
    """A box, and the kernels that it can be started with, by series."""

    box: box.Box
    kernels: dict[str, images.KernelImage]

    def kernel(self, series: str) -> images.KernelImage:
        """Raises NotFound for one that was not built."""
        if series not in self.kernels:
            raise NotFound(f"the box's kernel {series} is not built", "run 'make box'")
        return self.kernels[series]


def _file() -> Path:
    return images.sources().root.parent / "vagrant" / "built.json"


def build(series: str) -> Built:
    """Builds what is missing of the box and of one kernel, and remembers it; kernels of before stay known."""
    image = kernel.build_kernel(series)
    made = box.build_box()
    try:
        kernels = dict(read().kernels)
    except NotFound:
        kernels = {}
    built = Built(made, {**kernels, series: image})
    _file().write_text(json.dumps(asdict(built), default=str, indent=1) + "\n")
    return built


def read() -> Built:
    """Raises NotFound when nothing is built, or no longer there."""
    try:
        content = json.loads(_file().read_text())
        fields = content["box"]
        made = box.Box(fields["name"], Path(fields["file"]), Path(fields["key"]))
        kernels = {series: _kernel(value) for series, value in content["kernels"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound("the box is not built", "run 'make box'") from error
    if not made.file.is_file():
        raise NotFound(f"{made.file} is missing", "run 'make box'")
    present = {series: image for series, image in kernels.items() if image.initramfs.is_file()}
    return Built(made, present)


def _kernel(fields: dict[str, str]) -> images.KernelImage:
    paths = {name: Path(fields[name]) for name in ("vmlinuz", "initramfs")}
    return images.KernelImage(fields["series"], fields["version"], **paths, rootdisk=None, key=fields["key"])
