"""Which interpreters outside of the system's folders are taken, told from their files alone."""

import re
import shutil
from pathlib import Path

import pytest

from runtimes import places

PYTHON = re.compile(r"python3\.(\d+)")
PROGRAM = Path("/bin/true").resolve()


@pytest.fixture(autouse=True)
def only_here(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(places, "_COVERED", ("/proc",))


def install(prefix: Path, version: str = "3.12") -> tuple[Path, Path, Path]:
    """Make what looks like an installation; return executable, prefix and library, as `usable` takes them."""
    executable, library = prefix / f"bin/python{version}", prefix / f"lib/python{version}/asyncio/__init__.py"
    for path in (executable, library):
        path.parent.mkdir(parents=True)
    shutil.copy(PROGRAM, executable)
    library.touch()
    return executable, prefix, library


def found(*patterns: str) -> list[str]:
    return [str(path) for path, _ in places.installed(PYTHON, patterns)]


def test_path_comes_first_and_then_each_place_with_its_highest_version(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for version in ("3.12.9", "3.12.10", "3.9.1"):
        install(home / ".pyenv/versions" / version, version.rpartition(".")[0])
    own = install(tmp_path / "own")[0]
    monkeypatch.setenv("PATH", f"relative:/nonexistent:{own.parent}:{home}/.pyenv/versions/3.9.1/bin")
    assert found("~/.pyenv/versions/*/bin", "/nonexistent/*/bin") == [
        str(own),
        str(home / ".pyenv/versions/3.9.1/bin/python3.9"),
        str(home / ".pyenv/versions/3.12.10/bin/python3.12"),
        str(home / ".pyenv/versions/3.12.9/bin/python3.12"),
    ]


def test_links_count_as_what_they_lead_to(tmp_path, monkeypatch):
    executable, prefix, _ = install(tmp_path / "real")
    links = tmp_path / "links"
    links.mkdir()
    (links / "python3.12").symlink_to(executable)
    (links / "python3.11").symlink_to("/bin/sh")  # as a manager's shim may be
    (links / "python3.10").symlink_to("nowhere/x")
    monkeypatch.setenv("PATH", str(links))
    assert list(places.installed(PYTHON, ())) == [(executable, prefix)]


def test_a_program_is_known_wherever_its_linker_has_put_what_it_says(tmp_path):
    installation = install(tmp_path / "opt/python")
    program = bytearray(installation[0].read_bytes())
    loader = program.index(b"/ld-linux")
    begin = program.rindex(b"\0", 0, loader)
    program[begin] = 1  # the byte before the loader's path is anybody's; Debian 13 has the build's id there
    installation[0].write_bytes(program)
    assert places.usable(*installation)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!/bin/sh\n",
        b"\x7fELF\x02\x01",
        b"\x7fELF\x02\x01" + bytes(200),
        b"\x7fELF\x02\x01" + b"\xff" * 200,
    ],
)
def test_what_is_no_program_is_not_usable(tmp_path, content):
    installation = install(tmp_path / "opt/python")
    installation[0].write_bytes(content)
    assert not places.usable(*installation)


def test_a_whole_installation_that_everybody_may_read_is_usable(tmp_path):
    installation = install(tmp_path / "opt/python")
    assert places.usable(*installation)
    tmp_path.chmod(0o700)  # what lies above does not matter: the folder is mounted
    assert places.usable(*installation)


@pytest.mark.parametrize(
    "part", ["", "bin", "bin/python3.12", "lib", "lib/python3.12", "lib/python3.12/asyncio"]
)
def test_what_others_may_not_read_is_not(tmp_path, part):
    executable, prefix, library = install(tmp_path / "opt/python")
    (prefix / part).chmod(0o750)
    assert not places.usable(executable, prefix, library)


def test_what_lacks_its_library_is_not(tmp_path):
    executable, prefix, library = install(tmp_path / "opt/python")
    library.unlink()
    assert not places.usable(executable, prefix, library)


@pytest.mark.parametrize(
    "content", [b"#!/bin/sh\n", b"\x7fELF\0/nix/store/x-glibc/lib/ld-linux.so.2\0", b"\x7fELF", b""]
)
def test_scripts_and_programs_of_another_system_are_not(tmp_path, content):
    executable, prefix, library = install(tmp_path / "opt/python")
    executable.write_bytes(content)
    assert not places.usable(executable, prefix, library)


def test_what_would_show_a_home_or_lie_under_what_sandboxes_cover_is_not(tmp_path, monkeypatch):
    assert not places.usable(*install(tmp_path / "home"))
    monkeypatch.setattr(places, "_COVERED", (str(tmp_path / "covered"),))
    assert not places.usable(*install(tmp_path / "covered/python"))
    assert places.usable(*install(tmp_path / "home/python"))


def test_only_what_is_not_in_the_systems_folders_is_mounted(tmp_path):
    assert places.folder_of(Path("/usr/local/python/3.12")) is None
    assert places.folder_of(tmp_path) == str(tmp_path)


def test_a_user_without_a_home_has_none_of_its_own(monkeypatch, tmp_path):
    def nobody(_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    assert found("~/.pyenv/versions/*/bin") == []
    assert places.usable(*install(tmp_path / "opt/python"))


def test_node_is_found_by_its_header(monkeypatch, tmp_path):
    from runtimes.node import declaration

    monkeypatch.setattr(declaration, "_PLACES", ())
    for version in ("16.20.0", "22.9.0", "24.1.0"):
        prefix = tmp_path / "home/.nvm/versions/node" / f"v{version}"
        for folder in ("bin", "include/node"):
            (prefix / folder).mkdir(parents=True)
        shutil.copy(PROGRAM, prefix / "bin/node")
        major = version.partition(".")[0]
        (prefix / "include/node/node_version.h").write_text(f"#define NODE_MAJOR_VERSION {major}\n")
    assert [(i.name, i.folder) for i in declaration.find.__wrapped__()] == [
        ("node24", str(tmp_path / "home/.nvm/versions/node/v24.1.0")),
        ("node22", str(tmp_path / "home/.nvm/versions/node/v22.9.0")),
    ]


def test_python_is_found_once_for_each_version(monkeypatch, tmp_path):
    from runtimes.python import declaration

    monkeypatch.setattr(declaration, "_PLACES", ())
    for version in ("3.8.20", "3.12.9", "3.12.10", "3.13.0"):
        install(
            tmp_path / "home/.local/share/uv/python" / f"cpython-{version}-linux", version.rpartition(".")[0]
        )
    here = tmp_path / "home/.local/share/uv/python"
    mine = [i for i in declaration.find.__wrapped__() if i.folder and Path(i.folder).is_relative_to(here)]
    assert {(i.name, Path(i.folder).name) for i in mine} == {
        ("python3.12", "cpython-3.12.10-linux"),
        ("python3.13", "cpython-3.13.0-linux"),
    }
