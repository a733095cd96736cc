"""How machines know each other: by one key, which both sides have to show; and what has to be named with it."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from pilotlight.machines import Link
from pilotlight.problems import Problem
from pilotlight.settings import Settings
from tests.support import machines


def settings(folder: Path, **changed: str) -> Settings:
    folder.mkdir(exist_ok=True)
    named = {
        "store": "redis://127.0.0.1",
        "machine_address": "127.0.0.1:7443",
        "machines_key": str(machines.key(folder / "machines.key")),
        "secrets_key": str(machines.key(folder / "secrets.key")),
    }
    return Settings(**(named | changed))


def link(folder: Path) -> Link:
    made = Link.of(settings(folder))
    assert made is not None
    return made


async def greet(server: ssl.SSLContext | None, client: ssl.SSLContext | None) -> bytes:
    """Return what a server says to a client, where they agree. Raises OSError."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    serving = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
    async with serving:
        port = serving.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        try:
            return await reader.read()
        finally:
            writer.close()


async def test_who_has_the_same_key_is_a_machine_of_the_platform(tmp_path: Path) -> None:
    one = link(tmp_path)
    again = Link.of(Settings(**{name: getattr(_kept(tmp_path), name) for name in _NAMES}))
    assert again is not None
    assert await greet(one.server, again.client) == b"hello"


_NAMES = ("store", "machine_address", "machines_key", "secrets_key")


def _kept(folder: Path) -> Settings:
    return Settings(
        store="redis://127.0.0.1",
        machine_address="127.0.0.1:7444",
        machines_key=str(folder / "machines.key"),
        secrets_key=str(folder / "secrets.key"),
    )


async def test_whoever_has_another_key_or_none_is_turned_away_by_both_sides(tmp_path: Path) -> None:
    ours, other = link(tmp_path / "ours"), link(tmp_path / "other")
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(OSError, match="verify"):
        await greet(ours.server, other.client)
    with pytest.raises(OSError, match="verify"):
        await greet(other.server, ours.client)
    # TLS 1.3 lets a client begin before its certificate is judged: it gets an alert or the end, and no answer
    other.client.verify_mode = ssl.CERT_NONE
    for client in (other.client, stranger):
        heard = b""
        with contextlib.suppress(OSError):
            heard = await greet(ours.server, client)
        assert heard == b""


def test_what_several_machines_need_is_named_or_refused(tmp_path: Path) -> None:
    assert Link.of(Settings()) is None
    for missing in ({"machines_key": ""}, {"secrets_key": ""}, {"store": "sqlite"}):
        with pytest.raises(Problem, match="name all three"):
            Link.of(settings(tmp_path, **missing))
    with pytest.raises(Problem, match="without --machine-address"):
        Link.of(settings(tmp_path, machine_address=""))


def test_a_key_that_everybody_may_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    named = settings(tmp_path)
    path = Path(named.machines_key)
    path.chmod(0o644)
    with pytest.raises(Problem, match="chmod 600"):
        Link.of(named)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(Problem, match="32 bytes in base64"):
        Link.of(named)
    path.unlink()
    with pytest.raises(Problem, match=r"machines\.key is missing\. A new one is made by"):
        Link.of(named)
    path.mkdir()
    with pytest.raises(Problem, match="can't be read: Is a directory"):
        Link.of(named)
