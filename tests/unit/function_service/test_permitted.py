"""What of an operator's list holds for images that functions name, and what is told of those shut out."""

import logging
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from function_service import images
from function_service.contract import Image, Revision
from function_service.engines.docker.permitted import Permitted
from function_service.engines.fake import FakeEngine
from pilotlight.problems import Problem
from tests.unit.function_service.test_registry import made

if TYPE_CHECKING:
    from function_service.engines.base import ImageSource


def test_what_is_not_permitted_is_told_with_what_is_and_where_that_is_set() -> None:
    permitted = Permitted("python:3.*, registry.example.com/team/*")
    assert permitted.full("python:3.12") == "docker.io/library/python:3.12"
    why = permitted.refusal("python:2.7")
    for told in ("python:2.7", "python:3.*, registry.example.com/team/*", "--images"):
        assert told in why
    with pytest.raises(Problem) as caught:
        permitted.full("python:2.7")
    assert (caught.value.kind, caught.value.detail) == ("build-failed", why)


def test_a_long_list_is_told_in_part() -> None:
    why = Permitted(",".join(f"team/tool{number}" for number in range(100))).refusal("python")
    assert "team/tool19 …" in why
    assert "tool20" not in why


def test_without_a_list_what_is_there_may_be_named_and_nothing_is_pulled() -> None:
    permitted = Permitted("")
    assert permitted.refusal("registry.example.com/x:1") == ""
    absent = permitted.absent("registry.example.com/x:1")
    assert absent is not None
    assert "docker pull registry.example.com/x:1" in absent.detail
    assert "--images 'registry.example.com/x:1'" in absent.detail


def test_with_a_list_what_it_names_is_pulled() -> None:
    assert Permitted("python").absent("python:3.12") is None


@pytest.mark.parametrize("list_", ["", "python", "**"])
def test_base_images_may_always_be_named_and_are_never_pulled(list_: str) -> None:
    permitted = Permitted(list_)
    assert permitted.full("pilotlight-python") == "docker.io/library/pilotlight-python:latest"
    absent = permitted.absent("docker.io/library/pilotlight-python:latest")
    assert absent is not None
    assert "pilotlight images build python" in absent.detail


@pytest.mark.parametrize("list_", ["", "python", "**"])
@pytest.mark.parametrize(
    "name",
    [
        "pilotlight-host:abc",
        "pilotlight-function:x-1",
        "docker.io/library/pilotlight-function:x",
        "index.docker.io/pilotlight-host",
    ],
)
def test_the_platforms_own_images_may_never_be_named(list_: str, name: str) -> None:
    assert "the platform's own" in Permitted(list_).refusal(name)


class _Source:
    """Images that are judged, and no more."""

    def __init__(self, permitted: Permitted) -> None:
        self.refusal = permitted.refusal


def judging(list_: str) -> FakeEngine:
    engine = FakeEngine()
    engine.images = cast("ImageSource", _Source(Permitted(list_)))
    return engine


def running_in(name: str, **values: Any) -> Revision:
    image = Image(name=name, id="sha256:1", runtime="native", executable="", **values)
    return msgspec.structs.replace(made("f"), image=image)


def test_a_function_whose_image_is_permitted_no_more_is_not_started(caplog: pytest.LogCaptureFixture) -> None:
    engine, revision = judging("python:3.12"), running_in("python:3.8")
    with pytest.raises(Problem, match=r"'f' is not started any more: The image python:3\.8") as caught:
        images.check(engine, revision)
    assert caught.value.kind == "init-failed"
    with caplog.at_level(logging.WARNING):
        images.tell_refused(engine, [revision, running_in("python:3.12"), made("g")])
    (record,) = caplog.records
    assert "function=f" in record.getMessage()


def test_what_was_built_is_judged_by_what_its_dockerfile_names() -> None:
    engine = judging("python:3.12")
    images.check(engine, running_in("Dockerfile", bases=("python:3.12",)))
    images.check(engine, running_in("Dockerfile"))  # FROM scratch
    with pytest.raises(Problem, match=r"debian:12"):
        images.check(engine, running_in("Dockerfile", bases=("python:3.12", "debian:12")))
