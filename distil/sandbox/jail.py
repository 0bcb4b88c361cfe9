"""The kernel layers around model-written code, built with ctypes alone.

Standard library only: the server imports this file by path, without the distil package.
Numbers are from the kernel's headers: asm/unistd_64.h (x86_64), asm-generic/unistd.h (aarch64),
linux/seccomp.h, linux/bpf_common.h, linux/audit.h, linux/landlock.h, linux/sched.h, linux/prctl.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC_WITH_GIL = ctypes.PyDLL(None, use_errno=True)

# --- seccomp -----------------------------------------------------------------------------------

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

# No call here takes a path, makes a socket, a process or a file descriptor, or reaches another process.
ALLOWED = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20,
        "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60,
        "getcwd": 79, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100,
        "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getgroups": 115,
        "getresuid": 118, "getresgid": 120, "rt_sigpending": 127, "rt_sigtimedwait": 128,
        "rt_sigsuspend": 130, "sigaltstack": 131, "gettid": 186, "time": 201, "restart_syscall": 219,
        "exit_group": 231, "getrandom": 318,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "munmap": 215, "brk": 214,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "readv": 65, "writev": 66,
        "sched_yield": 124, "mremap": 216, "madvise": 233, "nanosleep": 101, "getpid": 172, "exit": 93,
        "getcwd": 17, "gettimeofday": 169, "getrlimit": 163, "getrusage": 165, "sysinfo": 179, "times": 153,
        "getuid": 174, "getgid": 176, "geteuid": 175, "getegid": 177, "getppid": 173, "getgroups": 158,
        "getresuid": 148, "getresgid": 150, "rt_sigpending": 136, "rt_sigtimedwait": 137,
        "rt_sigsuspend": 133, "sigaltstack": 132, "gettid": 178, "restart_syscall": 128,
        "exit_group": 94, "getrandom": 278,
    },
}  # fmt: skip

# Calls that are allowed for some arguments only; see `conditional_rules`.
CONDITIONAL = {
    "x86_64": {
        "mmap": 9, "mprotect": 10, "ioctl": 16, "futex": 202, "sched_getaffinity": 204, "clock_gettime": 228,
        "clock_getres": 229, "clock_nanosleep": 230, "prlimit64": 302, "clone3": 435,
    },
    "aarch64": {
        "mmap": 222, "mprotect": 226, "ioctl": 29, "futex": 98, "sched_getaffinity": 123,
        "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "prlimit64": 261, "clone3": 435,
    },
}  # fmt: skip

SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}
RET_ALLOW, RET_ERRNO, RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, AND, RETURN = 0x20, 0x15, 0x25, 0x35, 0x54, 0x06
OFFSET_CALL, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16  # struct seccomp_data
PROT_EXEC, MAP_HUGETLB = 0x4, 0x40000
# FUTEX_WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP and the BITSET pair: no priority inheritance.
FUTEX_OPERATIONS = (0, 1, 3, 4, 5, 9, 10)
HIGHEST_FIXED_CLOCK = 11  # CLOCK_TAI; negative ids would name other processes or fds

Instruction = tuple[int, int, int, int]


def give(verdict: int) -> list[Instruction]:
    """One return instruction."""
    return [(RETURN, 0, 0, verdict)]


def argument(index: int, high: bool = False) -> Instruction:
    """Load the low (or high) half of a call's argument; both machines are little-endian."""
    return (LOAD, 0, 0, OFFSET_ARGS + 8 * index + 4 * high)


def unless_zero(loads: Iterable[Instruction], mask: int = 0xFFFFFFFF) -> list[Instruction]:
    """Refuse with EPERM unless every loaded word, masked, is zero."""
    refuse = RET_ERRNO | errno.EPERM
    rules: list[Instruction] = []
    for load in loads:
        rules += [load, (AND, 0, 0, mask), (JUMP_EQUAL, 1, 0, 0), *give(refuse)]
    return rules


