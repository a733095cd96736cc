"""The checks of the conformance kit, in the order of the contract's clauses."""

import contextlib
import json
from collections.abc import Callable

from runtimes.conformance import Shim, Subject, expect, running

_MALFORMED = {
    "no request line": b"NONSENSE\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a control character in a field": b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    "two lengths": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "a length that is no number": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\nab",
    "length and chunks": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is no number": b"POST /echo HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a head without end": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (70 << 10),
}


def it_exits_when_nothing_is_to_be_served(subject: Subject) -> None:
    """1.2: the control socket is closed before there was a function."""
    with Shim(subject) as shim:
        expect(shim.abandon() == 0, "1.2: the shim did not exit with 0")


def it_takes_over_the_environment_and_closes_the_control_socket(subject: Subject) -> None:
    """1.4."""
    env = {"NAME": "value", "LANGUAGE_OF_A_TEXT": "dänisch"}
    with Shim(subject, env=env) as shim:
        shim.ready()
        expect(shim.receive() is None, "1.4: the control socket is still open")
        with shim.connect() as connection:
            seen = connection.ask("GET", "/env").json()
        expect(seen == env, f"1.4: the environment is {seen}")


def it_keeps_connections(subject: Subject) -> None:
    """2.1: several requests, with and without a body, on one connection; and another connection beside it."""
    with running(subject) as shim, shim.connect() as first, shim.connect() as second:
        for number in range(3):
            body = b"x" * number
            expect(first.ask("POST", "/echo", body).json()["body"] == body.decode(), "2.1: on the first")
            expect(
                second.ask("GET", f"/echo/{number}").json()["path"] == f"/echo/{number}", "2.1: on the second"
            )


def it_closes_when_asked(subject: Subject) -> None:
    """2.1: a caller may say `Connection: close`."""
    with running(subject) as shim, shim.connect() as connection:
        reply = connection.ask("GET", "/echo", b"", "Connection: close")
        expect(reply.headers.get("connection", "").lower() == "close", "2.1: the answer does not say close")
        expect(connection.ended(), "2.1: the connection stayed open")


