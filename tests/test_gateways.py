"""What stands between users and their servers: nginx in front of two backends, and LiteLLM's proxy, as they are."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, turns

ANSWERS = turns(says("\\boxed{1, 2}"))
TWO_TURNS = turns(
    calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 900, 900]})), says("It is here. \\boxed{1, 2}")
)
SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
LITELLM = "litellm[proxy]==1.108.7"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_until_up(url: str, process: subprocess.Popen[bytes], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} does not answer: {log.read_text()[-2000:]}")


@contextmanager
def nginx(folder: Path, backends: Sequence[str], location: str = "") -> Iterator[str]:
    """A gateway on loopback before backends; gives the address of its API."""
    program = shutil.which("nginx", path=SEARCHED)
    assert program is not None, "these tests need nginx: apt-get install nginx-light"
    folder.mkdir()
    port = free_port()
    servers = "".join(f"server {url.split('/')[2]} max_fails=0; " for url in backends)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root; " if os.geteuid() == 0 else ""  # else its workers may not write here
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 256; }}\n"
        f"http {{ access_log off; {temporary} client_max_body_size 64m;\n"
        f"upstream teachers {{ {servers} keepalive 8; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{\n"
        'proxy_pass http://teachers; proxy_http_version 1.1; proxy_set_header Connection "";\n'
        f"{location}\n}} }} }}\n"
    )
    log = folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_until_up(f"http://127.0.0.1:{port}/v1/models", process, 20, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=20)


def run(run_door: RunDoor, api_base: str, photos: Path, folder: Path, *flags: object, **named: Any) -> Any:
    return run_door(
        "demo_concurrent.py", "--api_base", api_base, "--dataset_path", photos, "--output_dir", folder,
        "--num_samples", 12, "--max_workers", 4, *flags, **named,
    )  # fmt: skip


def num_asked(teacher: ScriptedTeacher) -> int:
    return sum(not is_probe(request) for request in teacher.requests)


def test_two_backends_behind_nginx_share_a_run(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(TWO_TURNS) as one, ScriptedTeacher(TWO_TURNS) as other:
        gateway = nginx(
            tmp_path / "nginx",
            [one.api_base, other.api_base],
            "gzip on; gzip_proxied any; gzip_types application/json; gzip_min_length 1;",
        )
        with gateway as api_base:
            result = run(run_door, api_base, photos, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert num_asked(one) > 3 and num_asked(other) > 3
    assert num_asked(one) + num_asked(other) == 24, "each turn once"


def test_replies_that_nginx_streams_in_pieces_are_read(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    long = turns(says("word " * 40_000 + "\\boxed{1, 2}"))
    with ScriptedTeacher(long) as teacher:
        buffers = "proxy_buffering off; chunked_transfer_encoding on; proxy_hide_header Content-Length; proxy_buffer_size 4k;"
        with nginx(tmp_path / "nginx", [teacher.api_base], buffers) as api_base:
            result = run(run_door, api_base, photos, tmp_path / "run", "--num_samples", 2)
    assert result.returncode == 0, result.stderr
    trace = json.loads((tmp_path / "run" / "trace_00001.json").read_text())
    assert trace["final_response"] == "word " * 40_000 + "\\boxed{1, 2}"


def test_a_backend_that_is_gone_is_passed_over(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{free_port()}/v1"
    with (
        ScriptedTeacher(TWO_TURNS) as teacher,
        nginx(tmp_path / "nginx", [gone, teacher.api_base]) as api_base,
    ):
        result = run(run_door, api_base, photos, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert num_asked(teacher) == 24


def test_nginx_may_be_reloaded_in_the_middle_of_a_run(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    numbers = itertools.count()

    def script(request: dict[str, Any]) -> Any:
        if next(numbers) % 4 == 3:
            os.kill(int((tmp_path / "nginx" / "pid").read_text()), signal.SIGHUP)  # reloads: connections end
        time.sleep(0.05)
        return TWO_TURNS(request)

    with ScriptedTeacher(script) as teacher, nginx(tmp_path / "nginx", [teacher.api_base]) as api_base:
        result = run(run_door, api_base, photos, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "run").glob("trace_*.json"))) == 12


@pytest.mark.parametrize("is_slow_at_first", [False, True])
def test_a_time_limit_of_nginx_that_is_shorter_than_a_turn_stops_the_run(
    is_slow_at_first: bool, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    def slow(request: dict[str, Any]) -> Any:
        if is_slow_at_first or not is_probe(request):
            time.sleep(4)
        return ANSWERS(request)

    with ScriptedTeacher(slow) as one, ScriptedTeacher(slow) as other:
        limits = "proxy_read_timeout 1s; proxy_next_upstream off;"
        with nginx(tmp_path / "nginx", [one.api_base, other.api_base], limits) as api_base:
            started = time.monotonic()
            result = run(run_door, api_base, photos, tmp_path / "run", "--max_workers", 2)
            assert time.monotonic() - started < 60
    assert result.returncode == 2, result.stderr
    told = "gateway gave up waiting" if is_slow_at_first else "gives up after 1"
    assert told in result.stderr and "proxy_read_timeout" in result.stderr
    asked = len(one.requests) + len(other.requests)
    assert asked <= 7, "a few turns were billed, not half an hour of them"


def test_a_body_that_nginx_finds_too_large_stops_the_run_with_the_flag(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(ANSWERS) as teacher:
        with nginx(tmp_path / "nginx", [teacher.api_base], "client_max_body_size 20k;") as api_base:
            result = run(run_door, api_base, photos, tmp_path / "run")
    assert result.returncode == 2, result.stderr
    assert "413" in result.stderr and "--image_max_pixels" in result.stderr
    assert num_asked(teacher) == 0


# --- LiteLLM's proxy ---


@pytest.fixture(scope="session")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The proxy in an environment of its own, made once a machine: its pins are not ours."""
    folder = Path(os.environ.get("DISTIL_TEST_CACHE", Path.home() / ".cache" / "distil-tests")) / LITELLM
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            command = [folder / "bin" / "python", "-m", "pip", "install", "-q", LITELLM]
            subprocess.run(command, check=True, timeout=600, stderr=subprocess.DEVNULL)
            (folder / "made").touch()
    return folder / "bin" / "litellm"


