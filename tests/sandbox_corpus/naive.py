"""An executor without protection, to show that the detectors fire: exec in a forked child, nothing else.

A program of its own: reads one JSON object a line (code, probe, limit_seconds), answers with one.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any

import numpy
from PIL import Image

API_KEY = os.environ.get("OPENAI_API_KEY", "")


SCOPE = {"image": Image.new("RGB", (64, 48)), "Image": Image, "np": numpy, "result_image": None}


def exec_plainly(code: str, scope: dict[str, Any]) -> tuple[str, str]:
    """Run code as a careless program would; returns its error's text and its picture's bytes."""
    try:
        exec(code, scope)
    except BaseException:
        return traceback.format_exc(), ""
    result = scope["result_image"]
    if not isinstance(result, Image.Image) or not result.size:
        return "", ""
    return "", result.tobytes().hex()


def child(job: dict[str, str], writing: int) -> None:
    os.setpgid(0, 0)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), errors="surrogateescape", write_through=True)
    error, pixels = exec_plainly(job["code"], SCOPE)
    print("\nERROR", json.dumps([error, pixels]), flush=True)
    if job["probe"]:
        print("\nPROBE", flush=True)
        print(exec_plainly(job["probe"], SCOPE)[0], flush=True)


def run(job: dict[str, str], limit_seconds: float) -> dict[str, object]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(reading)
            child(job, writing)
            SCOPE.clear()
            atexit._run_exitfuncs()
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + limit_seconds
    output = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            data = os.read(reading, 1 << 20)
            if not data:
                break
            output += data if len(output) < 1 << 24 else b""
    overtime = left <= 0
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    return {"output": output.hex(), "overtime": overtime}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request, request["limit_seconds"])), flush=True)
