"""The parts of the Python shim that can be looked at without a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SHIM = Path(__file__).parents[2] / "runtimes/python/shim"
sys.path.append(str(SHIM))

from pilotlight_parts import loading, messages, wire  # noqa: E402


def head(text: str) -> wire.Head:
    return wire.Head(text.replace("\n", "\r\n").encode("latin-1"))


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=8), st.integers(1, 30))
def test_a_chunked_body_is_the_same_however_it_is_cut(body, sizes, cut):
    encoded, rest = b"", body
    for size in [*sizes, len(body) or 1]:
        piece, rest = rest[:size], rest[size:]
        if piece:
            encoded += b"%X;extension\r\n%b\r\n" % (len(piece), piece)
    encoded += b"0\r\nTrailer: value\r\n\r\nGET /next"
    decoder, decoded = wire.ChunkedDecoder(), b""
    pieces = [encoded[start : start + cut] for start in range(0, len(encoded), cut)]
    while not decoder.done:
        decoded += decoder.feed(pieces.pop(0))
    assert decoded == body
    assert decoder.rest + b"".join(pieces) == b"GET /next"


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_fail_in_another_way(data):
    for attempt in (data, b"POST /a HTTP/1.1\r\n" + data + b"\r\n\r\n"):
        try:
            if end := wire.split_head(attempt):
                decoder = wire.Head(attempt[:end]).decoder()
                if decoder is not None:
                    decoder.feed(attempt[end:])
        except wire.BadRequest:
            continue


def test_equal_lengths_may_stand_there_twice_but_not_different_ones():
    assert head("POST / HTTP/1.1\nContent-Length: 3\nContent-Length: 3\n\n").length == 3
    with pytest.raises(wire.BadRequest, match="conflicting"):
        head("POST / HTTP/1.1\nContent-Length: 3\nContent-Length: 4\n\n")


def test_http_1_0_connections_are_kept_only_when_asked_for():
    assert not head("GET / HTTP/1.0\n\n").keep_alive
    assert head("GET / HTTP/1.0\nConnection: keep-alive\n\n").keep_alive


@pytest.mark.parametrize("body", [b"ab", b"abcd"])
def test_an_answer_that_is_not_as_long_as_it_says_is_an_error(body):
    writer = wire.Writer(head("GET / HTTP/1.1\n\n"))
    with pytest.raises(wire.LengthMismatch):
        writer.whole(200, [("Content-Length", "3")], body)


def test_fields_that_belong_to_the_connection_are_not_sent_on():
    writer = wire.Writer(head("GET / HTTP/1.1\n\n"))
    sent = writer.whole(200, [("Connection", "upgrade"), ("Transfer-Encoding", "gzip"), ("A", "b")], b"body")
    assert sent == b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 4\r\n\r\nbody"


@pytest.mark.parametrize(
    ("result", "status", "kind", "body"),
    [
        ("text", 200, "text/plain; charset=utf-8", b"text"),
        (b"bytes", 200, "application/octet-stream", b"bytes"),
        ({"a": "é"}, 200, "application/json", '{"a":"é"}'.encode()),
        ([1, None], 200, "application/json", b"[1,null]"),
        (None, 204, None, b""),
        ((201, "made"), 201, "text/plain; charset=utf-8", b"made"),
        (
            (404, {"error": 1}, {"Content-Type": "application/problem+json"}),
            404,
            "application/problem+json",
            b'{"error":1}',
        ),
        (messages.Response(), 200, None, b""),
        (messages.Response("x", 202, [("A", "1"), ("A", "2")]), 202, "text/plain; charset=utf-8", b"x"),
    ],
)
def test_what_a_handler_may_return(result, status, kind, body):
    answered, fields, content = messages.answer(result)
    assert (answered, content) == (status, body)
    assert [value for name, value in fields if name.lower() == "content-type"] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (1, "returned an int"),
        ({"when": object()}, "can't be written as JSON"),
        ((1, 2, 3, 4), "tuple of 4"),
        (("200", "x"), "status '200'"),
        ((True, "x"), "status True"),
        (messages.Response("x", headers={"A": "b\r\nC: d"}), "header field"),
        ((200, "x", {"A": 1}), "header field"),
        ({1, 2}, "returned a set"),
    ],
)
def test_what_a_handler_may_not_return(result, said):
    with pytest.raises(messages.Unencodable, match=said):
        messages.answer(result)


def test_a_request_reads_its_query_and_headers():
    request = messages.Request(
        head("GET /a%20b?x=1&x=2&y= HTTP/1.1\nAccept: a\naccept: b\nCookie: c\ncookie: d\n\n"), None
    )
    assert (request.path, request.query.raw) == ("/a%20b", "x=1&x=2&y=")
    assert (request.query["x"], request.query.all("x"), request.query["y"]) == ("1", ["1", "2"], "")
    assert request.query.get("z") is None
    assert (request.headers["ACCEPT"], request.headers["cookie"]) == ("a, b", "c; d")
    assert (request.body, request.text) == (b"", "")


def sync_handler(request): ...
async def async_handler(request): ...
async def generator(request):
    yield ""


def with_default(request=None): ...
def wsgi(environ, start_response): ...
async def asgi(scope, receive, send): ...
def anything(*args): ...


class AsgiObject:
    async def __call__(self, scope, receive, send): ...


class WsgiObject:
    def __call__(self, environ, start_response): ...
    def method(self, request): ...


@pytest.mark.parametrize(
    ("target", "name", "kind"),
    [
        (sync_handler, "m:f", loading.SYNC),
        (with_default, "m:f", loading.SYNC),
        (WsgiObject().method, "m:f", loading.SYNC),
        (anything, "m:handle", loading.SYNC),
        (async_handler, "m:f", loading.ASYNC),
        (generator, "m:f", loading.ASYNC),
        (wsgi, "m:app", loading.WSGI),
        (WsgiObject(), "m:app", loading.WSGI),
        (asgi, "m:app", loading.ASGI),
        (AsgiObject(), "m:app", loading.ASGI),
    ],
)
def test_a_handler_is_known_by_the_arguments_it_takes(target, name, kind):
    assert loading.kind_of(target, name) == kind


@pytest.mark.parametrize("target", [anything, 1, lambda: 0, AsgiObject])
def test_what_is_no_handler_is_refused(target):
    with pytest.raises(loading.LoadError):
        loading.kind_of(target, "m:app")


def test_booting_leaves_no_thread_descriptor_or_event_loop_behind(tmp_path):
    script = f"""
import os, sys, threading
sys.path.insert(0, {str(SHIM)!r})
before = os.listdir("/proc/self/fd")
import pilotlight_shim, asyncio
pilotlight_shim.preload()
pilotlight_shim.rehearse({str(tmp_path)!r})
assert os.listdir("/proc/self/fd") == before
assert threading.enumerate() == [threading.main_thread()]
assert asyncio._get_running_loop() is None
assert not os.listdir({str(tmp_path)!r})
assert not [name for name in sys.modules if "rehearsal" in name and not name.startswith("pilotlight_parts")]
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_lines_are_marked_with_their_requests(tmp_path):
    """Also those of threads, of the error stream, and of nobody; a line that goes on is not broken up."""
    program = """
import contextvars, sys, threading
from pilotlight_parts import output
output.mark()
print("import")
output.request.set("one")
print("a")
print("b", file=sys.stderr)
print("half", end=" ", flush=True)
output.request.set("two")
print("line")
print("c")
threading.Thread(target=print, args=("nobody's",)).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=SHIM,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    said = done.stdout.decode().split("\n")
    assert said == ["import", "\x1eone", "a", "b", "half line", "\x1etwo", "c", "\x1e", "nobody's", ""]
