"""What is different where functions are debugged (`pilotlight dev --debug`): time, room, and one instance.

The way in for debuggers is the engine's.
"""

from typing import Final

from msgspec.structs import replace

from function_service.contract import Revision
from runtimes.declaration import Runtime

START: Final = 60.0  # seconds that a function has to load, with its debugger
_STOPPED: Final = 3600.0  # seconds that somebody may look at a call that stands at a breakpoint
_MEMORY: Final = 1 << 30  # bytes; the debugger needs some, in the function's own sandbox
_CPU: Final = 2.0  # cores


def fitted(revision: Revision, runtimes: dict[str, Runtime]) -> Revision:
    """Return a revision with what debugging needs; as it is where its language has no debugger.

    There is always one instance, so that an editor has something to attach to before the first call, and
    never a second one, whose calls would pass it by.
    """
    config = revision.config
    runtime = next(each for name, each in runtimes.items() if config.runtime.startswith(name))
    if runtime.debugger is None:
        return revision
    changed = replace(
        config,
        timeout=_STOPPED,
        memory=max(config.memory, _MEMORY),
        cpu=max(config.cpu, _CPU),
        min_instances=1,
        max_instances=1,
        keep_alive=_STOPPED,
    )
    return replace(revision, config=changed)
