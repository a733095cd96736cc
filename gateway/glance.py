"""What a caller sends, seen before aiohttp sees it: which requests are plain enough for quick.py."""

import httptools
from multidict import CIMultiDict, CIMultiDictProxy

from function_service.contract import RouteTable
from gateway import headers
from gateway.call import Origin, calling, forwarding, withheld
from gateway.headers import Fields
from gateway.identity import identify

_MOST_HEADERS = 64  # of a plain request; aiohttp refuses more than 128
_NO_BODY = ["0"]
_LONGEST = 8 << 10  # bytes of a plain request's head; aiohttp's own limits lie above
# Headers that ask for more than an answer to a request that has come as a whole
_NOT_PLAIN = frozenset({b"expect", b"upgrade", b"te", b"trailer", b"proxy-connection"})


class Glance:
    """Follows one connection with a parser of its own, beside aiohttp's.

    Both are llhttp, so both see the same messages begin and end. What only this one would accept can't be
    plain: whatever is not goes to aiohttp as it came.
    """

    __slots__ = ("_parser", "begun", "cut", "fields", "lost", "odd", "whole")

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.begun = 0  # messages that began in the data that was fed last
        self.whole = True  # whether that ended where a message ends
        self.lost = False  # whether it can't tell any more
        self.cut = False  # whether more came at once with an offer to upgrade, and behind it
        self.odd = False  # whether the message that began last asks for what is not plain
        self.fields: list[tuple[bytes, bytes]] = []  # of the message that began last

    def feed(self, data: bytes) -> None:
        """Follow what has come."""
        self.begun = 0
        if not self.lost:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self.lost = self.cut = offer.args[0] < len(data)
                self._parser = httptools.HttpRequestParser(self)  # the offer is declined: HTTP/1.1 goes on
            except httptools.HttpParserError:
                self.lost = True

    @property
    def plain(self) -> bool:
        """Whether what was fed last is one request as a whole, with nothing in it that is not plain."""
        return self.whole and self.begun == 1 and not self.odd and not self.lost

    def on_message_begin(self) -> None:
        """Note that a message begins."""
        self.begun += 1
        self.whole = self.odd = False
        self.fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header. It follows no chunked message to its end: nothing bounds the trailers here."""
        key = name.lower()
        if key == b"transfer-encoding" or len(self.fields) > _MOST_HEADERS:
            self.lost = True
        else:
            self.fields.append((name, value.rstrip(b" \t")))
            self.odd = self.odd or key in _NOT_PLAIN

    def on_message_complete(self) -> None:
        """Note that the message is complete."""
        self.whole = True


class Plain:
    """The headers of a plain request, and what follows from them: the next request often has the same."""

    __slots__ = (
        "authorization", "block", "caller", "length", "lines", "request_id", "table", "traceparent",
    )  # fmt: skip

    def __init__(
        self, block: bytes, length: int, fields: Fields, given: CIMultiDictProxy[str], origin: Origin,
        table: RouteTable,
    ) -> None:  # fmt: skip
        self.block = block  # as it came, from behind the request line to the body
        self.length = length  # of the body
        self.table = table  # by whose keys it was judged
        self.authorization = given.get("Authorization")
        self.caller = calling(given, origin)
        self.request_id = given.get("X-Request-Id")
        self.traceparent = given.get("traceparent")
        taken = self.traceparent is not None and identify(self.request_id, self.traceparent)[2]
        # what of it goes on to the function, and who called
        self.lines = headers.passing(
            fields, given, without=withheld(given, table.keys, trace_taken=taken)
        ) + forwarding(given, origin)


def read(fields: Fields, data: bytes, origin: Origin, table: RouteTable) -> Plain | None:
    """Return the headers of a request that `data` is as a whole, or None where they are not plain.

    `data` begins with the request line.
    Plain: HTTP/1.1 over a connection that stays, and a body, if any, that is there and whose length is said.
    """
    begin, end = data.find(b"\r\n") + 2, data.find(b"\r\n\r\n") + 4
    if not begin < end <= _LONGEST or len(fields) > _MOST_HEADERS:
        return None
    block = data[begin:end]
    if b"\r\n " in block or b"\r\n\t" in block:  # a header that goes on in the next line
        return None
    given = CIMultiDictProxy(
        CIMultiDict(
            [
                (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
                for name, value in fields
            ]
        )
    )
    if len(given.getall("Host", ())) != 1:
        return None
    if given.getall("Content-Length", _NO_BODY) != [str(len(data) - end)]:
        return None
    if any(value.lower() != "keep-alive" for value in given.getall("Connection", ())):
        return None
    return Plain(block, len(data) - end, fields, given, origin, table)
