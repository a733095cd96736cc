"""What the tests of stores share: a Redis of a module's own, and a clock."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock import Clock
from tests.support.redis_server import RedisServer, running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        yield server
