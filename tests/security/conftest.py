"""Leaves out what there is not: images are Docker's, so no other engine runs a function in one."""

import pytest

from tests.support.service import DOCKER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not _in_an_image_without_docker(item)]


def _in_an_image_without_docker(item: pytest.Item) -> bool:
    parameters = (
        item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    )
    return parameters.get("python") == "guest" and parameters.get("service") != DOCKER
