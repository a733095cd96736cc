"""What dockerd gets to build from: the function's own files, without those that .dockerignore names."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from function_service.engines.docker import context
from pilotlight.problems import Problem


def packed(folder: Path) -> dict[str, tarfile.TarInfo]:
    file = io.BytesIO()
    context.pack(folder, "FROM scratch\n", file)
    with tarfile.open(fileobj=file) as tar:
        return {entry.name: entry for entry in tar.getmembers()}


def test_files_folders_and_links_are_sent_as_roots(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/run").write_text("x")
    (tmp_path / "a/b/run").chmod(0o755)
    (tmp_path / "link").symlink_to("a/b/run")
    found = packed(tmp_path)
    assert found["a/b/run"].mode == 0o755
    assert found["link"].linkname == "a/b/run"
    assert {entry.uid for entry in found.values()} == {0}


@pytest.mark.parametrize(
    ("pattern", "ignored"),
    [
        ("x", {"x", "x/y", "x/y.log"}),
        ("/x/", {"x", "x/y", "x/y.log"}),
        ("*.log", {"z.log"}),
        ("**/*.log", {"z.log", "x/y.log", "d/e/f.log"}),
        ("*/y*", {"x/y", "x/y.log"}),
        ("d/**", {"d", "d/e", "d/e/f.log"}),
        ("d/**\n!d/e/f.log", {"d", "d/e"}),
        ("# x\n\n!x", set()),
        ("[w-z]", {"x", "x/y", "x/y.log"}),
        ("[^x].log", {"z.log"}),
        ("../x", set()),
        (".", set()),
        ("**", {"x", "x/y", "x/y.log", "z.log", "d", "d/e", "d/e/f.log"}),
    ],
)
def test_what_dockerignore_names_is_left_out(pattern, ignored):
    paths = ["x", "x/y", "x/y.log", "z.log", "d", "d/e", "d/e/f.log"]
    found = context.Ignored(pattern)
    assert {path for path in paths if tuple(path.split("/")) in found} == ignored


def test_a_pattern_cannot_take_long():
    long = "/".join(["**", "a*a*a*a*a*a*a*b"] * 20)
    assert tuple(["a" * 250] * 40) not in context.Ignored(long)
    with pytest.raises(Problem, match="more than 200"):
        context.Ignored("x\n" * 201)


def test_the_folder_of_somebody_who_names_files_as_ours_is_told_nothing(tmp_path):
    (tmp_path / context.WRITTEN).write_text("FROM other\n")
    (tmp_path / ".dockerignore").write_text("secret\n")
    (tmp_path / "secret").write_text("x")
    found = packed(tmp_path)
    assert found[context.WRITTEN].size == len("FROM scratch\n")
    assert "secret" not in found


def test_no_link_is_followed_and_nothing_of_others_is_sent(tmp_path):
    (tmp_path / "Dockerfile").symlink_to("/etc/passwd")
    with pytest.raises(Problem, match="no link"):
        context.recipe(tmp_path)
    (tmp_path / "Dockerfile").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Problem, match="pipe is not a file"):
        packed(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="it is not root that tests")
def test_a_hard_link_to_a_file_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "shadow").write_text("root's")
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(Problem, match="shadow is not a file of this function's own"):
        packed(tmp_path)
