"""A black-box client that holds a shim to contract.md: every check names its clause.

A runtime's folder `conformance/` has functions that behave as the checks need them, and `roles.json`
with their names: `answers` (handlers that answer by path) and `refused` (handlers that can't be loaded, and
what must be said about each). Nothing here knows of a language. Read `conformance_checks.py` next.
"""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

DEADLINE = 20.0  # seconds that anything may take on a busy machine
_QUIET = 0.15  # seconds in which nothing must happen where nothing may


class Violation(AssertionError):  # noqa: N818
    """A shim that does not do what a clause says."""


def expect(condition: bool, said: str) -> None:
    """Raise Violation unless condition."""
    if not condition:
        raise Violation(said)


@dataclass(frozen=True)
class Subject:
    """One shim with one of its handlers."""

    command: tuple[str, ...]
    folder: Path
    handler: str
    results: bool = False  # the handler returns results of its own, rather than speaking an interface
    cancels: bool = False  # the handler is asynchronous, and can be cancelled


@dataclass(frozen=True)
class Reply:
    """An answer; `whole` is False where the connection broke off before its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    def json(self) -> Any:
        """Return what the body says."""
        return json.loads(self.body)


class Connection:
    """A client's connection, on which what is sent can be malformed."""

    def __init__(self, client: socket.socket) -> None:
        self._socket = client
        self._socket.settimeout(DEADLINE)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def close(self) -> None:
        """Close it, as a caller does who goes away."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def try_send(self, data: bytes) -> None:
        """Send bytes to somebody who may have had enough of them."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def ask(self, method: str, target: str, body: bytes = b"", *fields: str) -> Reply:
        """Send a request and return its answer."""
        lines = [f"{method} {target} HTTP/1.1", "Host: example.org", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.try_send("\r\n".join([*lines, "", ""]).encode() + body)
        return self.reply(head_only=method == "HEAD")

    def reply(self, *, head_only: bool = False) -> Reply:
        """Return the next answer. Raises ConnectionError when the connection ends before its head."""
        status, headers = self.head()
        if head_only or status in (204, 304):
            return Reply(status, headers, b"")
        body, whole = self._body(headers)
        return Reply(status, headers, body, whole)

    def head(self) -> tuple[int, dict[str, str]]:
        """Return status and header fields of the next answer."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        pairs = (field.split(":", 1) for field in fields)
        return int(line.split(" ")[1]), {name.lower(): value.strip() for name, value in pairs}

    def _body(self, headers: dict[str, str]) -> tuple[bytes, bool]:
        body = b""
        try:
            if headers.get("transfer-encoding") == "chunked":
                while piece := self.chunk():
                    body += piece
                return body, True
            while len(self._buffer) < int(headers["content-length"]):
                self._more()
        except ConnectionError:
            return body or self._buffer, False
        length = int(headers["content-length"])
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return body, True

    def chunk(self) -> bytes:
        """Return the next chunk of an answer; empty at its end. Raises ConnectionError."""
        while b"\r\n" not in self._buffer:
            self._more()
        size, _, self._buffer = self._buffer.partition(b"\r\n")
        length = int(size, 16)
        while len(self._buffer) < length + 2:
            self._more()
        piece, self._buffer = self._buffer[:length], self._buffer[length + 2 :]
        return piece

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("The shim closed the connection")
        self._buffer += data

    def ended(self) -> bool:
        """Wait until the shim has closed the connection; False if something else comes."""
        try:
            return not self._buffer and not self._socket.recv(65536)
        except ConnectionError:
            return True

    def silent(self) -> bool:
        """Tell whether nothing comes for a moment."""
        self._socket.settimeout(_QUIET)
        try:
            self._more()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(DEADLINE)
        return False


class Shim:
    """A shim that runs by itself, with us as the engine."""

    def __init__(self, subject: Subject, *, concurrency: int = 1, env: dict[str, str] | None = None) -> None:
        self.subject = subject
        self.concurrency = concurrency
        self.env = {"PATH": "/usr/bin:/bin"} if env is None else env
        self._stack = contextlib.ExitStack()
        self.replies: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._boot(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"The shim printed:\n{self.output}")
        self._stack.close()

    def _boot(self, stack: contextlib.ExitStack) -> None:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(self.folder / "socket"))
        listener.listen(64)
        control, theirs = socket.socketpair()
        self._control = stack.enter_context(control)
        self._control.settimeout(DEADLINE)
        self._lines = stack.enter_context(self._control.makefile("rb"))
        output = stack.enter_context((self.folder / "output").open("wb"))

        def arrange() -> None:
            high = [
                os.dup(descriptor) for descriptor in (listener.fileno(), theirs.fileno()) for _ in range(4)
            ]
            os.dup2(high[0], 3)
            os.dup2(high[4], 4)

        with theirs:
            self.process = subprocess.Popen(
                self.subject.command,
                cwd="/",  # a sandbox is booted before the function's folder is there
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(3, 4),
                preexec_fn=arrange,  # noqa: PLW1509  no thread runs here
            )
        stack.callback(self._end)
        booted = self.receive()
        expect(booted == {"booted": True}, f"1.2: the shim said {booted} in place of booted")

    def _end(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)

    def receive(self) -> dict[str, Any] | None:
        """Return the shim's next message; None when the control socket is closed."""
        line = self._lines.readline()
        message: dict[str, Any] | None = json.loads(line) if line else None
        return message

    def attach(self) -> dict[str, Any] | None:
        """Hand the function over, and return what the shim says."""
        order = {
            "folder": str(self.subject.folder),
            "handler": self.subject.handler,
            "concurrency": self.concurrency,
            "env": self.env,
        }
        self._control.sendall(json.dumps(order).encode() + b"\n")
        return self.receive()

    def ready(self) -> Self:
        """Hand the function over, and expect that it can be served."""
        said = self.attach()
        expect(said == {"ready": True}, f"1.4: the shim said {said} in place of ready")
        return self

    def abandon(self) -> int:
        """Close the control socket, and return the shim's exit code."""
        self._lines.close()
        self._control.close()
        return self.process.wait(DEADLINE)

    def connect(self) -> Connection:
        """Return a new connection."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.folder / "socket"))
        return Connection(client)

    @property
    def output(self) -> str:
        """What the shim has printed."""
        return (self.folder / "output").read_text(errors="replace")

    def printed(self, text: str) -> bool:
        """Wait until text was printed; False when it was not by the deadline."""
        end = time.monotonic() + DEADLINE
        while text not in self.output:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True


@contextlib.contextmanager
def running(subject: Subject, *, concurrency: int = 1) -> Iterator[Shim]:
    """Run a shim with its function loaded."""
    with Shim(subject, concurrency=concurrency) as shim:
        yield shim.ready()


def subjects(command: tuple[str, ...], folder: Path) -> tuple[Subject, ...]:
    """Return a runtime's handlers that answer; `folder` is its `conformance`."""
    roles = json.loads((folder / "roles.json").read_text())
    return tuple(Subject(command, folder, **role) for role in roles["answers"])


def refused(command: tuple[str, ...], folder: Path) -> tuple[tuple[Subject, str], ...]:
    """Return a runtime's handlers that can't be loaded, and what must be said about each."""
    roles = json.loads((folder / "roles.json").read_text())
    return tuple((Subject(command, folder, role["handler"]), role["because"]) for role in roles["refused"])


def check_refused(subject: Subject, because: str) -> None:
    """1.4: a handler that can't be loaded is an error that says what is wrong, and the shim exits."""
    with Shim(subject) as shim:
        said = shim.attach()
        expect(
            said is not None and list(said) == ["error"], f"1.4: the shim said {said} in place of an error"
        )
        expect(because in (said or {})["error"], f"1.4: the error does not say {because!r}: {said}")
        expect(shim.receive() is None, "1.4: something was sent after the error")
        expect(shim.process.wait(DEADLINE) != 0, "1.4: the shim ended well in spite of the error")


def checks() -> dict[str, Callable[[Subject], None]]:
    """Return every check that takes a handler that answers, by name."""
    from runtimes.conformance_checks import CHECKS

    return {check.__name__: check for check in CHECKS}
