"""The registry: apps, functions, revisions, keys and secrets, durable in the store, mirrored in memory.

Everything is read from memory; each change is written to the store first, in one transaction. With it goes
the edition of the whole, which must be the one that memory mirrors: where the function service of another
machine was quicker, what it has changed is read first, and the change is judged anew.
"""

import asyncio
import functools
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import msgspec
from msgspec import Struct

from function_service.contract import Key, Revision, Scope
from function_service.safe import Safe
from pilotlight.history import History
from pilotlight.ids import NAME_RULE, is_name, new_id
from pilotlight.problems import Problem
from pilotlight.store import ABSENT, Conflict, Store, Write

_log = logging.getLogger(__name__)

EDITION: Final = "registry/edition"
"""The space of the one entry that each change writes anew."""

_APPS, _REVISIONS, _KEYS, _SECRETS = (
    "registry/apps",
    "registry/revisions",
    "registry/keys",
    "registry/secrets",
)
_OPEN_ON_DISK = Write(space="registry/state", key="secrets-open-on-disk", value=b"true")
_EDITION_KEY = "now"
_PAGE = 1000
_AGAIN = 1.0  # seconds until what other machines have changed is read again, after that failed
_APART = 0.001  # seconds between two revisions of a function, at least


P = ParamSpec("P")
T = TypeVar("T")


