"""The control groups of this machine, looked for while others come and go."""

import fnmatch
import os
from pathlib import Path


def control_groups(pattern: str) -> list[Path]:
    """Return those of a name; `os.walk` does not mind that folders go while it looks, `Path.rglob` does."""
    walked = os.walk("/sys/fs/cgroup")
    return [Path(at, name) for at, names, _ in walked for name in fnmatch.filter(names, pattern)]
