"""The filters of system calls, run by a small interpreter of classic BPF, for both architectures."""

import errno
import struct
from dataclasses import dataclass
from typing import Any

import pytest

from function_service.engines.embedded import seccomp, syscalls

ALLOW, KILL = "allowed", "killed"
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of the calls that have arguments of interest, and of some that every program makes
NUMBERS = {
    "x86_64": {
        "clone": 56,
        "clone3": 435,
        "socket": 41,
        "ioctl": 16,
        "unshare": 272,
        "setns": 308,
        "mount": 165,
        "read": 0,
        "write": 1,
        "openat": 257,
        "execve": 59,
        "mmap": 9,
        "futex": 202,
        "exit_group": 231,
        "epoll_wait": 232,
        "socketpair": 53,
        "prctl": 157,
        "seccomp": 317,
        "kill": 62,
        "memfd_create": 319,
    },
    "aarch64": {
        "clone": 220,
        "clone3": 435,
        "socket": 198,
        "ioctl": 29,
        "unshare": 97,
        "setns": 268,
        "mount": 40,
        "read": 63,
        "write": 64,
        "openat": 56,
        "execve": 221,
        "mmap": 222,
        "futex": 98,
        "exit_group": 94,
        "epoll_pwait": 22,
        "socketpair": 199,
        "prctl": 167,
        "seccomp": 277,
        "kill": 129,
        "memfd_create": 279,
    },
}


@dataclass
class Machine:
    """One architecture, and how a filter answers calls on it."""

    name: str

    def answer(
        self, program: bytes, call: int | str, *arguments: int, architecture: int | None = None
    ) -> str:
        """Return what the kernel would do: ALLOW, KILL, or the name of an error."""
        number = NUMBERS[self.name][call] if isinstance(call, str) else call
        given = [argument & 0xFFFF_FFFF_FFFF_FFFF for argument in arguments] + [0] * (6 - len(arguments))
        data = struct.pack("<IIQ6Q", number, architecture or ARCHITECTURES[self.name], 0, *given)
        result = _run(program, data)
        if result == 0x7FFF0000:
            return ALLOW
        if result == 0x80000000:
            return KILL
        assert result >> 16 == 5, hex(result)
        return errno.errorcode[result & 0xFFFF]


def _run(program: bytes, data: bytes) -> int:
    """Interpret a program as the kernel's bpf_check_classic and seccomp allow it."""
    operations = list(struct.iter_unpack("HBBI", program))
    assert len(operations) <= 4096
    accumulator, at = 0, 0
    while True:
        code, yes, no, value = operations[at]
        at += 1
        if code == 0x20:
            assert value % 4 == 0
            assert value < 64
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[
                code
            ]
            at += yes if holds else no