def it_answers_no_more_than_its_concurrency(subject: Subject) -> None:
    """2.1: with one at a time, a second call waits for the first to end; with two it does not."""
    for concurrency in (1, 2):
        with (
            running(subject, concurrency=concurrency) as shim,
            shim.connect() as first,
            shim.connect() as second,
        ):
            first.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
            expect(first.silent(), "2.1: the first call was answered before its body had come")
            second.send(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
            if concurrency == 1:
                expect(second.silent(), "2.1: two calls were answered at a time")
                first.send(b"b")
                expect(first.reply().json()["body"] == "ab", "2.1: the first call")
                expect(second.reply().status == 200, "2.1: the second call")
            else:
                expect(second.reply().status == 200, "2.1: the second call waited for the first")
                first.send(b"b")
                expect(first.reply().status == 200, "2.1: the first call")


def it_hands_requests_over_as_they_came(subject: Subject) -> None:
    """2.2."""
    target = "/echo/a%20b/%C3%A9/c?x=1&x=2&y=%26+"
    with running(subject) as shim, shim.connect() as connection:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"):
            body = b"" if method == "GET" else b'{"a": "\xc3\xa9"}'
            reply = connection.ask(
                method, target, body, "X-Name: some value", "x-name: another", "Accept:*/*"
            )
            seen = reply.json()
            expect(seen["method"] == method, f"2.2: the method {method} came as {seen['method']}")
            expect(seen["path"] == "/echo/a%20b/%C3%A9/c", f"2.2: the path came as {seen['path']}")
            expect(seen["query"] == "x=1&x=2&y=%26+", f"2.2: the query came as {seen['query']}")
            expect(seen["body"] == body.decode(), f"2.2: the body came as {seen['body']!r}")
            values = [value.strip() for value in seen["headers"]["x-name"].split(",")]
            expect(values in (["some value", "another"], ["another"]), f"2.2: a field came as {values}")
            expect(seen["headers"]["host"] == "example.org", "2.2: the Host field")


def it_reads_chunked_bodies(subject: Subject) -> None:
    """2.3: with extensions and trailers, in pieces that are cut anywhere."""
    data = (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n5;name=value\r\ndefgh\r\n0\r\nTrailer: x\r\n\r\n"
    )
    with running(subject) as shim, shim.connect() as connection:
        for cut in (len(data), 40, len(data) - 30, len(data) - 9, len(data) - 1):
            connection.send(data[:cut])
            connection.send(data[cut:])
            expect(connection.reply().json()["body"] == "abcdefgh", f"2.3: cut at {cut}")


def it_reads_long_bodies(subject: Subject) -> None:
    """2.3: a body that is longer than what a socket holds."""
    body = b"0123456789abcdef" * (6 << 16)
    with running(subject) as shim, shim.connect() as connection:
        expect(connection.ask("POST", "/echo", body).json()["body"] == body.decode(), "2.3: a body of 6 MB")


def it_asks_for_a_body_that_waits_to_be_asked_for(subject: Subject) -> None:
    """2.3: `Expect: 100-continue`."""
    with running(subject) as shim, shim.connect() as connection:
        connection.send(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        )
        expect(connection.head()[0] == 100, "2.3: the body was not asked for")
        connection.send(b"ab")
        expect(connection.reply().json()["body"] == "ab", "2.3: the body")


def it_streams_both_ways(subject: Subject) -> None:
    """2.3: the answer to a piece of the body comes before the next piece is sent."""
    with running(subject) as shim, shim.connect() as connection:
        connection.send(b"POST /duplex HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        expect(connection.head()[0] == 200, "2.3: the head")
        expect(connection.chunk() == b"A", "2.3: the first piece")
        for letter in (b"b", b"c"):
            connection.send(b"1\r\n" + letter + b"\r\n")
            expect(connection.chunk() == letter.upper(), f"2.3: the piece {letter!r}")
        connection.send(b"0\r\n\r\n")
        expect(connection.chunk() == b"", "2.3: the end")
        expect(connection.ask("GET", "/echo").status == 200, "2.3: the next request")


def it_is_not_disturbed_by_a_body_that_nobody_read(subject: Subject) -> None:
    """2.4: short, chunked, cut in two; a very long one may cost the connection, but not the answer."""
    with running(subject) as shim:
        with shim.connect() as connection:
            for _ in range(2):
                expect(connection.ask("POST", "/ignore", b"x" * 100_000).body == b"ignored", "2.4: a body")
            connection.send(b"POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            connection.send(b"ab")
            expect(connection.reply().body == b"ignored", "2.4: a body that came late")
            connection.send(b"POST /ignore HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            connection.send(b"1\r\na\r\n0\r\n\r\n")
            expect(connection.reply().body == b"ignored", "2.4: a chunked body")
            expect(connection.ask("GET", "/echo").json()["method"] == "GET", "2.4: the request after it")
        with shim.connect() as connection:
            expect(connection.ask("POST", "/ignore", b"x" * (8 << 20)).body == b"ignored", "2.4: a long body")
        with shim.connect() as connection:
            expect(connection.ask("GET", "/echo").status == 200, "2.4: after a long body")


def it_sends_no_body_where_there_must_be_none(subject: Subject) -> None:
    """2.5."""
    with running(subject) as shim, shim.connect() as connection:
        expect(connection.ask("HEAD", "/echo").status == 200, "2.5: HEAD")
        expect(connection.ask("HEAD", "/duplex").status == 200, "2.5: HEAD of a stream")
        for status in (204, 304):
            reply = connection.ask("GET", f"/status/{status}")
            expect(reply.status == status, f"2.5: the status {status} came as {reply.status}")
            expect(reply.headers.get("x-seen") == "yes", "2.5: the fields")
            expect("transfer-encoding" not in reply.headers, f"2.5: {status} announces a body")
        expect(connection.ask("GET", "/echo").json()["path"] == "/echo", "2.5: the next request")


def it_cancels_when_the_caller_goes_away(subject: Subject) -> None:
    """2.6."""
    if not subject.cancels:
        return
    with running(subject) as shim:
        with shim.connect() as connection:
            connection.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            expect(shim.printed("waiting"), "2.6: the handler was not called")
        expect(shim.printed("cancelled"), "2.6: the handler was not cancelled")
        with shim.connect() as connection:
            expect(connection.ask("GET", "/echo").status == 200, "2.6: the next request")


def it_answers_errors_without_their_text(subject: Subject) -> None:
    """3.1."""
    with running(subject) as shim, shim.connect() as connection:
        reply = connection.ask("POST", "/raise", b"abc")
        expect(reply.status == 500, f"3.1: the status is {reply.status}")
        expect(reply.headers["content-type"] == "application/problem+json", "3.1: it is no problem document")
        expect("Error" in reply.json()["detail"], "3.1: the type is not named")
        expect(b"secret" not in reply.body, "3.1: the text of the error reached the caller")
        expect(shim.printed("a secret"), "3.1: the error was not printed")
        expect(connection.ask("GET", "/echo").status == 200, "3.1: the next request")


def it_says_what_may_be_returned(subject: Subject) -> None:
    """3.2."""
    if not subject.results:
        return
    with running(subject) as shim, shim.connect() as connection:
        reply = connection.ask("GET", "/unencodable")
        expect(reply.status == 500, f"3.2: the status is {reply.status}")
        expect("object" in reply.json()["detail"].lower(), "3.2: the type is not named")
        expect("Response" in reply.json()["detail"], "3.2: what may be returned is not named")
        expect(connection.ask("GET", "/echo").status == 200, "3.2: the next request")


def it_breaks_off_answers_that_fail_half_way(subject: Subject) -> None:
    """3.3."""
    with running(subject) as shim:
        with shim.connect() as connection:
            reply = connection.ask("GET", "/break")
            expect(reply.status == 200, f"3.3: the status is {reply.status}")
            expect(reply.body == b"begun", f"3.3: the body is {reply.body!r}")
            expect(not reply.whole, "3.3: the answer looks whole")
        expect(shim.printed("a secret"), "3.3: the error was not printed")
        with shim.connect() as connection:
            expect(connection.ask("GET", "/echo").status == 200, "3.3: the next request")


def it_refuses_malformed_requests(subject: Subject) -> None:
    """3.4."""
    with running(subject) as shim:
        for what, data in _MALFORMED.items():
            with shim.connect() as connection:
                connection.try_send(data)
                with contextlib.suppress(json.JSONDecodeError):
                    reply = connection.reply()
                    expect(reply.status in (400, 431), f"3.4: {what} was answered by {reply.status}")
                expect(connection.ended(), f"3.4: the connection stayed open after {what}")
        with shim.connect() as connection:
            expect(connection.ask("GET", "/echo").status == 200, "3.4: the next request")


def it_survives_callers_that_go_away(subject: Subject) -> None:
    """3.4: in the middle of a head, of a body, and before the answer."""
    with running(subject) as shim:
        for data in (
            b"GET /ec",
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab",
            b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            with shim.connect() as connection:
                connection.send(data)
        with shim.connect() as connection:
            expect(connection.ask("GET", "/echo").status == 200, "3.4: the next request")


def it_ends_with_its_handler(subject: Subject) -> None:
    """3.5."""
    with running(subject) as shim, shim.connect() as connection:
        connection.send(b"GET /exit HTTP/1.1\r\nHost: x\r\n\r\n")
        expect(connection.ended(), "3.5: an answer came")
        expect(shim.process.wait(10) == 3, "3.5: the exit code is another one")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    it_exits_when_nothing_is_to_be_served,
    it_takes_over_the_environment_and_closes_the_control_socket,
    it_keeps_connections,
    it_closes_when_asked,
    it_answers_no_more_than_its_concurrency,
    it_hands_requests_over_as_they_came,
    it_reads_chunked_bodies,
    it_reads_long_bodies,
    it_asks_for_a_body_that_waits_to_be_asked_for,
    it_streams_both_ways,
    it_is_not_disturbed_by_a_body_that_nobody_read,
    it_sends_no_body_where_there_must_be_none,
    it_cancels_when_the_caller_goes_away,
    it_answers_errors_without_their_text,
    it_says_what_may_be_returned,
    it_breaks_off_answers_that_fail_half_way,
    it_refuses_malformed_requests,
    it_survives_callers_that_go_away,
    it_ends_with_its_handler,
)
