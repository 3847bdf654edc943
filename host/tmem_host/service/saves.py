# SPDX-License-Identifier: Apache-2.0
"""Pools saved to files of the state folder, also while their guests go on, and restored, into a VM of any agent.

A file is ``saves/NAME.tmem``: to take it elsewhere, copy it there.  It is written under another name, synced and only
then given its own, so what has the name is whole.  ``host/core/store/src/save.rs`` has its format.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

from tmem_host.core import core_errors
from tmem_host.errors import Conflict, InvalidInput, NotFound
from tmem_host.models import Restored, SaveCreate, Saved, SaveInfo, SaveList
from tmem_host.service.pools import Pools
from tmem_host.state import os_error, private_folder, sync_folder

log = logging.getLogger(__name__)

_SUFFIX = ".tmem"


class Saves(Pools):
    """What was saved, and what is done with it."""

    @property
    def saves(self) -> Path:
        """The folder of saved pools."""
        return self.config.state / "saves"

    def save_pool(self, number: int, wanted: SaveCreate) -> Saved:
        """Writes a persistent pool to a new file.  Its guest goes on meanwhile; with ``freeze`` its puts are refused
        while the last changes are written.  Raises NotFound, InvalidInput, Conflict, NoSpace."""
        pool = self._pool(number)
        if not pool["persistent"]:
            raise InvalidInput(f"pool {number} is ephemeral: its pages may vanish", "save a persistent pool")
        private_folder(self.saves)
        path = self._path(wanted.name)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        began = time.monotonic()
        # An operator's own freeze and thaw must not meet this one's.
        with self._changing if wanted.freeze else contextlib.nullcontext():
            self._check_open()
            if path.exists():
                raise Conflict(f"there is a save {wanted.name} already", "choose another name, or remove it first")
            try:
                with core_errors(f"pool {number} cannot be saved"):
                    found = self._store.pool_save(number, str(partial), passes=wanted.passes, freeze=wanted.freeze)
                # Unlike a rename, this replaces nothing that came meanwhile.
                path.hardlink_to(partial)
                sync_folder(self.saves)
            except FileExistsError:
                raise Conflict(f"there is a save {wanted.name} already", "choose another name") from None
            except OSError as error:
                raise os_error(error, f"{path} cannot be written") from error
            finally:
                partial.unlink(missing_ok=True)
        seconds = time.monotonic() - began
        log.info("pool %d saved as %s: %d pages, %.3f s", number, wanted.name, found["pages"], seconds)
        info = self._info_of(path)
        return Saved(**info.model_dump(), pages=found["pages"], passes=found["passes"], seconds=seconds)

    def restore_pool(self, number: int, name: str, *, lose_pages: bool = False) -> Restored:
        """Puts a save's pages into a pool of the same kind: all of them, or none and an error.

        The pool is empty, unless its pages may be lost, and no guest uses it.
        """
        path = self._path(name)
        with self._changing:
            self._check_open()
            pool = self._pool(number)
            if not path.is_file():
                raise NotFound(f"there is no save {name}", "see 'tmem pool saves'")
            for vm in pool["members"]:
                if any(channel.state in ("connected", "in-step") for channel in self.get_vm(vm).channels):
                    raise Conflict(f"a monitor is connected to VM {vm}", "restore before its guest starts")
            self._check_loss(pool, lose_pages)
            began = time.monotonic()
            with core_errors(f"{name} cannot be restored"):
                if pool["pages"]:
                    self._store.pool_flush(number)
                found = self._store.pool_restore(number, str(path))
            seconds = time.monotonic() - began
            log.info("pool %d restored from %s: %d pages, %.3f s", number, name, found["pages"], seconds)
            return Restored(pages=found["pages"], seconds=seconds)

    def list_saves(self) -> SaveList:
        """By name."""
        try:
            files = sorted(self.saves.glob(f"[!.]*{_SUFFIX}"))
        except OSError as error:
            raise os_error(error, f"{self.saves} cannot be read") from error
        return SaveList(saves=[self._info_of(file) for file in files if file.is_file()])

    def delete_save(self, name: str) -> None:
        """Raises NotFound."""
        try:
            self._path(name).unlink()
            sync_folder(self.saves)
        except FileNotFoundError:
            raise NotFound(f"there is no save {name}", "see 'tmem pool saves'") from None
        except OSError as error:
            raise os_error(error, f"{name} cannot be removed") from error
        log.info("save %s removed", name)

    def _path(self, name: str) -> Path:
        return self.saves / f"{name}{_SUFFIX}"

    def _info_of(self, path: Path) -> SaveInfo:
        found = path.stat()
        return SaveInfo(
            name=path.name.removesuffix(_SUFFIX),
            path=str(path),
            bytes=found.st_size,
            made=datetime.fromtimestamp(found.st_mtime, UTC),
        )
