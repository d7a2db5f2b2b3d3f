"""Takes the network from a process and from all that it starts; pipes, Unix sockets and shared memory stay.
Only the standard library comes in; whoever runs a Job's code may call it."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from typing import Any, NamedTuple

LIBC = ctypes.CDLL(None, use_errno=True)
NO_NEW_PRIVILEGES, FILTER, ALL_THREADS = 38, 1, 1  # linux/prctl.h, linux/seccomp.h
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
LOAD, EQUAL, AT_LEAST, ANSWER = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
NUMBER, MACHINE, FAMILY = 0, 4, 16  # where struct seccomp_data has them
FOREIGN = 1 << 30  # from here on x86-64 has the numbers of another ABI
IO_URING_SETUP = 425  # would open sockets unseen
NEW_NET, NEW_USER = 0x40000000, 0x10000000  # linux/sched.h
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


class Machine(NamedTuple):
    """What a kernel calls itself and two system calls."""

    audit: int
    socket: int
    seccomp: int


MACHINES = {"x86_64": Machine(0xC000003E, 41, 317), "aarch64": Machine(0xC00000B7, 198, 277)}


def go_offline(why: str) -> None:
    """Refuses every socket but Unix ones from now on, in all threads and all later children.

    Python code reads `why` in a PermissionError, other code EACCES. Where the kernel takes no filter the process gets a
    network of its own, an empty one; where it allows neither (no Linux), Python's sockets alone are refused.
    """
    if not _filtered():
        _alone()

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event in LOOKUPS or (event == "socket.__new__" and args[1] not in (socket.AF_UNIX, -1)):  # -1: inherited
            raise PermissionError(errno.EACCES, why)

    sys.addaudithook(refuse)


def _filtered() -> bool:
    """Whether the kernel now refuses sockets."""
    machine = MACHINES.get(os.uname().machine) if sys.platform == "linux" else None
    if machine is None or LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    code = _program(machine)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    return bool(LIBC.syscall(machine.seccomp, FILTER, ALL_THREADS, program) == 0)


def _program(machine: Machine) -> bytes:
    """The filter: each step is (code, steps to skip where it holds, steps to skip where not, value)."""
    steps = [
        (LOAD, 0, 0, MACHINE),
        (EQUAL, 0, 7, machine.audit),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 5, 0, FOREIGN),
        (EQUAL, 4, 0, IO_URING_SETUP),
        (EQUAL, 0, 2, machine.socket),
        (LOAD, 0, 0, FAMILY),
        (EQUAL, 0, 1, socket.AF_UNIX),
        (ANSWER, 0, 0, ALLOW),
        (ANSWER, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("@HBBI", *step) for step in steps)


def _alone() -> bool:
    """Whether this process has an empty network of its own."""
    if sys.platform != "linux":
        return False
    return bool(LIBC.unshare(NEW_NET) == 0 or LIBC.unshare(NEW_USER | NEW_NET) == 0)
