"""WSGI applications (PEP 3333) on the blocking server."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any, Callable
from urllib.parse import unquote_to_bytes

from .messages import Answer
from .wire import Head, valid_fields


class _Input(io.RawIOBase):
    """The request's body as a file."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._piece = b""

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what is there next."""
        if not self._piece:
            self._piece = self._source.read()
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count


class _Answering:
    """The `start_response` of one request."""

    __slots__ = ("fields", "status", "written")

    def __init__(self) -> None:
        self.status = 0
        self.fields: list[tuple[str, str]] = []
        self.written: list[bytes] = []

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if self.status and exc_info is None:
            raise AssertionError("start_response was called twice without exc_info")
        self.fields = list(valid_fields(headers))
        self.status = int(status.split(" ", 1)[0])
        return self.written.append


class _Content:
    """The body that an application gave, led by what it wrote."""

    def __init__(self, first: list[bytes], rest: Any, iterable: Any) -> None:
        self._first = first
        self._rest = rest
        self._iterable = iterable

    def __iter__(self) -> Any:
        yield from self._first
        yield from self._rest

    def close(self) -> None:
        close = getattr(self._iterable, "close", None)
        if close is not None:
            close()


def adapt(application: Any, prefix: str, *, threads: bool) -> Callable[[Head, Any | None], Answer]:
    """Return the call for the blocking server; `prefix` is where the world sees the application."""
    fixed = {
        "SCRIPT_NAME": prefix,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "Pilotlight",
        "REMOTE_ADDR": "",
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": threads,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }

    def call(head: Head, source: Any | None) -> Answer:
        answering = _Answering()
        iterable: Iterable[bytes] = application(_environment(fixed, head, source), answering)
        pieces = iter(iterable)
        first: list[bytes] = []
        try:
            # start_response may be called as late as with the first piece
            for piece in pieces:
                first.append(piece)
                if piece:
                    break
            if not answering.status:
                raise RuntimeError("The WSGI application did not call start_response")
        except BaseException:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()
            raise
        return answering.status, answering.fields, _Content([*answering.written, *first], pieces, iterable)

    return call


def _environment(fixed: dict[str, Any], head: Head, source: Any | None) -> dict[str, Any]:
    environment = dict(fixed)
    environment["REQUEST_METHOD"] = head.method
    environment["PATH_INFO"] = unquote_to_bytes(head.path).decode("latin-1")
    environment["RAW_URI"] = head.path + (f"?{head.query}" if head.query else "")
    environment["QUERY_STRING"] = head.query
    environment["wsgi.input"] = io.BufferedReader(_Input(source)) if source is not None else io.BytesIO()
    scheme = "http"
    for name, value in head.fields:
        key = name.upper().replace("-", "_")
        if key == "X_FORWARDED_PROTO":
            scheme = value
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if key in environment and key != "CONTENT_LENGTH":
            environment[key] += ("; " if key == "HTTP_COOKIE" else ",") + value
        else:
            environment[key] = value
    environment["wsgi.url_scheme"] = scheme
    host, _, port = environment.get("HTTP_HOST", "").rpartition(":")
    environment["SERVER_NAME"] = host if port.isdigit() else environment.get("HTTP_HOST", "") or "localhost"
    environment["SERVER_PORT"] = port if port.isdigit() else ("443" if scheme == "https" else "80")
    return environment
