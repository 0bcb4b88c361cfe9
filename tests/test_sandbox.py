"""The sandbox from the outside: results, errors, bounds, levels, life cycle."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sandbox_corpus.world import broken_rule

from distil.errors import SandboxUnavailable
from distil.records import SUCCESS_MESSAGE
from distil.sandbox import frames, jail
from distil.sandbox.bounds import Layers
from distil.sandbox.exchange import ExecResult, ReplyReader
from distil.sandbox.sandbox import FairSlots, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
ROOT = Path(__file__).resolve().parents[1]
KEEP = "result_image = image"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.fixture
def photo() -> Image.Image:
    return Image.effect_noise((60, 40), 90).convert("RGB")


def in_python(code: str, timeout_seconds: float = 30) -> str:
    """The output of a program that may import distil."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def server_pids(session_of: int) -> list[int]:
    """The processes of servers that a process started: their sessions begin with its children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = (path.parent / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"sandbox/fork_server.py") for word in command):
                parent = command[command.index(next(w for w in command if w.endswith(b"fork_server.py"))) + 2]
                if int(parent) == session_of and fields[0] != "Z":
                    found.append(int(path.parent.name))
    return found


def wait_for(condition: object, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


# --- results ---------------------------------------------------------------------------------------------


def test_success(sandbox: Sandbox, photo: Image.Image) -> None:
    result = sandbox.run("print('hello')\nresult_image = image.rotate(90, expand=True)", photo)
    assert result.success
    assert result.kind == "ok"
    assert result.message == SUCCESS_MESSAGE
    assert result.stdout == "hello\n"
    assert 0 < result.duration_seconds < 5
    assert result.picture is not None
    assert result.picture.tobytes() == photo.rotate(90, expand=True).tobytes()


def test_the_same_as_a_plain_exec(sandbox: Sandbox, photo: Image.Image) -> None:
    code = "def f(im):\n    return im.rotate(k)\nk = 33\nresult_image = [f(image) for _ in range(2)][1]"
    scope = {"image": photo, "result_image": None}
    exec(code, scope)
    result = sandbox.run(code, photo)
    assert result.picture is not None
    assert result.picture.tobytes() == scope["result_image"].tobytes()  # type: ignore[attr-defined]
    assert sandbox.run(f"assert result_image is None and __name__ == 'builtins'\n{KEEP}", photo).success


@pytest.mark.parametrize("mode", sorted(frames.MODE_BITS))
def test_every_mode_in_and_out(sandbox: Sandbox, mode: str) -> None:
    size = (37, 11)
    pixels = bytes(range(256)) * 8
    picture = Image.frombytes(mode, size, pixels[: frames.pixel_bytes(mode, *size)])
    result = sandbox.run(f"assert image.mode == {mode!r}, image.mode\n{KEEP}", picture)
    assert result.picture is not None, result.message
    assert (result.picture.mode, result.picture.size) == (mode, size)
    assert result.picture.tobytes() == picture.tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(sorted(frames.MODE_BITS)),
    width=st.integers(1, 2000),
    height=st.integers(1, 60),
    seed=st.binary(),
)
def test_pictures_survive_the_wire(mode: str, width: int, height: int, seed: bytes) -> None:
    count = frames.pixel_bytes(mode, width, height)
    picture = Image.frombytes(
        mode, (width, height), ((seed or b"\x37") * (count // max(1, len(seed)) + 1))[:count]
    )
    length, parts = frames.picture_parts(picture)
    data = b"".join(parts)
    assert len(data) == length
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        position += size
        return data[position - size : position]

    again = frames.read_picture(read)
    assert position == length
    assert again.tobytes() == picture.tobytes()


@given(data=st.binary(min_size=frames.HEADER.size, max_size=frames.HEADER.size))
def test_no_header_is_trusted(data: bytes) -> None:
    with contextlib.suppress(frames.FrameError):
        header = frames.read_header(data)
        assert header.pixel_bytes == frames.pixel_bytes(header.mode, header.width, header.height)
        assert header.palette_bytes <= 1024
        assert header.transparency_bytes <= 1024


FRAMES = st.one_of(
    st.binary(max_size=200),
    st.tuples(
        st.sampled_from([b"O", b"F", b"P", b"R", b"?"]), st.integers(0, 300), st.binary(max_size=300)
    ).map(lambda frame: frames.FRAME.pack(frame[0], frame[1]) + frame[2]),
    st.tuples(
        st.sampled_from([mode.encode() for mode in frames.MODE_BITS]),
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
        st.sampled_from([b"", b"RGB", b"RGBA", b"CMYK"]),
        st.tuples(st.integers(0, 30), st.integers(0, 4), st.integers(0, 30), st.integers(0, 330)),
        st.binary(max_size=400),
    ).map(
        lambda p: (
            frames.FRAME.pack(b"P", frames.HEADER.size + len(p[4]))
            + frames.HEADER.pack(p[0], *p[1], p[2], *p[3])
            + p[4]
        )
    ),
)


@settings(max_examples=400, deadline=None)
@given(sent=st.lists(FRAMES, min_size=1, max_size=4))
def test_no_reply_is_trusted(sent: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"".join(sent))
        theirs.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(frames.FrameError, EOFError):
            result = ReplyReader(ours, 5).read_result()
            assert broken_rule(result) == ""


def test_palette_and_transparency(sandbox: Sandbox, photo: Image.Image) -> None:
    palette = photo.quantize(7)
    palette.info["transparency"] = 3
    result = sandbox.run(f"assert image.info['transparency'] == 3\n{KEEP}", palette)
    assert result.picture is not None, result.message
    assert result.picture.info == {"transparency": 3}
    assert result.picture.getpalette() == palette.getpalette()
    assert result.picture.convert("RGBA").tobytes() == palette.convert("RGBA").tobytes()
    alphas = Image.new("P", (4, 4), 1)
    alphas.info["transparency"] = bytes([0, 128])
    assert sandbox.run(KEEP, alphas).picture.info == {"transparency": bytes([0, 128])}  # type: ignore[union-attr]


def test_chance_is_a_function_of_the_job(photo: Image.Image) -> None:
    code = (
        "import random, os, uuid, secrets\nr = random.Random()\nprint(random.random(), np.random.rand(), r.random(), "
        "np.random.default_rng().random(), np.random.RandomState().rand(), os.urandom(4), uuid.uuid4(), "
        f"secrets.token_hex(4), list({{'a', 'b', 'c', 'd', 'e', 'f', 'g'}}))\n{KEEP}"
    )
    outputs = set()
    for _ in range(2):
        with Sandbox() as box:
            outputs |= {box.run(code, photo).stdout for _ in range(2)}
    assert len(outputs) == 1
    with Sandbox() as box:
        assert box.run(code + "\n# other code", photo).stdout not in outputs


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "parts"),
    [
        ("x = 1\ny = x / 0", "error", ['File "<code>", line 2', "ZeroDivisionError", "y = x / 0"]),
        ("def (:", "error", ["SyntaxError", "line 1"]),
        ("pass", "no_result", ["result_image was not set", "Hint"]),
        ("if __name__ == '__main__':\n    result_image = image", "no_result", ["__main__"]),
        ("result_image = np.zeros((3, 3))", "bad_result", ["ndarray", "Image.fromarray"]),
        ("result_image = 'a.png'", "bad_result", ["str"]),
        ("result_image = image.crop((5, 5, 5, 9))", "bad_result", ["empty"]),
        ("result_image = Image.new('1', (70000, 1000))", "bad_result", ["64 megapixels"]),
        ("import cv2", "error", ["No module named 'cv2'", "PIL, numpy"]),
        ("import numpy.f2py", "error", ["numpy.f2py", "PIL, numpy"]),
        ("open('photo.jpg')", "error", ["PermissionError", "no files"]),
        ("image.save('/tmp/x.png')", "error", ["no files"]),
        ("from PIL import ImageFont\nImageFont.truetype('Arial.ttf', 9)", "error", ["load_default"]),
        ("Image.ANTIALIAS", "error", ["LANCZOS"]),
        ("np.ones((10**6, 10**5))", "memory", ["smaller"]),
        ("exit()", "error", ["NameError"]),
        ("raise SystemExit", "error", ["last line"]),
        ("import os\nos._exit(3)", "crashed", ["ended its process"]),
        ("input()", "error", ["EOFError"]),
        ("x = '\\0", "error", ["SyntaxError"]),
    ],
)
def test_errors_say_what_to_do(
    sandbox: Sandbox, photo: Image.Image, code: str, kind: str, parts: list[str]
) -> None:
    result = sandbox.run(code, photo)
    assert result.picture is None
    assert not result.success
    assert result.kind == kind
    assert result.message.startswith("Error: ")
    assert [part for part in parts if part not in result.message] == [], result.message


def test_a_traceback_shows_their_lines_and_no_paths_of_ours(sandbox: Sandbox, photo: Image.Image) -> None:
    code = "def f():\n    image.crop((9, 9, 1, 1))\ntry:\n    f()\nexcept Exception as e:\n    raise KeyError('k') from e"
    message = sandbox.run(code, photo).message
    assert "line 2, in f" in message
    assert "line 6, in <module>" in message
    assert "direct cause" in message
    assert ".py" not in message
    assert "/" not in message


def test_the_timeout_ends_the_code_and_keeps_its_output(photo: Image.Image) -> None:
    with Sandbox(timeout_seconds=0.4) as box:
        result = box.run("print('so far')\nwhile True: pass", photo)
    assert result.kind == "timeout"
    assert "0.4 seconds" in result.message
    assert result.stdout == "so far\n"
    assert 0.3 < result.duration_seconds < 2


def test_waiting_for_a_slot_does_not_count(photo: Image.Image) -> None:
    with Sandbox(timeout_seconds=0.8, workers=1) as box, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: box.run(f"import time\ntime.sleep(.4)\n{KEEP}", photo), range(4)))
    assert [result.kind for result in results] == ["ok"] * 4


def test_output_is_bounded_and_says_so(sandbox: Sandbox, photo: Image.Image) -> None:
    result = sandbox.run(f"print('ä' * 10**6)\n{KEEP}", photo)
    assert result.success
    assert result.stdout.endswith(frames.CUT_MARK)
    assert len(result.stdout.encode()) <= frames.STDOUT_BYTES_MAX + len(frames.CUT_MARK.encode()) + 3


def test_a_long_error_keeps_its_ends(sandbox: Sandbox, photo: Image.Image) -> None:
    message = sandbox.run("raise ValueError('a' * 50000 + 'the end')", photo).message
    assert message.startswith("Error: ValueError")
    assert frames.CUT_MARK in message
    assert message.endswith("the end")


def test_memory_is_for_the_code_not_for_us(photo: Image.Image) -> None:
    with Sandbox(memory_bytes=256 * 1024**2) as box:
        assert box.run(f"a = np.ones(20 * 2**20 // 8 * 10)\n{KEEP}", photo).success
        assert box.run("a = np.ones(400 * 2**20 // 8)", photo).kind == "memory"
        huge = Image.new("RGB", (12000, 9000))
        assert box.run(KEEP, huge).kind == "memory"


def test_arguments_are_checked() -> None:
    for wrong in ({"timeout_seconds": 0}, {"memory_bytes": 1}, {"workers": 0}):
        with pytest.raises(ValueError, match="are needed"):
            Sandbox(**wrong)  # type: ignore[arg-type]


# --- levels ----------------------------------------------------------------------------------------------


def test_levels_name_every_layer(sandbox: Sandbox) -> None:
    levels = sandbox.layers
    assert isinstance(levels, Layers)
    assert {name: status for name, status, _ in levels.rows}["seccomp"] == "on"
    assert levels.text.startswith("sandbox: ")
    assert "\n" not in levels.text
    assert {name for name, _, _ in levels.rows} >= {
        "namespaces",
        "landlock",
        "seccomp",
        "limits",
        "canaries",
    }
    json.dumps(levels.as_dict())


def test_without_seccomp_nothing_runs(photo: Image.Image) -> None:
    before = server_pids(os.getpid())
    box = Sandbox(_disable=("seccomp",))
    with pytest.raises(SandboxUnavailable, match=r"no seccomp.*--unsafe_exec"):
        box.run(KEEP, photo)
    with pytest.raises(SandboxUnavailable):
        box.start()
    assert wait_for(lambda: len(server_pids(os.getpid())) <= len(before))


def test_a_canary_that_escapes_stops_the_start(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil.sandbox.sandbox.CANARIES", {"file": "print('escaped')\nresult_image = image"})
    with pytest.raises(SandboxUnavailable, match=r"file canary.*escaped"):
        Sandbox().run(KEEP, photo)


def test_unsafe_executor_shouts_and_runs(photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("readable")
    with pytest.warns(RuntimeWarning, match="WITHOUT a sandbox"):
        unsafe = Sandbox(timeout_seconds=2, unsafe=True)
    with unsafe:
        assert unsafe.layers.unsafe
        assert "NONE" in unsafe.layers.text
        assert unsafe.layers.as_dict()["unsafe_exec"] == "yes"
        result = unsafe.run(f"print(open({str(tmp_path / 'secret')!r}).read())\n{KEEP}", photo)
        assert result.stdout == "readable\n"
        assert unsafe.run("while True: pass", photo).kind == "timeout"


@pytest.mark.parametrize("machine", sorted(jail.ALLOWED))
def test_filter_tables_are_sound(machine: str) -> None:
    numbers = [*jail.ALLOWED[machine].values(), *jail.CONDITIONAL[machine].values()]
    assert len(set(numbers)) == len(numbers)
    program = jail.filter_instructions(machine)
    assert len(program) < 4096  # BPF_MAXINSNS
    for index, (code, if_true, if_false, _) in enumerate(program):
        if code & 0x07 == 0x05:
            assert index + 1 + max(if_true, if_false) < len(program)
    verdicts = {number: simulate(program, jail.AUDIT_ARCH[machine], number) for number in range(600)}
    allowed = {number for number, verdict in verdicts.items() if verdict == jail.RET_ALLOW}
    assert allowed <= set(numbers)
    assert set(jail.ALLOWED[machine].values()) <= allowed
    assert simulate(program, 0x40000003, 1) == jail.RET_KILL


def simulate(program: list[jail.Instruction], arch: int, number: int, *arguments: int) -> int:
    """The filter's verdict for a call, as the kernel's interpreter would give it."""
    words = {jail.OFFSET_CALL: number, jail.OFFSET_ARCH: arch}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        words[jail.OFFSET_ARGS + 8 * index] = value & 0xFFFFFFFF
        words[jail.OFFSET_ARGS + 8 * index + 4] = value >> 32 & 0xFFFFFFFF
    position, accumulator = 0, 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == jail.RETURN:
            return constant
        if code == jail.LOAD:
            accumulator = words[constant]
        elif code == jail.AND:
            accumulator &= constant
        else:
            truth = {
                jail.JUMP_EQUAL: accumulator == constant,
                jail.JUMP_GREATER: accumulator > constant,
                jail.JUMP_GREATER_EQUAL: accumulator >= constant,
            }[code]
            position += if_true if truth else if_false


def test_conditional_calls_look_at_their_arguments() -> None:
    program, arch = jail.filter_instructions("x86_64"), jail.AUDIT_ARCH["x86_64"]
    call = jail.CONDITIONAL["x86_64"]

    def allowed(name: str, *arguments: int) -> bool:
        return simulate(program, arch, call[name], *arguments) == jail.RET_ALLOW

    assert allowed("mmap", 0, 4096, 3, 0x22, -1)
    assert not allowed("mmap", 0, 4096, 7, 0x22, -1)
    assert not allowed("mmap", 0, 4096, 3, 0x40022, -1)
    assert allowed("mprotect", 0, 4096, 1)
    assert not allowed("mprotect", 0, 4096, 5)
    assert allowed("futex", 0, 128)
    assert not allowed("futex", 0, 128 | 6)
    assert allowed("prlimit64", 0, 7, 0)
    assert not allowed("prlimit64", 0, 7, 1 << 40)
    assert not allowed("prlimit64", 5, 7, 0)
    assert allowed("clock_gettime", 1)
    assert not allowed("clock_gettime", -1 & 0xFFFFFFFF)
    assert not allowed("ioctl", 1, 0x5413)
    assert not allowed("clone3")


CONTAINER = """
import ctypes, os, struct, sys
from distil.sandbox import jail
from distil.sandbox.sandbox import Sandbox
from PIL import Image
machine = os.uname().machine
refused = {refused}
program = [(jail.LOAD, 0, 0, jail.OFFSET_CALL)]
for number, error in refused.items():
    program += [(jail.JUMP_EQUAL, 0, 1, number), (jail.RETURN, 0, 0, jail.RET_ERRNO | error)]
