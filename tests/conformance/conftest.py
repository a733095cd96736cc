"""What the tests of stores share: a Redis of a module's own, others for all modules, and a clock."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import redis_groups, redis_server
from tests.support.clock import Clock
from tests.support.redis_groups import Cluster, Sentinels
from tests.support.redis_server import RedisServer, running

_NEVER = 3600.0  # seconds: a machine that is busy is not dead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def oldest_redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), redis_server.oldest()) as server:
        yield server


@pytest.fixture(scope="session")
def sentinels() -> Iterator[Sentinels]:
    with redis_groups.sentinels(dead_after=_NEVER) as group:
        yield group


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with redis_groups.cluster(dead_after=_NEVER) as group:
        yield group
