"""What is taken of an archive that another machine has given for an image: its own files, and nothing else."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from function_service.engines.docker.moving import _judge, _write
from pilotlight.problems import Problem

Files = dict[str, bytes | str]


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


LAYERS = [b"one" * 1000, b"two" * 512]  # the second one needs no padding
CONFIG = json.dumps({"rootfs": {"diff_ids": [digest(LAYERS[each]) for each in (0, 1, 0)]}}).encode()
IMAGE = digest(CONFIG)
SAVED: Files = {
    "aaa/layer.tar": LAYERS[0],
    "bbb/layer.tar": LAYERS[1],
    "ccc/layer.tar": "-> ../aaa/layer.tar",
    "config.json": CONFIG,
    "manifest.json": b"[]",
}


def packed(folder: Path, files: Files) -> Path:
    with tarfile.open(folder / "archive", "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content.removeprefix("-> ")
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return folder / "archive"


def written(archive: Path) -> dict[str, bytes]:
    pieces = list(_write(archive, _judge(archive, IMAGE), IMAGE, "ours:1"))
    assert all(pieces)  # an empty one would be the end
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def test_dockerd_gets_the_image_and_its_layers_under_our_name(tmp_path: Path) -> None:
    found = written(packed(tmp_path, SAVED))
    (manifest,) = json.loads(found.pop("manifest.json"))
    assert manifest["RepoTags"] == ["ours:1"]
    assert found.pop(manifest["Config"]) == CONFIG
    assert [found[layer] for layer in manifest["Layers"]] == [LAYERS[0], LAYERS[1], LAYERS[0]]
    assert len(found) == 2


def test_nothing_else_that_came_along_gets_there(tmp_path: Path) -> None:
    evil = json.dumps({"rootfs": {"diff_ids": [digest(b"evil")]}}).encode()
    more: Files = {
        "../../etc/shadow": b"evil",
        "evil/layer.tar": b"evil",
        "evil.json": evil,
        "manifest.json": json.dumps(
            [{"Config": "evil.json", "RepoTags": ["python:latest"], "Layers": ["evil/layer.tar"]}]
        ).encode(),
        "repositories": b'{"python": {"latest": "evil"}}',
        "link": "-> /etc/shadow",
    }
    assert written(packed(tmp_path, SAVED | more)) == written(packed(tmp_path, SAVED))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "is not that"),
        (SAVED | {"config.json": CONFIG + b" "}, "is not that"),
        (SAVED | {"config.json": f"-> {IMAGE}"}, "is not that"),
        (SAVED | {"bbb/layer.tar": b"other"}, "lacks some of its layers"),
        ({f"{number}": b"" for number in range(6000)}, "too many files"),
    ],
)
def test_what_is_not_the_image_is_refused(tmp_path: Path, files: Files, why: str) -> None:
    with pytest.raises(Problem, match=why):
        _judge(packed(tmp_path, files), IMAGE)


@pytest.mark.parametrize("config", [b"{}", b"[]", b"x", b'{"rootfs": {"diff_ids": 1}}', b"\xff"])
def test_a_configuration_that_names_no_layers_is_refused(tmp_path: Path, config: bytes) -> None:
    with pytest.raises(Problem, match="lacks some of its layers"):
        _judge(packed(tmp_path, SAVED | {"config.json": config}), digest(config))


def test_what_was_cut_short_or_is_no_archive_is_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path, SAVED)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(Problem):
        _judge(archive, IMAGE)
    archive.write_bytes(b"no archive" * 100)
    with pytest.raises(Problem, match="is no archive"):
        _judge(archive, IMAGE)


def test_an_archive_whose_files_go_backwards_is_refused(tmp_path: Path) -> None:
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"\xff" * 10 + b"\xfe\x00"  # bytes of its content: -512
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    (tmp_path / "archive").write_bytes(head * 3 + bytes(10240))
    with pytest.raises(Problem, match=r"too many files|no archive"):
        _judge(tmp_path / "archive", IMAGE)
