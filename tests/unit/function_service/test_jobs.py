"""What surrounds a build: giving its folders away and back, and measuring what it writes."""

import os
from pathlib import Path

import pytest

from function_service.engines.embedded import jobs


def tree(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "inner/deeper").mkdir(parents=True)
    (top / "inner/file").write_text("x")
    (top / "inner/link").symlink_to(tmp_path / "outside")
    return top


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_everything_is_given_and_taken_back(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("not this")
    top = tree(tmp_path)
    everything = (top, *top.rglob("*"))
    jobs.give([top], 1234, of={0})
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in everything} == {(1234, 1234)}
    assert (tmp_path / "outside").stat().st_uid == 0
    jobs.give([top], 77, of=range(1000, 2000))
    assert {p.lstat().st_uid for p in everything} == {77}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_what_belongs_to_somebody_else_stays_theirs(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    top = tree(tmp_path)
    os.chown(top, 1234, 1234)
    os.chown(top / "inner/file", 1234, 1234)
    os.link(tmp_path / "outside", top / "hard")
    jobs.give([top], 99, of={1234})
    assert (top.stat().st_uid, (top / "inner/file").stat().st_uid) == (99, 99)
    assert ((top / "inner").stat().st_uid, (tmp_path / "outside").stat().st_uid) == (0, 0)


def test_everything_that_takes_room_counts(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    before = jobs.size([top], 1 << 40)
    (top / "file").write_bytes(b"x" * 100_000)
    assert jobs.size([top], 1 << 40) - before >= 100_000
    for number in range(10):
        (top / f"empty-{number}").touch()
        (top / f"link-{number}").symlink_to("/nowhere")
        (top / f"folder-{number}").mkdir()
    assert jobs.size([top], 1 << 40) - before >= 130_000


def test_links_out_of_a_folder_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/big").write_bytes(b"x" * 1_000_000)
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to("../outside")
    assert jobs.size([tmp_path / "top"], 1 << 40) < 100_000


def test_folders_that_are_too_deep_to_be_measured_are_told(tmp_path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    (tmp_path / "top").mkdir()
    os.chdir(tmp_path / "top")
    try:
        for _ in range(30):
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        with pytest.raises(OSError, match="too long"):
            jobs.size([tmp_path / "top"], 1 << 40)
    finally:
        os.fchdir(here)
        os.close(here)
