"""Where symbolic links lead, held against what the kernel says."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.links import leaves


@pytest.mark.parametrize(
    ("links", "out"),
    [
        ({"a": "b"}, False),
        ({"a": "/etc/passwd"}, True),
        ({"a": ".."}, True),
        ({"a": "."}, False),
        ({"d/a": ".."}, False),
        ({"d/a": "../.."}, True),
        ({"d/a": "../x/../../y"}, True),
        ({"d/up": "..", "a": "d/up/x"}, False),
        ({"d/up": "..", "a": "d/up/../x"}, True),
        ({"d/e/up": "..", "a": "d/e/up/../x"}, False),
        ({"a": "b", "b": "/tmp"}, True),
        ({"a": "b//c", "b": "d"}, False),
        ({"a": "a"}, False),
        ({"a": "b", "b": "a"}, False),
        ({"a": "missing/../../x"}, True),
    ],
)
def test_a_link_is_followed_as_the_kernel_does(links, out):
    assert leaves("a" if "a" in links else "d/a", links) is out


parts = st.lists(st.sampled_from(["..", ".", "d", "e", "l0", "l1", "l2"]), min_size=1, max_size=5)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(["", "d/", "d/e/"]), parts), min_size=1, max_size=3))
def test_no_link_that_the_kernel_follows_out_is_let_through(made):
    links = {f"{folder}l{n}": "/".join(target) for n, (folder, target) in enumerate(made)}
    with tempfile.TemporaryDirectory() as top:
        root = Path(os.path.realpath(top)) / "outer" / "root"
        (root / "d/e").mkdir(parents=True)
        for name, target in links.items():
            (root / name).symlink_to(target)
        for name in links:
            try:
                real = (root / name).resolve(strict=True)
            except (OSError, RuntimeError):
                continue  # it leads nowhere
            if not real.is_relative_to(root):
                assert leaves(name, links), (name, links)