program += [(jail.RETURN, 0, 0, jail.RET_ALLOW)]
jail.filter_instructions = lambda _: program
jail.prctl(jail.PR_SET_NO_NEW_PRIVS, 1)
jail.seccomp_filter(machine)()
with Sandbox() as box:
    for row in box.layers.rows: print(*row[:2], sep="=")
    print(box.run("result_image = image", Image.new("L", (9, 9))).kind, box.run("open('/etc/passwd')", Image.new("L", (9, 9))).kind)
"""


def test_inside_a_container_that_refuses_the_rest() -> None:
    names = {
        "unshare": (272, 97, 1),
        "mount": (165, 40, 1),
        "landlock": (444, 444, 38),
        "pidfd_open": (434, 434, 38),
    }
    column = sorted(jail.ALLOWED, reverse=True).index(os.uname().machine)
    refused = {row[column]: row[2] for row in names.values()}
    lines = in_python(CONTAINER.replace("{refused}", repr(refused))).split("\n")
    assert {"namespaces=off", "empty root=off", "landlock=off", "seccomp=on"} <= set(lines)
    assert lines[-2] == "ok error"


def test_inside_a_container_that_refuses_seccomp() -> None:
    number = jail.SECCOMP_CALL[os.uname().machine]
    code = CONTAINER.replace("{refused}", f"{{{number}: 38}}")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "SandboxUnavailable: Model-written code cannot be contained here: no seccomp" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="the sandbox's processes do not let an ordinary user look")
def test_children_share_no_memory_that_can_be_written() -> None:
    with Sandbox() as box:
        box.start()
        time.sleep(0.3)
        maps = []
        for pid in server_pids(os.getpid()):
            with contextlib.suppress(OSError):
                maps.append(Path(f"/proc/{pid}/maps").read_text())
        assert len(maps) >= 3
        assert not [line for text in maps for line in text.splitlines() if line.split()[1][1::2] == "ws"]


# --- life cycle ------------------------------------------------------------------------------------------


def test_nothing_starts_before_it_is_needed() -> None:
    out = in_python(
        "import sys, time, os\nimport distil.sandbox.sandbox as s\nbefore = len(os.listdir('/proc/self/fd'))\n"
        "box = s.Sandbox()\nprint(len(os.listdir('/proc/self/fd')) - before, 'numpy' in sys.modules, box._server)"
    )
    assert out.split() == ["0", "False", "None"]


def test_start_twice_close_twice(photo: Image.Image) -> None:
    box = Sandbox()
    box.start()
    box.start()
    assert len([pid for pid in server_pids(os.getpid()) if pid]) >= 2
    box.close()
    box.close()
    with pytest.raises(SandboxUnavailable, match="closed"):
        box.run(KEEP, photo)


def test_many_threads(sandbox: Sandbox) -> None:
    def call(number: int) -> bool:
        picture = Image.new("L", (40, 30), number % 256)
        result = sandbox.run(f"print({number})\nresult_image = image.point(lambda v: 255 - v)", picture)
        assert result.picture is not None, result.message
        return result.stdout == f"{number}\n" and result.picture.getpixel((3, 3)) == 255 - number % 256

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(160)))


def test_a_child_that_dies_in_any_way_costs_only_its_call(sandbox: Sandbox, photo: Image.Image) -> None:
    deaths = [
        "import os\nos._exit(0)",
        "import ctypes\nctypes.string_at(0)",
        "import os\nos.abort()",
        "import os\nos.close(3)",
        "raise SystemExit",
        "import ctypes\nctypes.CDLL(None).exit(1)",
    ]
    for code in deaths * 5:
        assert not sandbox.run(code, photo).success
        assert sandbox.run(KEEP, photo).success


def test_the_server_is_restarted_once(photo: Image.Image) -> None:
    with Sandbox() as box:
        box.start()
        for _ in range(2):
            for pid in sorted(server_pids(os.getpid())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert wait_for(box._server.has_ended)  # type: ignore[union-attr]
            if box._calls_since_restart:
                assert box.run(KEEP, photo).success
                box._calls_since_restart = 0
        with pytest.raises(SandboxUnavailable, match="twice"):
            box.run(KEEP, photo)


def dead_child() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        yield ours


def no_server() -> Iterator[None]:
    yield None


@pytest.mark.parametrize("dies", [dead_child, no_server])
def test_what_died_before_the_code_began_is_passed_over(
    dies: Callable[[], Iterator[socket.socket | None]], photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox() as box:
        server = box._running_server()
        to_lend = [contextlib.contextmanager(dies), server.spare]

        def lend() -> contextlib.AbstractContextManager[socket.socket | None]:
            return to_lend.pop(0)()

        monkeypatch.setattr(server, "spare", lend)
        assert box.run(KEEP, photo).success
        assert not to_lend
        monkeypatch.setattr(server, "spare", contextlib.contextmanager(dies))
        with pytest.raises(SandboxUnavailable, match="do not live long enough"):
            box.run(KEEP, photo)


def test_a_server_that_has_died_lends_no_child() -> None:
    with Sandbox() as box:
        server = box._running_server()
        server._keeper.kill()
        assert wait_for(server.has_ended)
        for _ in range(3):  # those that were lent before lie in the socket still
            with server.spare() as job:
                pass
        assert job is None


def test_calls_in_flight_fail_clearly_when_the_server_dies(photo: Image.Image) -> None:
    with Sandbox() as box, ThreadPoolExecutor(2) as pool:
        box.start()
        calls = [pool.submit(box.run, "import time\ntime.sleep(60)", photo) for _ in range(2)]
        time.sleep(0.3)
        for pid in server_pids(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        results = [call.result(10) for call in calls]
        assert {result.kind for result in results} == {"crashed"}
        assert "sandbox ended" in results[0].message
        assert box.run(KEEP, photo).success


def test_close_ends_calls_in_flight(photo: Image.Image) -> None:
    box = Sandbox()
    box.start()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(box.run, "import time\ntime.sleep(60)", photo)
        time.sleep(0.3)
        box.close()
        assert call.result(10).kind == "crashed"
    assert wait_for(lambda: not server_pids(os.getpid()))


KILLED_PARENT = """
import os, sys, time
from PIL import Image
from distil.sandbox.sandbox import Sandbox
import threading
box = Sandbox(timeout_seconds=60)
box.start()
threading.Thread(target=box.run, args=("while True: pass", Image.new("L", (9, 9))), daemon=True).start()
time.sleep(0.3)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_parent(fatal: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED_PARENT],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert len(server_pids(pid)) >= 3
    parent.send_signal(fatal)
    parent.communicate(timeout=10)
    assert wait_for(lambda: not server_pids(pid))


