"""The Python shim: serves a function's handler over HTTP/1.1, as `contract.md` has it.

An engine that forks imports this module once, calls `preload()`, and then in each child `load(handler)` and
`serve(listener, application, concurrency)`; before them `rehearse(folder)`, if the child has to wait anyway.
Alone (`python3 -I -S pilotlight_shim.py`) it is the booted shim of the contract, on descriptors 3 and 4. It
runs under every CPython from 3.9 on, and needs nothing but the standard library. What it does after a fork is
what every cold start waits for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import socket
import sys
from typing import Any, Callable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  -I leaves it out

from pilotlight_parts import blocking, loading, messages, output, rehearsal, snapshots
from pilotlight_parts.application import Application
from pilotlight_parts.loading import LoadError

del sys.path[0]
sys.modules.setdefault("pilotlight", messages)  # so that functions can `from pilotlight import Response`

__all__ = [
    "Application",
    "LoadError",
    "debug",
    "find",
    "freeze",
    "load",
    "main",
    "preload",
    "rehearse",
    "serve",
    "thaw",
]

# What functions commonly import. All of it is there already when a function's first line runs.
_PRELOADED = """
    argparse array ast base64 binascii bisect calendar collections collections.abc concurrent.futures
    contextlib contextvars copy csv dataclasses datetime decimal difflib email email.message email.parser
    email.utils enum fnmatch fractions functools gc glob gzip hashlib heapq hmac html html.parser http
    http.client http.cookies importlib.metadata importlib.resources importlib.util inspect io ipaddress
    itertools json keyword linecache locale logging logging.config logging.handlers math mimetypes numbers
    operator os pathlib pickle pkgutil platform posixpath pprint queue random re secrets select shlex shutil
    signal socket sqlite3 ssl stat statistics string struct subprocess tempfile textwrap threading time
    tokenize traceback types typing unicodedata urllib urllib.error urllib.parse urllib.request uuid
    warnings weakref xml.etree.ElementTree zipfile zlib zoneinfo
"""


def preload() -> None:
    """Import what functions commonly need, and answer a request of each kind, so that all of it is warm.

    Leaves no thread, descriptor or event loop behind.
    """
    for name in _PRELOADED.split():
        with contextlib.suppress(ImportError):  # some distributions leave parts of the standard library out
            importlib.import_module(name)
    output.mark()
    rehearsal.prepare()
    rehearsal.answer_evented()


def rehearse(scratch: str) -> None:
    """Load and call a function like the one that a forked child waits for; `scratch` can be written.

    A fork shares its pages with its parent until it writes to them, and then each costs a fault and a copy.
    This writes to those that `load` and the first call will write to, while nobody waits for it.
    """
    random.seed()
    loading.flush_lines()
    rehearsal.answer_blocking(rehearsal.import_like(scratch))


def load(handler: str) -> Application:
    """Import the handler ("module:attribute") and make it ready. Raises LoadError."""
    application = find(handler)
    _start(application, snapshots.run_after)
    return application


def debug(port: int) -> None:
    """Let a debugger attach on a port of loopback, before `load`; debugpy is in /tools. Raises LoadError."""
    sys.path.append("/tools")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else it warns of what is no concern of the author
    try:
        importlib.import_module("debugpy").listen(("127.0.0.1", port))
    except Exception as error:
        raise LoadError(f"The debugger can't be started: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("/tools")
        del os.environ["PYDEVD_DISABLE_FILE_VALIDATION"]


def find(handler: str) -> Application:
    """Import the handler without making it ready: what a snapshot holds. Raises LoadError."""
    random.seed()  # an engine's own way of forking may not run the hooks that do this
    loading.flush_lines()
    application = Application(handler, loading.find(handler))
    loading.flush_lines()  # the function may have replaced sys.stdout
    return application


def freeze() -> None:
    """Run the function's hooks before a snapshot; one that raises says that there shall be none."""
    snapshots.freeze()


def thaw(application: Application) -> None:
    """In a fork of a snapshot: make random state right, run the hooks, make it ready. Raises LoadError."""
    _start(application, snapshots.thaw)


def _start(application: Application, prepare: Callable[[], None]) -> None:
    try:
        prepare()
    except Exception as error:
        raise LoadError(f"A hook that runs after_restore failed:\n{loading.where(error)}") from error
    application.start()


def serve(listener: socket.socket, application: Application, concurrency: int) -> None:
    """Answer requests for ever, at most `concurrency` at a time. SystemExit in a handler ends the process."""
    try:
        application.serve(listener, concurrency)
    except SystemExit as error:
        blocking.end_process(error)


def _receive(control: socket.socket) -> Any:
    """Return the next message: one line of JSON. None where the other side closed."""
    received = b""
    while not received.endswith(b"\n"):
        data = control.recv(65536)
        if not data:
            return None
        received += data
    return json.loads(received)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def main() -> int:
    """Boot as the contract's first part says, and serve. Return an exit code if nothing can be served."""
    listener = socket.socket(fileno=3)
    control = socket.socket(fileno=4)
    preload()
    _send(control, {"booted": True})
    message = _receive(control)
    if message is None:
        return 0
    os.environ.clear()
    os.environ.update(message["env"])
    os.chdir(message["folder"])
    sys.path[:0] = [message["folder"], "/dependencies"]
    try:
        if "debug" in message:
            debug(message["debug"])
        application = load(message["handler"])
    except LoadError as error:
        print(error, file=sys.stderr)
        _send(control, {"error": str(error)})
        return 1
    _send(control, {"ready": True})
    control.close()
    serve(listener, application, message["concurrency"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
