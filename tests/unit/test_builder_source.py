"""What of a commit is written, and what is refused: listings that git itself would never make, too."""

import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from builder.limits import Limits
from builder.source import Commit, extract
from pilotlight.problems import Problem


class Repository:
    """A bare repository whose trees are made by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q", "--bare", str(folder))

    def git(self, *arguments: str, given: bytes = b"") -> str:
        environment = {
            "PATH": os.environ["PATH"],
            **{f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        done = subprocess.run(
            ["git", f"--git-dir={self.folder}", *arguments]
            if arguments[0] != "init"
            else ["git", *arguments],
            input=given,
            env=environment,
            capture_output=True,
            check=True,
        )
        return done.stdout.decode().strip()

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", given=content)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """Write a tree object as it stands, however wrong: mode, name, object."""
        raw = b"".join(f"{mode} {name}".encode() + b"\0" + bytes.fromhex(at) for mode, name, at in entries)
        return self.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", given=raw)

    def commit(self, tree: str) -> Commit:
        commit = self.git("commit-tree", "-m", "x", tree)
        return Commit(("git", f"--git-dir={self.folder}"), {"PATH": os.environ["PATH"]}, commit)


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "r.git")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def refused(commit: Commit, out: Path, limits: Limits | None = None) -> str:
    with pytest.raises(Problem) as caught:
        extract(commit, out, limits or Limits(), threading.Event())
    assert caught.value.kind == "build-failed"
    return caught.value.detail


def test_files_are_written_with_their_bit_and_nothing_else(repository, out):
    blob = repository.blob(b"hi")
    sub = repository.tree(("100755", "run", blob))
    tree = repository.tree(("100644", "a", blob), ("40000", "sub", sub), ("100644", "pilotlight.toml", blob))
    made = extract(repository.commit(tree), out, Limits(), threading.Event())
    assert made.manifest == b"hi"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == ["a", "sub", "sub/run"]
    assert (out / "sub/run").stat().st_mode & 0o7777 == 0o755
    assert (out / "a").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize(
    "name", ["..", ".git", ".GIT", ".Git.", "git~1", ".", "a\N{RIGHT-TO-LEFT OVERRIDE}b"]
)
def test_a_name_that_is_not_safe_is_refused(repository, out, name):
    inner = repository.tree(("100644", "x", repository.blob(b"")))
    assert "has a name that is not safe" in refused(
        repository.commit(repository.tree(("40000", name, inner))), out
    )
    assert not out.exists()


def test_a_slash_within_a_name_leads_nowhere(repository, out):
    blob = repository.blob(b"")
    assert "not safe" in refused(repository.commit(repository.tree(("100644", "../../evil", blob))), out)
    assert "not safe" in refused(repository.commit(repository.tree(("100644", "/etc/evil", blob))), out)


def test_a_name_that_is_not_utf8_is_refused(repository, out):
    blob = repository.blob(b"")
    raw = b"100644 \xff\0" + bytes.fromhex(blob)
    tree = repository.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", given=raw)
    assert "is not UTF-8. Rename it." in refused(repository.commit(tree), out)


def test_a_link_and_a_folder_of_one_name_cant_lead_a_file_out(repository, out, tmp_path):
    target = repository.blob(str(tmp_path).encode())
    inner = repository.tree(("100644", "evil", repository.blob(b"x")))
    tree = repository.tree(("120000", "a", target), ("40000", "a", inner))
    assert refused(repository.commit(tree), out) == "'a' stands in the commit twice. Make the commit anew."
    assert not (tmp_path / "evil").exists()


def test_a_link_with_a_long_target_is_refused(repository, out):
    tree = repository.tree(("120000", "a", repository.blob(b"x" * 5000)))
    assert "target that is too long" in refused(repository.commit(tree), out)


def test_many_mistakes_of_one_kind_are_not_all_listed(repository, out):
    blob = repository.blob(b"12345")
    tree = repository.tree(*(("100644", f"f{n:02}", blob) for n in range(25)))
    lines = refused(repository.commit(tree), out, replace(Limits(), file=4)).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "The same holds for 5 more."


def test_a_tree_that_blows_up_is_refused_while_it_is_listed(repository, out):
    """Ten folders of ten, ten deep: a listing of 10^10 lines, made of eleven small objects."""
    tree = repository.tree(("100644", "x", repository.blob(b"")))
    for _ in range(10):
        tree = repository.tree(*(("40000", f"d{n}", tree) for n in range(10)))
    assert refused(repository.commit(tree), out).startswith("The commit has more than 20000 files.")


def test_it_stops_when_it_is_told_to(repository, out):
    tree = repository.tree(("100644", "a", repository.blob(b"x")))
    stop = threading.Event()
    stop.set()
    made = extract(repository.commit(tree), out, Limits(), stop)
    assert made.files == {}


def test_the_digest_of_a_folder_is_that_of_its_content(repository, tmp_path):
    blob = repository.blob(b"x")
    same = repository.tree(("100644", "f", blob))
    other = repository.tree(("100755", "f", blob))
    tree = repository.tree(("40000", "a", same), ("40000", "ab", same), ("40000", "c", other))
    made = extract(repository.commit(tree), tmp_path / "o", Limits(), threading.Event())
    assert made.digest("a") == made.digest("ab") != made.digest("c")
    assert made.digest(".") not in {made.digest("a"), made.digest("c")}