def conditional_rules() -> dict[str, list[Instruction]]:
    """For each conditional call, the instructions that end in a verdict."""
    allow, refuse = give(RET_ALLOW), give(RET_ERRNO | errno.EPERM)
    futex: list[Instruction] = [argument(1), (AND, 0, 0, 127)]
    for operation in FUTEX_OPERATIONS:
        futex += [(JUMP_EQUAL, 0, 1, operation), *allow]
    fixed_clock: list[Instruction] = [argument(0), (JUMP_GREATER, 1, 0, HIGHEST_FIXED_CLOCK), *allow, *refuse]
    return {
        "mmap": unless_zero([argument(2)], PROT_EXEC) + unless_zero([argument(3)], MAP_HUGETLB) + allow,
        "mprotect": unless_zero([argument(2)], PROT_EXEC) + allow,
        "futex": futex + refuse,
        "sched_getaffinity": unless_zero([argument(0)]) + allow,
        "clock_gettime": fixed_clock,
        "clock_getres": fixed_clock,
        "clock_nanosleep": fixed_clock,
        # Reading one's own limits only: pid 0 and no new limit.
        "prlimit64": unless_zero([argument(0), argument(2), argument(2, high=True)]) + allow,
        "ioctl": give(RET_ERRNO | errno.ENOTTY),  # so that isatty() says no
        "clone3": give(RET_ERRNO | errno.ENOSYS),  # so that glibc falls back to clone, and is refused
    }


def filter_instructions(machine: str) -> list[Instruction]:
    """The whole seccomp filter for a machine; raises KeyError for one without a table."""
    program: list[Instruction] = [
        (LOAD, 0, 0, OFFSET_ARCH),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        *give(RET_KILL),
        (LOAD, 0, 0, OFFSET_CALL),
    ]
    if machine == "x86_64":
        program += [(JUMP_GREATER_EQUAL, 0, 1, X32_BIT), *give(RET_KILL)]
    for number in ALLOWED[machine].values():
        program += [(JUMP_EQUAL, 0, 1, number), *give(RET_ALLOW)]
    rules = conditional_rules()
    for name, number in CONDITIONAL[machine].items():
        program += [(JUMP_EQUAL, 0, len(rules[name]), number), *rules[name]]
    return program + give(RET_ERRNO | errno.EPERM)