def test_interrupt_is_clean() -> None:
    code = (
        "import os, signal, threading, time\nfrom PIL import Image\nfrom distil.sandbox.sandbox import Sandbox\n"
        "picture = Image.new('L', (9, 9))\nbox = Sandbox(timeout_seconds=60)\nbox.start()\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    box.run('while True: pass', picture)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
        "print(box.run('result_image = image', picture).success)\nbox.close()"
    )
    assert in_python(code).split() == ["interrupted", "True"]


def test_a_started_sandbox_does_not_hold_up_the_exit() -> None:
    started = time.monotonic()
    in_python("from distil.sandbox.sandbox import Sandbox\nbox = Sandbox()\nbox.start()")
    assert time.monotonic() - started < 5


def run_in_child(box: Sandbox, sender: object) -> None:
    result = box.run("print('in child')\nresult_image = image", Image.new("L", (9, 9)))
    sender.send((result.success, result.stdout, os.getpid()))  # type: ignore[attr-defined]
    box.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_in_a_worker_process(method: str, photo: Image.Image) -> None:
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe()
    with Sandbox() as box:
        box.start()
        worker = context.Process(target=run_in_child, args=(box, sender), daemon=True)
        worker.start()
        assert receiver.poll(20)
        assert receiver.recv() == (True, "in child\n", worker.pid)
        worker.join(10)
        assert not server_pids(worker.pid or 0)
        assert box.run(KEEP, photo).success


