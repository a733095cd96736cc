"""Process 1 of a sandbox in which a command runs at a terminal, or at pipes, in place of the function.

The terminal is the sandbox's own: its devpts holds no other one, and no descriptor of the host's leads in or
out. Whoever connects to the sandbox's socket first has the other end, in the frames of shell_frames.py. The
command is started then, and the sandbox ends with it, or with the connection.

Standard library only, as it runs inside of the zygotes too.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

from function_service import shell_frames as frames
from function_service.engines.embedded import init, messages, syscalls

_TERMINALS = "/dev/pts"
_OPTIONS = {"ptmxmode": "0666", "mode": "0620", "max": "16"}
_CHUNK = 32 << 10
_MOST = 256 << 10  # bytes that wait for the other side; then nothing more is read for it
_SILENCE = 0.2  # seconds without output after which a command that ended has said all
_LAST_WORDS = 256 << 10  # bytes that are read after its end, where something else still prints
_END_OF_INPUT = b"\x04"  # what a terminal's user types for it


def provide_terminals() -> None:
    """Mount a devpts of this sandbox's own; called while it has its privileges. Raises OSError."""
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
    if os.geteuid() == 0:
        tree = syscalls.new_filesystem("devpts", _OPTIONS, attributes)
    else:
        tree = _made_by_root_of_another_namespace(attributes)
    syscalls.move_mount(tree, _TERMINALS)
    os.close(tree)


def _made_by_root_of_another_namespace(attributes: int) -> int:
    """Return a devpts that a child made: older kernels want a user 0, and our user namespace has none."""
    uid, gid = os.geteuid(), os.getegid()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                # Else /proc/self is not ours, and the maps can't be written
                syscalls.set_dumpable(True)
                syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
                maps = {"setgroups": "deny", "uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1"}
                for name, text in maps.items():
                    with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123  pathlib is not loaded here
                        file.write(text)
                tree = syscalls.new_filesystem("devpts", _OPTIONS, attributes)
                socket.send_fds(theirs, [b"!"], [tree])
            except OSError as error:
                os.write(2, f"No terminal can be made: {error}\n".encode())
            finally:
                os._exit(0)
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        os.waitpid(pid, 0)
    if not descriptors:
        raise OSError("no devpts was made")
    return descriptors[0]


def run(
    control: socket.socket, listener_fd: int, attachment: dict[str, Any], confine: Callable[[], None]
) -> None:
    """Wait for the caller, run the command, pass on what both say; ends with the command's exit code."""
    confine()
    syscalls.set_dumpable(False)  # the command may be of the same user, and has no business in here
    listener = socket.socket(fileno=listener_fd)
    messages.send(control, {"ready": True})
    control.close()
    caller, _ = listener.accept()
    listener.close()
    window = attachment["terminal"]
    if window is not None:
        outer, inner = os.openpty()
        _resize(outer, window["rows"], window["columns"])
        its, typing, screens = (inner, inner, inner), os.dup(outer), {outer: frames.OUTPUT}
    else:
        (given, typing), (shown, output), (told, errors) = os.pipe(), os.pipe(), os.pipe()
        its, screens = (given, output, errors), {shown: frames.OUTPUT, told: frames.ERRORS}
    begun, not_begun = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(begun)
        _become(attachment["command"], attachment["env"], its, not_begun, at_terminal=window is not None)
    os.close(not_begun)
    if window is None:
        for descriptor in its:
            os.close(descriptor)
    os.read(begun, 1)  # until it is the command: a Ctrl-C would be lost before
    os.close(begun)
    # While one descriptor of the terminal is open here, the command can close all of its own and come back
    _Relay(caller, pid, typing, screens, inner if window is not None else None).run()


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _become(
    command: list[str], env: dict[str, str], its: tuple[int, int, int], not_begun: int, *, at_terminal: bool
) -> None:
    """In the forked child: take the terminal or the pipes, and become the command; never returns.

    What else is open ends with that, `not_begun` too.
    """
    code = 126
    try:
        os.setsid()
        if at_terminal:
            fcntl.ioctl(its[0], termios.TIOCSCTTY, 0)
        for target, descriptor in enumerate(its):
            os.dup2(descriptor, target)
        os.closerange(3, not_begun)
        os.closerange(not_begun + 1, 4096)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores, and programs would inherit
        os.execvpe(command[0], command, env)  # noqa: S606  it is what was asked for
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        os.write(2, f"{command[0]} can't be run: {error.strerror}\n".encode())
    finally:
        os._exit(code)


