"""Reads `expected.http`: the calls that a sample must answer, in the format that README.md describes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ANY = "{{any}}"
_STATUS = re.compile(r"HTTP (\d{3})")


@dataclass(frozen=True)
class Exchange:
    """One call, and what must come back."""

    title: str
    method: str
    target: str  # what follows the function's name
    headers: dict[str, str]
    body: bytes
    status: int
    expected_headers: dict[str, str]
    expected_body: str

    def differences(self, status: int, headers: dict[str, str], body: bytes) -> list[str]:
        """Return what of an answer is not as expected; names in `headers` are lower-case."""
        found = []
        if status != self.status:
            found.append(f"status {status} in place of {self.status}")
        for name, value in self.expected_headers.items():
            if not _matches(value, headers.get(name, "")):
                found.append(f"{name}: {headers.get(name)!r} in place of {value!r}")
        text = body.decode(errors="replace").rstrip("\r\n")
        if not _matches(self.expected_body, text):
            found.append(f"body {text[:500]!r} in place of {self.expected_body!r}")
        return found


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split(_ANY))), text, re.DOTALL) is not None


def read(sample: Path) -> list[Exchange]:
    """Return the exchanges of a sample's `expected.http`. Raises ValueError where it is malformed."""
    blocks = re.split(r"^### *", (sample / "expected.http").read_text(), flags=re.MULTILINE)
    return [_exchange(block) for block in blocks[1:]]


def _exchange(block: str) -> Exchange:
    title, *lines = block.splitlines()
    divide = next((number for number, line in enumerate(lines) if _STATUS.fullmatch(line)), None)
    if divide is None or " " not in lines[0]:
        raise ValueError(f"{title!r} needs a request line (METHOD /TARGET) and a status line (HTTP 200)")
    method, target = lines[0].split(" ", 1)
    headers, body = _message(lines[1:divide])
    expected_headers, expected_body = _message(lines[divide + 1 :])
    return Exchange(
        title, method, target, headers, body.encode(), int(lines[divide][5:]), expected_headers, expected_body
    )


def _message(lines: list[str]) -> tuple[dict[str, str], str]:
    end = lines.index("") if "" in lines else len(lines)
    pairs = (line.split(":", 1) for line in lines[:end])
    return {name.lower(): value.strip() for name, value in pairs}, "\n".join(lines[end + 1 :]).strip("\n")