def test_a_fork_while_threads_run(photo: Image.Image) -> None:
    with Sandbox() as box:
        box.start()
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                box.run(KEEP, photo)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        time.sleep(0.1)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                os._exit(0 if box.run(KEEP, photo).success else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        stop.set()
        busy.join()
        assert box.run(KEEP, photo).success
    assert wait_for(lambda: not server_pids(pid))


def test_starting_in_a_thread_that_ends(photo: Image.Image) -> None:
    with Sandbox() as box:
        starter = threading.Thread(target=box.start)
        starter.start()
        starter.join()
        time.sleep(0.2)
        assert box.run(KEEP, photo).success
        assert box._calls_since_restart > 100


def test_a_caller_with_odd_signal_settings() -> None:
    code = (
        "import signal\nfrom PIL import Image\nfrom distil.sandbox.sandbox import Sandbox\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n"
        "with Sandbox(timeout_seconds=1) as box:\n    picture = Image.new('L', (9, 9))\n"
        "    for _ in range(5):\n        assert box.run('result_image = image', picture).success\n"
        "    print(box.run('while True: pass', picture).kind)"
    )
    assert in_python(code).strip() == "timeout"


def test_a_thousand_calls_leave_nothing(photo: Image.Image) -> None:
    with Sandbox(timeout_seconds=0.5) as box:
        codes = [KEEP, KEEP, KEEP, "1 / 0", "import os\nos._exit(0)", "print('x' * 9999)"]
        for code in codes:
            box.run(code, photo)

        def counts() -> tuple[int, int]:
            fds = sum("socket" in link(path) for path in Path("/proc/self/fd").iterdir())
            return fds, threading.active_count()

        before = counts()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: box.run(codes[number % len(codes)], photo), range(1000)))
        assert counts() == before
        assert wait_for(lambda: len(server_pids(os.getpid())) <= 4)
    assert wait_for(lambda: not server_pids(os.getpid()))


