"""The fork server: loads libraries, gives up everything, then only forks, reaps and kills.

Started as a program by the client, in an interpreter without site packages and with a clean environment:

    python -P -s -S -B -X utf8 fork_server.py CONTROL_FD PARENT_PID MEMORY_BYTES CPU_SECONDS SPARES DISABLED \
        PATH…

-P -s with a clean environment are what -I would give, except that PYTHONHASHSEED counts: the order of a set
of strings must be the same in every run. -S leaves out `.pth` files; PATH… are the folders of PIL and numpy.

Three kinds of process: the keeper (this one; watches the parent), the server (its child; first in the new
pid namespace), the spares (children of the server; each armed ahead, each good for one job).

Control socket, server to client: one report (length, text), then per spare its number with the job's socket.
Client to server: T and a number when a spare was taken, D and a number when it is to be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).resolve().parent))  # last: nothing of ours shadows a library

if TYPE_CHECKING:
    from distil.sandbox import jail
    from distil.sandbox.control import COMMAND, NUMBER
else:  # by path: the server runs without the distil package
    import jail
    from control import COMMAND, NUMBER

JOB_FD = 3
OPEN_FILES_MAX = 8
UNUSED_DEATHS_MAX = 20
UNKNOWN_BASE_BYTES = 512 * 1024**2  # about twice what is usual
HEAP_BYTES = 64 * 1024**2
HUGE_PAGE_BYTES = 2 * 1024**2
HOLE_BYTES = 256 * 1024
WALL_BYTES = 4096
MALLOC_HEADER_BYTES = 8  # glibc's, of a chunk in use
LINUX = sys.platform == "linux"


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    control_fd: int
    parent_pid: int
    memory_bytes: int
    cpu_seconds: int
    spares: int
    disabled: frozenset[str]
    paths: tuple[str, ...]


def read_arguments(words: list[str]) -> Arguments:
    """The command line as numbers and names."""
    control_fd, parent_pid, memory_bytes, cpu_seconds, spares = map(int, words[:5])
    disabled = frozenset(filter(None, words[5].split(",")))
    return Arguments(control_fd, parent_pid, memory_bytes, cpu_seconds, spares, disabled, tuple(words[6:]))


def attempt(report: list[str], name: str, enabled: bool, action: Callable[[], str]) -> bool:
    """Run a layer's action, which returns its detail; note how it went."""
    if not enabled:
        note(report, name, "off", "switched off")
        return False
    try:
        note(report, name, "on", action())
    except (OSError, LookupError, StopIteration) as error:
        note(report, name, "off", getattr(error, "strerror", None) or repr(error))
        return False
    return True


def note(report: list[str], name: str, status: str, detail: str) -> None:
    """Add one layer to the report: a line for each."""
    report.append("\t".join((name, status, detail.replace("\t", " ").replace("\n", " "))))


# --- keeper --------------------------------------------------------------------------------------------


def parent_watch(parent_pid: int) -> int | None:
    """A pidfd that becomes readable when the parent ends; None where the kernel has none."""
    try:
        return os.pidfd_open(parent_pid)
    except (AttributeError, OSError):
        return None


def keep(server_pid: int, parent_pid: int, watch_fd: int | None) -> None:
    """Wait until the server or the parent ends, then end the other's remains."""
    wake = wake_on_child_death()
    poller = select.poll()
    poller.register(wake, select.POLLIN)
    if watch_fd is not None:
        poller.register(watch_fd, select.POLLIN)
    while os.getppid() == parent_pid:
        if os.waitpid(server_pid, os.WNOHANG)[0]:
            return
        events = poller.poll(None if watch_fd is not None else 500)
        drain(wake)
        if any(fd == watch_fd for fd, _ in events):
            break
    os.kill(server_pid, signal.SIGKILL)


def wake_on_child_death() -> socket.socket:
    """A socket that becomes readable on SIGCHLD."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reading


def drain(wake: socket.socket) -> None:
    """Empty the wake-up socket."""
    with contextlib.suppress(BlockingIOError):
        wake.recv(4096)


# --- server ----------------------------------------------------------------------------------------------


def prefer_our_death() -> None:
    """Tell the kernel to end jobs before the user's program when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def leave_namespaces(report: list[str], disabled: frozenset[str]) -> list[str]:
    """Leave the namespaces (before the server is forked: a pid namespace begins with a child)."""
    if "namespaces" in disabled:
        note(report, "namespaces", "off", "switched off")
        return []
    left, refused = jail.leave_namespaces()
    status = "on" if left and not refused else "partly" if left else "off"
    refusals = f" (refused: {'; '.join(refused)})" if refused else ""
    note(report, "namespaces", status, ", ".join(left) + refusals)
    return left


