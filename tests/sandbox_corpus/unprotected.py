"""The client of `naive.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from .entry import Attack
from .world import CONTROL_CHARACTERS, TOKEN, Seen, World

LIMIT_SECONDS = {"overtime": 0.5}
USUAL_LIMIT_SECONDS = 20.0  # of a busy machine


class Unprotected:
    """A disposable process that executes attacks with no protection at all."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runner = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("naive.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[world.open_secret],
            cwd=world.root,
            env=os.environ
            | {"OPENAI_API_KEY": TOKEN, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def reaches_goal(self, attack: Attack) -> bool:
        """Run an attack unprotected and say whether its detector fired."""
        assert self.runner.stdin is not None
        assert self.runner.stdout is not None
        job = {
            "code": self.world.fill(attack.code, self.runner.pid),
            "probe": attack.probe,
            "limit_seconds": LIMIT_SECONDS.get(attack.detector, USUAL_LIMIT_SECONDS),
        }
        self.runner.stdin.write(json.dumps(job) + "\n")
        self.runner.stdin.flush()
        answer = json.loads(self.runner.stdout.readline())
        return self.world.fired(attack, read_seen(bytes.fromhex(answer["output"]), answer["overtime"]))

    def close(self) -> None:
        self.runner.kill()
        self.runner.communicate()


def read_seen(raw: bytes, overtime: bool) -> Seen:
    """What `naive.py` printed, in its parts."""
    raw, _, probe = raw.partition(b"\nPROBE\n")
    output, _, error = raw.partition(b"\nERROR ")
    message, pixels = json.loads(error) if error.endswith(b"]\n") else ("", "")
    text = (output + message.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
    rule = "printable" if CONTROL_CHARACTERS.search(text) or re.search("[\ud800-\udfff]", text) else ""
    return Seen(
        output, message.encode("utf-8", "surrogatepass"), bytes.fromhex(pixels), overtime, probe, rule
    )
