"""A zygote whose function service has died, from outside: what lives on, for whom, and until when."""

import contextlib
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from function_service.engines.embedded import forking, lingering, messages
from pilotlight import sockets, trees


class Zygote:
    """A process that forks children which sleep, as zygote.py does it, without any isolation."""

    def __init__(self, folder: Path, alone: float = 30.0) -> None:
        self.service, theirs = messages.pair()
        self.anchor, anchor = socket.socketpair()
        self.path = folder / "door.sock"
        door = sockets.listen(self.path, kind=socket.SOCK_SEQPACKET)
        self.pidfds: dict[str, int] = {}
        self.next: socket.socket | None = None
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                self.service.close()
                self.anchor.close()
                lingering._ALONE = alone
                forking._fork = lambda _: os.fork()  # namespaces need privileges
                guard = lingering.Guard(os.dup(anchor.fileno()), os.dup(door.fileno()))
                anchor.close()
                door.close()
                left = forking.serve(theirs, self.become, guard)
                if left is not None:
                    guard.linger(left)
                for pid in left or ():  # what the end of a real one's namespace does
                    os.kill(pid, signal.SIGKILL)
            os._exit(0)
        for mine in (theirs, anchor, door):
            mine.close()

    @staticmethod
    def become(order: dict, _: list[int]) -> None:
        time.sleep(60)

    def fork(self, name: str) -> None:
        messages.send(self.service, {"fork": name})
        answer, (pidfd,) = messages.receive(self.service)
        assert answer == {"forked": name}
        self.pidfds[name] = pidfd

    def keep(self, name: str, *more: int, of: str | None = None) -> None:
        messages.send(self.service, {"keep": name, "of": of}, [self.pidfds[name], *more])

    def die(self) -> None:
        """Be without a service from now on."""
        self.service.close()

    def meet(self) -> dict[str, list[int]]:
        """Connect as the next service; return the descriptors of what lives."""
        self.next = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.next.settimeout(10)
        self.next.connect(sockets.address(self.path))
        found = {}
        while True:
            message, descriptors = messages.receive(self.next)
            if message == {"all": True}:
                return found
            found[message["lives"]] = descriptors

    def tell(self, message: dict) -> None:
        assert self.next is not None
        messages.send(self.next, message)

    def hear(self) -> dict:
        assert self.next is not None
        return messages.receive(self.next)[0]

    def ended(self, name: str) -> bool:
        return bool(select.select([self.pidfds[name]], [], [], 0)[0])

    def wait(self, seconds: float = 60.0) -> None:
        """Wait for its end."""
        until(lambda: os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), seconds)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for pidfd in self.pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        for sock in (self.service, self.anchor, self.next):
            if sock is not None:
                sock.close()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.002)


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    folder = Path(tempfile.mkdtemp(prefix="pilotlight-test-"))  # where every user may come to
    folder.chmod(0o777)
    zygote = Zygote(folder)
    yield zygote
    zygote.close()
    trees.remove(folder)


def close(found: dict[str, list[int]]) -> None:
    for descriptors in found.values():
        for descriptor in descriptors:
            os.close(descriptor)


def test_only_what_is_kept_lives_on_and_is_handed_over(zygote: Zygote) -> None:
    read, write = os.pipe()
    os.write(write, b"said before")
    for name in ("kept", "dropped", "other"):
        zygote.fork(name)
    zygote.keep("kept", read)
    zygote.keep("dropped")
    messages.send(zygote.service, {"drop": "dropped"})
    os.close(read)
    zygote.die()
    until(lambda: zygote.ended("dropped") and zygote.ended("other"))
    found = zygote.meet()
    assert list(found) == ["kept"]
    assert not zygote.ended("kept")
    assert os.read(found["kept"][1], 100) == b"said before"
    close(found)
    os.close(write)


def test_all_else_has_ended_when_the_next_service_is_told(zygote: Zygote) -> None:
    for number in range(20):
        zygote.fork(f"other-{number}")
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    close(zygote.meet())
    assert all(zygote.ended(name) for name in zygote.pidfds if name != "kept")


def test_one_is_killed_on_demand_and_its_end_told_with_its_status(zygote: Zygote) -> None:
    for name in ("one", "other"):
        zygote.fork(name)
        zygote.keep(name)
    zygote.die()
    close(zygote.meet())
    zygote.tell({"kill": "nobody"})
    zygote.tell({"kill": "one"})
    assert zygote.hear() == {"exited": "one", "status": signal.SIGKILL}
    assert zygote.ended("one")
    assert not zygote.ended("other")