def link(path: Path) -> str:
    with contextlib.suppress(OSError):
        return str(path.readlink())
    return ""


def test_a_copy_has_the_same_bounds() -> None:
    box = pickle.loads(pickle.dumps(Sandbox(3.0, 64 * 1024**2, 3)))
    assert (box.timeout_seconds, box.memory_bytes, box.workers) == (3.0, 64 * 1024**2, 3)
    assert not box.unsafe
    box = pickle.loads(pickle.dumps(Sandbox(_disable=("landlock",))))
    assert (box.unsafe, box._disable) == (False, ("landlock",))
    with pytest.warns(RuntimeWarning, match="WITHOUT"):
        assert pickle.loads(pickle.dumps(Sandbox(unsafe=True))).unsafe


def test_slots_are_given_in_order_of_arrival() -> None:
    slots, order = FairSlots(1), []
    threads = []

    def enter(number: int) -> None:
        with slots.slot():
            order.append(number)
            time.sleep(0.005)

    with slots.slot():
        for number in range(8):
            threads.append(threading.Thread(target=enter, args=(number,)))
            threads[-1].start()
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert order == sorted(order)


def test_results_are_plain_data(sandbox: Sandbox, photo: Image.Image) -> None:
    result = sandbox.run(KEEP, photo)
    assert type(result) is ExecResult
    assert type(result.picture) is Image.Image
    with pytest.raises(AttributeError):
        result.kind = "other"  # type: ignore[misc]


