"""Which engine this platform uses, and why."""

import sys
from typing import Final

_LINUX: Final = "this is Linux, whose own means need no Docker and start functions sooner"
_OTHER: Final = "the embedded engine is for Linux only"


def choose(wanted: str) -> tuple[str, str]:
    """Return the name of the engine that `wanted` (`auto` or a name) stands for, and the reason."""
    if wanted != "auto":
        return wanted, "--engine says so"
    return ("embedded", _LINUX) if sys.platform == "linux" else ("docker", _OTHER)
