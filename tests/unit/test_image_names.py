"""Names of images in full, as Docker reads them, and the patterns of an operator's list."""

import pytest

from pilotlight.image_names import patterns, read

DIGEST = "sha256:" + "0123456789abcdef" * 4
OTHER = "sha256:" + "f" * 64


def permits(list_: str, name: str) -> bool:
    return any(pattern.permits(read(name)) for pattern in patterns(list_))


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("library/python", "docker.io/library/python:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("docker.io/library/python:3", "docker.io/library/python:3"),
        ("index.docker.io/python:3", "docker.io/library/python:3"),
        ("Docker.IO/python:3", "docker.io/library/python:3"),
        ("team/tool", "docker.io/team/tool:latest"),
        (f"python@{DIGEST}", f"docker.io/library/python@{DIGEST}"),
        (f"python:2.7@{DIGEST}", f"docker.io/library/python@{DIGEST}"),
        ("localhost/tool", "localhost/tool:latest"),
        ("localhost:5000/tool:1", "localhost:5000/tool:1"),
        ("Registry.Example.com:5000/a/b/c:V1", "registry.example.com:5000/a/b/c:V1"),
        ("10.0.0.1:5000/x", "10.0.0.1:5000/x:latest"),
        ("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest"),
        ("cafe", "docker.io/library/cafe:latest"),  # and not an image whose id begins so
        ("sha256:cafe", "docker.io/library/sha256:cafe"),
    ],
)
def test_a_name_is_read_as_docker_reads_it(name: str, full: str) -> None:
    assert str(read(name)) == full
    assert str(read(full)) == full


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Python",
        "EVIL/python",
        "python:",
        "python@",
        "python@sha256:abc",
        f"python@{DIGEST}@{DIGEST}",
        f"python@{DIGEST.upper()}",
        "python:3:4",
        "python:-3",
        "python:" + "x" * 129,
        "/python",
        "python/",
        "a//b",
        "a/../b",
        ".a",
        "a..b",
        "a___b",
        "http://python",
        "user@registry.example.com/x",
        "registry.example.com:/x",
        "registry..example.com/x",
        "-a.example.com/x",
        "[::1]:5000/x",
        "python 3",
        "python\n",
        "p\u0443thon",
        "\uff50ython",
        "python*",
        "a/" * 150 + "a",
        "f" * 64,
        DIGEST,
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not|is an id|is longer"):
        read(name)


@pytest.mark.parametrize(
    ("list_", "name"),
    [
        ("python", "python"),
        ("python", "docker.io/library/python:3.12"),
        ("python", f"python@{DIGEST}"),
        ("python:*", f"python:2.7@{DIGEST}"),
        ("python:3.*", "index.docker.io/library/python:3.12-slim"),
        (f"python@{DIGEST}", f"python:3.12@{DIGEST}"),
        ("python*", "python-slim:1"),
        ("library/*", "debian:12"),
        ("team/*", "docker.io/team/tool:1"),
        ("Registry.example.com:5000/team/*", "registry.example.com:5000/team/tool:1"),
        ("registry.example.com/**", "registry.example.com/a/b/c"),
        ("registry.example.com/a/**:1", "registry.example.com/a/b/c:1"),
        ("docker.io/**", "team/tool"),
        ("docker.io/*", "python"),
        ("**", "registry.example.com:5000/x@" + DIGEST),
        ("node, python:3 ,debian", "python:3"),
    ],
)
def test_what_an_operator_permits(list_: str, name: str) -> None:
    assert permits(list_, name)


@pytest.mark.parametrize(
    ("list_", "name"),
    [
        ("", "python"),
        ("python", "python-evil"),
        ("python", "python/evil"),
        ("python", "evil/python"),
        ("python", "evil.example.com/python"),
        ("python", "evil.example.com/library/python"),
        ("python*", "python-evil/python"),
        ("python*", "evil.example.com/python"),
        ("python:3", "python:3.12"),
        ("python:3", "python"),
        ("python:3.*", "python:3x12"),
        ("python:3.*", f"python:3.12@{DIGEST}"),  # the tag there says nothing of what is pulled
        ("python:latest", f"python@{DIGEST}"),
        (f"python@{DIGEST}", "python"),
        (f"python@{DIGEST}", f"python@{OTHER}"),
        ("library/*", "team/tool"),
        ("docker.io/*", "team/tool"),
        ("team/*", "team/tool/evil"),
        ("team/*", "registry.example.com/team/tool"),
        ("registry.example.com/team/*", "registry.example.com:5000/team/tool"),
        ("registry.example.com/team/*", "registry.example.com.evil.example/team/tool"),
        ("registry.example.com/**", "registry.example.comx/a"),
        ("registry.example.com/a.c", "registry.example.com/abc"),
        ("registry.example.com/**", "registry-example.com/a"),
    ],
)
def test_what_no_pattern_permits(list_: str, name: str) -> None:
    assert not permits(list_, name)


@pytest.mark.parametrize(
    ("list_", "why"),
    [
        ("*", "too much"),
        ("*:3", "too much"),
        ("**:3", "too much"),
        ("team*/tool", "last part"),
        ("*.example.com/team/tool", "last part"),
        ("*/tool", "last part"),
        ("a/**/b", "last part"),
        ("python**", "no pattern"),
        ("Python", "no pattern"),
        ("python,", "no pattern"),
        ("https://registry.example.com/x", "no pattern"),
        ("python node", "no pattern"),
        ("python:", "behind the name"),
        (f"python:3@{DIGEST}", "behind the name"),
        ("python@sha256:*", "behind the name"),
        ("python@", "behind the name"),
    ],
)
def test_a_pattern_that_is_none_or_could_mean_too_much_is_refused(list_: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        patterns(list_)