@pytest.mark.parametrize("machine", sorted(jail.ALLOWED))
def test_no_call_opens_a_way_to_files_network_or_processes(machine: str) -> None:
    ways = ("open", "socket", "connect", "bind", "send", "recv", "fork", "clone", "exec", "kill", "ptrace")
    allowed = set(jail.ALLOWED[machine])
    assert not [name for name in allowed for way in ways if name.startswith((way, "v" + way))]
    files = {
        "creat",
        "unlink",
        "rename",
        "link",
        "mkdir",
        "stat",
        "truncate",
        "mount",
        "chmod",
        "dup",
        "pipe",
    }
    assert not allowed & (files | {f"{name}at" for name in files})


THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not THP.is_file() or "[never]" in THP.read_text() or not hasattr(jail.LIBC, "malloc_trim"),
    reason="needs huge pages and glibc",
)
def test_a_child_gets_its_picture_in_huge_pages() -> None:
    """Counted by the page faults of a child before its code: 5 MB in small pages are 1,200."""
    faults = []
    with Sandbox() as sandbox:
        for size in ((16, 16), (1280, 960)):
            code = f"import resource; print(resource.getrusage(0).ru_minflt); {KEEP}"
            results = [sandbox.run(code, Image.new("RGB", size)) for _ in range(3)]
            faults.append(min(int(result.stdout) for result in results))
    assert faults[1] - faults[0] < 150  # 46; with the heap trimmed alone 260 and more
