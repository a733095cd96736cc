"""Walking and removing trees that strangers made."""

import os
from pathlib import Path

import pytest

from pilotlight import trees


def deep(top: Path, levels: int) -> None:
    """Make folders in one another, deeper than any path can be."""
    top.mkdir()
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(top)
        for _ in range(levels):
            Path("file").write_text("x")
            Path("d").mkdir()
            os.chdir("d")
    finally:
        os.fchdir(here)
        os.close(here)


def test_a_tree_of_any_depth_is_walked_and_removed(tmp_path: Path) -> None:
    deep(tmp_path / "top", 3000)
    walked = [len(path) for _, path, _ in trees.walk(tmp_path / "top")]
    assert walked == list(range(3001))
    trees.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_each_folder_comes_once_before_what_is_in_it(tmp_path: Path) -> None:
    for path in ("a/b/c", "a/d", "e"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "a/file").write_text("x")
    seen = {"/".join(path): sorted(names) for _, path, names in trees.walk(tmp_path)}
    assert seen == {"": ["a", "e"], "a": ["b", "d", "file"], "a/b": ["c"], "a/b/c": [], "a/d": [], "e": []}
    assert next(iter(seen)) == ""
    assert list(seen).index("a") < list(seen).index("a/b") < list(seen).index("a/b/c")


def test_links_are_neither_followed_nor_is_what_they_lead_to_removed(tmp_path: Path) -> None:
    (tmp_path / "outside/inner").mkdir(parents=True)
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to("../outside")
    (tmp_path / "top/loop").symlink_to(".")
    assert len(list(trees.walk(tmp_path / "top"))) == 1
    trees.remove(tmp_path / "top")
    assert (tmp_path / "outside/inner").is_dir()
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(OSError, match="Not a directory"):
        list(trees.walk(tmp_path / "link"))
    trees.remove(tmp_path / "link")
    assert (tmp_path / "outside/inner").is_dir()


def test_permissions_that_were_taken_away_do_not_keep_a_tree(tmp_path: Path) -> None:
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/a/b/file").write_text("x")
    for path in ("top/a/b/file", "top/a/b", "top/a", "top"):
        (tmp_path / path).chmod(0)
    trees.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_moved_away_meanwhile_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "top/a/b").mkdir(parents=True)
    walk = trees.walk(tmp_path / "top")
    while next(walk)[1] != ["a", "b"]:
        pass
    (tmp_path / "top/a/b").rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="changed while it was walked"):
        next(walk)


def test_folders_that_are_removed_meanwhile_are_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name / "inner").mkdir(parents=True)
    walked = []
    for _, path, _ in trees.walk(tmp_path):
        walked.append("/".join(path))
        if len(path) == 1 and len(walked) == 2:
            trees.remove(next(tmp_path / name for name in ("a", "b", "c") if name not in walked))
    assert len(walked) == 5


def test_no_descriptor_is_left_however_it_ends(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _, path, _ in trees.walk(tmp_path):
        if path:
            break
    walk = trees.walk(tmp_path)
    next(walk)
    walk.close()
    with pytest.raises(FileNotFoundError):
        list(trees.walk(tmp_path / "missing"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