def close_doors(report: list[str], disabled: frozenset[str], left: list[str]) -> list[Callable[[], None]]:
    """Everything the server itself gives up, noted in the report; returns what each child puts on itself."""
    on = {name: name not in disabled for name in ("privileges", "landlock", "seccomp")}

    def empty_root() -> str:
        jail.pivot_into_nothing()
        return "empty read-only tmpfs"

    def landlock() -> str:
        version = jail.landlock_version()
        if not version:
            raise LookupError("this kernel has no Landlock")
        jail.landlock_nothing(jail.landlock_attributes(version))
        return f"no rules, ABI {version}"

    if on["landlock"] or on["seccomp"]:
        jail.prctl(jail.PR_SET_NO_NEW_PRIVS, 1)  # both need it where there is no CAP_SYS_ADMIN
    if "mount" in left:  # never otherwise: it would change the root of everybody
        attempt(report, "empty root", True, empty_root)
    else:
        note(report, "empty root", "off", "needs a mount namespace")
    attempt(report, "privileges", on["privileges"], jail.drop_privileges)
    landlocked = attempt(report, "landlock", on["landlock"], landlock)
    with_filter = attempt(report, "seccomp", on["seccomp"], probe_seccomp)
    of_each_child: list[Callable[[], None]] = []
    if landlocked:
        attributes = jail.landlock_attributes(jail.landlock_version())
        of_each_child.append(partial(jail.landlock_nothing, attributes))
    if with_filter:
        of_each_child.append(jail.seccomp_filter(platform.machine()))
    return of_each_child


def probe_seccomp() -> str:
    """Install the filter in a throw-away child and see it refuse; raises OSError or LookupError."""
    machine = platform.machine()
    if sys.maxsize < 2**32 or machine not in jail.ALLOWED:
        raise LookupError(f"no filter for {machine} with {sys.maxsize.bit_length() + 1}-bit Python")
    install_filter = jail.seccomp_filter(machine)
    child = os.fork()
    if child == 0:
        try:
            install_filter()
            os.close(os.open("/", os.O_RDONLY))
            os._exit(1)
        except PermissionError as error:
            os._exit(2 if error.filename == "seccomp" else 0)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        raise LookupError("the kernel does not take or does not keep a seccomp filter")
    calls = len(jail.ALLOWED[machine]) + len(jail.CONDITIONAL[machine])
    return f"{calls} calls on the list, {machine}"


def address_space_bytes() -> int:
    """How much address space this process has mapped."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return UNKNOWN_BASE_BYTES


def limit_resources(arguments: Arguments, base_bytes: int) -> None:
    """The child's hard limits; a limit that is already lower stays."""
    wanted = {
        resource.RLIMIT_DATA: base_bytes + arguments.memory_bytes,
        resource.RLIMIT_CPU: arguments.cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES_MAX,
        resource.RLIMIT_CORE: 0,
    }
    if LINUX:
        wanted |= {resource.RLIMIT_AS: base_bytes + arguments.memory_bytes, resource.RLIMIT_NPROC: 0}
        wanted |= {resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_SIGPENDING: 16}
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (lower, lower))


@dataclass
class Pool:
    """The server's children: number → pid, waiting for a job or taken by one."""

    control: socket.socket
    arguments: Arguments
    layers: list[Callable[[], None]]
    base_bytes: int
    serve_one: Callable[[], None]
    waiting: dict[int, int] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    last_number: int = 0
    unused_deaths: int = 0

    def fork_spare(self) -> None:
        """One more child, its job's socket sent to the client."""
        ours, theirs = socket.socketpair()
        self.last_number = (self.last_number + 1) % 2**32
        server_pid = os.getpid()
        pid = jail.bare_fork() if LINUX else os.fork()
        if pid == 0:
            try:
                self.become_spare(theirs.detach(), server_pid)
            finally:
                os._exit(0)
        theirs.close()
        self.waiting[self.last_number] = pid
        socket.send_fds(self.control, [NUMBER.pack(self.last_number)], [ours.fileno()])
        ours.close()

    def become_spare(self, fd: int, server_pid: int) -> None:
        """In the child: give up the rest, say that it is ready, serve one job."""
        if LINUX:
            jail.die_with_parent()
            if os.getppid() != server_pid:
                return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(fd, JOB_FD)
        os.closerange(0, JOB_FD)
        os.closerange(JOB_FD + 1, 4096)
        limit_resources(self.arguments, self.base_bytes)
        for put_on in self.layers:  # seccomp is the last
            put_on()
        self.serve_one()

    def reap(self) -> None:
        """Bury the dead; a spare that died unused is replaced, slowly if it keeps happening."""
        dead: set[int] = set()
        while len(dead) < len(self.waiting) + len(self.taken):
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            dead.add(pid)
        self.obey(frozenset(dead))  # a child that was taken and is dead by now must not count as unused
        self.unused_deaths += sum(pid in dead for pid in self.waiting.values())
        self.waiting = {number: pid for number, pid in self.waiting.items() if pid not in dead}
        self.taken = {number: pid for number, pid in self.taken.items() if pid not in dead}
        if self.unused_deaths > UNUSED_DEATHS_MAX:
            raise SystemExit(3)

    def refill(self) -> None:
        """Fork until enough spares wait; while a job runs, one is enough: a fork then would slow the job."""
        enough = 1 if self.taken else self.arguments.spares
        while len(self.waiting) < enough:
            if self.unused_deaths:
                time.sleep(0.02 * self.unused_deaths)
            self.fork_spare()

    def obey(self, dead: frozenset[int] = frozenset()) -> None:
        """Carry out the client's commands that are there; ends the server when the client has closed."""
        while select.select([self.control], [], [], 0)[0]:
            data = self.control.recv(COMMAND.size, socket.MSG_WAITALL)
            if len(data) < COMMAND.size:
                raise SystemExit(0)
            verb, number = COMMAND.unpack(data)
            if verb == b"T" and number in self.waiting:
                self.taken[number] = self.waiting.pop(number)
                self.unused_deaths = 0
            elif verb == b"D" and self.taken.get(number, 0) not in (0, *dead):
                os.kill(self.taken[number], signal.SIGKILL)  # not yet reaped: the pid is still this child's

    def run(self) -> None:
        """Fork, reap and kill until the client closes the control socket."""
        wake = wake_on_child_death()
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        poller.register(self.control, select.POLLIN)
        while True:
            self.refill()
            ready = {fd for fd, _ in poller.poll()}
            self.obey()
            if wake.fileno() in ready:
                drain(wake)
                self.reap()