class _Gone(Exception):  # noqa: N818  nothing is wrong
    """The caller has gone, or talks nonsense."""


class _Relay:
    """Passes on what the caller types and the command shows. Each is read only while the other side takes."""

    def __init__(
        self, caller: socket.socket, pid: int, typing: int, screens: dict[int, int], inner: int | None
    ) -> None:
        """`screens`: descriptors to read, and the kind of their frames; `inner`: the terminal's inner end."""
        self._caller = caller
        self._pid = pid
        self._typing: int | None = typing
        self._screens = screens
        self._inner = inner
        self._received = b""  # of a frame that has not come as a whole
        self._typed = b""  # waits for the command
        self._shown = b""  # waits for the caller
        self._status: int | None = None  # once the command has ended
        self._last_words = _LAST_WORDS
        caller.setblocking(False)
        for descriptor in (typing, *screens):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Go on until the command has ended and all is told; never returns."""
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._reap()  # it may have ended before the handler was set
        try:
            while self._status is None or self._screens or self._shown:
                self._turn(wake)
        except _Gone:
            os._exit(128 + signal.SIGHUP)
        init.exit_with(self._status)

    def _turn(self, wake: int) -> None:
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        reading = 0 if self._typed else select.POLLIN
        poll.register(self._caller, reading | (select.POLLOUT if self._shown else 0))
        if self._typing is not None and self._typed:
            poll.register(self._typing, select.POLLOUT)
        looking = len(self._shown) < _MOST
        for screen in self._screens if looking else ():
            poll.register(screen, select.POLLIN)
        silence = looking and self._status is not None
        events = dict(poll.poll(_SILENCE * 1000 if silence else None))
        if wake in events:
            os.read(wake, 4096)
            self._reap()
        happened = events.get(self._caller.fileno(), 0)
        if happened & (select.POLLHUP | select.POLLERR):
            raise _Gone
        if happened & select.POLLIN:
            self._hear()
        if happened & select.POLLOUT:
            self._tell()
        if self._typing in events:
            self._type()
        for screen in list(self._screens):
            if screen in events:
                self._look(screen)
        if silence and (not events or self._last_words <= 0):
            self._screens.clear()  # something that the command has left behind holds them open

    def _reap(self) -> None:
        """Take in what has ended."""
        while self._status is None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid == self._pid:
                self._status, self._typed, self._typing = status, b"", None
                if self._inner is not None:
                    os.close(self._inner)

    def _hear(self) -> None:
        try:
            data = self._caller.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise _Gone from error
        if not data:
            raise _Gone
        self._received += data
        self._take()

    def _take(self) -> None:
        """Do what the frames say that have come, up to one that the command has to read first."""
        start = frames.LENGTH.size
        while not self._typed and len(self._received) >= start:
            (length,) = frames.LENGTH.unpack_from(self._received)
            if not 0 < length <= frames.LONGEST:
                raise _Gone
            if len(self._received) < start + length:
                return
            kind, content = self._received[start], self._received[start + 1 : start + length]
            self._received = self._received[start + length :]
            if kind == frames.WINDOW and self._inner is not None and self._typing is not None:
                if len(content) != frames.SIZE.size:
                    raise _Gone
                _resize(self._typing, *frames.SIZE.unpack(content))
            elif kind == frames.INPUT and self._typing is not None:
                self._typed = content
            elif kind == frames.END and self._typing is not None:
                if self._inner is not None:
                    self._typed = _END_OF_INPUT
                else:
                    self._type_no_more()

    def _type(self) -> None:
        if self._typing is None:
            return  # the command has ended meanwhile
        try:
            self._typed = self._typed[os.write(self._typing, self._typed) :]
        except BlockingIOError:
            return
        except OSError:  # the command reads no more
            self._typed = b""
            self._type_no_more()
        self._take()

    def _type_no_more(self) -> None:
        if self._typing is not None:
            os.close(self._typing)
            self._typing = None

    def _look(self, screen: int) -> None:
        try:
            data = os.read(screen, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal that nobody has open any more
            data = b""
        if not data:
            os.close(screen)
            del self._screens[screen]
            return
        if self._status is not None:
            self._last_words -= len(data)
        self._shown += frames.packed(frames.frame(self._screens[screen], data))

    def _tell(self) -> None:
        try:
            self._shown = self._shown[self._caller.send(self._shown) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise _Gone from error
