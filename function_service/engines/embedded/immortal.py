"""Makes what a zygote has in memory immortal, so that its forks go on sharing it.

Where a fork uses an object, CPython counts the reference in the object itself, and the kernel copies the page
that it lies on. Since 3.12 it leaves out the objects whose count has the value that means "never freed"
(PEP 683). None and the small integers have it from the start; here all that the zygote has imported gets it.

None of that is ever to be freed: it is the standard library's and ours. What a function makes is made after
the fork, and is counted and freed as always, also in a snapshot, which must not change when a function's own
objects end. Before 3.12, and on interpreters that count in another way, nothing is done.

Standard library only, as it runs inside of the zygotes.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from types import CodeType, ModuleType
from typing import Any

_NEWEST = (3, 14)  # whose way of counting has been looked at
_LEAST = 1 << 31  # of the counts that mean "never freed", on 64 bits


def immortalise() -> int:
    """Make all objects that are alive immortal; return how many. Call it between gc.collect and gc.freeze."""
    count = _immortal_count()
    if count is None:
        return 0
    # One array over the whole address space: an object of ctypes for each one takes five times as long
    words = (ctypes.c_uint32 * (1 << 60)).from_address(0)
    total = 0
    fresh = gc.get_objects()
    while fresh:
        total += len(fresh)
        for each in fresh:
            words[id(each) >> 2] = count
        fresh = [each for each in _referents(fresh) if words[id(each) >> 2] != count]
    return total


def _immortal_count() -> int | None:
    """Return the count that means "never freed"; None where it is not known, or kept elsewhere."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] > _NEWEST or sys.abiflags:
        return None
    count = sys.getrefcount(None)
    # An object does not begin with it where threads run freely, nor where a number's high half comes first
    begins = ctypes.c_uint32.from_address(id(None)).value
    return count if begins == count >= _LEAST else None


def _referents(objects: list[Any]) -> list[Any]:
    """Return what these refer to, some of it more than once."""
    # Not what modules have beside their dictionaries, which gc knows. It may be dead: 3.12's asyncio keeps
    # objects there for later, and would have them twice if they were let go of once more
    referents = gc.get_referents(*[each for each in objects if not isinstance(each, ModuleType)])
    for code in objects:
        if type(code) is CodeType:  # gc does not look into it
            referents += (code.co_consts, code.co_names)
    return referents