def seccomp_filter(machine: str) -> Callable[[], None]:
    """Pack the filter, once; what is returned puts it on a process for good.

    That needs no_new_privs, and raises OSError.
    """
    packed = b"".join(struct.pack("<HBBI", *step) for step in filter_instructions(machine))
    # struct sock_fprog, then what it points to
    program = ctypes.create_string_buffer(bytes(16) + packed, 16 + len(packed))
    struct.pack_into("<H6xQ", program, 0, len(packed) // 8, ctypes.addressof(program) + 16)

    def install() -> None:
        check(LIBC.syscall(SECCOMP_CALL[machine], 1, 0, program), "seccomp")

    return install


# --- single calls --------------------------------------------------------------------------------


def check(result: int, what: str) -> int:
    """Turn a C error return into OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def bare_fork() -> int:
    """fork(2) of a process that has one thread, without Python's hooks for locks, threads and chance.

    They write to some hundred pages that a child would otherwise share; raises OSError.
    """
    return check(_LIBC_WITH_GIL.fork(), "fork")


PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47


def prctl(option: int, value: int = 0) -> None:
    """One prctl with one number; raises OSError."""
    check(LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that forked it ends."""
    prctl(PR_SET_PDEATHSIG, 9)


def drop_privileges() -> str:
    """Become nobody when root, lose every capability, gain none again; returns what was done."""
    done = []
    # The bounding set can be emptied only while CAP_SETPCAP is there; without it there is nothing to empty.
    with contextlib.suppress(OSError):
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)
    if os.getuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
        with contextlib.suppress(OSError):
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            done.append("uid 65534")
    with contextlib.suppress(OSError):
        prctl(PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    check(LIBC.capset(header, bytes(24)), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    return ", ".join([*done, "no capabilities", "no_new_privs", "not dumpable"])


# --- Landlock ------------------------------------------------------------------------------------

LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446  # the same on both machines


def landlock_version() -> int:
    """The ABI version, 0 where there is no Landlock."""
    return max(0, int(LIBC.syscall(LANDLOCK_CREATE, None, 0, 1)))


def landlock_attributes(version: int) -> bytes:
    """struct landlock_ruleset_attr that handles everything this ABI version knows."""
    rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)  # refer, truncate, ioctl_dev
    words = [(1 << rights) - 1]
    if version >= 4:
        words.append(3)  # TCP bind and connect
    if version >= 6:
        words.append(3)  # abstract unix sockets and signals
    return struct.pack(f"<{len(words)}Q", *words)


def landlock_nothing(attributes: bytes) -> None:
    """Enter a domain that allows nothing; needs no_new_privs; raises OSError."""
    ruleset = check(LIBC.syscall(LANDLOCK_CREATE, attributes, len(attributes), 0), "landlock_create_ruleset")
    try:
        check(LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


# --- namespaces ----------------------------------------------------------------------------------

NEW_USER = 0x10000000
NAMESPACES = {
    "mount": 0x00020000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000,
    "uts": 0x04000000, "cgroup": 0x02000000,
}  # fmt: skip


def unshare(flag: int, name: str) -> None:
    """Leave one namespace; raises OSError."""
    check(LIBC.unshare(flag), f"unshare {name}")


def enter_user_namespace() -> None:
    """A user namespace in which this user is nobody; raises OSError where the kernel forbids it."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEW_USER, "user")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"65534 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"65534 {gid} 1")


def leave_namespaces() -> tuple[list[str], list[str]]:
    """Leave every namespace that can be left; returns the names that were left and the refusals."""
    left: list[str] = []
    refused: list[str] = []

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
            left.append(name)
        except OSError as error:
            refused.append(f"{name}: {error.strerror}")

    try:
        unshare(NAMESPACES["mount"], "mount")  # root with CAP_SYS_ADMIN needs no user namespace
        left.append("mount")
    except OSError:
        attempt("user", enter_user_namespace)
    for name, flag in NAMESPACES.items():
        if name not in left:
            attempt(name, lambda flag=flag, name=name: unshare(flag, name))  # type: ignore[misc]
    return left, refused


MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_RDONLY, MS_REMOUNT = 2, 4, 8, 1, 32
MS_PRIVATE_TREE = 0x40000 | 0x4000  # MS_PRIVATE | MS_REC
MNT_DETACH = 2
PIVOT_ROOT_CALL = {"x86_64": 155, "aarch64": 41}
MOUNT_POINTS = ("/tmp", "/var", "/usr", "/etc")  # noqa: S108 - only covered, never written


def mount(
    source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None
) -> None:
    """mount(2); raises OSError."""
    check(LIBC.mount(source, target, kind, ctypes.c_ulong(flags), data), f"mount {target.decode()}")


def pivot_into_nothing() -> None:
    """Make an empty read-only tmpfs the root of this mount namespace; raises OSError."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount(None, b"/", None, MS_PRIVATE_TREE)
    covered = next(point for point in MOUNT_POINTS if Path(point).is_dir())
    mount(b"none", covered.encode(), b"tmpfs", flags, b"size=4k,nr_inodes=2,mode=0555")
    os.chdir(covered)
    # pivot_root(2): "." for both puts the old root on top of the new one, from where it is taken off.
    check(LIBC.syscall(PIVOT_ROOT_CALL[platform.machine()], b".", b"."), "pivot_root")
    check(LIBC.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")
    mount(None, b"/", None, MS_REMOUNT | MS_RDONLY | flags)
