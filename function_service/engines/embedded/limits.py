"""How many files a sandbox may have open, and with that, how many its user may have on their way.

A descriptor that was sent over a socket and is not received yet counts for the user who sent it, and the
kernel refuses to let anybody send more who has reached his own soft RLIMIT_NOFILE by then (unix(7),
ETOOMANYREFS). Functions share a user id where the machine has none to give away. So that none of them,
however many it leaves on their way, can hold up what others must send, each may have far fewer than a
snapshot, which sends for its children, and that far fewer than the platform, which has as many as the system
lets it.

Standard library only, as it runs inside of the zygotes.
"""

from __future__ import annotations

import resource

_SOFT = 1024  # what programs expect that use select(2)
_FUNCTION, _SNAPSHOT = 4096, 8192


def limit_function() -> None:
    """Leave this process, and what it starts, as many open files as a function may have."""
    most = min(_FUNCTION, _half())
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_SOFT, most), most))


def limit_snapshot() -> None:
    """Leave this process as many open files as a snapshot may have."""
    most = min(_SNAPSHOT, _half())
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _half() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard // 2
