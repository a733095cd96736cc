"""What an address of a Redis means, and how it is shown."""

import pytest

from pilotlight.redis_address import Address, parse


def test_the_address_of_sentinels_is_taken_apart() -> None:
    url = "rediss+sentinel://me:a%2Fb@one,[::1]:7/pilot/2?ssl_ca_certs=own.pem&sentinel_username=you&sentinel_password=a%26b"
    assert parse(url) == Address(
        "sentinel",
        (("one", 26379), ("::1", 7)),
        "rediss://me:a%2Fb@one/2?ssl_ca_certs=own.pem",
        "one:26379,[::1]:7/pilot/2",
        "pilot",
        {"username": "you", "password": "a&b"},
    )


def test_the_address_of_a_cluster_is_taken_apart() -> None:
    assert parse("redis+cluster://me:a%2Fb@one:7000,other") == Address(
        "cluster", (("one", 7000), ("other", 6379)), "redis://me:a%2Fb@one:7000/0?", "one:7000,other:6379"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:secret@one", "one:6379"),
        ("rediss://me:secret@one:7/3?ssl_ca_certs=own.pem", "one:7/3"),
        ("unix://me:secret@/run/redis.sock?db=1", "/run/redis.sock"),
        ("redis+sentinel://me:secret@one/pilot?sentinel_password=secret", "one:26379/pilot"),
        ("redis+cluster://me:secret@one", "one:6379"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert parse(url).shown == shown


@pytest.mark.parametrize(
    "url", ["", "secret", "redis:secret", "http://secret", "redis://secret:secret@", "redis://a:b@[secret"]
)
def test_what_is_no_address_is_not_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"odd|no such") as refusal:
        parse(url)
    assert "secret" not in str(refusal.value)
