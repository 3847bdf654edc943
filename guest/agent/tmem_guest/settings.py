# SPDX-License-Identifier: Apache-2.0
"""What an operator may set, in a file of TOML; everything has a default that suits most guests."""

import os
from dataclasses import asdict, dataclass

FILE = "/etc/tmem-guest.toml"
SOURCES = ("auto", "virtio-blk", "swap-disk", "frontswap", "none")
CHANNELS = ("auto", "virtio-tmem", "virtio-serial")


class BadSettings(Exception):
    """One line: what is wrong and, in brackets, what to do."""


@dataclass(frozen=True)
class Settings:
    """The names are those of the file."""

    #: What gives pages up: the stock disk driver, the module's swap disk or frontswap; auto: what is there.
    source: str = "auto"
    #: How the module's requests reach the host.
    channel: str = "auto"
    #: Of the virtio disk that is swap; empty: tmem.swap= of the kernel's command line, else the guest's own name.
    serial: str = ""
    #: Of the module's swap; 0: twice the memory.
    size_mib: int = 0
    #: Clean file pages too, if the kernel can and the module is used.
    cleancache: bool = True
    #: Of the swap device; 0: above all others, 100 at least.
    priority: int = 0
    #: Freed swap is told to the host at once.
    discard: bool = True
    #: Pages read ahead, as a power of 2: they cost the same each when there is no disk.
    page_cluster: int = 0
    #: Between two reports; 0: none.
    report_seconds: int = 2
    #: How long the host may take to answer on the port that the module is lent.
    wait_seconds: int = 30
    #: tmem.ko; empty: where the kernel's modules are, or /run.
    module: str = ""


_BOUNDS = {
    "size_mib": (0, 1 << 20),
    "priority": (0, 32767),
    "page_cluster": (0, 10),
    "report_seconds": (0, 3600),
    "wait_seconds": (1, 3600),
}
_CHOICES = {"source": SOURCES, "channel": CHANNELS}


def parse(text: str, origin: str) -> Settings:
    """Raises BadSettings, naming the file ``origin``."""
    import tomllib

    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{origin}: {error} [it is TOML: name = value, strings in quotes]") from None
    known = asdict(Settings())
    for name, value in given.items():
        if name not in known:
            raise BadSettings(f"{origin}: there is no setting {name!r} [the settings are {', '.join(known)}]")
        wanted = type(known[name])
        if type(value) is not wanted:
            word = {bool: "true or false", int: "a whole number", str: "a string"}[wanted]
            raise BadSettings(f"{origin}: {name} is {value!r} [it must be {word}]")
        if name in _BOUNDS and not _BOUNDS[name][0] <= value <= _BOUNDS[name][1]:
            raise BadSettings(f"{origin}: {name} is {value} [from {_BOUNDS[name][0]} to {_BOUNDS[name][1]}]")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise BadSettings(f"{origin}: {name} is {value!r} [one of {', '.join(_CHOICES[name])}]")
    return Settings(**given)


def read(path: str | None) -> Settings:
    """The file's settings; without a path those of the usual file, if there is one. Raises BadSettings."""
    if path is None and not os.path.exists(FILE):
        return Settings()
    name = path or FILE
    try:
        with open(name, encoding="utf-8") as stream:
            return parse(stream.read(), name)
    except OSError as error:
        raise BadSettings(f"{name}: {error.strerror} [is --config right?]") from None
    except UnicodeDecodeError:
        raise BadSettings(f"{name}: is not UTF-8 text") from None
