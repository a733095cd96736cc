"""What pilotlight.toml means, and what is said about a wrong one."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.limits import Limits
from builder.manifest import KEYS, is_destination, parse
from function_service.contract import Access, FunctionConfig
from pilotlight.problems import Problem

DOCUMENT = Path(__file__).parents[2] / "docs" / "MANIFEST.md"


def refused(text: str) -> list[str]:
    with pytest.raises(Problem) as caught:
        parse(text.encode())
    assert caught.value.kind == "build-failed"
    return [line.strip() for line in caught.value.detail.splitlines()]


def test_the_manifest_of_the_contract_is_understood():
    functions = parse(
        b"""
        [functions.thumbnail]
        path = "thumbnail"
        runtime = "python"
        handler = "handler:handle"
        memory = "128MB"
        cpu = 0.25
        timeout = "10s"
        concurrency = 1
        min_instances = 0
        max_instances = 20
        keep_alive = "auto"
        access = "public"
        egress = ["api.github.com:443"]
        env = { LEVEL = "info" }
        secrets = ["GITHUB_TOKEN"]
        """
    )
    thumbnail = functions["thumbnail"]
    assert (thumbnail.path, thumbnail.runtime, thumbnail.handler) == ("thumbnail", "python", "handler:handle")
    config = FunctionConfig(
        name="thumbnail", runtime="python3.11", handler="handler:handle", **thumbnail.values
    )
    assert config == FunctionConfig(
        name="thumbnail",
        runtime="python3.11",
        handler="handler:handle",
        access=Access.PUBLIC,
        egress=("api.github.com:443",),
        env={"LEVEL": "info"},
        secrets=("GITHUB_TOKEN",),
    )


def test_an_empty_manifest_names_nothing():
    assert parse(b"") == {}


def test_what_is_not_said_keeps_its_default():
    (function,) = parse(b"[functions.a]").values()
    assert (function.path, function.runtime, function.handler, function.values) == (None, None, None, {})


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("memory = 128", "functions.a.memory = 128: expected a size from 16MB to 16GB, in quotes."),
        ('memory = "1KB"', 'functions.a.memory = "1KB": expected a size from 16MB to 16GB, in quotes.'),
        ("cpu = true", "functions.a.cpu = true: expected a number of cores from 0.05 to 64."),
        ("cpu = nan", "functions.a.cpu = nan: expected a number of cores from 0.05 to 64."),
        (
            'timeout = "10"',
            'functions.a.timeout = "10": expected a duration from 100ms to 1h, such as "10s".',
        ),
        ("concurrency = 0", "functions.a.concurrency = 0: expected a whole number from 1 to 1000."),
        ("concurrency = 1.0", "functions.a.concurrency = 1.0: expected a whole number from 1 to 1000."),
        (
            "min_instances = 21",
            "functions.a.min_instances = 21: expected at most max_instances, which is 20.",
        ),
        (
            'keep_alive = "always"',
            'functions.a.keep_alive = "always": expected "auto" or a duration from 0s to 24h, such as "5m".',
        ),
        (
            'image = "python 3"',
            'functions.a.image = "python 3": expected the name of an image, such as "python:3.12-slim".',
        ),
        ('access = "all"', 'functions.a.access = "all": expected "key", "public" or "internal".'),
        (
            'path = "../b"',
            (
                'functions.a.path = "../b": expected a folder of this repository, relative to its root and '
                'without "..".'
            ),
        ),
        (
            'runtime = "Python 3"',
            'functions.a.runtime = "Python 3": expected a runtime such as "python", "python3.12" or "node".',
        ),
        (
            'egress = ["https://x.org"]',
            (
                "functions.a.egress = ['https://x.org']: expected a list of destinations such as "
                "[\"api.github.com:443\"]; 'https://x.org' is not host:port."
            ),
        ),
        (
            "env = { LEVEL = 1 }",
            (
                "functions.a.env = {'LEVEL': 1}: expected a table of texts such as { LEVEL = \"info\" }; the value "
                "of LEVEL is not a text, write it in quotes."
            ),
        ),
        (
            'env = { PILOTLIGHT_X = "1" }',
            (
                "functions.a.env = {'PILOTLIGHT_X': '1'}: expected a table of texts such as { LEVEL = \"info\" }; "
                "'PILOTLIGHT_X' is set by the platform."
            ),
        ),
        (
            'secrets = ["A-B"]',
            (
                "functions.a.secrets = ['A-B']: expected a list of names such as [\"GITHUB_TOKEN\"]; 'A-B' can't "
                "name an environment variable (letters, digits and _, no digit first)."
            ),
        ),
        ("timeuot = 1", "functions.a.timeuot: there is no such key. Did you mean 'timeout'?"),
    ],
)
def test_a_bad_value_is_told_with_what_was_expected(line, error):
    head, told = refused(f"[functions.a]\n{line}\n")
    assert head == "pilotlight.toml is not right:"
    assert told.startswith(error)


def test_a_name_in_env_and_secrets_is_refused():
    assert refused('[functions.a]\nenv = { X = "1" }\nsecrets = ["X"]')[1] == (
        "functions.a.secrets: 'X' stands in env too; expected it in one of them."
    )


def test_everything_wrong_is_told_at_once():
    assert len(refused('[functions.a]\nmemory = 1\ncpu = 0\n[functions.b]\naccess = ""\n[other]\n')) == 5


def test_a_function_that_is_declared_twice_is_named():
    (told,) = refused("[functions.a]\ncpu = 1\n[functions.a]\ncpu = 1\n")
    assert told == (
        "pilotlight.toml: the function 'a' is declared twice (the second time at line 3, column 13). "
        "Give one of them another name, or join them."
    )


def test_what_is_not_toml_is_told_with_its_place():
    assert refused("[functions.a\n") == [
        "pilotlight.toml is not TOML: Expected ']' at the end of a table declaration (at line 1, column 13)."
    ]
    with pytest.raises(Problem, match="not UTF-8"):
        parse(b"\xff")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ),
    st.sampled_from(sorted(KEYS)),
)
def test_any_value_is_taken_or_refused_in_words(value, key):
    from builder.manifest import _function

    errors: list[str] = []
    function = _function("a", {key: value}, errors)
    assert (function is None) == bool(errors)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("example.org:443", True),
        ("localhost:1", True),
        ("10.0.0.1:80", True),
        ("[::1]:443", True),
        ("example.org", False),
        ("example.org:0", False),
        ("example.org:65536", False),
        ("*.example.org:443", False),
        ("-x.org:1", False),
        ("[::x]:1", False),
        (":443", False),
        ("http://x:1", False),
    ],
)
def test_a_destination_is_host_and_port(text, good):
    assert is_destination(text) is good


def section(key: str) -> str:
    text = DOCUMENT.read_text()
    assert f"### `{key}`\n" in text, f"{key} is not documented"
    return text.split(f"### `{key}`\n")[1].split("\n#")[0]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_documented_with_a_default_and_an_example_that_parses(key):
    text = section(key)
    assert "Default:" in text
    example = text.split("```toml\n")[1].split("```")[0]
    assert key in tomllib.loads(example)
    functions = parse(f"[functions.a]\n{example}".encode())
    assert "a" in functions


@pytest.mark.parametrize("key", sorted(KEYS.keys() - {"path", "runtime", "handler", "image"}))
def test_every_documented_default_is_the_one_that_holds(key):
    written = section(key).split("Default: `")[1].split("`")[0]
    value = tomllib.loads(f"x = {written}")["x"]
    default = getattr(FunctionConfig(name="", runtime="", handler=""), key)
    assert KEYS[key](value) == default


def test_no_key_is_documented_that_does_not_exist():
    text = DOCUMENT.read_text()
    assert {line[5:-1] for line in text.splitlines() if line.startswith("### `")} == KEYS.keys()


def test_every_key_of_a_config_has_a_manifest_key():
    assert set(FunctionConfig.__struct_fields__) - {"name"} == KEYS.keys() - {
        "path",
        "image",
    }  # the latter is the revision's


def test_the_documented_limits_are_those_that_hold():
    text, limits = DOCUMENT.read_text(), Limits()
    for line in (
        f"| one file | {limits.file >> 20}MB |",
        f"| all files of a commit | {limits.tree >> 20}MB |",
        f"| what git sends in one push | {limits.pack >> 20}MB |",
        f"| number of files | {limits.files} |",
        f"| a path | {limits.path} bytes |",
        f"| functions in one app | {limits.functions} |",
        (
            f"| one step of a build | {limits.step:.0f} seconds, {limits.memory >> 30}GB of memory, "
            f"{limits.cpu:.0f} cores, {limits.output >> 30}GB written |"
        ),
        f"| one push, all in all | {limits.push:.0f} seconds |",
        f"| waiting for another push to the same app | {limits.turn:.0f} seconds |",
    ):
        assert line in text


@pytest.mark.parametrize(
    "name",
    [
        "python",
        "python:3.12-slim",
        "ghcr.io/owner/some_name:v1",
        "localhost:5000/a/b",
        "Registry.example:443/a--b:T",
        "a@sha256:" + "0" * 64,
        "a:1@sha256:" + "f" * 64,
    ],
)
def test_images_are_named_as_docker_names_them(name):
    assert parse(f'[functions.a]\nimage = "{name}"'.encode())["a"].image == name


@pytest.mark.parametrize(
    "name", ["", "Python", "a b", "a:", "-a", "a@sha256:0", "a/../b", "a\\nb", "a:" + "x" * 200]
)
def test_what_docker_would_not_take_for_an_image_is_refused(name):
    (_, error) = refused(f'[functions.a]\nimage = "{name}"')
    assert "functions.a.image" in error
