"""The same time always, as most platforms do."""

from dataclasses import dataclass

from function_service.policies.base import Decision


@dataclass(frozen=True)
class Fixed:
    """Keep every instance for `seconds` after its last call. It is its own history: it needs none."""

    seconds: float = 600.0

    @property
    def demotes(self) -> bool:
        """The source knows no layers."""
        return False

    def track(self, function: str, size: float) -> "Fixed":  # noqa: ARG002
        """Return the history, which remembers nothing."""
        return self

    def forget(self, function: str) -> None:
        """Do nothing: nothing is remembered."""

    def evict(self, now: float) -> list[str]:  # noqa: ARG002
        """Name none."""
        return []

    def record(self, started: float, ended: float) -> None:
        """Do nothing: calls change nothing."""

    def decide(self, now: float) -> Decision:  # noqa: ARG002
        """Return that time."""
        return Decision.window(0.0, self.seconds)
