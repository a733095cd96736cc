"""Which store is opened, by the setting `store`."""

import os
import platform
from typing import Protocol

from pilotlight import redis_address
from pilotlight.datafolder import DataFolder
from pilotlight.history import History, LogOf
from pilotlight.store import Store
from pilotlight.store_sqlite import SqliteStore


class FollowedStore(Store, History, Protocol):
    """A store whose changes can be followed."""


async def registry(setting: str, data: DataFolder) -> FollowedStore:
    """Open the store of the registry, which one platform at a time uses. Raises Problem."""
    owner = f"{platform.node()}:{data.root}, {identity(data)}"
    return await _open(setting, data, "registry", owner, lambda _space: None)


async def shared_registry(setting: str, log_of: LogOf) -> FollowedStore:
    """Open the store of a registry that several machines use, all of which do it this way. Raises Problem."""
    from pilotlight.store_redis import RedisStore

    owner = "a platform of several machines"
    return await RedisStore.open(setting, "registry", owner=owner, shared=True, log_of=log_of)


async def documents(setting: str, data: DataFolder, log_of: LogOf) -> FollowedStore:
    """Open the store of the documents, with the history that `log_of` asks for. Raises Problem."""
    return await _open(setting, data, "documents", "", log_of)


def shown(setting: str) -> str:
    """Return which store a setting means, without user and password."""
    return setting if setting == "sqlite" else redis_address.parse(setting).shown


async def _open(setting: str, data: DataFolder, name: str, owner: str, log_of: LogOf) -> FollowedStore:
    if setting == "sqlite":
        return await SqliteStore.open(data.store(name), log_of=log_of)
    from pilotlight.store_redis import RedisStore  # it takes a while to import, and not everybody has one

    return await RedisStore.open(setting, name, owner=owner, log_of=log_of)


def identity(data: DataFolder) -> str:
    """Return what tells this data folder from a like-named one elsewhere; it is made once."""
    path = data.root / "id"
    if not path.exists():
        fresh = path.with_name("id.new")
        fresh.write_text(os.urandom(8).hex())
        fresh.replace(path)
    return path.read_text()
