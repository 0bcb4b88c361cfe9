"""Raw kernel calls for attacks: name → (x86_64, aarch64, arguments as Python source).

Numbers are from asm/unistd_64.h and asm-generic/unistd.h. Arguments are such that the kernel, if it looks at them
at all, does nothing that outlives the caller: invalid descriptors, bad pointers, no-ops.
"""

from __future__ import annotations

import platform

COLUMN = {"x86_64": 0, "aarch64": 1}[platform.machine()]

PRELUDE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
buf = ctypes.create_string_buffer(4096)
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[a if isinstance(a, (bytes, ctypes.Array)) else ctypes.c_long(a) for a in args])
    return result, ctypes.get_errno()
"""

# EPERM and ENOSYS are what a filter answers; anything else means that the kernel looked at the arguments.
REACHED = """
result, error = call({number}, {arguments})
if result >= 0 or error not in (1, 38):
    print("ESCAPED", result, error)
"""

SURFACE: dict[str, tuple[int | None, int | None, str]] = {
    "bpf": (321, 280, "0, -1, 0"), "io_uring_setup": (425, 425, "1, -1"), "io_uring_enter": (426, 426, "-1"),
    "io_uring_register": (427, 427, "-1"), "userfaultfd": (323, 282, "0xfff"), "keyctl": (250, 219, "0, -3, 0"),
    "add_key": (248, 217, "-1, -1, -1, 1, -2"), "request_key": (249, 218, "-1, -1, -1, 0"),
    "mount": (165, 40, "-1, -1, -1, 0, 0"), "umount2": (166, 39, "-1, 0"), "unshare": (272, 97, "0"),
    "setns": (308, 268, "-1, 0"), "chroot": (161, 51, "-1"), "pivot_root": (155, 41, "-1, -1"),
    "perf_event_open": (298, 241, "-1, 0, -1, -1, 0"), "ptrace_traceme": (101, 117, "0, 0, 0, 0"),
    "ptrace_attach": (101, 117, "16, {caller}0000, 0, 0"), "process_vm_readv": (310, 270, "{caller}, -1, 1, -1, 1, 0"),
    "process_vm_writev": (311, 271, "{caller}, -1, 1, -1, 1, 0"), "kcmp": (312, 272, "1, 1, 0, 0, 0"),
    "memfd_create": (319, 279, 'b"x", 0'), "memfd_secret": (447, 447, "0x800"),
    "name_to_handle_at": (303, 264, "-1, -1, -1, -1, 0"), "open_by_handle_at": (304, 265, "-1, -1, 0"),
    "fanotify_init": (300, 262, "0xffff, 0"), "inotify_init1": (294, 26, "0"), "signalfd4": (289, 74, "-1, buf, 8, 0"),
    "eventfd2": (290, 19, "0, 0"), "timerfd_create": (283, 85, "1, 0"), "epoll_create1": (291, 20, "0"),
    "pidfd_open": (434, 434, "1, 0"), "pidfd_getfd": (438, 438, "-1, 0, 0"), "personality": (135, 92, "0xffffffff"),
    "prctl_get": (157, 167, "3, 0, 0, 0, 0"), "prctl_dumpable": (157, 167, "4, 1, 0, 0, 0"),
    "prctl_keep_alive": (157, 167, "1, 0, 0, 0, 0"), "arch_prctl": (158, None, "0x1001, 0"),
    "seccomp_query": (317, 277, "2, 0, buf"), "landlock_create": (444, 444, "0, 0, 1"), "quotactl": (179, 60, "-1, -1, 0, 0"),
    "init_module": (175, 105, "-1, 0, -1"), "finit_module": (313, 273, "-1, -1, 0"), "delete_module": (176, 106, "-1, 0"),
    "kexec_load": (246, 104, "0, 99, 0, 0"), "reboot": (169, 142, "0, 0, 0, 0"), "swapon": (167, 224, "-1, 0"),
    "sethostname": (170, 161, "-1, 4"), "settimeofday": (164, 170, "-1, 0"), "clock_settime": (227, 112, "99, -1"),
    "adjtimex": (159, 171, "-1"), "iopl": (172, None, "99"), "syslog": (103, 116, "10, 0, 0"), "acct": (163, 89, "-1"),
    "mq_open": (240, 180, "-1, 0, 0, 0"), "shmget": (29, 194, "0x7a7a7a7a, 4096, 0"), "semget": (64, 190, "0x7a7a7a7a, 1, 0"),
    "msgget": (68, 186, "0x7a7a7a7a, 0"), "shmat": (30, 196, "-1, 0, 0"), "mlockall": (151, 230, "99"),
    "mbind": (237, 235, "0, 0, 99, 0, 0, 0"), "migrate_pages": (256, 238, "0, 0, -1, -1"),
    "process_madvise": (440, 440, "-1, 0, 0, 0, 0"), "pkey_mprotect": (329, 288, "0, 4096, 7, -1"),
    "open_tree": (428, 428, "-1, -1, 0"), "fsopen": (430, 430, "-1, 0"), "move_mount": (429, 429, "-1, -1, -1, -1, 0"),
    "mount_setattr": (442, 442, "-1, -1, 0, -1, 99"), "cachestat": (451, 451, "-1, 0, 0, 0"),
    "io_setup": (206, 0, "1, -1"), "splice": (275, 76, "-1, 0, -1, 0, 1, 0"), "vmsplice": (278, 75, "-1, 0, 1, 0"),
    "copy_file_range": (326, 285, "-1, 0, -1, 0, 1, 0"), "sendfile": (40, 71, "-1, -1, 0, 1"),
    "setrlimit": (160, 164, "7, -1"), "prlimit_set": (302, 261, "0, 7, -1, 0"), "prlimit_other": (302, 261, "1, 7, 0, buf"),
    "setpriority": (141, 140, "99, 0, 0"), "sched_setscheduler": (144, 119, "0, 99, -1"),
    "sched_setaffinity": (203, 122, "0, 8, 0"), "ioprio_set": (251, 30, "99, 0, 0"), "setuid": (105, 146, "0"),
    "setgroups": (116, 159, "0x7fffffff, 0"), "capset": (126, 91, "-1, -1"), "timer_create": (222, 107, "99, 0, -1"),
    "setitimer": (38, 103, "99, 0, 0"), "remap_file_pages": (216, 234, "-1, 0, 0, 0, 0"), "dup": (32, 23, "3"),
    "dup2": (33, None, "3, 5"), "fcntl": (72, 25, "3, 1, 0"), "pipe2": (293, 59, "buf, 0"), "socketpair": (53, 199, "1, 1, 0, buf"),
    "sendmsg_scm": (46, 211, "3, -1, 0"), "recvmsg_scm": (47, 212, "3, -1, 0"), "setsockopt": (54, 208, "3, 1, 2, buf, 4"),
    "execveat": (322, 281, "-1, -1, 0, 0, 0"), "futex_pi": ("202", "98", "buf, 6 | 128, 0, 0, 0, 0"),
    "clock_of_others": (228, 113, "~1 << 3 | 2, buf"), "affinity_of_others": (204, 123, "1, 128, buf"),
    "exec_memory": (9, 222, "0, 4096, 7, 0x22, -1, 0"), "huge_page_pool": (9, 222, "0, 1 << 21, 3, 0x40022, -1, 0x7ff1"),
}  # fmt: skip

# Looked at by the kernel even without a filter only when something is configured, or answered EPERM to all.
SILENT_UNPROTECTED = "a kernel that lacks or restricts this call answers like a filter"
MAY_BE_SILENT = frozenset(["kcmp", "init_module", "finit_module", "delete_module", "kexec_load", "iopl"])
