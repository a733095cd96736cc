"""What a new function service believes of the sockets that it finds where zygotes of a former one would be."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from function_service.engines.embedded import former, messages
from pilotlight import sockets, trees


@pytest.fixture
def doors() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pilotlight-test-"))  # where every user may come to
    folder.chmod(0o777)
    yield folder
    trees.remove(folder)


class Stranger:
    """A process at a door, which says something to whoever comes, and tells what it hears."""

    def __init__(self, door: Path, user: int, *said: dict) -> None:
        listening, listens = os.pipe()
        self.heard, hears = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                os.setresuid(user, user, user)
                listener = sockets.listen(door, kind=socket.SOCK_SEQPACKET)
                listener.setblocking(True)
                os.write(listens, b"!")
                caller, _ = listener.accept()
                with contextlib.suppress(ConnectionError):  # it has gone already
                    for message in said:
                        messages.send(caller, message)
                try:
                    heard = caller.recv(1000)
                except ConnectionError:  # it had not read all that was said
                    heard = caller.recv(1000)
                os.write(hears, heard or b"nothing")
            os._exit(0)
        os.close(listens)
        os.close(hears)
        assert os.read(listening, 1) == b"!"
        os.close(listening)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.waitpid(self.pid, 0)
        os.close(self.heard)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_socket_of_another_user_is_told_nothing_and_not_believed(
    doors: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Stranger(doors / "forged.sock", 65534, {"all": True}) as stranger:
        assert await former.find(doors) == []
        assert "forged.sock is a socket of another user" in caplog.text
        assert os.read(stranger.heard, 1000) == b"nothing"


@pytest.mark.parametrize("said", [{"lives": "one"}, {"lives": 1, "of": None}, {}, {"exited": "one"}])
async def test_what_makes_no_sense_is_told_to_end(
    doors: Path, said: dict, caplog: pytest.LogCaptureFixture
) -> None:
    with Stranger(doors / "broken.sock", os.geteuid(), said, {"all": True}) as stranger:
        assert await former.find(doors) == []
        assert "can't be taken over" in caplog.text
        assert b"end" in os.read(stranger.heard, 1000)


async def test_the_socket_of_a_zygote_that_has_ended_is_removed(doors: Path) -> None:
    sockets.listen(doors / "old.sock", kind=socket.SOCK_SEQPACKET).close()
    assert await former.find(doors) == []
    assert list(doors.iterdir()) == []
