"""Which hosts and addresses a function may reach, and how requests to the proxy are read."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baas.egress import parse_request
from baas.egress_rules import Authority, Rules, is_public
from pilotlight.problems import Problem
from pilotlight.settings import OutsideProxy, outside_proxy


def allowed(entries: list[str], target: str) -> bool:
    return Rules(entries).allow(Authority.parse(target))


@pytest.mark.parametrize(
    ("entry", "target", "answer"),
    [
        ("api.github.com:443", "api.github.com:443", True),
        ("api.github.com:443", "API.GitHub.com:443", True),
        ("API.github.com:443", "api.github.com.:443", True),
        ("api.github.com:443", "api.github.com:80", False),
        ("api.github.com:443", "github.com:443", False),
        ("github.com:443", "api.github.com:443", False),
        ("github.com:443", "evilgithub.com:443", False),
        ("github.com:443", "github.com.evil.org:443", False),
        ("*.example.com:443", "a.example.com:443", True),
        ("*.example.com:443", "a.b.example.com:443", True),
        ("*.example.com:443", "example.com:443", False),
        ("*.example.com:443", "evilexample.com:443", False),
        ("*.example.com:443", "a.example.com:444", False),
        ("10.0.0.5:5432", "10.0.0.5:5432", True),
        ("10.0.0.5:5432", "10.0.0.6:5432", False),
        ("[::1]:80", "[0:0:0:0:0:0:0:1]:80", True),
        ("example.com:443", "93.184.216.34:443", False),
    ],
)
def test_only_what_is_named_is_allowed(entry: str, target: str, answer: bool) -> None:
    assert allowed([entry], target) is answer


def test_without_entries_nothing_is_allowed() -> None:
    assert not allowed([], "example.com:443")


@pytest.mark.parametrize("entry", ["example.com", "example.com:", "example.com:0", "example.com:65536", "*:443", "*.10.0.0.1:80", "a b:1", "http://a:1", "a/b:1", "user@a:1", "a..b:1", "::1:80", "[a]:80", "*.*.a:1", ":80", "é.com:1", "[fe80::1%eth0]:80"])  # fmt: skip
def test_entries_that_are_none_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Rules([entry])


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254",
    "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "::127.0.0.1",
])  # fmt: skip
def test_addresses_of_machines_and_networks_around_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "140.82.121.6", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses())
def test_an_address_that_wraps_another_is_not_more_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if isinstance(address, ipaddress.IPv4Address) and not is_public(address):
        for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
            assert not is_public(ipaddress.ip_address(wrapped))


def test_an_address_that_is_not_public_must_be_an_entry_itself() -> None:
    rules = Rules(["db.internal:5432", "10.0.0.5:5432"])
    assert rules.reachable(ipaddress.ip_address("10.0.0.5"), 5432)
    assert not rules.reachable(ipaddress.ip_address("10.0.0.5"), 22)
    assert not rules.reachable(ipaddress.ip_address("10.0.0.6"), 5432)
    assert rules.reachable(ipaddress.ip_address("8.8.8.8"), 1)


class TestRequests:
    def test_connect_is_a_tunnel(self) -> None:
        request = parse_request(b"CONNECT Example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (str(request.target), request.onward) == ("example.com:443", None)

    def test_a_plain_request_goes_on_in_origin_form_with_its_own_host(self) -> None:
        request = parse_request(
            b"POST http://example.com/a%2Fb?c=d HTTP/1.1\r\nHost: other\r\nProxy-Authorization: x\r\n"
            b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nAccept: */*\r\nContent-Length: 3\r\n\r\n"
        )
        assert str(request.target) == "example.com:80"
        assert request.onward == (
            b"POST /a%2Fb?c=d HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\nContent-Length: 3\r\n"
            b"Connection: close\r\n\r\n"
        )

    def test_the_port_of_an_address_counts(self) -> None:
        request = parse_request(b"GET http://[2606:4700::1111]:8080 HTTP/1.0\r\n\r\n")
        assert str(request.target) == "[2606:4700::1111]:8080"
        assert request.onward is not None
        assert request.onward.startswith(b"GET / HTTP/1.1\r\nHost: [2606:4700::1111]:8080\r\n")

    @pytest.mark.parametrize("head", [
        b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET https://a.com/ HTTP/1.1\r\n\r\n", b"CONNECT a.com HTTP/1.1\r\n\r\n",
        b"CONNECT http://a.com:80/ HTTP/1.1\r\n\r\n", b"GET http://user@a.com/ HTTP/1.1\r\n\r\n", b"GET http:///x HTTP/1.1\r\n\r\n",
        b"GET http://a.com/ HTTP/2\r\n\r\n", b"GET http://a.com/ HTTP/1.1\r\nno header\r\n\r\n", b"\x16\x03\x01\r\n\r\n",
        b"GET http://a.com/ HTTP/1.1\r\nA: b\nC: d\r\n\r\n", b"GET http://a.com/ HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET http://a.com/ HTTP/1.1\r\nA : b\r\n\r\n", b"GET http://a.com:99999/ HTTP/1.1\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\n\r\n",
    ])  # fmt: skip
    def test_everything_else_is_refused(self, head: bytes) -> None:
        with pytest.raises(Problem) as refusal:
            parse_request(head)
        assert refusal.value.kind == "invalid-request"


class TestTheProxyOfTheMachine:
    def test_there_is_none_by_default(self) -> None:
        assert outside_proxy({}) is None
        assert outside_proxy({"HTTPS_PROXY": ""}) is None

    def test_it_is_read_with_its_user_and_exceptions(self) -> None:
        proxy = outside_proxy(
            {"HTTPS_PROXY": "http://me:p%40ss@proxy.local:3128", "NO_PROXY": "localhost, .corp.example"}
        )
        assert proxy == OutsideProxy(
            "proxy.local", 3128, False, "Basic bWU6cEBzcw==", ("localhost", "corp.example")
        )
        assert proxy.serves("example.com")
        assert not proxy.serves("git.corp.example")

    def test_lower_case_wins_and_the_scheme_may_be_left_out(self) -> None:
        proxy = outside_proxy({"HTTPS_PROXY": "http://a:1", "https_proxy": "b:2"})
        assert proxy is not None
        assert (proxy.host, proxy.port) == ("b", 2)

    def test_no_proxy_for_everything(self) -> None:
        proxy = outside_proxy({"https_proxy": "b:2", "no_proxy": "*"})
        assert proxy is not None
        assert not proxy.serves("example.com")

    @pytest.mark.parametrize("address", ["socks5://a:1", "http://a:notaport", "http://"])
    def test_what_is_no_proxy_is_refused(self, address: str) -> None:
        with pytest.raises(Problem, match="HTTPS_PROXY"):
            outside_proxy({"https_proxy": address})
