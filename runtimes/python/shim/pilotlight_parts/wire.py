"""HTTP/1.1 as bytes (RFC 9112): heads are parsed, bodies decoded, answers framed. No I/O happens here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Union

Fields = Sequence[tuple[str, str]]

MAX_HEAD = 64 << 10  # bytes of a request line with its fields, or of a chunked body's trailers
_MAX_CHUNK_LINE = 4 << 10

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
_HEAD = re.compile(
    rf"({_TOKEN}) ([^\x00-\x20\x7f]+) HTTP/1\.([01])\r\n((?:{_TOKEN}:[^\r\n\x00]*\r\n)*)\r\n", re.ASCII
)
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_NAME = re.compile(_TOKEN, re.ASCII)
_BAD_VALUE = re.compile(r"[\r\n\x00]|[^\x00-\xff]")

# Fields that belong to one connection (RFC 9110, 7.6.1), and so to us rather than to a handler.
_OURS = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}


class BadRequest(Exception):  # noqa: N818  what the caller did, rather than an error of ours
    """The request is malformed; it is answered by 400, and the connection ends."""


class Disconnected(ConnectionError):  # noqa: N818
    """The caller went away before its whole request had come, or before its answer was sent."""


class LengthMismatch(ValueError):  # noqa: N818
    """An answer's Content-Length is not the length of its body."""


class Head:
    """A request's line and fields."""

    __slots__ = (
        "chunked",
        "expects_continue",
        "fields",
        "keep_alive",
        "length",
        "method",
        "modern",
        "path",
        "query",
        "request_id",
    )

    def __init__(self, data: bytes) -> None:
        """Parse a head with the empty line that ends it. Raises BadRequest."""
        match = _HEAD.fullmatch(data.decode("latin-1"))
        if match is None:
            raise BadRequest("The request line or a header field is malformed.")
        self.method: str
        self.path: str
        self.query: str
        self.method, target, minor, fields = match.groups()
        if target[0] != "/" and target != "*":
            raise BadRequest("The request's target must begin with a slash.")
        self.path, _, self.query = target.partition("?")
        self.modern = minor == "1"
        self.keep_alive = self.modern
        self.expects_continue = False
        self.length = 0
        self.chunked = False
        self.request_id = ""
        self.fields: list[tuple[str, str]] = []
        length = coding = None
        for line in fields.split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            value = value.strip(" \t")
            self.fields.append((name, value))
            size = len(name)  # it is quicker to compare than to make each name lower-case
            if size == 14 and name.lower() == "content-length":
                if length not in (None, value):
                    raise BadRequest("The request has conflicting Content-Length fields.")
                length = value
            elif size == 17 and name.lower() == "transfer-encoding":
                coding = value if coding is None else f"{coding}, {value}"
            elif size == 12 and name.lower() == "x-request-id":
                self.request_id = value
            elif size == 10 and name.lower() == "connection":
                options = value.lower()
                if "close" in options:
                    self.keep_alive = False
                elif "keep-alive" in options:
                    self.keep_alive = True
            elif size == 6 and name.lower() == "expect":
                self.expects_continue = self.modern and value.lower() == "100-continue"
        if coding is not None:
            if length is not None:
                raise BadRequest("The request has both Content-Length and Transfer-Encoding.")
            if coding.lower() != "chunked" or not self.modern:
                raise BadRequest("The only transfer coding that is understood is chunked, in HTTP/1.1.")
            self.chunked = True
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise BadRequest("The request's Content-Length is not a number.")
            self.length = int(length)

    def decoder(self) -> Decoder | None:
        """Return what decodes the request's body, or None where there is no body."""
        if self.chunked:
            return ChunkedDecoder()
        return LengthDecoder(self.length) if self.length else None


def split_head(buffer: bytes) -> int:
    """Return where the head that the buffer begins with ends, 0 if it is not whole yet. Raises BadRequest."""
    end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end >= 0:
        return end + 4
    if len(buffer) >= MAX_HEAD:
        raise BadRequest(f"The request's header fields exceed {MAX_HEAD} bytes.")
    if _BARE_LINE_FEED.search(buffer):
        raise BadRequest("Lines of a request must end in CR LF.")
    return 0


