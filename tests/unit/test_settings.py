"""What an operator can set: how it is read, and that a bad value is refused with its name and a remedy."""

import pytest

from pilotlight.problems import Problem
from pilotlight.settings import Settings


def test_flags_win_over_the_environment_and_that_over_the_default():
    environ = {"PILOTLIGHT_KEEP_ALIVE_THRIFT": "1.25", "PILOTLIGHT_SNAPSHOT_MEMORY": "256MB"}
    found = Settings.load(environ, {"keep_alive_thrift": "0.5", "snapshot_memory": None})
    assert (found.keep_alive_thrift, found.snapshot_memory, found.queue) == (0.5, 256 << 20, 1000)


def test_services_read_what_was_set():
    found = Settings.load({"PILOTLIGHT_KEEP_ALIVE_THRIFT": "1.25"})
    assert Settings.load(found.environment()) == found


@pytest.mark.parametrize("text", ["much", "-1", "0", "nan", "1000", "1e3", ""])
def test_a_thrift_that_is_none_is_refused(text):
    with pytest.raises(Problem, match=r"--keep-alive-thrift: .* is not a number from 0\.05 to 20"):
        Settings.load({}, {"keep_alive_thrift": text})


@pytest.mark.parametrize(
    "url",
    [
        *(f"redis://me:left{odd}right@127.0.0.1:6379/0" for odd in "/?#["),
        "redis://me:123/right@127.0.0.1:6379/0",  # what stands before the slash reads as a port
        "redis://me:right@127.0.0.1:99999/0",
        "redis://me:right@127.0.0.1:6379/zero",
        "redis://127.0.0.1:6379/0?password=right",
        "redis://me:right@127.0.0.1:6379/0?decode_responses=yes",
        "redis://me:right@one,other/0",
        *(f"redis+sentinel://me:right@127.0.0.1:26379{odd}" for odd in ("", "/", "/pilot/zero", "/a/0?db=1")),
        "redis+cluster://me:right@127.0.0.1:6379,,127.0.0.2:6379",
        "redis+cluster://me:right@127.0.0.1:6379?sentinel_password=right",
        "unix://?db=1",
    ],
)
def test_an_address_of_redis_that_is_odd_is_refused_and_its_password_is_not_shown(url: str) -> None:
    with pytest.raises(Problem, match="neither sqlite nor like") as refusal:
        Settings.load({"PILOTLIGHT_STORE": url})
    assert "right" not in refusal.value.detail


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://me:a%2F%40b@127.0.0.1:6379/3",
        "rediss://redis.example.com:6380/0?ssl_ca_certs=/etc/ssl/own.pem",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://me:a%2F%40b@one:26379,[::1]:26380,three/my.master-1/2?sentinel_password=a%26b",
        "rediss+sentinel://one/pilot?ssl_check_hostname=no",
        "redis+cluster://me:a%2F%40b@one,other:7000",
        "rediss+cluster://one:6379/0?ssl_ca_certs=/etc/ssl/own.pem",
    ],
)
def test_addresses_of_redis(url: str) -> None:
    assert Settings.load({"PILOTLIGHT_STORE": url}).store == url


def test_a_cluster_of_redis_has_one_database() -> None:
    with pytest.raises(Problem, match="a Cluster has database 0 only"):
        Settings.load({"PILOTLIGHT_STORE": "redis+cluster://127.0.0.1:6379/1"})
