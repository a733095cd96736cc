"""The receipt of a call, read from the headers of its answer. Pure."""

import re
from dataclasses import dataclass, field
from typing import Final, Protocol

STAGES: Final = ("wait", "container", "runtime", "code", "handler")
_METRIC = re.compile(r"\s*([A-Za-z0-9_-]+)\s*;\s*dur=([0-9.]+)\s*")


class Headers(Protocol):
    """The headers of an answer, by name whatever its case."""

    def get(self, name: str, /) -> str | None:
        """Return the value, or None."""
        ...


@dataclass(frozen=True)
class Receipt:
    """Where the time of a call went, in milliseconds."""

    start: str  # "cold" or "warm"; empty for an answer that is no function's
    stages: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {self.stages[name]:.1f}" for name in STAGES if name in self.stages)
        return f"{self.start} start; in ms: {parts}"


def read(headers: Headers) -> Receipt:
    """Read the receipt from the headers `Pilotlight-Start` and `Server-Timing`."""
    found = (_METRIC.fullmatch(part) for part in (headers.get("Server-Timing") or "").split(","))
    return Receipt(
        headers.get("Pilotlight-Start") or "",
        {match[1]: float(match[2]) for match in found if match},
    )
