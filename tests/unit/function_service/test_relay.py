"""The relay before native programs: it runs in a process of its own here, as it does in a sandbox."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from function_service.engines.embedded import relay


@pytest_asyncio.fixture
async def program() -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """The connections that a program has accepted."""
    accepted: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    server = await asyncio.start_server(lambda *pair: accepted.append(pair), "127.0.0.1", 0)
    accepted_port.append(server.sockets[0].getsockname()[1])
    yield accepted
    for _, writer in accepted:
        writer.close()
    server.close()
    accepted_port.clear()


accepted_port: list[int] = []


@pytest.fixture
def path(program: object, tmp_path: Path) -> Iterator[Path]:
    """The Unix socket of a relay to the program."""
    yield from _relay(tmp_path, None)


def _relay(tmp_path: Path, spare: socket.socket | None) -> Iterator[Path]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "relay"))
    listener.listen(64)
    pid = os.fork()
    if pid == 0:
        try:
            relay.serve(listener, ("127.0.0.1", accepted_port[0]), lambda: None, spare)
        finally:
            os._exit(1)
    listener.close()
    if spare is not None:
        spare.close()
    yield tmp_path / "relay"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def _connected(path: Path, accepted: list) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, tuple]:
    before = len(accepted)
    reader, writer = await asyncio.open_unix_connection(str(path))
    async with asyncio.timeout(5):
        while len(accepted) == before:
            await asyncio.sleep(0.001)
    return reader, writer, accepted[-1]


async def test_both_directions_and_both_ends_are_passed_on(program: list, path: Path) -> None:
    reader, writer, (inner_reader, inner_writer) = await _connected(path, program)
    writer.write(b"question")
    assert await inner_reader.readexactly(8) == b"question"
    writer.write_eof()
    assert await inner_reader.read() == b""
    inner_writer.write(b"answer")
    inner_writer.close()
    assert await reader.read() == b"answer"
    writer.close()
    await writer.wait_closed()


async def test_much_data_is_passed_on_whole_however_slow_the_reader_is(program: list, path: Path) -> None:
    reader, writer, (_, inner_writer) = await _connected(path, program)
    data = os.urandom(1 << 20) * 8
    sending = asyncio.create_task(_send(inner_writer, data))
    await asyncio.sleep(0.05)
    assert not sending.done()  # back-pressure: nobody has read yet
    assert await reader.read() == data
    await sending
    writer.close()
    await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.close()


async def test_connections_that_come_and_go_at_once_do_not_disturb_each_other(
    program: list, path: Path
) -> None:
    async def once(number: int) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        if number % 3 == 0:
            writer.close()  # at once
            await writer.wait_closed()
            return
        writer.write(b"%08d" % number)
        assert await reader.readexactly(8) == b"%08d" % number
        writer.close()
        await writer.wait_closed()

    async def echo() -> None:
        done = 0
        while True:
            for reader, writer in program[done:]:
                done += 1
                tasks.append(asyncio.create_task(_echo(reader, writer)))
            await asyncio.sleep(0.001)

    tasks: list[asyncio.Task[None]] = []
    echoing = asyncio.create_task(echo())
    async with asyncio.timeout(20):
        for _ in range(5):
            await asyncio.gather(*(once(number) for number in range(60)))
    echoing.cancel()
    await asyncio.gather(echoing, *tasks, return_exceptions=True)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if data := await reader.read(8):
        writer.write(data)
    writer.close()


async def test_a_program_that_is_gone_ends_the_connection(program: list, path: Path) -> None:
    reader, writer, (_, inner_writer) = await _connected(path, program)
    inner_writer.transport.abort()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


@pytest_asyncio.fixture
async def spared(program: list, tmp_path: Path) -> AsyncIterator[Path]:
    """The Unix socket of a relay that has a connection to the program already."""
    spare = socket.create_connection(("127.0.0.1", accepted_port[0]))
    async with asyncio.timeout(5):
        while not program:
            await asyncio.sleep(0.001)
    running = _relay(tmp_path, spare)
    yield next(running)
    next(running, None)


async def test_the_first_caller_gets_the_connection_that_is_there(program: list, spared: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(spared))
    inner_reader, inner_writer = program[0]
    writer.write(b"question")
    assert await inner_reader.readexactly(8) == b"question"
    inner_writer.write(b"answer")
    assert await reader.readexactly(6) == b"answer"
    assert len(program) == 1
    _, other, _ = await _connected(spared, program)  # the next one gets one of its own
    assert len(program) == 2
    writer.close()
    other.close()


async def test_a_first_connection_that_the_program_has_closed_is_not_used(
    program: list, spared: Path
) -> None:
    program[0][1].write_eof()
    reader, writer, (_, inner_writer) = await _connected(spared, program)
    inner_writer.write(b"answer")
    assert await reader.readexactly(6) == b"answer"
    writer.close()


async def test_a_first_connection_that_nobody_wants_is_closed(program: list, spared: Path) -> None:
    async with asyncio.timeout(5):
        assert await program[0][0].read() == b""
    assert spared.exists()
