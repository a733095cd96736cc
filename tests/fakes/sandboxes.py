"""Sandboxes that are none, for what only looks at instances."""

from pathlib import Path
from typing import Any

from function_service.contract import Stages
from function_service.engines.base import Sandbox


def sandbox(id_: str = "one") -> Sandbox:
    """Return a sandbox in which nothing runs."""
    nothing: Any = None
    return Sandbox(id_, nothing, Path("/nowhere"), Stages(), -1, nothing, nothing)