@pytest.fixture(params=ARCHITECTURES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(str(request.param))


def test_every_jump_lands_in_the_program_and_every_way_ends(machine: Machine) -> None:
    for program in _programs(machine):
        operations = list(struct.iter_unpack("HBBI", program))
        assert operations[-1][0] == 0x06
        for at, (code, yes, no, _) in enumerate(operations):
            if code in (0x15, 0x25, 0x45):
                assert at + 1 + max(yes, no) < len(operations)


def _programs(machine: Machine) -> list[bytes]:
    return [
        seccomp.program(machine.name),
        seccomp.program(machine.name, may_mount=True),
        seccomp.mounting_program(machine.name),
        seccomp.forking_program(machine.name, (syscalls.CLONE_NEWPID,), syscalls.CLONE_NEWPID),
        seccomp.namespace_program(machine.name),
    ]


def test_what_every_program_needs_is_allowed(machine: Machine) -> None:
    program = seccomp.program(machine.name)
    special = {"clone3", "unshare", "setns", "mount", "socket"}
    for name in NUMBERS[machine.name].keys() - special:
        assert machine.answer(program, name) == ALLOW, name


def test_everything_on_the_list_is_refused(machine: Machine) -> None:
    program = seccomp.program(machine.name)
    column = list(ARCHITECTURES).index(machine.name)
    for name, row in seccomp._REFUSED.items():
        if (number := row[column]) is not None:
            assert machine.answer(program, number) == "EPERM", name
            assert machine.answer(program, number, *[0xFFFF_FFFF_FFFF_FFFF] * 6) == "EPERM", name


def test_no_number_stands_twice_on_the_list(machine: Machine) -> None:
    column = list(ARCHITECTURES).index(machine.name)
    numbers = [row[column] for row in seccomp._REFUSED.values() if row[column] is not None]
    assert len(numbers) == len(set(numbers))


def test_calls_that_came_after_this_filter_do_not_exist(machine: Machine) -> None:
    program = seccomp.program(machine.name)
    for number in (seccomp._NEWEST + 1, 500, 1000, 0x3FFF_FFFF):
        assert machine.answer(program, number) == "ENOSYS"
    assert machine.answer(program, seccomp._NEWEST) == ALLOW
    assert machine.answer(program, "clone3") == "ENOSYS"


def test_other_architectures_and_their_numbers_are_killed(machine: Machine) -> None:
    for program in _programs(machine)[:2] + _programs(machine)[3:4]:
        others = {0x40000003, 0x40000028, *ARCHITECTURES.values()} - {ARCHITECTURES[machine.name]}
        for architecture in others:
            assert machine.answer(program, "read", architecture=architecture) == KILL
        for number in (0x40000000, 0x40000027, 0xFFFF_FFFF):
            assert machine.answer(program, number) == KILL


_FLAGS = [0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]


@pytest.mark.parametrize("flag", _FLAGS)
def test_clone_makes_no_namespace(machine: Machine, flag: int) -> None:
    program = seccomp.program(machine.name)
    threads = 0x3D0F00  # what pthread_create passes
    assert machine.answer(program, "clone", 17) == ALLOW
    assert machine.answer(program, "clone", threads) == ALLOW
    assert machine.answer(program, "clone", flag | 17) == "EPERM"
    assert machine.answer(program, "clone", flag | threads) == "EPERM"
    assert machine.answer(program, "clone", (1 << 32) | flag) == "EPERM"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, 1, 0), ALLOW),
        ((1, 5, 0), ALLOW),
        ((2, 1, 0), ALLOW),
        ((2, 1, 6), ALLOW),
        ((2, 2, 17), ALLOW),
        ((10, 1 | 0o2000000 | 0o4000, 6), ALLOW),
        ((10, 2 | 0o2000000, 0), ALLOW),
        ((16, 3, 0), ALLOW),
        ((16, 3, 9), "EPERM"),
        ((16, 3, 12), "EPERM"),
        ((16, 3, 16), "EPERM"),
        ((2, 3, 1), "EPERM"),
        ((2, 3, 255), "EPERM"),
        ((2, 10, 768), "EPERM"),
        ((2, 5, 132), "EPERM"),
        ((2, 6, 33), "EPERM"),
        ((2, 1, 132), "EPROTONOSUPPORT"),
        ((2, 1, 262), "EPROTONOSUPPORT"),
        ((2, 2, 1), "EPROTONOSUPPORT"),
        ((2, 2, 136), "EPROTONOSUPPORT"),
        ((10, 3, 58), "EPERM"),
        *(((family, 3, 0), "EPERM") for family in (0, 3, 15, 17, 21, 29, 30, 31, 38, 40, 41, 43, 44, 255)),
        (((1 << 32) | 17, 3, 0), "EPERM"),
    ],
)
def test_sockets(machine: Machine, arguments: tuple[int, ...], expected: str) -> None:
    for program in (seccomp.program(machine.name), seccomp.program(machine.name, may_mount=True)):
        assert machine.answer(program, "socket", *arguments) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [(0x5412, "EPERM"), (0x541C, "EPERM"), ((1 << 32) | 0x5412, "EPERM"), (0x5401, ALLOW), (0x5413, ALLOW)],
)
def test_terminals_cannot_be_typed_into(machine: Machine, request_: int, expected: str) -> None:
    assert machine.answer(seccomp.program(machine.name), "ioctl", 0, request_) == expected


def test_a_blank_sandbox_may_mount_until_the_second_filter(machine: Machine) -> None:
    first, second = seccomp.program(machine.name, may_mount=True), seccomp.mounting_program(machine.name)
    full = seccomp.program(machine.name)
    for number in range(470):
        both = _strictest(machine.answer(first, number), machine.answer(second, number))
        assert both == machine.answer(full, number), number
    assert machine.answer(first, "mount") == ALLOW
    assert machine.answer(first, 429) == ALLOW  # move_mount


def test_a_snapshot_may_unshare_and_return_with_just_these_flags(machine: Machine) -> None:
    apart = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET
    first = seccomp.forking_program(machine.name, (syscalls.CLONE_NEWPID, apart), syscalls.CLONE_NEWPID)
    second, full = seccomp.namespace_program(machine.name), seccomp.program(machine.name)
    for flags in (syscalls.CLONE_NEWPID, apart):
        assert machine.answer(first, "unshare", flags) == ALLOW
    for flags in (0, *_FLAGS[:5], apart | syscalls.CLONE_NEWPID, apart | syscalls.CLONE_NEWUSER, 0xFFFF_FFFF):
        assert machine.answer(first, "unshare", flags) == "EPERM", hex(flags)
    assert machine.answer(first, "setns", 5, syscalls.CLONE_NEWPID) == ALLOW
    for kind in (0, *(flag for flag in _FLAGS if flag != syscalls.CLONE_NEWPID), 0xFFFF_FFFF):
        assert machine.answer(first, "setns", 5, kind) == "EPERM", hex(kind)
    for number in range(470):
        both = _strictest(machine.answer(first, number), machine.answer(second, number))
        assert both == machine.answer(full, number), number


def _strictest(*answers: str) -> str:
    return next((answer for answer in answers if answer != ALLOW), ALLOW)


def test_a_machine_without_a_filter_is_told() -> None:
    programs: list[Any] = [seccomp.program, seccomp.mounting_program, seccomp.namespace_program]
    for program in programs:
        with pytest.raises(KeyError):
            program("riscv64")
