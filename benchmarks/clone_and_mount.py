"""Clone into namespaces, mount, end: the bare loop beside which cold starts per second are held.

    python3 -I -S clone_and_mount.py SECONDS AT_ONCE

It prints how many a second were made. A child has namespaces of its own (mount, pid, ipc, uts, network,
cgroup), a tmpfs on /tmp and a /proc, and does nothing. Standard library only; run with the interpreter of the
functions.
"""

import ctypes
import os
import sys
import time

_NEW_NS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_REC, _PRIVATE, _NOSUID, _NODEV = 0x4000, 1 << 18, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    """Raise OSError where a call to the C library failed."""
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source: bytes, target: bytes, kind: bytes, flags: int) -> None:
    """Mount something. Raises OSError."""
    check(_libc.mount(source, target, kind, flags, None))


def child() -> None:
    """Be process 1 of a pid namespace, with mounts of its own."""
    check(_libc.unshare(_NEW_NS | _NEW_CGROUP | _NEW_UTS | _NEW_IPC | _NEW_NET))
    mount(b"none", b"/", b"", _REC | _PRIVATE)
    mount(b"tmpfs", b"/tmp", b"tmpfs", _NOSUID | _NODEV)
    mount(b"proc", b"/proc", b"proc", _NOSUID | _NODEV)


def start(own: int) -> None:
    """Make one; `own` is our own pid namespace. Raises OSError."""
    check(_libc.unshare(_NEW_PID))
    if os.fork() == 0:
        try:
            child()
            os._exit(0)
        except OSError as error:
            print(error, file=sys.stderr)
        os._exit(1)
    check(_libc.setns(own, _NEW_PID))


def own_namespaces() -> None:
    """Go on as root of a user namespace, in a pid namespace of its own: only to such may one return."""
    uid, gid = os.geteuid(), os.getegid()
    check(_libc.unshare(_NEW_USER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123  pathlib takes long to import
            file.write(text)
    check(_libc.unshare(_NEW_PID))
    if pid := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def main() -> int:
    """Loop for some seconds."""
    if os.geteuid():
        own_namespaces()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    at_once = int(sys.argv[2])
    began = time.monotonic()
    running = count = 0
    while (passed := time.monotonic() - began) < float(sys.argv[1]):
        while running < at_once:
            start(own)
            running += 1
        if os.wait()[1]:
            raise OSError("a child failed")
        running -= 1
        count += 1
    while running:
        os.wait()
        running -= 1
    print(count / passed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
