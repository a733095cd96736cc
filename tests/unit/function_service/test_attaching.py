"""What both engines do to bring code into a sandbox, without one."""

import os
from pathlib import Path

import pytest

from function_service.engines import attaching
from function_service.engines.embedded import syscalls


def opened() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_where_a_tree_is_missing_none_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "open_tree", lambda path: os.open(path, os.O_PATH))
    monkeypatch.setattr(syscalls, "set_mount_attributes", lambda *_: None)
    before = opened()
    trees = [(tmp_path, "/function", False), (tmp_path / "gone", "/dependencies", False)]
    with pytest.raises(FileNotFoundError), attaching.opened(trees):
        pass
    assert opened() == before
    with attaching.opened(trees[:1]) as descriptors:
        assert len(descriptors) == 1
    assert opened() == before
