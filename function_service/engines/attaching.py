"""How code comes into a blank sandbox: alike for each engine whose process 1 speaks embedded/messages.py."""

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from function_service.contract import Terminal
from function_service.engines.base import Assignment, StartError, Untouched
from function_service.engines.embedded import init, jobs, messages, syscalls
from function_service.engines.embedded import sandbox as inside
from function_service.engines.embedded.channel import Channel, Unread
from function_service.engines.embedded.grants import Grants
from runtimes.declaration import Interpreter, Runtime

Tree = tuple[Path, str, bool]
"""A folder that a sandbox gets: where it comes from, goes to, and whether it can be written there."""


def message_of(assignment: Assignment, runtime: Runtime, interpreter: Interpreter) -> dict[str, Any]:
    """Return what process 1 is told, so that it becomes the function or starts it."""
    message: dict[str, Any] = {
        "handler": assignment.handler,
        "concurrency": assignment.concurrency,
        "folder": assignment.folder,
        "serves": True,
        "env": assignment.env | {"PILOTLIGHT_DATA_URL": f"http://127.0.0.1:{inside.DATA_PORT}"},
        "tmp": assignment.memory // 2,
    }
    if assignment.command:
        message["command"] = list(assignment.command)
        message["env"]["PORT"] = str(init.PORT)
    elif not runtime.forkable and runtime.boot(interpreter) is None:
        program, *arguments = shlex.split(assignment.handler)  # as the runtime's check has read it
        message["command"] = [f"/function/{program.removeprefix('./')}", *arguments]
        message["env"]["PORT"] = str(init.PORT)
    if assignment.egress:
        message["env"] |= jobs.proxy_environment(inside.EGRESS_PORT)
    return message


def of_shell(
    assignment: Assignment, command: tuple[str, ...], terminal: Terminal | None
) -> tuple[Assignment, dict[str, Any]]:
    """Return what a shell gets of a function, and what process 1 is told of it besides."""
    if terminal is None:
        return assignment, {"command": list(command), "terminal": None}
    window = {"rows": terminal.rows, "columns": terminal.columns}
    env = assignment.env | {"TERM": terminal.kind}
    return replace(assignment, env=env), {"command": list(command), "terminal": window}


@contextlib.contextmanager
def opened(trees: Sequence[Tree]) -> Iterator[list[int]]:
    """Have a detached mount of each folder. Raises OSError."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        for path, _, writable in trees:
            tree = syscalls.open_tree(str(path))
            stack.callback(os.close, tree)
            attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
            syscalls.set_mount_attributes(
                tree, attributes if writable else attributes | syscalls.MOUNT_ATTR_RDONLY
            )
            descriptors.append(tree)
        yield descriptors


def send(control: Channel, message: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Send it. Raises Untouched, EOFError, StartError."""
    try:
        control.send(message, descriptors)
    except Unread as error:
        raise Untouched from error
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            limit = messages.MAX_MESSAGE >> 10
            raise StartError(f"Its environment and secrets are more than {limit} KB together.") from error
        raise EOFError from error


async def until_ready(
    control: Channel,
    grants: Grants,
    sandbox: str,
    egress: tuple[str, ...],
    identity: dict[str, str],
    *,
    proxy: str = "egress",
) -> None:
    """Grant the way out, if there is one, and wait until it serves.

    Raises Untouched, EOFError, StartError.
    """
    try:
        if egress:
            # It comes before any code of the function runs, which is why it can be believed
            _, received = await control.receive()
            grants.grant(sandbox, received[0], kind=proxy, egress=list(egress), **identity)
        answer, received = await control.receive()
    except Unread as error:
        raise Untouched from error
    except OSError as error:
        raise StartError(f"It disturbed the start of its own process: {error}.") from error
    for descriptor in received:
        os.close(descriptor)
    if answer.get("ready") is not True:
        raise StartError(str(answer.get("error", "It disturbed the start of its own process.")))
