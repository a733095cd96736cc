import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from function_service.contract import Stages
from gateway.headers import Receipt, answer_head, receipt, refuse_what_cannot_pass, request_head
from gateway.identity import identify
from pilotlight.problems import Problem

RECEIPT = Receipt(b"wait;dur=0", b"Pilotlight-Start: warm\r\nX-Request-Id: ours\r\n")


def sent(*fields: tuple[str, str], **options) -> list[bytes]:
    """Return the lines of the request that the function gets."""
    raw = [(name.encode(), value.encode()) for name, value in fields]
    headers = CIMultiDictProxy(CIMultiDict(fields))
    head = request_head("GET", "/x", raw, headers, b"", **options)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def answered(*fields: tuple[str, str], status: int = 200, **options) -> tuple[list[bytes], bool, bool]:
    raw = [(name.encode(), value.encode()) for name, value in fields]
    given = {"bodiless": False, "http11": True, "keep_alive": True, **options}
    head = answer_head(status, b"OK", raw, **given)
    assert head.data.endswith(b"\r\n\r\n")
    return head.data[:-4].split(b"\r\n"), head.chunked, head.keep_alive


@pytest.mark.parametrize(
    "name",
    ["Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "TE", "Trailer", "Upgrade"],
)
def test_hop_by_hop_headers_do_not_pass(name: str) -> None:
    assert sent(("Host", "h"), (name, "keep-alive"), ("X-Kept", "1")) == [
        b"GET /x HTTP/1.1",
        b"Host: h",
        b"X-Kept: 1",
    ]
    lines, _, _ = answered((name, "keep-alive"), ("Content-Length", "1"))
    assert not any(line.lower().startswith(name.lower().encode() + b":") for line in lines)


def test_what_connection_lists_does_not_pass_either_way() -> None:
    assert sent(
        ("Host", "h"), ("Connection", "close, X-One"), ("connection", "x-TWO"), ("X-One", "1"), ("X-Two", "2")
    ) == [
        b"GET /x HTTP/1.1",
        b"Host: h",
    ]
    lines, _, _ = answered(("X-One", "1"), ("Connection", "x-one"), ("Content-Length", "1"), ("X-Three", "3"))
    assert b"X-One: 1" not in lines
    assert b"X-Three: 3" in lines


def test_what_a_second_connection_header_lists_does_not_pass_either() -> None:
    two = (("Connection", "keep-alive"), ("Connection", "x-one"), ("X-One", "1"))
    assert sent(("Host", "h"), *two) == [b"GET /x HTTP/1.1", b"Host: h"]
    for fields in (two, (("Connection", "x-two"), *two[1:])):
        assert b"X-One: 1" not in answered(*fields)[0]


def test_connection_cannot_take_away_the_framing() -> None:
    assert b"Content-Length: 3" in sent(
        ("Host", "h"), ("Connection", "Content-Length, Host"), ("Content-Length", "3")
    )
    lines, chunked, _ = answered(("Connection", "content-length"), ("Content-Length", "3"))
    assert b"Content-Length: 3" in lines
    assert not chunked


def test_what_the_gateway_says_itself_cannot_be_said_by_the_caller() -> None:
    assert sent(
        ("Host", "h"), ("Pilotlight-Caller", "admin"), ("Expect", "100-continue"), ("X-Request-Id", "x")
    ) == [
        b"GET /x HTTP/1.1",
        b"Host: h",
    ]


def test_repeated_headers_keep_their_order_and_case() -> None:
    assert sent(("Host", "h"), ("x-a", "1"), ("X-A", "2"))[2:] == [b"x-a: 1", b"X-A: 2"]


def test_a_chunked_request_stays_chunked() -> None:
    assert b"Transfer-Encoding: chunked" in sent(("Host", "h"), ("Transfer-Encoding", "chunked"))


def test_a_caller_without_host_gets_one() -> None:
    assert sent() == [b"GET /x HTTP/1.1", b"Host: localhost"]


def test_bytes_that_are_no_text_pass_unchanged() -> None:
    raw = [(b"X-Name", b"\xff\xe4\xf6")]
    head = request_head("GET", "/\udcff", raw, CIMultiDictProxy(CIMultiDict({"Host": "h"})), b"")
    assert b"X-Name: \xff\xe4\xf6\r\n" in head
    assert head.startswith(b"GET /\xff HTTP/1.1\r\n")


def test_an_answer_of_known_length_keeps_it_and_any_other_is_chunked() -> None:
    lines, chunked, keep = answered(("Content-Length", "5"))
    assert (b"Content-Length: 5" in lines, chunked, keep) == (True, False, True)
    lines, chunked, keep = answered(("Transfer-Encoding", "chunked"))
    assert (lines.count(b"Transfer-Encoding: chunked"), chunked, keep) == (1, True, True)


def test_http_1_0_gets_the_end_of_the_connection_in_place_of_chunks() -> None:
    lines, chunked, keep = answered(("Transfer-Encoding", "chunked"), http11=False)
    assert (b"Connection: close" in lines, chunked, keep) == (True, False, False)
    lines, _, keep = answered(("Content-Length", "1"), http11=False)
    assert (b"Connection: keep-alive" in lines, keep) == (True, True)


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_are_not_framed(status: int) -> None:
    lines, chunked, keep = answered(status=status, bodiless=True)
    assert (chunked, keep) == (False, True)
    assert not any(line.startswith(b"Transfer-Encoding") for line in lines)


def test_204_has_no_length_but_304_and_head_may_have_one() -> None:
    assert b"Content-Length: 0" not in answered(("Content-Length", "0"), status=204, bodiless=True)[0]
    assert b"Content-Length: 7" in answered(("Content-Length", "7"), status=304, bodiless=True)[0]
    assert b"Content-Length: 7" in answered(("Content-Length", "7"), bodiless=True)[0]


def test_the_receipt_replaces_what_the_function_says_of_itself() -> None:
    fields = [
        ("Pilotlight-Start", "forged"),
        ("Pilotlight-Error", "forged"),
        ("Pilotlight-Instance", "forged"),
        ("X-Request-Id", "forged"),
        ("Server-Timing", "db;dur=1"),
        ("Server-Timing", "cache"),
        ("Content-Length", "1"),
    ]
    lines, _, _ = answered(*fields, receipt=RECEIPT)
    assert not any(b"forged" in line for line in lines)
    assert b"Server-Timing: wait;dur=0, db;dur=1, cache" in lines
    assert lines.count(b"Pilotlight-Start: warm") == 1


def test_a_date_is_added_where_there_is_none() -> None:
    assert any(line.startswith(b"Date: ") for line in answered(("Content-Length", "1"))[0])
    assert [line for line in answered(("Date", "then"))[0] if line.startswith(b"Date")] == [b"Date: then"]


@given(
    waited=st.floats(0, 10),
    container=st.floats(0, 5000),
    runtime=st.floats(0, 5000),
    code=st.floats(0, 5000),
)
def test_the_stages_of_a_receipt_never_exceed_what_the_call_waited(
    waited: float, container: float, runtime: float, code: float
) -> None:
    text = receipt(waited, 0.001, Stages(container, runtime, code), b"").timing.decode()
    parts = {name: float(value) for name, value in (part.split(";dur=") for part in text.split(", "))}
    assert list(parts) == ["wait", "container", "runtime", "code", "handler"]
    assert all(value >= 0 for value in parts.values())
    assert parts["wait"] + parts["container"] + parts["runtime"] + parts["code"] == pytest.approx(
        waited * 1000, abs=0.01
    )


def test_a_call_that_came_late_to_a_start_is_told_the_end_of_it_only() -> None:
    timing = receipt(0.0025, 0.001, Stages(container=3, runtime=2, code=1), b"").timing
    assert (
        timing == b"wait;dur=0.000, container;dur=0.000, runtime;dur=1.500, code;dur=1.000, handler;dur=1.000"
    )


def test_upgrades_are_refused_but_an_offer_of_h2c_is_declined() -> None:
    def ask(method: str = "GET", **headers: str) -> None:
        refuse_what_cannot_pass(CIMultiDictProxy(CIMultiDict(headers)), method)

    ask(Upgrade="h2c")
    for refused in ({"Upgrade": "websocket"}, {"method": "CONNECT"}):
        with pytest.raises(Problem) as refusal:
            ask(**refused)
        assert refusal.value.kind == "upgrade-refused"


def test_transfer_codings_other_than_chunked_are_refused() -> None:
    with pytest.raises(Problem) as refusal:
        refuse_what_cannot_pass(CIMultiDictProxy(CIMultiDict({"Transfer-Encoding": "gzip, chunked"})), "POST")
    assert refusal.value.kind == "invalid-request"


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_identifiers_are_taken_over() -> None:
    assert identify("abc-1", PARENT) == ("abc-1", PARENT, True)


@pytest.mark.parametrize("request_id", [None, "", "a b", "x" * 129, "ü", 'a"b', "a\tb"])
def test_a_bad_request_id_is_replaced(request_id: str | None) -> None:
    made, _, _ = identify(request_id, None)
    assert made != request_id
    assert len(made) == 32


@pytest.mark.parametrize(
    "parent",
    [
        None,
        "",
        PARENT[:-1],
        PARENT.upper(),
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + "-01",
        PARENT + "-x",
    ],
)
def test_a_bad_traceparent_is_replaced(parent: str | None) -> None:
    _, made, taken = identify("abc", parent)
    assert not taken
    assert identify("abc", made) == ("abc", made, True)
    assert made != parent
