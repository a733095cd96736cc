"""Which folders of a commit are functions."""

from dataclasses import replace
from pathlib import Path

import pytest

from builder.detect import Languages, detect
from builder.limits import Limits
from builder.manifest import parse
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter, Runtime


def runtime(name: str) -> Runtime:
    return Runtime(
        name=name,
        title=name.title(),
        forkable=False,
        shim=None,
        template=Path(),
        find=tuple,
        recognise=lambda folder: f"h.{name}" if (folder / f"h.{name}").is_file() else None,
        check=lambda folder, handler: (
            None if (folder / handler).is_file() else f"there is no {handler}; add it."
        ),
        dependencies=lambda folder, interpreter: None,
        assemble=lambda folder, interpreter: (),
        boot=lambda interpreter: None,
        image_file="Imagefile" if name == "one" else None,
    )


LANGUAGES = Languages(
    {"one": runtime("one"), "two": runtime("two")},
    {"one": (Interpreter("one", "3.9", "/1"), Interpreter("one", "3.11", "/2")), "two": ()},
)


@pytest.fixture
def found(tmp_path):
    def find(*files: str, manifest: str = "", app: str = "app", limits: Limits | None = None):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("")
        named = parse(manifest.encode())
        return {
            each.name: (each.path, each.interpreter.name, each.handler)
            for each in detect(app, tmp_path, named, LANGUAGES, limits or Limits())
        }

    return find


def refusal(find, *files: str, **rest) -> list[str]:
    with pytest.raises(Problem) as caught:
        find(*files, **rest)
    return caught.value.detail.splitlines()


def test_the_root_is_one_function_named_after_the_app(found):
    assert found("h.one", "sub/h.one") == {"app": (".", "one3.11", "h.one")}


def test_else_each_folder_that_is_recognised_is_one(found):
    assert found("a/h.one", "b/h.one", ".c/h.one", "d/e/h.one", "f/x") == {
        "a": ("a", "one3.11", "h.one"),
        "b": ("b", "one3.11", "h.one"),
    }


def test_a_manifest_adds_to_them_and_pins_versions(found):
    manifest = '[functions.x]\npath = "d/e"\nruntime = "one3.9"\n[functions.a]\nhandler = "other"\n'
    assert found("a/h.one", "a/other", "d/e/h.one", manifest=manifest) == {
        "a": ("a", "one3.11", "other"),
        "x": ("d/e", "one3.9", "h.one"),
    }


def test_a_folder_that_is_named_by_path_is_not_taken_twice(found):
    assert found("A_b/h.one", manifest='[functions.x]\npath = "./A_b/"\n') == {
        "x": ("A_b", "one3.11", "h.one")
    }
    assert found("h.one", manifest='[functions.y]\npath = "."\n[functions.x]\npath = "A_b"\n').keys() == {
        "x",
        "y",
    }


def test_a_function_named_after_the_app_needs_no_path(found):
    assert found("h.one", manifest="[functions.app]\n") == {"app": (".", "one3.11", "h.one")}


def test_a_folder_whose_name_cant_be_one_is_told(found):
    assert refusal(found, "My_Func/h.one") == [
        (
            "The folder 'My_Func' looks like a one function, but it can't name one. Rename it (lower-case letters, "
            "digits and inner dashes, a letter first, at most 63 characters), or add [functions.NAME] with "
            'path = "My_Func" to pilotlight.toml.'
        )
    ]


def test_everything_wrong_is_told_at_once(found):
    manifest = (
        '[functions.a]\npath = "aa"\n[functions.b]\nruntime = "onee"\n[functions.c]\n'
        '[functions.d]\nhandler = "gone"\n[functions.e]\nruntime = "one"\n'
    )
    assert refusal(found, "a/h.one", "b/x", "c/x", "d/h.one", "e/x", "f/h.two", manifest=manifest) == [
        (
            "pilotlight.toml: functions.a.path = \"aa\": there is no such folder in this commit. Did you mean 'a'? "
            "Expected a folder of this repository."
        ),
        (
            "pilotlight.toml: functions.b.runtime = \"onee\": there is no such runtime. Did you mean 'one'? "
            "Expected one of one, two."
        ),
        (
            "Function 'c': no runtime recognises the folder 'c'. Add the file that one looks for, or set "
            "functions.c.runtime and functions.c.handler in pilotlight.toml."
        ),
        "Function 'd': there is no gone; add it.",
        (
            "Function 'e': the one runtime finds no handler in the folder 'e'. Add one, or set functions.e.handler "
            "in pilotlight.toml."
        ),
        (
            "Function 'f' needs two, which this machine does not have (it has one3.9, one3.11). Install it, or set "
            "functions.f.runtime in pilotlight.toml."
        ),
    ]


def test_a_version_that_is_not_there_is_told(found):
    (line,) = refusal(found, "a/h.one", manifest='[functions.a]\nruntime = "one4"\n')
    assert line.startswith(
        "Function 'a' needs one4, which this machine does not have (it has one3.9, one3.11)."
    )


def test_a_folder_behind_a_link_is_none(found, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/h.one").write_text("")
    (tmp_path / "link").symlink_to("real")
    assert found().keys() == {"real"}
    (line,) = refusal(found, manifest='[functions.x]\npath = "link"\n')
    assert 'functions.x.path = "link": there is no such folder in this commit.' in line


def test_too_many_functions_are_refused(found):
    (line,) = refusal(found, "a/h.one", "b/h.one", limits=replace(Limits(), functions=1))
    assert line == (
        "The commit has 2 functions; at most 1 may be in one app. Split it into several repositories."
    )


def test_a_file_that_makes_an_image_makes_a_function_where_nothing_else_does(found):
    functions = found("a/Imagefile", "c/Imagefile", "c/h.one")
    assert {name: each[2] for name, each in functions.items()} == {"a": "Imagefile", "c": "h.one"}


def test_the_manifest_can_say_that_the_image_is_meant(found):
    manifest = '[functions.a]\nruntime = "one"\nhandler = "Imagefile"\n[functions.b]\nruntime = "one"\n'
    functions = found("a/Imagefile", "a/h.one", "b/Imagefile", "b/h.two", manifest=manifest)
    assert {name: each[2] for name, each in functions.items()} == {"a": "Imagefile", "b": "Imagefile"}


def test_at_the_root_it_is_for_all_unless_the_manifest_says_that_functions_lie_below(found):
    files = ("Imagefile", "src/h.one")
    assert found(*files) == {"app": (".", "one3.11", "Imagefile")}
    assert found(*files, manifest='[functions.app]\nmemory = "64MB"\n').keys() == {"app"}
    assert found(*files, manifest='[functions.src]\nmemory = "64MB"\n') == {
        "src": ("src", "one3.11", "h.one")
    }


def test_what_is_wrong_with_such_a_file_is_told(found, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/Imagefile").symlink_to("../b/Imagefile")
    manifest = (
        '[functions.a]\nruntime = "one"\nhandler = "Imagefile"\n[functions.b]\nruntime = "one"\nimage = "x"\n'
    )
    first, second = refusal(found, "b/Imagefile", manifest=manifest)
    assert first.endswith(
        'the handler "Imagefile" needs that file in its folder; it may be no symbolic link.'
    )
    assert "its Imagefile builds its image, or `image` names one" in second
