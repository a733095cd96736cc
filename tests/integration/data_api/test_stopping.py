"""The end of the service: what callers have begun is answered, and those that wait for nothing hold up nothing."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.baas import Baas, Granter

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

HEAD = b"PUT /things/k HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@pytest.fixture
async def stream(baas: Baas, granter: Granter) -> AsyncIterator[Stream]:
    """A function's connection, by which nothing has come yet."""
    port = granter.grant("one")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.05)  # it is accepted
    yield reader, writer
    writer.close()


async def status(reader: asyncio.StreamReader) -> int:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    return int(head.split()[1])


async def test_the_first_request_of_a_connection_that_was_made_before_is_answered(
    baas: Baas, stream: Stream
) -> None:
    reader, writer = stream
    baas.stopping.set()
    await asyncio.sleep(0.1)
    writer.write(HEAD + b"1234")
    assert await status(reader) == 201
    await baas.stop()
    assert await reader.read() == b""


async def test_a_request_whose_body_comes_late_is_answered(baas: Baas, stream: Stream) -> None:
    reader, writer = stream
    writer.write(HEAD + b"12")
    await asyncio.sleep(0.05)
    baas.stopping.set()
    await asyncio.sleep(0.1)
    writer.write(b"34")
    assert await status(reader) == 201


@pytest.mark.parametrize("before", [b"", HEAD + b"1234"], ids=["never asked", "asked before"])
async def test_a_connection_that_asks_for_nothing_holds_up_nothing(
    baas: Baas, stream: Stream, before: bytes
) -> None:
    reader, writer = stream
    if before:
        writer.write(before)
        assert await status(reader) == 201
    began = time.monotonic()
    await baas.stop()
    assert time.monotonic() - began < 2  # those under way would have 3 s
    assert await asyncio.wait_for(reader.read(), 5) == b""
