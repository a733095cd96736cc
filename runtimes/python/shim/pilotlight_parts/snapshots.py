"""What a function does around its snapshot: before it is frozen, and in each instance that is made of it.

    from pilotlight import before_snapshot, after_restore

    @before_snapshot
    def disconnect(): ...

    @after_restore
    def connect(): ...

A snapshot holds the memory of the process after the import. What must not be the same in each instance, or
can't be shared (connections, threads, seeds of one's own), is let go before and made anew after. A
`before_snapshot` hook that raises means that no snapshot is made, and instances are started as usual.
"""

from __future__ import annotations

import random
import sys
import tempfile
from typing import Callable, TypeVar

Hook = TypeVar("Hook", bound=Callable[[], object])

_before: list[Callable[[], object]] = []
_after: list[Callable[[], object]] = []


def before_snapshot(hook: Hook) -> Hook:
    """Have hook called once after the import, before instances are made of it; the last one comes first."""
    _before.append(hook)
    return hook


def after_restore(hook: Hook) -> Hook:
    """Have hook called in each instance before its first request, with a snapshot or without."""
    _after.append(hook)
    return hook


def freeze() -> None:
    """Run what is to be done before the snapshot."""
    for hook in reversed(_before):
        hook()
    sys.stdout.flush()
    sys.stderr.flush()


def thaw() -> None:
    """Make right what a copy of a process gets wrong, then run what is to be done after it."""
    random.seed()
    tempfile._name_sequence = None  # type: ignore[attr-defined]  # noqa: SLF001  it goes by the process id, which is 1 in all
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    run_after()


def run_after() -> None:
    """Run what is to be done before the first request."""
    for hook in _after:
        hook()
