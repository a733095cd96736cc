"""One exchange: the caller's request to a connection, and the answer back, both as they come."""

import asyncio

from aiohttp.web import BaseRequest, StreamResponse

from gateway.forward import Connection, TooLarge
from gateway.headers import AnswerHead

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Sent(StreamResponse):
    """What a handler returns that has written its answer itself: nothing is left to do for aiohttp.

    aiohttp's own responses would add headers of theirs and decode those of the function.
    """

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    @property
    def prepared(self) -> bool:
        """The head is written. All requests share these objects, so nobody may change them any more."""
        return True

    async def prepare(self, request: BaseRequest) -> None:
        """Do nothing: the head is written."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: the body is written."""


SENT = Sent(keep_alive=True)
SENT_LAST = Sent(keep_alive=False)


class Upload:
    """The body of a request. It can be sent again as long as no part of it had to be streamed.

    Raises TooLarge at once where Content-Length is over the limit.
    """

    def __init__(self, request: BaseRequest, limit: int) -> None:
        if int(request.headers.get("Content-Length") or 0) > limit:
            raise TooLarge
        self.request = request
        self._limit = limit
        self._chunked = "Transfer-Encoding" in request.headers
        self._body: bytes | None = None if request.body_exists else b""
        expected = request.headers.get("Expect", "").lower() == "100-continue"
        self._continued = not expected or request.version < (1, 1)  # HTTP/1.0 knows no interim answers
        self._pump: asyncio.Task[None] | None = None
        self._to: Connection | None = None  # where a body is streamed
        self.starved = False  # whether more of the body was waited for when it was ended

    @property
    def unread(self) -> bool:
        """Whether the caller still holds its body back, and can't be sent another request before it."""
        return not self._continued

    @property
    def streaming(self) -> bool:
        """Whether a part of the body was taken from the caller and passed on."""
        return self._pump is not None

    async def send(self, connection: Connection, head: bytes) -> None:
        """Start to send the request. What does not fit at once goes on beside the answer, until `end`.

        Raises TooLarge if the body is there already and is over the limit.
        """
        connection.begin(self.request.method)
        if self._body is None:
            if not self._continued:  # only now the caller is wanted to send it
                self._continued = True
                if self.request.transport is not None:
                    self.request.transport.write(_CONTINUE)
            content = self.request.content
            if not content.is_eof():
                connection.send(head, whole=False)
                self._to = connection
                self._pump = asyncio.create_task(self._stream(connection), name="request body")
                return
            self._body = content.read_nowait()
            if len(self._body) > self._limit:
                raise TooLarge
            if self._chunked:
                self._body = (
                    b"%x\r\n%b\r\n0\r\n\r\n" % (len(self._body), self._body) if self._body else b"0\r\n\r\n"
                )
        connection.send(head + self._body if self._body else head, whole=True)

    async def _stream(self, connection: Connection) -> None:
        try:
            await connection.send_body(self.request.content, chunked=self._chunked, limit=self._limit)
        except Exception as error:  # noqa: BLE001  whoever reads the answer is told, and judges it
            connection.break_off(error)

    async def end(self) -> None:
        """Stop sending."""
        if self._pump is not None and self._to is not None and not self._pump.done():
            self.starved = not self._to.clogged
            self._pump.cancel()
            await asyncio.wait([self._pump])


async def pass_answer(request: BaseRequest, connection: Connection, head: AnswerHead) -> None:
    """Write the answer to the caller as it comes, as fast as the caller takes it.

    Raises BrokenOff, Malformed, and ConnectionError where the caller is gone.
    """
    write = request.writer.write
    if connection.done:
        await write(whole_answer(connection, head))
        return
    body = connection.ready()
    data = head.data
    while True:
        if body:
            data += b"%x\r\n%b\r\n" % (len(body), body) if head.chunked else body
        if data:
            await write(data)
        data = b""
        piece = await connection.read()
        if piece is None:
            break
        body = piece
    if head.chunked:
        await write(b"0\r\n\r\n")


def whole_answer(connection: Connection, head: AnswerHead) -> bytes:
    """Return an answer that has come to its end, as it goes to the caller."""
    body = connection.ready()
    if head.chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return head.data + body


def break_off(request: BaseRequest) -> StreamResponse:
    """End the caller's connection in the midst of an answer, so that nobody takes it for whole."""
    if request.transport is not None:
        request.transport.abort()
    return SENT_LAST
