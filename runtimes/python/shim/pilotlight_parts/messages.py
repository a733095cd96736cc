"""What handlers see: `from pilotlight import Request, Response`, and the hooks of snapshots."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Union
from urllib.parse import parse_qsl

from .snapshots import after_restore, before_snapshot  # noqa: F401  functions import them from here
from .wire import Fields, valid_fields

if TYPE_CHECKING:
    from .wire import Head

Stream = Union[Iterable[Any], AsyncIterable[Any]]
Answer = tuple[int, Fields, Union[bytes, Stream]]

_TEXT: Fields = (("content-type", "text/plain; charset=utf-8"),)
_BYTES: Fields = (("content-type", "application/octet-stream"),)
_JSON: Fields = (("content-type", "application/json"),)
_MAY_BE_RETURNED = (
    "A handler may return str, bytes, dict, list, None, (status, body), (status, body, headers), "
    "a Response, or an iterator of str or bytes."
)
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Unencodable(TypeError):  # noqa: N818
    """What a handler returned can't be sent."""


class Headers(Mapping):  # type: ignore[type-arg]  # Mapping[str, str], which 3.9 can subclass but 3.8 tools can't
    """Header fields; names are compared without regard to case, and are lower-case when listed."""

    __slots__ = ("_values", "fields")

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        """Every field as it came: name and value, in order."""
        self._values: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._values is None:
            values: dict[str, str] = {}
            for name, value in self.fields:
                key = name.lower()
                if key in values:  # RFC 9110, 5.2; cookies are the exception of RFC 6265, 5.4
                    values[key] += ("; " if key == "cookie" else ", ") + value
                else:
                    values[key] = value
            self._values = values
        return self._values

    def __getitem__(self, name: str) -> str:
        return self._all()[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Headers({self._all()!r})"


class Query(Mapping):  # type: ignore[type-arg]
    """The query's parameters, decoded; the first value of a name that stands there several times."""

    __slots__ = ("_pairs", "raw")

    def __init__(self, raw: str) -> None:
        self.raw = raw
        """The query as it came, without the question mark."""
        self._pairs: list[tuple[str, str]] | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every parameter, in order."""
        if self._pairs is None:
            self._pairs = parse_qsl(self.raw, keep_blank_values=True)
        return self._pairs

    def all(self, name: str) -> list[str]:
        """Return every value of a name."""
        return [value for key, value in self.pairs if key == name]

    def __getitem__(self, name: str) -> str:
        for key, value in self.pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.pairs))

    def __len__(self) -> int:
        return len(dict(self.pairs))

    def __repr__(self) -> str:
        return f"Query({self.raw!r})"


class Request:
    """A request: `method`, `path` (as it came, percent-encoded), `query`, `headers` and the body.

    The body is read when it is asked for: whole through `body`, `text` and `json()`, or piece by piece
    through `stream()`.
    """

    __slots__ = ("_body", "_headers", "_query", "_source", "head")

    def __init__(self, head: Head, source: Any) -> None:
        self.head = head
        self._source = source  # None where there is no body
        self._body: bytes | None = b"" if source is None else None
        self._headers: Headers | None = None
        self._query: Query | None = None

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"

    @property
    def method(self) -> str:
        """The method, such as `GET`."""
        return self.head.method

    @property
    def path(self) -> str:
        """What follows the function's name in the URL, as it came; `/` where nothing does."""
        return self.head.path

    @property
    def query(self) -> Query:
        """The query's parameters; `query.raw` is the text itself."""
        if self._query is None:
            self._query = Query(self.head.query)
        return self._query

    @property
    def headers(self) -> Headers:
        """The header fields."""
        if self._headers is None:
            self._headers = Headers(self.head.fields)
        return self._headers

    @property
    def body(self) -> bytes:
        """The whole body."""
        if self._body is None:
            self._body = b"".join(self.stream())
        return self._body

    @property
    def text(self) -> str:
        """The whole body as text, in the charset that the request names, else UTF-8."""
        _, _, charset = self.headers.get("content-type", "").lower().partition("charset=")
        return self.body.decode(charset.split(";")[0].strip(" \"'") or "utf-8")

    def json(self) -> Any:
        """Return what the JSON of the body says. Raises ValueError where it is none."""
        return json.loads(self.body)

    def stream(self) -> Iterator[bytes]:
        """Yield the body in the pieces that it comes in; it can be read once."""
        if self._body is not None:
            if self._body:
                yield self._body
            return
        while True:
            piece = self._source.read()
            if not piece:
                return
            yield piece


class AsyncRequest(Request):
    """What an asynchronous handler gets.

    A body whose length is known and at most 4 MiB has come before the handler is called, so that `body`,
    `text` and `json()` work as they stand. For others, `await request.read()` first, or use
    `async for piece in request.stream()`.
    """

    __slots__ = ()

    @property
    def body(self) -> bytes:
        """The whole body, once it has been read."""
        if self._body is None:
            raise RuntimeError(
                "The request's body has not been read yet, because it is long or its length is unknown. "
                "Write `await request.read()` first, or `async for piece in request.stream()`."
            )
        return self._body

    async def read(self) -> bytes:
        """Read the whole body, and return it."""
        if self._body is None:
            self._body = b"".join([piece async for piece in self.stream()])
        return self._body

    async def stream(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        """Yield the body in the pieces that it comes in; it can be read once."""
        if self._body is not None:
            if self._body:
                yield self._body
            return
        while True:
            piece = await self._source.read()
            if not piece:
                return
            yield piece


class Response:
    """A response.

    `body` may be str, bytes, dict, list, None, or an iterator (also asynchronous) of str or bytes.
    `headers` is a mapping, or pairs of name and value where a name shall stand several times.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        body: Any = None,
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    ) -> None:
        self.body = body
        self.status = status
        self.headers: list[tuple[str, str]] = (
            [] if headers is None else list(headers.items() if isinstance(headers, Mapping) else headers)
        )

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


class ReadsBody(Protocol):
    """Where a request's body comes from; `read` may be a coroutine function."""

    def read(self) -> Any:
        """Return the next piece of the body, empty at its end."""


def encode_piece(piece: Any) -> tuple[bytes, Fields]:
    """Return a piece of a streamed body as bytes, and the content type that goes with it."""
    if isinstance(piece, str):
        return piece.encode(), _TEXT
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece), _BYTES
    raise Unencodable(
        f"The handler's iterator yielded {_article(piece)}, but a body is made of str or bytes."
    )


def with_kind(fields: Fields, kind: Fields) -> Fields:
    """Return the fields, led by a content type if they have none."""
    if any(name.lower() == "content-type" for name, _ in fields):
        return fields
    return [*kind, *fields]


def _encode(body: Any) -> tuple[bytes | Stream, Fields]:
    if isinstance(body, (str, bytes, bytearray, memoryview)):
        return encode_piece(body)
    if isinstance(body, (dict, list)):
        try:
            return _encode_json(body).encode(), _JSON
        except (TypeError, ValueError) as error:
            raise Unencodable(
                f"The handler returned {_article(body)} that can't be written as JSON: {error}. "
                + _MAY_BE_RETURNED
            ) from error
    if body is None:
        return b"", ()
    if isinstance(body, (Iterator, AsyncIterator)) or (
        isinstance(body, (Iterable, AsyncIterable)) and not isinstance(body, (tuple, set, frozenset, Mapping))
    ):
        return body, ()
    raise Unencodable(f"The handler returned {_article(body)}. {_MAY_BE_RETURNED}")


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def answer(result: Any) -> Answer:
    """Return what a handler's result says: status, header fields, and the body, whole or as an iterator.

    Raises Unencodable where it says nothing that can be sent.
    """
    if type(result) is str:
        return 200, _TEXT, result.encode()
    if type(result) is dict:
        body, fields = _encode(result)
        return 200, fields, body
    if isinstance(result, Response):
        return _answer(result)
    if isinstance(result, tuple):
        if len(result) not in (2, 3):
            raise Unencodable(f"The handler returned a tuple of {len(result)}. {_MAY_BE_RETURNED}")
        try:
            return _answer(Response(result[1], result[0], *result[2:]))
        except (TypeError, ValueError) as error:
            if isinstance(error, Unencodable):
                raise
            raise Unencodable(
                f"The handler returned a tuple that is no answer: {error}. {_MAY_BE_RETURNED}"
            ) from error
    body, fields = _encode(result)
    return (204 if result is None else 200), fields, body


def _answer(response: Response) -> Answer:
    status = response.status
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 999:
        raise Unencodable(f"The handler returned the status {status!r}; it must be a number from 200 to 999.")
    body, fields = _encode(response.body)
    try:
        own = valid_fields(response.headers)
    except (TypeError, ValueError) as error:
        raise Unencodable(f"The handler returned header fields that can't be sent: {error}.") from error
    return int(status), with_kind(own, fields), body
