"""A key that lies in a file of its own: 32 bytes in base64, closed to everybody else."""

import base64
import binascii
from pathlib import Path
from typing import Final

from pilotlight.problems import Problem

SIZE: Final = 32  # bytes


def read(path: Path, purpose: str) -> bytes:
    """Return the key in a file; `purpose` says in messages what it is for. It blocks.

    Raises FileNotFoundError, and Problem `unavailable` where the file can't be read, may be by everybody, or
    holds no key.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Problem("unavailable", f"The key of the {purpose}, {path}, can't be read: {reason}.") from error
    if mode & 0o007:
        raise Problem("unavailable", f"Everybody may use the key of the {purpose}: chmod 600 {path}")
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != SIZE:
        raise Problem(
            "unavailable",
            f"{path} is no key for {purpose}: it has to be {SIZE} bytes in base64. Bring the right file "
            f"back. {made_by(path)}",
        )
    return key


def made_by(path: Path) -> str:
    """Return how one makes a new key."""
    return f"A new one is made by: (umask 077; head -c {SIZE} /dev/urandom | base64 > {path})"
