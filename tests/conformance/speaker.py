# SPDX-License-Identifier: Apache-2.0
"""What the suite needs of a speaker, and what a case is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tmem_host.channel.abi import Feature

#: What every host has.
NO_FEATURES = Feature(0)


class Channel(ABC):
    """A channel of one VM, as a guest has it."""

    #: Whether a request says how much room there is for data behind its reply: a stream's does not.
    rooms: bool = True
    #: Features that the host offers.
    features: Feature

    @abstractmethod
    def request(self, message: bytes, room: int | None = None) -> bytes:
        """Sends a request with its data; the reply with its data, cut to the length that was used.

        ``room``: bytes of data that fit behind the reply; by default as many as any request fetches.
        """

    @abstractmethod
    def reset(self) -> None:
        """Makes the channel one on which no HELLO was said, as a device reset or a new connection does."""


class Speaker(Channel):
    """What a case needs besides: what the host's operator may do to that VM, and its neighbours."""

    @abstractmethod
    def freeze(self, frozen: bool) -> None:
        """Whether puts of the VM are refused from now on."""

    @abstractmethod
    def set_cap(self, cap: int | None) -> None:
        """Bounds what the VM holds: bytes, at least a page's; None: no more."""

    @abstractmethod
    def authorise(self, uuid: bytes, allowed: bool) -> None:
        """Whether the VM may make or join the shared pool of that uuid from now on."""

    @abstractmethod
    def peer(self) -> Speaker:
        """A channel of another VM of the same host: the same one each time."""

    @abstractmethod
    def channel(self) -> Speaker:
        """Another channel of the same VM."""

    @abstractmethod
    def lose(self, lost: bool) -> None:
        """From now on every get of this VM finds the page lost, or no longer."""


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    act: Callable[[Speaker], None]
    features: Feature = NO_FEATURES
    room: bool = False
    """Whether it offers less room for data than a reply needs."""

    def __str__(self) -> str:
        return self.name

    def run(self, speaker: Speaker) -> None:
        """Raises AssertionError, or skips what cannot be."""
        if self.room and not speaker.rooms:
            pytest.skip("a request of this channel does not say how much room there is")
        if self.features & ~speaker.features:
            pytest.skip(f"this host does not offer {self.features & ~speaker.features!r}")
        self.act(speaker)
