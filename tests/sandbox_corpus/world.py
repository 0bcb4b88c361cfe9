"""The surroundings that attacks aim at, and the detectors that look from the outside."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from distil.records import SUCCESS_MESSAGE
from distil.sandbox import frames, jail
from distil.sandbox.exchange import CONTROL_CHARACTERS, ExecResult
from distil.sandbox.sandbox import Sandbox

from .entry import Attack

KINDS = {"ok", "error", "timeout", "memory", "no_result", "bad_result", "crashed"}
SLACK_SECONDS = 2.0  # for a busy machine
BAIT = "X = 'ESCAPED'\n"
# The attacks look for this prefix in other processes' memory; the rest is new in every run.
TOKEN = os.environ.get("OPENAI_API_KEY", "")
if not TOKEN.startswith("sk-distil-"):
    TOKEN = "sk-distil-" + secrets.token_hex(16)
    os.environ["OPENAI_API_KEY"] = TOKEN


@dataclass
class Seen:
    """What came back from one attack, by whatever executor."""

    output: bytes
    message: bytes
    pixels: bytes
    overtime: bool
    probe_output: bytes = b""
    broken_rule: str = ""


@dataclass
class World:
    """A secret file, a watched folder, listeners and a victim, under a folder of its own."""

    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sandbox-corpus-")))

    def __post_init__(self) -> None:
        self.root.chmod(0o755)
        self.secret_file = self.root / "secret.txt"
        self.secret_file.write_text(TOKEN)
        self.folder = self.root / "watched"
        self.make_folder()
        self.tcp, self.udp, self.unix = (
            socket.socket(),
            socket.socket(type=socket.SOCK_DGRAM),
            socket.socket(socket.AF_UNIX),
        )
        self.tcp.bind(("127.0.0.1", 0))
        self.udp.bind(("127.0.0.1", 0))
        self.unix.bind(str(self.root / "listener"))
        self.tcp.listen()
        self.unix.listen()
        self.open_secret = os.open(self.secret_file, os.O_RDONLY)  # for attacks on inherited descriptors
        os.set_inheritable(self.open_secret, True)
        self.victim: subprocess.Popen[bytes] | None = None
        self.living_victim()

    def make_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "bait.py").write_text(BAIT)
        self.before = self.listing()

    def listing(self) -> list[tuple[str, int, int, int, int]]:
        if not self.folder.is_dir():
            return []
        rows = (
            (path.name, path.lstat()) for path in sorted(self.folder.iterdir()) if path.name != "__pycache__"
        )
        return [(name, stat.st_size, stat.st_mtime_ns, stat.st_mode, stat.st_nlink) for name, stat in rows]

    def living_victim(self) -> subprocess.Popen[bytes]:
        if self.victim is None or self.victim.poll() is not None:
            self.victim = subprocess.Popen(
                [sys.executable, "-S", "-c", "import time; time.sleep(600)", TOKEN]
            )
        return self.victim

    def close(self) -> None:
        for listener in (self.tcp, self.udp, self.unix):
            listener.close()
        if self.victim is not None:
            self.victim.kill()
            self.victim.wait()
        os.close(self.open_secret)
        shutil.rmtree(self.root, ignore_errors=True)

    def fill(self, code: str, caller: int | None = None) -> str:
        """The code with this world's paths, ports and pids."""
        values = {
            "secret_file": self.secret_file,
            "folder": self.folder,
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "unix": self.root / "listener",
            "caller": caller or os.getpid(),
            "stdlib": sysconfig.get_paths()["stdlib"],
            "python": sys.executable,
            "project": Path(__file__).resolve().parents[2],
        }
        for name, value in values.items():
            code = code.replace("{" + name + "}", str(value))
        if "{victim}" in code:
            code = code.replace("{victim}", str(self.living_victim().pid))
        if "{allowed}" in code:
            machine = os.uname().machine
            numbers = {*jail.ALLOWED[machine].values(), *jail.CONDITIONAL[machine].values()}
            code = code.replace("{allowed}", repr(numbers))
        return code

    # --- detectors: True when the attack reached its goal ---------------------------------------------

    def fired(self, attack: Attack, seen: Seen) -> bool:
        return bool(getattr(self, "saw_" + attack.detector)(seen))

    def saw_token(self, seen: Seen) -> bool:
        return any(TOKEN.encode() in data for data in (seen.output, seen.message, seen.pixels))

    def saw_escaped(self, seen: Seen) -> bool:
        return b"ESCAPED" in seen.output

    def saw_folder(self, seen: Seen) -> bool:
        changed = self.listing() != self.before
        if changed:
            self.make_folder()
        return changed

    def saw_network(self, seen: Seen) -> bool:
        heard = select.select([self.tcp, self.udp, self.unix], [], [], 0)[0]
        for listener in heard:
            if listener is self.udp:
                listener.recv(9999)
            else:
                listener.accept()[0].close()
        return bool(heard)

    def saw_victim(self, seen: Seen) -> bool:
        victim = self.living_victim() if self.victim is None else self.victim
        time.sleep(0.05)  # a signal takes effect a moment after it was sent
        pid, status = os.waitpid(victim.pid, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if pid:
            victim.returncode = -9
            self.victim = None
        return pid != 0

    def saw_overtime(self, seen: Seen) -> bool:
        return seen.overtime

    def saw_state(self, seen: Seen) -> bool:
        return b"DIRTY" in seen.probe_output

    def saw_flood(self, seen: Seen) -> bool:
        return (
            len(seen.output) > frames.STDOUT_BYTES_MAX + len(frames.CUT_MARK.encode())
            or len(seen.message) > frames.MESSAGE_BYTES_MAX
        )

    def saw_forged(self, seen: Seen) -> bool:
        return bool(seen.broken_rule)

    # --- in a sandbox -----------------------------------------------------------------------------------

    def reaches_goal(self, attack: Attack, sandbox: Sandbox, picture: Image.Image) -> bool:
        """Run an attack in a sandbox and say whether it reached its goal."""
        result = sandbox.run(self.fill(attack.code), picture)
        seen = Seen(
            result.stdout.encode("utf-8", "surrogatepass"),
            result.message.encode("utf-8", "surrogatepass"),
            result.picture.tobytes() if result.picture else b"",
            result.duration_seconds > sandbox.timeout_seconds + SLACK_SECONDS,
            broken_rule=broken_rule(result),
        )
        if attack.probe:
            seen.probe_output = sandbox.run(attack.probe, picture).stdout.encode()
        if attack.detector == "forged" and not sandbox.run("result_image = image", picture).success:
            seen.broken_rule = "the next call failed"
        return self.fired(attack, seen) or bool(seen.broken_rule)


def broken_rule(result: ExecResult) -> str:
    """The rule of the interface that a result breaks, or nothing."""
    texts = (result.message, result.stdout)
    rules = {
        "kind": result.kind in KINDS,
        "success": (result.kind == "ok")
        == (result.picture is not None)
        == (result.message == SUCCESS_MESSAGE),
        "printable": not any(CONTROL_CHARACTERS.search(text) for text in texts),
        "utf-8": all(text == text.encode("utf-8", "replace").decode("utf-8") for text in texts),
        "message": len(result.message.encode("utf-8", "replace")) <= frames.MESSAGE_BYTES_MAX,
        "stdout": len(result.stdout.encode("utf-8", "replace"))
        <= frames.STDOUT_BYTES_MAX + len(frames.CUT_MARK.encode()),
    }
    if (picture := result.picture) is not None:
        rules["type"] = type(picture) is Image.Image
        rules["pixels"] = 0 < picture.width * picture.height <= frames.RESULT_PIXELS_MAX
        rules["mode"] = picture.mode in frames.MODE_BITS
        rules["bytes"] = rules["mode"] and len(picture.tobytes()) == frames.pixel_bytes(
            picture.mode, *picture.size
        )
        rules["info"] = set(picture.info) <= {"transparency"}
    return ", ".join(name for name, kept in rules.items() if not kept)
