# SPDX-License-Identifier: Apache-2.0
"""What is built: qemu-patches/BASE, configuration and series as values, and the cache key that they make."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tmem_host.errors import NotFound
from tmem_host.vm.imagebuild import pins
from tmem_host.vm.imagebuild.apt import SourcePackage

#: Raised when the code that builds (not what it builds from) changes what comes out.
_BUILDER: Final = 1
#: The core's C ABI for the patches to link: what the folder ``$TMEM_CAPI_DIR`` has to hold.
CAPI_LIBRARY: Final = "libtmem_capi.a"
PIN: Final = "qemu-patches/build --pin"
_HEAD: Final = f"""\
# SPDX-License-Identifier: Apache-2.0
# The source package that the series applies to. Written by '{PIN}'.
"""


@dataclass(frozen=True)
class Recipe:
    """Everything that goes into the binary."""

    folder: Path
    base: SourcePackage
    configuration: tuple[str, ...]
    #: Paths of the patches, in the order in which they apply.
    patches: tuple[Path, ...]
    #: Folder with tmem_capi.h and CAPI_LIBRARY, or None: the patches then build without what needs it.
    capi: Path | None

    @property
    def requirements(self) -> Path:
        return self.folder / "requirements.txt"

    def capi_files(self) -> list[Path]:
        return [] if self.capi is None else [*sorted(self.capi.glob("*.h")), self.capi / CAPI_LIBRARY]

    def tree_key(self) -> str:
        """Names the source tree that is kept between builds: patches come and go in it."""
        return _digest([str(_BUILDER), self.base.version, *sorted(self.base.files.values())])

    def key(self) -> str:
        """Names the binary."""
        parts = [self.tree_key(), *self.configuration, self.requirements.read_text()]
        parts += [path.read_text() for path in self.patches]
        parts += [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in self.capi_files()]
        return _digest(parts)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def patches_folder() -> Path:
    """``$TMEM_QEMU_PATCHES``, else qemu-patches of the checkout that this package runs from."""
    given = os.environ.get("TMEM_QEMU_PATCHES")
    return Path(given).absolute() if given else Path(__file__).resolve().parents[4] / "qemu-patches"


def read() -> Recipe:
    """Raises NotFound when a part of the recipe is missing or cannot be read."""
    folder = patches_folder()
    try:
        content = tomllib.loads(pins.pinned(base_file(folder)).read_text())
        base = SourcePackage(content["name"], content["version"], content["release"], content["files"])
        configuration = _lines(folder / "configuration")
        patches = tuple(folder / name for name in _lines(folder / "series"))
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise NotFound(
            f"{folder} has no usable BASE, configuration and series: {error}",
            "set TMEM_QEMU_PATCHES to qemu-patches of a checkout",
        ) from error
    for path in patches:
        if not path.is_file():
            raise NotFound(f"series names {path.name}, which is not there", f"see {folder}")
    return Recipe(folder, base, tuple(configuration), patches, _capi())


def _capi() -> Path | None:
    """``$TMEM_CAPI_DIR``, else what 'make capi' has left in the checkout, if it has."""
    given = os.environ.get("TMEM_CAPI_DIR")
    if given is None:
        made = Path(__file__).resolve().parents[4] / "host" / "core" / "target" / "capi"
        return made if (made / CAPI_LIBRARY).is_file() else None
    if not given:
        return None
    folder = Path(given).absolute()
    if not (folder / CAPI_LIBRARY).is_file() or not list(folder.glob("*.h")):
        raise NotFound(f"{folder} has no {CAPI_LIBRARY} with its header", "build it, or unset TMEM_CAPI_DIR")
    return folder


def _lines(path: Path) -> list[str]:
    """The lines of a list, without blank ones and comments."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def base_file(folder: Path) -> Path:
    """The file that pins QEMU's source package."""
    return folder / "BASE"


def write_base(path: Path, package: SourcePackage) -> None:
    files = "".join(f'"{name}" = "{sha256}"\n' for name, sha256 in sorted(package.files.items()))
    fields = f'name = "{package.name}"\nversion = "{package.version}"\nrelease = "{package.release}"\n'
    path.write_text(f"{_HEAD}\n{fields}\n[files]\n{files}")


def write_series(folder: Path, names: list[str]) -> None:
    head = "# SPDX-License-Identifier: GPL-2.0-or-later\n# In the order in which they apply. Written by refresh.\n"
    (folder / "series").write_text(head + "".join(f"{name}\n" for name in names))
