"""Both ends of a tunnel on one loop, and the other end when it does not keep to what was agreed."""

import contextlib
import json
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_service.engines.docker.apart import Inner
from function_service.engines.docker.carried import Loop
from function_service.engines.docker.carrying import Outer
from function_service.engines.embedded import messages

HEAD = struct.Struct("!IBI")
DOCKER = struct.Struct("!B3xI")
MESSAGE, OPEN, DATA, END, CLOSE, TAKEN = range(6)
LARGE = os.urandom(3 << 20)


@dataclass
class Ends:
    """What an engine, and a process in a container, have of a tunnel."""

    loop: Loop
    outer: Outer
    inner: Inner
    engine: socket.socket
    inside: socket.socket
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def until(self, done: Callable[[], Any]) -> Any:
        """Turn until something is there, and return it."""
        for _ in range(20_000):
            if found := done():
                return found
            self.loop.turn(0.001)
        raise AssertionError("it does not happen")

    def message(self, at: socket.socket) -> tuple[dict[str, Any], list[int]]:
        return self.until(lambda: _or_none(lambda: messages.receive(at)))

    def serve(self) -> tuple[socket.socket, socket.socket]:
        """Have the engine send a listener; return it, and what the other side gets for it."""
        listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            messages.send(self.engine, {"kind": "fork"}, [listener.fileno()])
            message, received = self.message(self.inside)
            assert message == {"kind": "fork"}
            standing = self.closing.enter_context(socket.socket(fileno=received[0]))
            standing.setblocking(False)
            address = listener.getsockname()
        return address, standing

    def connect(self, address: Any, standing: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Connect to what the engine sent; return both ends."""
        caller = self.closing.enter_context(socket.create_connection(address))
        caller.setblocking(False)
        answering, _ = self.until(lambda: _or_none(standing.accept))
        self.closing.enter_context(answering)
        answering.setblocking(False)
        return caller, answering

    def read(self, sock: socket.socket, size: int) -> bytes:
        """Read so many bytes, or as many as come before the end."""
        came = bytearray()

        def more() -> bool:
            data = _or_none(lambda: sock.recv(1 << 16), b"?")
            if data is not None:
                came.extend(data)
            return data == b"" or len(came) >= size

        self.until(more)
        return bytes(came)

    def write(self, sock: socket.socket, data: bytes) -> None:
        left = memoryview(data)

        def more() -> bool:
            nonlocal left
            left = left[_or_none(lambda: sock.send(left), 0) or 0 :]
            return not left

        self.until(more)


def _or_none(attempt: Callable[[], Any], nothing: Any = None) -> Any:
    with contextlib.suppress(BlockingIOError):
        return attempt() or (nothing if nothing != b"?" else b"")
    return None


class _ThroughDocker(Inner):
    """Marks what it says as dockerd does, which carries it in one direction."""

    def say(self, number: int, kind: int, content: bytes = b"") -> None:
        if not self._mute:
            self._out += DOCKER.pack(1, HEAD.size + len(content))
        super().say(number, kind, content)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    loop = Loop()
    here, there = socket.socketpair()
    engine, outer_control = messages.pair()
    inside, inner_control = messages.pair()
    engine.setblocking(False)
    inside.setblocking(False)
    outer = Outer(loop, here.detach(), outer_control, str(tmp_path))
    stream = there.detach()
    inner = _ThroughDocker(loop, (stream, os.dup(stream)), inner_control, inner=True)
    made = Ends(loop, outer, inner, engine, inside)
    with made.closing, engine, inside:
        yield made
        outer.close()
        inner.close()


def test_a_message_goes_through_as_it_is(ends: Ends) -> None:
    messages.send(ends.engine, {"handler": "ä", "n": [1, None]})
    assert ends.message(ends.inside) == ({"handler": "ä", "n": [1, None]}, [])
    messages.send(ends.inside, {"ready": True})
    assert ends.message(ends.engine) == ({"ready": True}, [])


def test_whoever_connects_to_a_listener_reaches_who_accepts_on_the_other_side(ends: Ends) -> None:
    address, standing = ends.serve()
    caller, answering = ends.connect(address, standing)
    caller.send(b"question")
    assert ends.read(answering, 8) == b"question"
    answering.send(b"answer")
    assert ends.read(caller, 6) == b"answer"


def test_a_listener_from_inside_is_reached_from_here(ends: Ends) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        messages.send(ends.inside, {"blank": True}, [listener.fileno()])
        _, received = ends.message(ends.engine)
        standing = ends.closing.enter_context(socket.socket(fileno=received[0]))
        standing.setblocking(False)
        caller, answering = ends.connect(listener.getsockname(), standing)
    caller.send(b"question")
    assert ends.read(answering, 8) == b"question"


def test_the_end_of_one_direction_is_passed_on_and_the_other_one_stays(ends: Ends) -> None:
    caller, answering = ends.connect(*ends.serve())
    caller.send(b"all")
    caller.shutdown(socket.SHUT_WR)
    assert ends.read(answering, 100) == b"all"
    answering.send(b"right")
    answering.close()
    assert ends.read(caller, 100) == b"right"
    ends.until(lambda: not ends.outer._connections and not ends.inner._connections)


def test_much_arrives_whole_in_both_directions(ends: Ends) -> None:
    caller, answering = ends.connect(*ends.serve())
    ends.write(caller, LARGE[: 1 << 18])
    assert ends.read(answering, 1 << 18) == LARGE[: 1 << 18]
    for sender, taker in ((caller, answering), (answering, caller)):
        sent = 0
        came = bytearray()
        while len(came) < len(LARGE):
            sent += _or_none(lambda: sender.send(LARGE[sent : sent + (1 << 16)]), 0) or 0  # noqa: B023
            ends.loop.turn(0)
            came += _or_none(lambda: taker.recv(1 << 16)) or b""  # noqa: B023
        assert bytes(came) == LARGE


def test_one_who_takes_nothing_holds_up_nobody_else_and_little_waits_for_him(ends: Ends) -> None:
    address, standing = ends.serve()
    slow, _ = ends.connect(address, standing)
    quick, answering = ends.connect(address, standing)
    sent = 0
    for _ in range(3000):
        sent += _or_none(lambda: slow.send(LARGE[: 1 << 14]), 0) or 0
        ends.loop.turn(0)
    assert 0 < sent < 3000 << 14
    waiting = sum(len(each.waiting) for each in ends.inner._connections.values())
    assert waiting + len(ends.outer._out) <= 64 << 10
    quick.send(b"past him")
    assert ends.read(answering, 8) == b"past him"


def test_what_was_said_last_is_handed_on_after_the_stream_has_ended(ends: Ends) -> None:
    caller, answering = ends.connect(*ends.serve())
    caller.send(b"question")
    assert ends.read(answering, 8) == b"question"
    answer = LARGE[: 60 << 10]
    answering.send(answer)
    answering.close()
    ends.loop.forget(ends.outer._reading)  # it is slow, and hears nothing until the other end is gone
    ends.until(lambda: ends.inner.said_all)
    ends.inner.close()
    ends.outer._watch()
    assert ends.read(caller, 1 << 20) == answer
    ends.until(lambda: ends.outer.closed)
    with pytest.raises(EOFError):
        messages.receive(ends.engine)


def test_an_answer_before_all_was_asked_reaches_the_caller(ends: Ends) -> None:
    caller, answering = ends.connect(*ends.serve())
    answering.send(b"413")
    answering.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        ends.write(caller, LARGE)
    assert ends.read(caller, 3) == b"413"


def test_who_speaks_to_one_that_has_gone_is_told(ends: Ends) -> None:
    caller, answering = ends.connect(*ends.serve())
    caller.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        ends.write(answering, 4 * LARGE)
    ends.until(lambda: not ends.outer._connections and not ends.inner._connections)


def test_one_direction_ends_long_before_the_other_one(ends: Ends) -> None:
    caller, answering = ends.connect(*ends.serve())
    caller.shutdown(socket.SHUT_WR)
    assert ends.read(answering, 1) == b""
    for at in range(0, len(LARGE), 1 << 18):
        piece = LARGE[at : at + (1 << 18)]
        ends.write(answering, piece)
        if at + len(piece) == len(LARGE):
            answering.close()
        assert ends.read(caller, len(piece)) == piece


def test_what_the_function_prints_goes_where_the_engine_reads(tmp_path: Path) -> None:
    loop = Loop()
    here, there = socket.socketpair()
    engine, control = messages.pair()
    reading, writing = os.pipe()
    outer = Outer(loop, here.detach(), control, str(tmp_path))
    with engine, there:
        messages.send(engine, {}, [writing])
        os.close(writing)
        loop.turn(1)
        printed = b"a line\n" * 40_000  # more than a pipe takes
        there.setblocking(False)
        data, came = DOCKER.pack(2, len(printed)) + printed, bytearray()
        while len(came) < len(printed):
            data = data[_or_none(lambda: there.send(data[:5000]), 0) or 0 :]  # noqa: B023
            loop.turn(0)
            os.set_blocking(reading, False)
            came += _or_none(lambda: os.read(reading, 1 << 16)) or b""
        assert bytes(came) == printed
        there.close()
        while not outer.closed:
            loop.turn(1)
        assert os.read(reading, 1) == b""  # it is closed
    os.close(reading)


def frame(number: int, kind: int, content: bytes = b"") -> bytes:
    return HEAD.pack(number, kind, len(content)) + content


def number(value: int) -> bytes:
    return struct.pack("!I", value)


def said(message: Any, *sent: str) -> bytes:
    return frame(0, MESSAGE, json.dumps({"message": message, "sent": sent}).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        HEAD.pack(0, DATA, 1 << 30),
        frame(0, 9),
        frame(0, MESSAGE, b"{"),
        frame(0, MESSAGE, b"[]"),
        frame(0, MESSAGE, b'{"message": 1, "sent": []}'),
        frame(0, MESSAGE, b"[" * 100_000),
        said({}, *["listener"] * 9),
        said({}, "output"),
        frame(1, OPEN, number(0)),  # of a listener that was never sent
        frame(1, OPEN, b"?"),
        said({}, "listener") + frame(2, OPEN, number(0)),  # under a number of this side's
        said({}, "listener") + 2 * frame(1, OPEN, number(0)),
        said({}, "listener") + frame(1, OPEN, number(0)) + 9 * frame(1, DATA, bytes(60_000)),
        said({}, "listener") + frame(1, OPEN, number(0)) + frame(1, TAKEN, number(1)),
    ],
)
def test_one_that_does_not_keep_to_it_ends_its_own_tunnel(wrong: bytes, tmp_path: Path) -> None:
    with _alone(tmp_path) as (outer, there, loop):
        _tell(loop, outer, there, wrong)
        assert outer.closed


def test_one_that_asks_without_end_and_takes_no_answer_ends_its_own_tunnel(tmp_path: Path) -> None:
    with _alone(tmp_path) as (outer, there, loop):
        _tell(loop, outer, there, said({}, "listener"))
        for at in range(1, 400_000, 2000):  # more than can be connected to: each is refused
            _tell(
                loop,
                outer,
                there,
                b"".join(frame(n, OPEN, number(0)) + frame(n, CLOSE) for n in range(at, at + 2000, 2)),
            )
            assert len(outer._out) < 2 << 20
            if outer.closed:
                return
    raise AssertionError("it went on")


@given(st.binary(max_size=300), st.integers(1, 40))
def test_nothing_that_comes_out_of_a_container_does_more_than_end_its_tunnel(came: bytes, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder, _alone(Path(folder)) as (outer, there, loop):
        _tell(loop, outer, there, came, step)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[tuple[Outer, socket.socket, Loop]]:
    loop = Loop()
    here, there = socket.socketpair()
    engine, control = messages.pair()
    outer = Outer(loop, here.detach(), control, str(folder))
    with there, engine:
        yield outer, there, loop
        outer.close()


def _tell(loop: Loop, outer: Outer, there: socket.socket, data: bytes, step: int = 1 << 15) -> None:
    data = DOCKER.pack(1, len(data)) + data
    for at in range(0, len(data), step):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            there.send(data[at : at + step])
        for _ in range(3):
            loop.turn(0)
            if outer.closed:
                return
