"""The ports of this machine at which editors attach to functions: for `pilotlight dev --debug`.

Each function has one. A connection to it goes to the way in that the engine has made beside the socket of the
function's instance. Only this machine is served: they listen on 127.0.0.1.
"""

import contextlib
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final

from builder.detect import Languages, detect
from builder.limits import Limits
from builder.manifest import MANIFEST, parse
from cli import client, listener
from cli.own_platform import Started
from pilotlight import sockets
from pilotlight.problems import Problem
from runtimes.declaration import Debugger, load_all

_HOST: Final = "127.0.0.1"
_NEXT: Final = 100  # ports that are tried
_CHUNK: Final = 64 << 10
_STARTS_WITHIN: Final = 30.0  # seconds
_PAUSE: Final = 0.1  # seconds between two looks for an instance


class Ports:
    """The ports of all functions of one folder."""

    def __init__(self, started: Started, folder: Path, app: str, first: int | None) -> None:
        """`first` is the port that is tried first, in place of what editors expect for a language."""
        self._started = started
        self._folder = folder
        self._app = app
        self._first = first
        runtimes = load_all()
        self._languages = Languages(runtimes, {name: each.find() for name, each in runtimes.items()})
        self._listeners: dict[str, socket.socket] = {}

    def close(self) -> None:
        """Accept nobody any more; connections end with the platform."""
        for each in self._listeners.values():
            each.close()

    def open_new(self) -> None:
        """Open a port for each function that has none yet, and say how to attach there. Raises Problem."""
        manifest = self._folder / MANIFEST
        named = parse(manifest.read_bytes()) if manifest.is_file() else {}
        for found in detect(self._app, self._folder, named, self._languages, Limits()):
            debugger = found.runtime.debugger
            if found.name in self._listeners:
                continue
            if debugger is None:
                print(f"{found.name}: there is no debugger for {found.runtime.title} programs here.")
                continue
            port = self._open(found.name, debugger)
            place = Path(self._folder, found.path).absolute()
            attach: dict[str, Any] = {"name": f"Pilotlight: {found.name}", "request": "attach"}
            attach |= debugger.configuration(port, str(place))
            print(f"{found.name}: a debugger can attach to {_HOST}:{port}. In VS Code's .vscode/launch.json:")
            print(f"  {json.dumps(attach)}")

    def _open(self, function: str, debugger: Debugger) -> int:
        first = self._first or debugger.port
        for port in range(first, min(first + _NEXT, 1 << 16)):
            with contextlib.suppress(Problem):  # it is in use
                opened = listener.bind(_HOST, port)
                opened.setblocking(True)
                self._listeners[function] = opened
                work = threading.Thread(target=self._accept, args=(function, opened), daemon=True)
                work.name = f"debugger of {function}"
                work.start()
                return port
        raise Problem("conflict", f"No port from {first} on is free for the debugger of {function!r}.")

    def _accept(self, function: str, opened: socket.socket) -> None:
        while True:
            try:
                editor, _ = opened.accept()
            except OSError:
                return  # it was closed
            threading.Thread(target=self._connect, args=(function, editor), daemon=True).start()

    def _connect(self, function: str, editor: socket.socket) -> None:
        """Pass on what an editor and the function's instance say, until one of them ends."""
        with editor, socket.socket(socket.AF_UNIX) as inside:
            try:
                inside.connect(sockets.address(self._way_in(function)))
            except (OSError, Problem) as error:
                print(f"{function}: no debugger can attach now ({error}). Save or call it, and try again.")
                return
            back = threading.Thread(target=_pass_on, args=(inside, editor), daemon=True)
            back.start()
            _pass_on(editor, inside)
            back.join()

    def _way_in(self, function: str) -> Path:
        """Return the socket beside that of the live revision's instance, which may be starting just now.

        Raises Problem.
        """
        deadline = time.monotonic() + _STARTS_WITHIN
        while True:
            live = self._started.platform.get(client.path("functions", function))["revision"]
            found = self._started.platform.get(client.path("functions", function, "instances"))["instances"]
            for each in found:
                way = self._started.data.instances / f"{each['id']}.debug"
                if each["revision"] == live and way.exists():
                    return way
            if time.monotonic() > deadline:
                raise Problem("unavailable", f"it has not started within {_STARTS_WITHIN:g} s")
            time.sleep(_PAUSE)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):  # one of them is gone
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