def serve(control: socket.socket, arguments: Arguments, report: list[str], left: list[str]) -> None:
    """The server's whole life, in the process that is first in its pid namespace."""
    if LINUX:
        jail.die_with_parent()
    serve_one = load_libraries(arguments.paths)
    base_bytes = address_space_bytes()
    reserve_heap()
    if LINUX:
        prefer_our_death()
        layers = close_doors(report, arguments.disabled, left)
        jail.die_with_parent()  # changing the user id has cleared it
    else:
        note(report, "seccomp", "off", f"{sys.platform} has no seccomp")
        layers = []
    memory_mib = arguments.memory_bytes // 2**20
    note(report, "limits", "on", f"{memory_mib} MiB, {OPEN_FILES_MAX} fds, no process, no file")
    text = "\n".join(report).encode()
    control.sendall(NUMBER.pack(len(text)) + text)
    Pool(control, arguments, layers, base_bytes, serve_one).run()


def reserve_heap() -> None:
    """Give back the heap's holes, then grow it untouched: a child's pictures lie in whole fresh huge pages.

    In a huge page that the server has used, each small page would be faulted in or copied by itself. So what
    is small gets a hole below, and between the two a wall that is never freed ends where a huge page begins.
    The trim threshold in our environment keeps what was freed; without one, or without glibc, this does
    little and no harm.
    """
    libc = jail.LIBC
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def at_the_end(size_bytes: Callable[[int], int]) -> int:
        """A piece of the heap's end: what is so large lies nowhere else, and is then cut to size."""
        piece: int = libc.malloc(HEAP_BYTES) or 0
        libc.realloc(piece, size_bytes(piece) - MALLOC_HEADER_BYTES)
        return piece

    at_the_end(lambda start: HUGE_PAGE_BYTES + -(start + HOLE_BYTES + WALL_BYTES) % HUGE_PAGE_BYTES)
    hole = at_the_end(lambda _: HOLE_BYTES)
    at_the_end(lambda _: WALL_BYTES)
    libc.free(libc.malloc(HEAP_BYTES))
    libc.free(hole)


def load_libraries(paths: tuple[str, ...]) -> Callable[[], None]:
    """Import everything that is on offer; returns what a child calls to serve its job."""
    sys.path.extend(paths)
    import_module("preload").load_all()  # here, so that the keeper stays small
    job = import_module("job")
    sys.path_importer_cache.clear()
    return partial(job.serve_one, JOB_FD, job.prepare(JOB_FD))


def main() -> None:
    """Leave the namespaces, fork the server, and keep watch."""
    arguments = read_arguments(sys.argv[1:])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # A caller that ignores it would leave us nothing to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    os.umask(0o077)
    control = socket.socket(fileno=arguments.control_fd)
    watch_fd = parent_watch(arguments.parent_pid)
    if os.getppid() != arguments.parent_pid:
        return
    report: list[str] = []
    left = leave_namespaces(report, arguments.disabled) if LINUX else []
    server_pid = os.fork()
    if server_pid == 0:
        if watch_fd is not None:
            os.close(watch_fd)
        try:
            serve(control, arguments, report, left)
        finally:
            os._exit(0)  # without a traceback: what is stderr by now belongs to the jobs
    control.close()
    keep(server_pid, arguments.parent_pid, watch_fd)


if __name__ == "__main__":
    main()
