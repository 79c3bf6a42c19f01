"""The system calls that a program in the sandbox may not make, as a seccomp filter.

RLIMIT_NPROC does not bind root, and RLIMIT_AS counts mapped memory only: without the filter a program could start processes, fill
the machine's memory with anonymous files, shared segments or mounts of its own, or steer the process that starts it.
"""

from __future__ import annotations

import platform
import struct

MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # column in CALLS, AUDIT_ARCH, clone
CALLS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "pidfd_getfd": (438, 438), "mount_setattr": (442, 442), "memfd_secret": (447, 447),
}  # fmt: skip
CLONE3, THREAD, EPERM, ENOSYS = 435, 0x00010000, 1, 38


def call_filter() -> bytes:
    """The filter as bytes of `struct sock_filter`; empty on machines whose numbers are not known here.

    clone is allowed for threads only; clone3 hides its flags in memory and answers "no such call", so that clone is tried.
    """
    machine = platform.machine()
    if machine not in MACHINES:
        return b""
    column, architecture, clone = MACHINES[machine]
    forbidden = [number for call in CALLS.values() if (number := call[column]) is not None]
    load, equal, at_least, any_set, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000
    # (operation, jump if true, jump if false, value); jumps are filled in below as labels of the endings
    steps: list[tuple[int, str, str, int]] = [
        (load, "", "", 4),  # the architecture
        (equal, "", "refuse", architecture),
        (load, "", "", 0),  # the call's number
        *([(at_least, "refuse", "", 0x40000000)] if machine == "x86_64" else []),  # x32's numbers
        (equal, "missing", "", CLONE3),
        *((equal, "refuse", "", number) for number in forbidden),
        (equal, "", "allow", clone),
        (load, "", "", 16),  # clone's flags, the lower half of its first argument
        (any_set, "allow", "refuse", THREAD),
    ]
    endings = {"allow": len(steps), "refuse": len(steps) + 1, "missing": len(steps) + 2}
    packed = b""
    for place, (operation, true, false, value) in enumerate(steps):
        jumps = [endings[label] - place - 1 if label else 0 for label in (true, false)]
        packed += struct.pack("=HBBI", operation, *jumps, value)
    for value in (allow, refuse | EPERM, refuse | ENOSYS):
        packed += struct.pack("=HBBI", answer, 0, 0, value)
    return packed


__all__ = ["call_filter"]
