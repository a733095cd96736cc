"""One platform for all tests of a module, started as a user does it."""

import pytest

from tests.support.platform import Up


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with Up(tmp_path_factory.mktemp("acceptance") / "platform") as up:
        yield up
