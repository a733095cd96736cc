"""The safe and what it seals: who lacks the key reads nothing, and no key is made in another one's place."""

import base64
from pathlib import Path

import msgspec
import pytest

from function_service.registry import Registry, discard_secrets
from function_service.safe import Safe
from pilotlight.problems import Problem
from pilotlight.store import Write
from pilotlight.store_sqlite import SqliteStore

TEXT = "s3cret-plain-text"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets.key"


def opened(path: Path, *, ours: bool = True) -> Safe:
    safe = Safe(path, ours=ours)
    safe.unlock({})
    return safe


def test_the_key_is_made_once_for_its_owner_alone(path: Path) -> None:
    opened(path)
    made = path.read_bytes()
    assert len(base64.b64decode(made)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    opened(path)
    assert path.read_bytes() == made


def test_a_start_that_is_killed_while_it_makes_the_key_does_not_stop_the_next_one(path: Path) -> None:
    path.with_name("secrets.key.new").write_bytes(b"half of o")
    opened(path)
    assert len(base64.b64decode(path.read_bytes())) == 32
    assert [each.name for each in path.parent.iterdir()] == ["secrets.key"]


def test_what_was_sealed_is_opened_by_the_same_key_after_a_restart(path: Path) -> None:
    box = opened(path).seal("TOKEN", "grün \ud800 \n")
    assert Safe(path, ours=True).unlock({"TOKEN": box}) == {"TOKEN": "grün \ud800 \n"}


def test_sealing_twice_never_looks_the_same_and_never_shows_the_text(path: Path) -> None:
    safe = opened(path)
    boxes = {safe.seal("TOKEN", TEXT) for _ in range(3)}
    assert len(boxes) == 3
    assert not any(TEXT.encode() in box for box in boxes)


def test_one_secret_does_not_pass_for_another(path: Path) -> None:
    box = opened(path).seal("HARMLESS", TEXT)
    with pytest.raises(Problem, match="can't be read: TOKEN"):
        Safe(path, ours=True).unlock({"TOKEN": box})


@pytest.mark.parametrize("damage", ["another key", "a changed bit", "cut short"])
def test_a_wrong_key_or_damage_names_the_secrets_and_leaves_the_file(path: Path, damage: str) -> None:
    box = bytearray(opened(path).seal("TOKEN", TEXT))
    if damage == "another key":
        path.unlink()
        opened(path)
    elif damage == "a changed bit":
        box[-1] ^= 1
    else:
        del box[5:]
    before = path.read_bytes()
    with pytest.raises(
        Problem, match=r"can't be read: TOKEN\..*Bring the right file back.*discard"
    ) as caught:
        Safe(path, ours=True).unlock({"TOKEN": bytes(box)})
    assert TEXT not in caught.value.detail
    assert path.read_bytes() == before


def test_a_missing_key_is_not_replaced_while_something_is_sealed_with_it(path: Path) -> None:
    box = opened(path).seal("TOKEN", TEXT)
    path.unlink()
    with pytest.raises(Problem, match=r"can't be read: TOKEN\..*secrets.key is missing"):
        Safe(path, ours=True).unlock({"TOKEN": box})
    assert not path.exists()


def test_a_file_that_was_named_is_never_made(path: Path) -> None:
    with pytest.raises(Problem, match="A new one is made by") as caught:
        Safe(path, ours=False).unlock({})
    assert "base64" in caught.value.detail
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "no base64!", "c2hvcnQ=\n"])
def test_a_file_that_is_no_key_is_refused_and_not_repeated(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Problem, match="is no key for secrets") as caught:
        opened(path)
    assert not text.strip() or text.strip() not in caught.value.detail


def test_a_key_that_everybody_can_read_is_refused(path: Path) -> None:
    opened(path)
    path.chmod(0o644)
    with pytest.raises(Problem, match="chmod 600"):
        opened(path)


async def test_secrets_of_an_older_version_are_sealed_and_gone_from_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = await SqliteStore.open(folder / "registry.db")
    old = msgspec.json.encode(("TOKEN", TEXT))
    await store.write([Write(space="registry/secrets", key="TOKEN", value=old)])
    for again, was_open in enumerate(
        (True, True, False)
    ):  # the first one is killed before the file is written anew
        registry = Registry(store, Safe(folder / "secrets.key", ours=True))
        await registry.load()
        assert await registry.open_secrets() is was_open
        assert registry.secrets == {"TOKEN": TEXT}
        if again:
            await store.rewrite()
            await registry.forgot_open_secrets()
    await store.close()
    assert [each for each in folder.iterdir() if TEXT.encode() in each.read_bytes()] == []


async def test_discarding_forgets_secrets_that_nobody_can_read(tmp_path: Path, path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "registry.db")
    registry = Registry(store, opened(path))
    await registry.put_secret("TOKEN", TEXT)
    path.unlink()
    assert await discard_secrets(store) == ["TOKEN"]
    again = Registry(store, Safe(path, ours=True))
    assert await again.open_secrets() is False
    assert again.secrets == {}
    await store.close()
