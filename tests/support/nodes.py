"""The Nodes of this machine, as parameters of tests."""

from typing import Any

import pytest

from runtimes.declaration import load_all


def nodes() -> list[Any]:
    """Return each Node as a parameter; where there is none, one that says so when it is left out."""
    found = [pytest.param(each, id=each.name) for each in load_all()["node"].find()]
    none = pytest.param(None, id="none", marks=pytest.mark.skip(reason="this machine has no Node"))
    return found or [none]
