"""How others reach the function service."""

from dataclasses import dataclass

from function_service.contract import Builds, Control, Invocations, Vault
from pilotlight.datafolder import DataFolder
from pilotlight.rpc import Client


@dataclass(frozen=True)
class FunctionServiceClient:
    """The doors of the function service, over its socket."""

    connection: Client
    invocations: Invocations
    control: Control
    vault: Vault
    builds: Builds

    @classmethod
    def connect(cls, data: DataFolder) -> "FunctionServiceClient":
        """Return a client; the connection is made at the first call."""
        client = Client(data.socket("function-service"))
        return cls(
            client,
            client.of(Invocations),  # type: ignore[type-abstract]
            client.of(Control),  # type: ignore[type-abstract]
            client.of(Vault),  # type: ignore[type-abstract]
            client.of(Builds),  # type: ignore[type-abstract]
        )

    async def close(self) -> None:
        """End the connection."""
        await self.connection.close()
