"""A run asks its teacher as soon as it can: what only a rare path or the end needs is not imported before."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_teacher import ScriptedTeacher, says

from distil.cli import COMMANDS

# What a run on a plain saved dataset does without until its first request has left.
LATER = frozenset(
    [
        "datasets",
        "pandas",
        "fsspec",
        "multiprocess",
        "multiprocessing",
        "dill",
        "huggingface_hub",
        "yaml",
        "rich",
        "pygments",
        "tqdm",
        "genai_prices",
        "onnxruntime",
        "rapidocr",
        "pyarrow.compute",
        "pyarrow.parquet",
        "pyarrow.dataset",
    ]
)
HEAVY = LATER | {"PIL", "numpy", "openai", "pyarrow", "filelock", "asyncio", "ssl"}


def modules_in(importtime: str) -> set[str]:
    """The modules, and the packages, of what `python -X importtime` has written so far."""
    names = set(re.findall(r"^import time: .*\| *(\S+)$", importtime, re.MULTILINE))
    return names | {name.partition(".")[0] for name in names}


def modules_before_the_first_request(folder: Path, *flags: object) -> set[str]:
    log = folder / "imported.log"
    with socket.create_server(("127.0.0.1", 0)) as server, log.open("wb") as stderr:
        server.settimeout(60)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        arguments = ["run", "--api_base", address, "--output_dir", folder / "out", *flags]
        run = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "distil", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(4) == b"GET "
                return modules_in(log.read_text())
        finally:
            run.kill()
            run.wait()


@pytest.mark.parametrize("order", ["dataset", "random", "lat:desc", "city"])
def test_nothing_is_imported_before_the_first_request_that_it_does_not_need(
    photos: Path, tmp_path: Path, order: str
) -> None:
    found = modules_before_the_first_request(tmp_path, "--dataset_path", photos, "--order", order)
    assert {"openai", "pyarrow", "distil.run.distillation"} <= found
    assert found & LATER == set()


@pytest.mark.parametrize("name", [None, *(command.name for command in COMMANDS)])
def test_the_help_of_a_command_imports_nothing_heavy(name: str | None) -> None:
    arguments = ["--help"] if name is None else [name, "--help"]
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "distil", *arguments],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: distil" in run.stdout
    assert modules_in(run.stderr) & HEAVY == set()


def test_no_trace_that_is_shown_and_no_run_over_a_saved_dataset_waits_for_the_dataset_library(
    photos: Path, tmp_path: Path
) -> None:
    def imported(*arguments: object) -> set[str]:
        command = [sys.executable, "-X", "importtime", "-m", "distil", *map(str, arguments)]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr[-500:]
        return modules_in(run.stderr)

    out = tmp_path / "out"
    with ScriptedTeacher(lambda request: says("\\boxed{1, 2}")) as server:
        flags = ("--tool_mode", "text", "--num_samples", 1, "--output_dir", out)
        ran = imported("run", "--api_base", server.api_base, "--dataset_path", photos, *flags)
    assert "distil.terminal.summary" in ran and "datasets" not in ran
    for command in (["view", out], ["view", out, "--batch"], ["status", out]):
        assert "datasets" not in imported(*command), command
