"""docs/ARCHITECTURE.md names files that exist, and names each service's way through them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()


def test_every_file_that_the_page_names_exists():
    named = set(re.findall(r"`([\w./-]+\.(?:py|mjs|md|toml|svg))`", PAGE)) - {"server.py"}
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_name_in_code_that_the_page_gives_is_in_the_file_before_it():
    pairs = re.findall(r"`([\w/]+\.py)`[^`]*?\(`(\w+)\.(\w+)`\)", PAGE)
    pairs += re.findall(r"`([\w/]+\.py)`: the handler[^`]*`(\w+)\.(\w+)`", PAGE)
    assert len(pairs) >= 2
    missing = [
        (file, method)
        for file, kind, method in pairs
        if f"class {kind}" not in (ROOT / file).read_text()
        or f"def {method}(" not in (ROOT / file).read_text()
    ]
    assert missing == []
