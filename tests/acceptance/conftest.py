"""One platform for all tests of a module, started as a user does it; at the end nothing may be left of it."""

import pytest

from tests.support.platform import Up, family, left_behind


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    flags = ("--max-body", "1MB")
    with Up(tmp_path_factory.mktemp("acceptance") / "platform", flags) as up:
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []
        assert list(up.data.builds.iterdir()) == []
