"""A trainer's own interpreter with our loader in it, asked from a test."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from environments import environment_python, student_folder

HERE = Path(__file__).parent
ENVIRONMENT = {"trl": "trl", "llamafactory": "others", "ms_swift": "others", "verl": "others"}
Row = dict[str, Any]
# Large arrays come from the heap and stay there: glibc else maps and clears each anew, half of a training's time.
KEEPS_MEMORY = {f"MALLOC_{name}_THRESHOLD_": str(2**35) for name in ("MMAP", "TRIM")}


class LoaderFailed(Exception):
    """What the trainer's own code raised."""


class TrainerProcess:
    """`with TrainerProcess("verl") as trainer:` starts the trainer once; `rows` are what it makes of files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.warnings = ""
        self._python = environment_python(ENVIRONMENT[name])
        self._students = {family: student_folder(family) for family in ("qwen3_vl", "qwen2_5_vl")}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process

    def __enter__(self) -> TrainerProcess:
        self._process = subprocess.Popen(
            [self._python, HERE / f"load_{self.name}.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | KEEPS_MEMORY,
            cwd=tempfile.gettempdir(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # its own end takes seconds
        self._process.communicate()
        self._log.close()

    def rows(self, **job: Any) -> list[Row]:
        """What the student gets; raises LoaderFailed with the trainer's own error."""
        assert self._process.stdin and self._process.stdout
        job["student"] = str(self._students[job.get("family", "qwen3_vl")])
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the loader of {self.name} ended:\n{self._end_of_log()}"
        answer = json.loads(line)
        self.warnings = answer["warnings"]
        if "error" in answer:
            raise LoaderFailed(answer["error"])
        rows: list[Row] = answer["rows"]
        return rows

    def _end_of_log(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:]