def _change(
    method: Callable[Concatenate["Registry", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Registry", P], Coroutine[Any, Any, T]]:
    """Have a change wait for its turn, and go on to its end when the caller is cancelled.

    Two at once could both see that a name is free; half of one would leave memory and store apart. Where
    another machine has changed the registry meanwhile, the method begins anew on what is there now.
    """

    async def change(registry: "Registry", /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def whole() -> T:
            async with registry.turn:
                while True:
                    try:
                        return await method(registry, *args, **kwargs)
                    except Conflict:
                        await registry.catch_up()

        task = asyncio.create_task(whole(), name=f"registry {method.__name__}")
        registry.changes.add(task)
        task.add_done_callback(registry.changes.discard)
        return await asyncio.shield(task)

    functools.update_wrapper(change, method)
    return change


class _SealedSecret(Struct, frozen=True):
    """A secret as it is stored."""

    name: str
    sealed: bytes  # by the safe


class AppRecord(Struct, frozen=True, kw_only=True):
    """An app as it is stored. `live` and the values of `prepared` map function names to revision ids."""

    name: str
    commit: str
    live: dict[str, str]
    prepared: dict[str, dict[str, str]]  # by commit
    updated: float


class Registry:
    """What is deployed, and who may use it."""

    def __init__(self, store: Store, safe: Safe, kept_revisions: int = 10) -> None:
        """`kept_revisions` are kept of each function."""
        self._store = store
        self._kept_revisions = kept_revisions
        self._safe = safe
        self.turn = asyncio.Lock()
        self.changes: set[asyncio.Task[Any]] = set()
        self._edition = ABSENT  # the version of the entry, as memory mirrors it
        self.on_change: Callable[[set[str]], None] = _nothing
        """Called when another machine has changed something, with the names of the secrets among that."""
        self.apps: dict[str, AppRecord] = {}
        self._owners: dict[str, str] = {}  # live function → app
        self.revisions: dict[str, dict[str, Revision]] = {}  # function → id → revision
        self.keys: dict[str, Key] = {}
        self.secrets: dict[str, str] = {}

    async def close(self) -> None:
        """Wait for changes that are under way."""
        await asyncio.gather(*self.changes, return_exceptions=True)

    @property
    def edition(self) -> int:
        """The edition of what is in memory. Each change makes a higher one, unless the store is restored."""
        return self._edition

    async def load(self) -> None:
        """Read everything into memory but the secrets, see `open_secrets`."""
        self._edition = await self._load()

    async def _load(self) -> int:
        """Read it, and return the edition that was read."""
        while True:
            edition = await self._stored_edition()
            apps = [msgspec.json.decode(value, type=AppRecord) for value in await self._all(_APPS)]
            revisions = [msgspec.json.decode(value, type=Revision) for value in await self._all(_REVISIONS)]
            keys = [msgspec.json.decode(value, type=Key) for value in await self._all(_KEYS)]
            if edition == await self._stored_edition():
                break
        self.apps, self._owners, self.revisions = {}, {}, {}
        for record in apps:
            self._put(record)
        for revision in revisions:
            self.revisions.setdefault(revision.config.name, {})[revision.id] = revision
        self.keys = {key.id: key for key in keys}
        return edition

    async def _stored_edition(self) -> int:
        entry = await self._store.get(EDITION, _EDITION_KEY)
        return ABSENT if entry is None else entry.version

    async def catch_up(self) -> None:
        """Read what other machines have changed, if they have. Raises Problem. Whoever calls has the turn."""
        if await self._stored_edition() == self._edition:
            return
        edition = await self._load()
        sealed = [msgspec.json.decode(value, type=_SealedSecret) for value in await self._all(_SECRETS)]
        boxes = {each.name: each.sealed for each in sealed}
        former, self.secrets = self.secrets, await asyncio.to_thread(self._safe.unlock, boxes)
        self._edition = edition  # only now: what has failed by then is tried again
        self.on_change({name for name, _ in former.items() ^ self.secrets.items()})

    async def follow(self, history: History) -> None:
        """Read what other machines change, as they do, until cancelled."""
        with history.watch(EDITION) as changed:
            while True:
                changed.clear()
                try:
                    async with self.turn:
                        await self.catch_up()
                except Problem as problem:
                    _log.warning("action=catch-up-failed detail=%r", problem.detail)
                    await asyncio.sleep(_AGAIN)
                    continue
                await changed.wait()

    async def _commit(self, writes: Sequence[Write]) -> None:
        """Make a change durable. Raises Conflict where memory is behind the store, Problem."""
        edition = Write(space=EDITION, key=_EDITION_KEY, value=b"", expect=self._edition)
        self._edition = (await self._store.write([edition, *writes]))[0]

    async def open_secrets(self) -> bool:
        """Read the secrets into memory; return whether the disk still holds some that lay open until now.

        A version before encryption left them so. Then the store has to be written anew, and
        `forgot_open_secrets` called. Raises Problem where the safe does not open.
        """
        sealed: dict[str, bytes] = {}
        plain: dict[str, str] = {}
        for value in await self._all(_SECRETS):
            entry = msgspec.json.decode(value, type=_SealedSecret | tuple[str, str])
            if isinstance(entry, _SealedSecret):
                sealed[entry.name] = entry.sealed
            else:
                plain[entry[0]] = entry[1]
        opened = await asyncio.to_thread(self._safe.unlock, sealed)
        if plain:
            sealing = [await self._sealed(name, text) for name, text in plain.items()]
            await self._store.write([*sealing, _OPEN_ON_DISK])
        self.secrets = opened | plain
        return await self._store.get(_OPEN_ON_DISK.space, _OPEN_ON_DISK.key) is not None

    async def forgot_open_secrets(self) -> None:
        """Note that the disk holds no open secret any more."""
        await self._store.write([msgspec.structs.replace(_OPEN_ON_DISK, value=None)])

    async def _sealed(self, name: str, value: str) -> Write:
        entry = _SealedSecret(name, await asyncio.to_thread(self._safe.seal, name, value))
        return Write(space=_SECRETS, key=name, value=msgspec.json.encode(entry))

    async def _all(self, space: str) -> list[bytes]:
        values: list[bytes] = []
        after = ""
        while page := await self._store.scan(space, after=after, limit=_PAGE):
            values += [entry.value for entry in page]
            after = page[-1].key
        return values

    # Functions

    def owner(self, function: str) -> AppRecord | None:
        """Return the app in which a function of that name is live."""
        app = self._owners.get(function)
        return None if app is None else self.apps[app]

    def live(self, function: str) -> Revision:
        """Return the live revision. Raises Problem `unknown-function`."""
        app = self.owner(function)
        if app is None:
            raise Problem(
                "unknown-function",
                f"There is no function {function!r}. `pilotlight list` shows those that there are.",
            )
        return self.revisions[function][app.live[function]]

    def all_live(self) -> list[Revision]:
        """Return the live revision of every function."""
        return [self.revisions[name][id_] for app in self.apps.values() for name, id_ in app.live.items()]

    def kept(self, function: str) -> list[Revision]:
        """Return the revisions of a live function that are kept, newest first. Raises `unknown-function`."""
        return self._of_app(self.live(function).app, function)

    def _of_app(self, app: str, function: str) -> list[Revision]:
        of_function = self.revisions.get(function, {}).values()
        return sorted((r for r in of_function if r.app == app), key=lambda r: r.created, reverse=True)

    def claim(self, app: str, functions: list[str]) -> None:
        """Raise Problem `conflict` where another app has one of the names."""
        for name in functions:
            owner = self.owner(name)
            if owner is not None and owner.name != app:
                raise Problem(
                    "conflict",
                    f"The function {name!r} belongs to the app {owner.name!r} already, and names are unique "
                    "on a platform. Give this one another name.",
                )

    @_change
    async def prepare(self, app: str, commit: str, revisions: list[Revision]) -> None:
        """Store revisions that `activate` will make live. Raises Problem `conflict`, `invalid-request`."""
        for name in (app, *(r.config.name for r in revisions)):
            if not is_name(name):  # names become names of files
                raise Problem("invalid-request", f"{name!r} can't be a name: {NAME_RULE}.")
        self.claim(app, [r.config.name for r in revisions])
        record = self.apps.get(app) or AppRecord(
            name=app, commit="", live={}, prepared={}, updated=time.time()
        )
        prepared = {commit: {r.config.name: r.id for r in revisions}}
        record = msgspec.structs.replace(record, prepared=prepared)
        known = [r for r in revisions if r.id not in self.revisions.get(r.config.name, {})]
        await self._commit([_app(record), *(_revision(r) for r in known)])
        self._put(record)
        for revision in known:
            self.revisions.setdefault(revision.config.name, {})[revision.id] = revision

    @_change
    async def activate(self, app: str, commit: str) -> bool:
        """Make what was prepared live; False when it is live already. Raises Problem `not-found`."""
        record = self.apps.get(app)
        live = record.prepared.get(commit) if record is not None else None
        if live is None and record is not None and record.commit == commit:
            return False
        if live is None or any(id_ not in self.revisions.get(name, {}) for name, id_ in live.items()):
            raise Problem("not-found", f"Nothing was prepared for commit {commit} of {app!r}. Push it again.")
        self.claim(app, list(live))
        former = record.live if record is not None else {}
        fresh = [self._renewed(name, id_, commit) for name, id_ in live.items() if former.get(name) != id_]
        record = AppRecord(name=app, commit=commit, live=live, prepared={}, updated=time.time())
        await self._save(record, fresh)
        return True

    def _renewed(self, function: str, id_: str, commit: str) -> Revision:
        """Return a revision as one that is newer than all others of its function.

        It may be one from before that was pushed again; and the clock may have been set back since.
        """
        of_function = self.revisions[function]
        newest = max(r.created for r in of_function.values())
        created = max(time.time(), newest + _APART)
        return msgspec.structs.replace(of_function[id_], commit=commit, created=created)

    @_change
    async def rollback(
        self, function: str, revision: str | None, check: Callable[[Revision], None] | None = None
    ) -> Revision:
        """Make a former revision live that passes the check.

        Raises Problem `not-found`, `unknown-function`, and what the check does.
        """
        present = self.live(function)
        known = self.kept(function)
        if revision is None:
            wanted = next((r for r in known if r.created < present.created), None)
            if wanted is None:
                raise Problem("not-found", f"{function!r} has no revision before {present.id}.")
        else:
            fitting = [r for r in known if r.id == revision]
            if not fitting:
                raise Problem(
                    "not-found",
                    f"{function!r} has no revision {revision!r}. It has {', '.join(r.id for r in known)}.",
                )
            wanted = fitting[0]
        if check is not None:
            check(wanted)
        record = self.owner(function)
        if record is None:
            raise Problem("unknown-function", f"{function!r} was deleted meanwhile.")
        live = {**record.live, function: wanted.id}
        await self._save(msgspec.structs.replace(record, live=live, updated=time.time()))
        return wanted

    @_change
    async def delete(self, function: str) -> bool:
        """Delete a function; return whether its app is gone with it. Raises Problem `unknown-function`."""
        self.live(function)
        record = self.owner(function)
        if record is None:
            return False
        live = {name: id_ for name, id_ in record.live.items() if name != function}
        if live:
            await self._save(msgspec.structs.replace(record, live=live, updated=time.time()))
            return False
        gone = [r for name in self.revisions for r in self._of_app(record.name, name)]
        await self._commit([Write(space=_APPS, key=record.name, value=None), *map(_removal, gone)])
        self._put(msgspec.structs.replace(record, live={}))
        del self.apps[record.name]
        self._forget(gone)
        return True

    async def _save(self, record: AppRecord, fresh: Sequence[Revision] = ()) -> None:
        """Store an app and its fresh revisions; let go of those too old, or of functions that it has not."""
        gone: list[Revision] = []
        prepared = {id_ for functions in record.prepared.values() for id_ in functions.values()}
        newest = {revision.id for revision in fresh}
        for name in self.revisions:
            known = sorted(self._of_app(record.name, name), key=lambda r: r.id not in newest)
            kept = (
                {record.live[name], *(r.id for r in known[: self._kept_revisions])}
                if name in record.live
                else ()
            )
            gone += [r for r in known if r.id not in kept and r.id not in prepared]
        await self._commit([_app(record), *map(_revision, fresh), *map(_removal, gone)])
        for revision in fresh:
            self.revisions[revision.config.name][revision.id] = revision
        self._put(record)
        self._forget(gone)

    def _put(self, record: AppRecord) -> None:
        """Take a record over into memory."""
        former = self.apps.get(record.name)
        for name in former.live if former is not None else ():
            del self._owners[name]
        self.apps[record.name] = record
        self._owners |= dict.fromkeys(record.live, record.name)

    def _forget(self, gone: list[Revision]) -> None:
        for revision in gone:
            of_function = self.revisions[revision.config.name]
            del of_function[revision.id]
            if not of_function:
                del self.revisions[revision.config.name]

    def layers_in_use(self) -> set[str]:
        """Return the digests that some kept revision is made of."""
        digests: set[str] = set()
        for of_function in self.revisions.values():
            for revision in of_function.values():
                digests |= {revision.code, revision.dependencies or revision.code}
        return digests

    def images_in_use(self) -> set[str]:
        """Return the ids of the images that some kept revision runs in."""
        revisions = (revision for of_function in self.revisions.values() for revision in of_function.values())
        return {revision.image.id for revision in revisions if revision.image is not None}

    # Keys and secrets

    @_change
    async def create_key(
        self, name: str, scopes: tuple[Scope, ...], app: str | None, expires: float | None
    ) -> tuple[Key, str]:
        """Make a key; the second value is the key itself."""
        text = "pl_" + secrets.token_urlsafe(32)
        digest = hashlib.sha256(text.encode()).hexdigest()
        key = Key(
            id=new_id(),
            name=name,
            sha256=digest,
            created=time.time(),
            scopes=scopes,
            app=app,
            expires=expires,
        )
        await self._commit([Write(space=_KEYS, key=key.id, value=msgspec.json.encode(key))])
        self.keys[key.id] = key
        return key, text

    @_change
    async def delete_key(self, key: str) -> None:
        """Withdraw a key."""
        if key not in self.keys:
            raise Problem("not-found", f"There is no key with the id {key!r}.")
        others = (other for other in self.keys.values() if other.id != key)
        if not any(Scope.ADMIN in other.scopes and other.expires is None for other in others):
            raise Problem(
                "conflict",
                "This is the last key with the scope admin that never expires; without one nobody could make "
                "others some day. Make another one first: pilotlight keys create NAME",
            )
        await self._commit([Write(space=_KEYS, key=key, value=None)])
        del self.keys[key]

    @_change
    async def put_secret(self, name: str, value: str) -> None:
        """Set a secret."""
        await self._commit([await self._sealed(name, value)])
        self.secrets[name] = value

    @_change
    async def delete_secret(self, name: str) -> None:
        """Delete a secret that no live function names."""
        if name not in self.secrets:
            raise Problem("not-found", f"There is no secret {name!r}.")
        users = [r.config.name for r in self.all_live() if name in r.config.secrets]
        if users:
            raise Problem(
                "conflict", f"The secret {name!r} is named by {', '.join(users)}. Change these first."
            )
        await self._commit([Write(space=_SECRETS, key=name, value=None)])
        del self.secrets[name]


def _nothing(_: set[str]) -> None:
    """Do nothing."""


def _app(record: AppRecord) -> Write:
    return Write(space=_APPS, key=record.name, value=msgspec.json.encode(record))


def _revision(revision: Revision) -> Write:
    return Write(space=_REVISIONS, key=_key(revision), value=msgspec.json.encode(revision))


def _removal(revision: Revision) -> Write:
    return Write(space=_REVISIONS, key=_key(revision), value=None)


def _key(revision: Revision) -> str:
    return f"{revision.config.name}/{revision.id}"


async def discard_secrets(store: Store) -> list[str]:
    """Delete all secrets from a store that no service runs on, readable or not; return their names."""
    entries = await store.scan(_SECRETS, limit=_PAGE)
    await store.drop(_SECRETS)
    return [entry.key for entry in entries]
