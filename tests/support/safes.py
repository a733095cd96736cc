"""A safe for tests that care for something else."""

import atexit
import tempfile
from functools import cache
from pathlib import Path

from function_service.safe import Safe


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="pilotlight-safe-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def open_safe() -> Safe:
    """Return a safe that is unlocked; all of a run have the same key."""
    safe = Safe(_folder() / "secrets.key", ours=True)
    safe.unlock({})
    return safe
