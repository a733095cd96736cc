"""The way in for a debugger: a Unix socket beside the instance's, relayed to a port in its sandbox.

It is made only on a platform for debugging. The sandbox has no other door, as its network is its own; whoever
may connect to the platform's sockets may connect to this one.
"""

from pathlib import Path

from function_service.engines.base import StartError
from function_service.engines.embedded.nursery import listening_socket
from runtimes.declaration import Debugger


def place(instance: Path) -> Path:
    """Return where debuggers of the instance with this socket connect."""
    return instance.with_suffix(".debug")


class Door:
    """One way in, until the sandbox has it."""

    def __init__(self, debugger: Debugger, instance: Path) -> None:
        """Make the socket. Raises StartError where the language's debugger is not installed."""
        self.port = debugger.port
        self.trees: list[tuple[Path, str, bool]] = []
        if debugger.find is not None:
            tool = debugger.find()
            if tool is None:
                raise StartError(debugger.remedy)
            self.trees.append((tool.folder, f"/tools/{tool.name}", False))
        self._listener = listening_socket(place(instance))
        self.listener = self._listener.fileno()

    def close(self) -> None:
        """Let go of what the sandbox has now."""
        self._listener.close()
