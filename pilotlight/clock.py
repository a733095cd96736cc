"""The clock for all that lasts: TTLs, keep-alive, the order of what is made.

It tells seconds since the epoch as `time.time` did when this process started, and goes on by a clock that
nobody can set, and that also runs while the machine sleeps. Whoever corrects the machine's clock by an hour
ends no idle instance and no document for it, and keeps none an hour longer. What names a moment to people, or
has to hold against other machines (logs, when a key expires), is `time.time`.
"""

import time

_BEGAN = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def steady() -> float:
    """Return the seconds since the epoch, which never step."""
    return _BEGAN + time.clock_gettime(time.CLOCK_BOOTTIME)