class LengthDecoder:
    """Decodes a body of known length. `rest` is what came after its end."""

    __slots__ = ("_left", "done", "rest")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the part of data that belongs to the body."""
        if len(data) < self._left:
            self._left -= len(data)
            return data
        self.done = True
        self.rest = data[self._left :]
        return data[: self._left] if self.rest else data


class ChunkedDecoder:
    """Decodes a chunked body (RFC 9112, 7.1). Extensions and trailers are read and ignored."""

    __slots__ = ("_buffer", "_left", "_trailers", "_within", "done", "rest")

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0  # of the present chunk's data
        self._within = False  # a chunk's data, or the line end behind it, is what comes next
        self._trailers = -1  # bytes of trailers that were read; -1 before the last chunk
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the data of the body that came. Raises BadRequest."""
        buffer = self._buffer + data
        out = []
        start = 0
        while True:
            if self._within:
                piece = buffer[start : start + self._left]
                out.append(piece)
                start += len(piece)
                self._left -= len(piece)
                if self._left or len(buffer) - start < 2:
                    break
                if buffer[start : start + 2] != b"\r\n":
                    raise BadRequest("A chunk of the body is longer than it says.")
                start += 2
                self._within = False
            end = buffer.find(b"\r\n", start)
            if end < 0:
                if len(buffer) - start > _MAX_CHUNK_LINE:
                    raise BadRequest("A line between the chunks of the body is too long.")
                break
            line = buffer[start:end]
            start = end + 2
            if self._trailers >= 0:
                self._trailers += len(line)
                if self._trailers > MAX_HEAD:
                    raise BadRequest("The trailers of the body are too long.")
                if not line:
                    self.done = True
                    self.rest = buffer[start:]
                    return b"".join(out)
                continue
            match = _CHUNK_LINE.fullmatch(line)
            if match is None or len(line) > _MAX_CHUNK_LINE:
                raise BadRequest("The length of a chunk of the body is malformed.")
            self._left = int(match.group(1), 16)
            if self._left:
                self._within = True
            else:
                self._trailers = 0
        self._buffer = buffer[start:]
        return b"".join(out)


Decoder = Union[LengthDecoder, ChunkedDecoder]


def valid_fields(fields: Fields) -> Fields:
    """Return the fields as they are. Raises ValueError for those that can't be sent as they are."""
    for name, value in fields:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} can't be the name of a header field")
        if not isinstance(value, str) or _BAD_VALUE.search(value):
            raise ValueError(f"{value!r} can't be the value of the header field {name}")
    return fields


class Writer:
    """Frames one answer: the bytes for its head, for each piece of its body, and for its end."""

    __slots__ = ("_bodiless", "_chunked", "_head", "_left", "ended", "keep_alive", "started")

    def __init__(self, head: Head) -> None:
        self._head = head
        self._bodiless = head.method == "HEAD"
        self._chunked = False
        self._left: int | None = None  # of a body whose length was promised
        self.keep_alive = head.keep_alive
        self.started = False
        self.ended = False

    def start(self, status: int, fields: Fields, length: int | None = None) -> bytes:
        """Return the head of the answer. A Content-Length among the fields counts like `length`."""
        lines = [_STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"]
        promised: str | None = None if length is None or status in (204, 304) else str(length)
        for name, value in fields:
            lowered = name.lower()
            if lowered == "content-length":
                if not (value.isascii() and value.isdigit()):
                    raise ValueError(f"The answer's Content-Length {value!r} is not a number")
                promised = value
            elif lowered not in _OURS:
                lines.append(f"{name}: {value}\r\n")
        if status in (204, 304):
            self._bodiless = True
        if promised is not None:
            self._left = int(promised)
            if status != 204:
                lines.append(f"content-length: {promised}\r\n")
        elif self._bodiless:
            pass
        elif self._head.modern:
            self._chunked = True
            lines.append("transfer-encoding: chunked\r\n")
        else:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append("connection: close\r\n")
        elif not self._head.modern:
            lines.append("connection: keep-alive\r\n")
        lines.append("\r\n")
        data = "".join(lines).encode("latin-1")
        self.started = True
        return data

    def data(self, piece: bytes) -> bytes:
        """Return a piece of the body as it goes over the wire. Raises LengthMismatch."""
        if self._bodiless or not piece:
            return b""
        if self._left is not None:
            self._left -= len(piece)
            if self._left < 0:
                raise LengthMismatch("The answer's body is longer than its Content-Length")
            return piece
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece

    def end(self) -> bytes:
        """Return what ends the body. Raises LengthMismatch."""
        if self._left and not self._bodiless:
            raise LengthMismatch("The answer's body is shorter than its Content-Length")
        self.ended = True
        return b"0\r\n\r\n" if self._chunked else b""

    def whole(self, status: int, fields: Fields, body: bytes) -> bytes:
        """Return an answer of which all is known."""
        return self.start(status, fields, len(body)) + self.data(body) + self.end()