@contextmanager
def litellm_proxy(program: Path, folder: Path, backends: Sequence[str], **settings: Any) -> Iterator[str]:
    """The proxy before backends that share one model name; its own key is `sk-of-the-proxy`."""
    folder.mkdir()
    port = free_port()
    config = {
        "model_list": [
            {
                "model_name": "scripted-qwen3-vl",
                "litellm_params": {"model": "openai/scripted-qwen3-vl", "api_base": url, "api_key": "none"},
            }
            for url in backends
        ],
        "litellm_settings": {"num_retries": 0, "telemetry": False, **settings},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {"master_key": "sk-of-the-proxy"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML too
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    log = folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"],
            stdout=output, stderr=output, env=environment | own,
        )  # fmt: skip
    try:
        wait_until_up(f"http://127.0.0.1:{port}/health/liveliness", process, 120, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


KEY = {"OPENAI_API_KEY": "sk-of-the-proxy"}


def test_a_run_through_litellm_asks_each_turn_once_and_survives_its_refusals(
    litellm: Path, run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    refused = itertools.count()

    def sometimes_busy(request: dict[str, Any]) -> Any:
        if not is_probe(request) and num_turns(request) == 1 and next(refused) < 3:
            return 429, {"error": {"message": "busy", "type": "rate_limit_error"}}
        return TWO_TURNS(request)

    with ScriptedTeacher(sometimes_busy) as one, ScriptedTeacher(TWO_TURNS) as other:
        with litellm_proxy(litellm, tmp_path / "litellm", [one.api_base, other.api_base]) as api_base:
            result = run(run_door, api_base, photos, tmp_path / "run", env=KEY)
            wrong = run(run_door, api_base, photos, tmp_path / "wrong", env={"OPENAI_API_KEY": "sk-other"})
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "run").glob("trace_*.json"))) == 12
    asked = [request for teacher in (one, other) for request in teacher.requests if not is_probe(request)]
    assert 24 <= len(asked) <= 24 + 3, "each turn once, and those that were refused again"
    assert wrong.returncode == 2 and "OPENAI_API_KEY" in wrong.stderr, wrong.stderr
    assert not list((tmp_path / "wrong").glob("trace_*.json"))
