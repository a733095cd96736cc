"""Lines out of real pipes: long ones, many, none, and ends in the middle."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator

import pytest

from function_service import lines
from function_service.lines import LONGEST, LineReader


@pytest.fixture
def pipe() -> Iterator[tuple[LineReader, int]]:
    reading, writing = os.pipe()
    reader = LineReader(reading)
    yield reader, writing
    reader.close()
    with contextlib.suppress(OSError):
        os.close(writing)


async def _all(reader: LineReader) -> list[tuple[str, bool]]:
    async with asyncio.timeout(10):
        return [item async for item in reader.lines()]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"", []),
        (b"one\ntwo\n", [("one", False), ("two", False)]),
        (b"one\n\n\ntwo", [("one", False), ("", False), ("", False), ("two", False)]),
        (b"without an end", [("without an end", False)]),
        (b"\xff\xfe\x00\n", [("\ufffd\ufffd\x00", False)]),
        ("naïve ☃\r\n".encode(), [("naïve ☃\r", False)]),
        (b"x" * (LONGEST + 1) + b"\nnext\n", [("x" * LONGEST, True), ("next", False)]),
        (b"x" * LONGEST + b"\n", [("x" * LONGEST, False)]),
        (b"x" * (LONGEST + 5), [("x" * LONGEST, True)]),
    ],
)
async def test_lines_are_what_was_written(
    pipe: tuple[LineReader, int], written: bytes, expected: list[tuple[str, bool]]
) -> None:
    reader, writing = pipe
    os.write(writing, written)
    os.close(writing)
    assert await _all(reader) == expected


async def test_a_line_that_comes_in_pieces_is_one(pipe: tuple[LineReader, int]) -> None:
    reader, writing = pipe
    stream = reader.lines()
    os.write(writing, b"first\nsec")
    assert await anext(stream) == ("first", False)
    second = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not second.done()
    os.write(writing, b"ond\n")
    assert await second == ("second", False)
    await stream.aclose()


async def test_the_rest_of_a_long_line_is_dropped_and_the_next_one_kept(pipe: tuple[LineReader, int]) -> None:
    reader, writing = pipe
    stream = reader.lines()
    os.write(writing, b"x" * (LONGEST + 1))
    assert (await anext(stream))[1]
    os.write(writing, b"y" * 100_000)
    os.write(writing, b"\nnext\n")
    assert await anext(stream) == ("next", False)
    await stream.aclose()


async def test_every_writer_must_be_gone_for_the_end(pipe: tuple[LineReader, int]) -> None:
    reader, writing = pipe
    other = os.dup(writing)
    ending = asyncio.create_task(_all(reader))
    os.close(writing)
    await asyncio.sleep(0.01)
    assert not ending.done()
    os.close(other)
    assert await ending == []


@pytest.mark.parametrize("line", [b"\n", b"x" * 100 + b"\n", b"x" * 65536], ids=["empty", "short", "endless"])
async def test_a_flood_is_thrown_away_and_the_writer_goes_on(
    pipe: tuple[LineReader, int], line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BUDGET", 1 << 18)
    reader, writing = pipe
    size = 16 << 20

    def flood() -> None:
        data = line * (65536 // len(line))
        for _ in range(size // len(data)):
            os.write(writing, data)
        os.write(writing, b"\nlast words\n")
        os.close(writing)

    writer = threading.Thread(target=flood)
    writer.start()
    read = await _all(reader)
    await asyncio.to_thread(writer.join)
    assert sum(len(text) + 1 for text, _ in read) < 2 << 20
    dropped = sum(int(text.split()[0][1:]) for text, _ in read if "left out" in text)
    assert size // 2 < dropped <= size + 20


async def test_the_loop_has_its_turn_while_somebody_prints_without_end(pipe: tuple[LineReader, int]) -> None:
    reader, writing = pipe
    stopping = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stopping.is_set():
                os.write(writing, b"\n" * 65536)

    writer = threading.Thread(target=flood)
    writer.start()
    reading = asyncio.create_task(_all(reader))
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(20):
        began = loop.time()
        await asyncio.sleep(0.01)
        waits.append(loop.time() - began)
    stopping.set()
    await asyncio.to_thread(writer.join)
    os.close(writing)
    assert max(waits) < 0.5
    assert any("left out" in text for text, _ in await reading)


async def test_closing_twice_closes_one_descriptor() -> None:
    reading, writing = os.pipe()
    reader = LineReader(reading)
    reader.close()
    other = os.dup(writing)  # takes the number that is free now
    reader.close()
    os.fstat(other)
    os.close(other)
    os.close(writing)
