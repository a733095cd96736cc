"""The system calls that a sandbox may not make: a seccomp filter (seccomp(2), classic BPF).

A list of what is refused rather than of what is allowed, since functions are in any language; what the
kernel has gained since this list was written is refused too, as a call that does not exist.
Standard library only, as it runs inside of the zygotes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

# name: number on x86_64, number on aarch64 (None: it does not exist there)
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "statmount": (457, 457),
    "listmount": (458, 458),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # parts of the kernel that few programs need and many attacks use
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "vmsplice": (278, 75),
    "lsm_set_self_attr": (460, 460),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    "_sysctl": (156, None),
    "create_module": (174, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
}
_MOUNTING = ("mount", "move_mount")
_NEWEST = 463  # Linux 6.12's last call; newer ones are answered with ENOSYS

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_SOCKET = (41, 198)
_IOCTL = (16, 29)
_NAMESPACES = 0x7E020000  # every CLONE_NEW… that clone() takes
_X32 = 0x40000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_TYPE_MASK, _SOCK_STREAM, _SOCK_DGRAM = 0xF, 1, 2
_TCP, _UDP = 6, 17

_LOAD, _EQUAL, _GREATER, _SET, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _argument(number: int) -> bytes:
    return _op(_LOAD, _ARGUMENT + 8 * number)  # the lower half, little-endian


def program(machine: str, *, may_mount: bool = False) -> bytes:
    """Return the filter for a machine (`x86_64` or `aarch64`) as the kernel takes it. Raises KeyError.

    `may_mount` leaves out what a blank sandbox still has to do: mounting its code.
    """
    column, _ = _MACHINES[machine]
    refuse, unknown, allow = (
        _op(_RETURN, _ERRNO | errno.EPERM),
        _op(_RETURN, _ERRNO | errno.ENOSYS),
        _op(_RETURN, _ALLOW),
    )
    parts = [
        _architecture(machine),
        _op(_LOAD, _NUMBER),
        _op(_GREATER, _X32 - 1, 0, 1),
        _op(_RETURN, _KILL),
        _op(_GREATER, _NEWEST, 0, 1),
        unknown,
        # glibc falls back from clone3, whose flags a filter can't read, to clone
        _op(_EQUAL, _CLONE3[column], 0, 1),
        unknown,
        _op(_EQUAL, _CLONE[column], 0, 4),
        _argument(0),
        _op(_SET, _NAMESPACES, 0, 1),
        refuse,
        allow,
        _op(_EQUAL, _IOCTL[column], 0, 5),
        _argument(1),
        _op(_EQUAL, _TIOCSTI, 1, 0),
        _op(_EQUAL, _TIOCLINUX, 0, 1),
        refuse,
        allow,
        # sockets: Unix, TCP and UDP, and the netlink that getifaddrs reads; nothing raw, and no protocol
        # for which the kernel would load a module
        _op(_EQUAL, _SOCKET[column], 0, 20),
        _argument(0),
        _op(_EQUAL, _AF_NETLINK, 14, 0),
        _op(_EQUAL, _AF_UNIX, 16, 0),
        _op(_EQUAL, _AF_INET, 2, 0),
        _op(_EQUAL, _AF_INET6, 1, 0),
        refuse,
        _argument(1),
        _op(_AND, _SOCK_TYPE_MASK),
        _op(_EQUAL, _SOCK_STREAM, 2, 0),
        _op(_EQUAL, _SOCK_DGRAM, 1, 0),
        refuse,
        _argument(2),
        _op(_EQUAL, _TCP, 6, 0),
        _op(_EQUAL, _UDP, 5, 0),
        _op(_EQUAL, 0, 4, 0),
        _op(_RETURN, _ERRNO | errno.EPROTONOSUPPORT),
        _argument(2),
        _op(_EQUAL, 0, 1, 0),
        refuse,
        allow,
    ]
    for name, row in _REFUSED.items():
        number = row[column]
        if number is not None and not (may_mount and name in _MOUNTING):
            parts += [_op(_EQUAL, number, 0, 1), refuse]
    parts.append(allow)
    return b"".join(parts)


def mounting_program(machine: str) -> bytes:
    """Return the filter that takes away what `may_mount` had left; a short one, quickly installed."""
    return _refusing(machine, _MOUNTING)


def forking_program(machine: str, unshares: tuple[int, ...], setns: int) -> bytes:
    """Return the filter of a snapshot: `program`, but for unshare with just these flags, and this setns."""
    column, _ = _MACHINES[machine]
    allow = _op(_RETURN, _ALLOW)
    exceptions = [_op(_LOAD, _NUMBER), _op(_EQUAL, _number("unshare", column), 0, 1 + 2 * len(unshares))]
    exceptions.append(_argument(0))
    for flags in unshares:
        exceptions += [_op(_EQUAL, flags, 0, 1), allow]
    # The number must be loaded again where a flag did not fit, for the program that follows to refuse it
    exceptions += [
        _op(_LOAD, _NUMBER),
        _op(_EQUAL, _number("setns", column), 0, 3),
        _argument(1),
        _op(_EQUAL, setns, 0, 1),
        allow,
    ]
    return _architecture(machine) + b"".join(exceptions) + program(machine)


def namespace_program(machine: str) -> bytes:
    """Return the filter that takes away what `forking_program` had left."""
    return _refusing(machine, ("unshare", "setns"))


def _refusing(machine: str, names: tuple[str, ...]) -> bytes:
    column, _ = _MACHINES[machine]
    parts = [_op(_LOAD, _NUMBER)]
    for name in names:
        parts += [_op(_EQUAL, _number(name, column), 0, 1), _op(_RETURN, _ERRNO | errno.EPERM)]
    return b"".join([*parts, _op(_RETURN, _ALLOW)])


def _number(name: str, column: int) -> int:
    number = _REFUSED[name][column]
    if number is None:
        raise KeyError(name)
    return number


def _architecture(machine: str) -> bytes:
    """Kill what calls by the numbers of another architecture."""
    _, architecture = _MACHINES[machine]
    return _op(_LOAD, _ARCHITECTURE) + _op(_EQUAL, architecture, 1, 0) + _op(_RETURN, _KILL)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def prepare(code: bytes) -> ctypes.Structure:
    """Return a filter ready to be installed later without work."""
    return _Program(len(code) // 8, code)


def install(filter_program: ctypes.Structure) -> None:
    """Put the filter on this process and all that it starts. Needs no_new_privs. Raises OSError."""
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
