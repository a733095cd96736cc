"""The door `Vault` of contract.py: keys, secrets and the audit log, for those who may have all."""

from typing import Final

from function_service.audit import AuditLog
from function_service.contract import PLATFORM, Actor, AuditEntry, Key, Scope
from function_service.registry import Registry
from function_service.service import InvocationsDoor
from function_service.snapshots import Snapshots

_MAX_TAIL: Final = 10_000


class VaultDoor:
    """Implements contract.Vault."""

    def __init__(
        self, registry: Registry, snapshots: Snapshots, invocations: InvocationsDoor, audit: AuditLog
    ) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._invocations = invocations
        self._audit = audit

    async def keys(self) -> list[Key]:
        """List the keys."""
        return sorted(self._registry.keys.values(), key=lambda key: key.id)

    async def create_key(
        self,
        name: str,
        scopes: tuple[Scope, ...] = (Scope.ADMIN,),
        app: str | None = None,
        expires: float | None = None,
        by: Actor = PLATFORM,
    ) -> tuple[Key, str]:
        """Make a key (see contract)."""
        details: dict[str, object] = {"key": name, "scopes": scopes, "app": app, "expires": expires}
        made = await self._audit.during(
            "key.create", by, self._create_key(name, scopes, app, expires, details), details
        )
        await self._invocations.spread()
        return made

    async def _create_key(
        self,
        name: str,
        scopes: tuple[Scope, ...],
        app: str | None,
        expires: float | None,
        details: dict[str, object],
    ) -> tuple[Key, str]:
        made = await self._registry.create_key(name, scopes, app, expires)
        details["id"] = made[0].id
        self._invocations.publish()
        return made

    async def delete_key(self, key: str, by: Actor = PLATFORM) -> None:
        """Withdraw a key."""
        known = self._registry.keys.get(key)
        details = {"id": key, "key": known.name if known is not None else ""}
        await self._audit.during("key.delete", by, self._delete_key(key), details)
        await self._invocations.spread()

    async def _delete_key(self, key: str) -> None:
        await self._registry.delete_key(key)
        self._invocations.publish()

    async def secrets(self, by: Actor = PLATFORM) -> list[str]:
        """List the names of secrets."""
        await self._audit.write("secret.list", by, {})
        return sorted(self._registry.secrets)

    async def put_secret(self, name: str, value: str, by: Actor = PLATFORM) -> None:
        """Set a secret."""
        await self._audit.during("secret.set", by, self._put_secret(name, value), {"secret": name})
        await self._invocations.spread()

    async def _put_secret(self, name: str, value: str) -> None:
        await self._registry.put_secret(name, value)
        self._snapshots.forget_secret(name)

    async def delete_secret(self, name: str, by: Actor = PLATFORM) -> None:
        """Delete a secret."""
        await self._audit.during("secret.delete", by, self._registry.delete_secret(name), {"secret": name})
        await self._invocations.spread()

    async def audit(self, tail: int) -> list[AuditEntry]:
        """Return the last entries of the audit log."""
        return await self._audit.tail(min(max(tail, 0), _MAX_TAIL))