def test_the_status_of_one_that_others_have_forked_is_not_known_but_its_end_is(zygote: Zygote) -> None:
    zygote.fork("snapshot")
    copy = os.fork()
    if copy == 0:
        zygote.service.close()
        time.sleep(60)
        os._exit(0)
    zygote.pidfds["copy"] = os.pidfd_open(copy)
    zygote.keep("copy", of="snapshot")
    zygote.die()
    close(zygote.meet())
    assert not zygote.ended("snapshot"), "its copy lives by it"
    os.kill(copy, signal.SIGKILL)
    assert zygote.hear() == {"exited": "copy", "status": None}
    os.waitpid(copy, 0)
    zygote.wait()
    until(lambda: zygote.ended("snapshot"))


def test_it_ends_when_nothing_is_left(zygote: Zygote) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    signal.pidfd_send_signal(zygote.pidfds["kept"], signal.SIGKILL)
    zygote.wait()


def test_it_ends_at_once_where_nothing_is_kept(zygote: Zygote) -> None:
    zygote.fork("other")
    zygote.die()
    zygote.wait()
    until(lambda: zygote.ended("other"))


def test_it_ends_when_it_is_told_before_its_service_goes(zygote: Zygote) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    messages.send(zygote.service, {"end": True})
    zygote.wait()


def test_it_ends_when_the_next_service_says_so(zygote: Zygote) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    close(zygote.meet())
    zygote.tell({"end": True})
    zygote.wait()


def test_it_ends_when_that_is_said_by_a_service_which_had_not_read_all(zygote: Zygote) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as service:
        service.connect(sockets.address(zygote.path))
        until(lambda: select.select([service], [], [], 0)[0])
        os.kill(zygote.pid, signal.SIGSTOP)  # so that it reads when the service has gone
        messages.send(service, {"end": True})
    os.kill(zygote.pid, signal.SIGCONT)
    zygote.wait(10)


@pytest.mark.parametrize("met", [False, True], ids=["alone", "with a service"])
def test_it_ends_at_once_when_the_platform_is_gone(zygote: Zygote, met: bool) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    if met:
        close(zygote.meet())
    zygote.anchor.close()
    zygote.wait()


def test_it_ends_where_no_service_comes_or_comes_back_in_time(tmp_path: Path) -> None:
    zygote = Zygote(tmp_path, alone=0.3)
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    close(zygote.meet())
    time.sleep(0.4)  # longer than it waits alone
    assert not zygote.ended("kept")
    assert zygote.next is not None
    zygote.next.close()
    zygote.wait()
    zygote.close()


def test_services_that_are_lost_in_a_row_are_told_the_same(zygote: Zygote) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    for _ in range(3):
        found = zygote.meet()
        assert list(found) == ["kept"]
        close(found)
        assert zygote.next is not None
        zygote.next.close()


@pytest.mark.parametrize("message", [b"no json", b"[]", b'{"kill": [1]}', b'{"kill": null}', b"{}"])
def test_nonsense_ends_nothing_but_the_connection(zygote: Zygote, message: bytes) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    close(zygote.meet())
    assert zygote.next is not None
    zygote.next.send(message)
    zygote.next.close()
    found = zygote.meet()
    assert list(found) == ["kept"]
    close(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_is_told_nothing(zygote: Zygote) -> None:
    zygote.fork("kept")
    zygote.keep("kept")
    zygote.die()
    other = os.fork()
    if other == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect(sockets.address(zygote.path))
                code = len(stranger.recv(1000))
        os._exit(code)
    assert os.waitpid(other, 0)[1] == 0
    found = zygote.meet()
    assert list(found) == ["kept"]
    close(found)


def descriptors_of(process: int | str) -> set[int]:
    return {int(path.name) for path in Path(f"/proc/{process}/fd").iterdir()}


def test_children_have_none_of_what_is_kept(tmp_path: Path) -> None:
    shown, show = os.pipe()
    before = descriptors_of("self")  # which all of them have from this process

    class Shows(Zygote):
        @staticmethod
        def become(order: dict, _: list[int]) -> None:
            if order["fork"] == "later":
                os.write(show, repr(descriptors_of("self") - before).encode())
            time.sleep(60)

    zygote = Shows(tmp_path)
    for number in range(10):
        zygote.fork(f"kept-{number}")
        zygote.keep(f"kept-{number}", show, shown)
    zygote.fork("later")
    assert max(eval(os.read(shown, 1000)), default=0) < lingering.FIRST
    assert len([number for number in descriptors_of(zygote.pid) if number >= lingering.FIRST]) >= 30
    zygote.close()
    os.close(shown)
    os.close(show)
