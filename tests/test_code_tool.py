"""The code tool through the doors: every call form, failures, replay, and the mission's own programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, texts

from distil.errors import SandboxUnavailable, ToolError
from distil.pictures import Frame, picture_facts
from distil.sandbox.sandbox import Sandbox
from distil.tools.base import BoxFrame, Scene, SeenSizes
from distil.tools.python_code import PythonCodeTool, self_contained, unfenced
from distil.tools.toolbox import load_tools

DOOR = "demo_python_code.py"
CODE = "python_code_tool"
MISSION_PROGRAMS = (
    "result_image = image.rotate(45).crop((100, 100, 500, 500))",
    "from PIL import ImageOps\nresult_image = ImageOps.grayscale(image)",
    "from PIL import ImageEnhance\nenhancer = ImageEnhance.Contrast(image)\nresult_image = enhancer.enhance(2.0)",
    "import numpy as np\narr = np.array(image)\nresult_image = Image.fromarray(arr)",
)


def run(
    run_door: RunDoor,
    photos: Path,
    folder: Path,
    replies: list[Any],
    *flags: object,
    door: str = DOOR,
    **start: Any,
) -> Any:
    """One sample against a server that gives the replies in order; its trace and the requests."""

    def script(request: dict[str, Any]) -> Any:
        return replies[min(num_turns(request), len(replies) - 1)]

    with ScriptedTeacher(script) as server:
        result = run_door(
            door, "--api_base", server.api_base, "--dataset_path", photos, "--output_dir", folder,
            "--num_samples", 1, "--tool_mode", "native", *flags, **start,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    requests = [request for request in server.requests if not is_probe(request)]
    return json.loads((folder / "trace_00000.json").read_text()), requests, result


def recipe(trace: dict[str, Any]) -> Any:
    """The mission's restore recipe as written."""
    image = datasets.load_from_disk(trace["dataset_path"])[trace["sample_index"]]["image"]
    for call in trace["tool_calls_log"]:
        if call["tool_name"] == "image_zoom_in_tool":
            image = image.crop(call["tool_arguments"]["bbox_2d"])
        elif call["tool_name"] == "image_rotate_tool":
            image = image.rotate(call["tool_arguments"]["angle"], expand=True)
        elif call["tool_name"] == "python_code_tool":
            scope = {"image": image, "result_image": None}
            exec(call["code"], scope)
            image = scope["result_image"]
    return image


def test_the_missions_programs_run_and_replay(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    replies = [calls((CODE, {"code": code})) for code in MISSION_PROGRAMS]
    trace, _, _ = run(run_door, photos, tmp_path, [*replies, says("\\boxed{1, 2}")], cold=True)
    assert [call["success"] for call in trace["tool_calls_log"]] == [True] * 4
    assert [call["message"] for call in trace["tool_calls_log"]] == [
        "Success: Image processed successfully"
    ] * 4
    assert [call["code"] for call in trace["tool_calls_log"]] == [
        *MISSION_PROGRAMS[:3],
        "from PIL import Image; " + MISSION_PROGRAMS[3],
    ]
    assert "tool_arguments" not in trace["tool_calls_log"][0]
    assert picture_facts(recipe(trace)).pixel_sha256 == trace["tool_calls_log"][-1]["result"]["pixel_sha256"]
    verified = run_door("cli.py", "verify", tmp_path)
    assert (verified.returncode, verified.stdout.strip()) == (0, "1 matched, 0 mismatched, 0 unreadable")


@pytest.mark.parametrize(
    ("code", "stored"),
    [
        ("result_image = image", "result_image = image"),
        ("x = Image.new('L', (9, 9))", "from PIL import Image; x = Image.new('L', (9, 9))"),
        ("\nx = np.zeros(3)\n", "import numpy as np; x = np.zeros(3)\n"),
        (
            "x = Image.fromarray(np.zeros(3))",
            "from PIL import Image; import numpy as np; x = Image.fromarray(np.zeros(3))",
        ),
        ("for i in range(3):\n    np.ones(i)", "import numpy as np\nfor i in range(3):\n    np.ones(i)"),
        ("import numpy as np\nnp.ones(3)", "import numpy as np\nnp.ones(3)"),
        ("from PIL import Image, ImageOps\nImage", "from PIL import Image, ImageOps\nImage"),
        ("np = 3\nprint(np)", "np = 3\nprint(np)"),
        ("np broken(", "np broken("),
    ],
)
def test_stored_code_brings_the_imports_it_leaves_out(code: str, stored: str) -> None:
    assert self_contained(code) == stored


def test_a_result_that_cannot_be_shown_is_a_message(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    reply = calls((CODE, {"code": "result_image = Image.new('RGB', (1, 70000))"}))
    trace, _, _ = run(run_door, photos, tmp_path, [reply, says("no")])
    (call,) = trace["tool_calls_log"]
    assert not call["success"] and "cannot be shown" in call["message"]


def test_both_text_forms_and_a_fence_are_read(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    contents = [
        '<tool_call>{"name": "python_code_tool", "code": "result_image = image.rotate(90, expand=True)"}</tool_call>',
        '<tool_call>{"name": "python_code_tool", "arguments": {"code": "result_image = image.rotate(90, expand=True)"}}</tool_call>',
        '<tool_call>{"name": "python_code_tool", "arguments": {"code": "```python\\nresult_image = image.rotate(90, expand=True)\\n```"}}</tool_call>',
        '<tool_call>{"name": "python_code_tool", "arguments": "{\\"code\\": \\"result_image = image.rotate(90, expand=True)\\"}"}</tool_call>',
    ]
    replies = [*map(says, contents), says("no")]
    trace, requests, _ = run(run_door, photos, tmp_path, replies, "--tool_mode", "text")
    assert [call["turn"] for call in trace["tool_calls_log"]] == [1, 2, 3, 4]
    for call, size in zip(trace["tool_calls_log"], [(480, 640), (640, 480)] * 2, strict=True):
        assert call["success"]
        assert call["code"].strip() == "result_image = image.rotate(90, expand=True)"
        assert (call["result"]["width_px"], call["result"]["height_px"]) == size
    assert "python_code_tool" in requests[0]["messages"][0]["content"]


def test_what_is_printed_is_shown_and_stored(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    code = "print(image.size)\nresult_image = image"
    trace, requests, _ = run(run_door, photos, tmp_path, [calls((CODE, {"code": code})), says("no")])
    assert trace["tool_calls_log"][0]["stdout"] == "(640, 480)\n"
    assert "(640, 480)" in texts(requests[1]["messages"][3])


def test_code_that_fails_goes_back_as_a_message_and_leaves_the_picture(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    failing = [
        ("x = 1\n1 / 0", "line 2"),
        ("x = 1", "result_image"),
        ("result_image = 3", "result_image"),
        ("import torch", "torch"),
        ("open('/etc/passwd')", "Error"),
        ("while True: pass", "second"),
        ("def broken(:", "SyntaxError"),
    ]
    crop, turn = "result_image = image.crop((0, 0, 200, 100))", "result_image = image.rotate(90, expand=True)"
    replies = [
        calls((CODE, {"code": turn if position else crop}), (CODE, {"code": code}))
        for position, (code, _) in enumerate(failing)
    ]
    last = calls((CODE, {"code": turn}))
    trace, requests, _ = run(run_door, photos, tmp_path, [*replies, last, says("no")], "--code_timeout", 1)
    log = trace["tool_calls_log"]
    assert [call["success"] for call in log] == [True, False] * len(failing) + [True]
    sizes = [(call["result"]["width_px"], call["result"]["height_px"]) for call in log[::2]]
    assert sizes == [(200, 100), (100, 200)] * (len(sizes) // 2), "each goes on from the last that succeeded"
    for position, (code, words) in enumerate(failing):
        failed = log[2 * position + 1]
        assert failed["code"] == code and "result" not in failed
        assert words in failed["message"]
        (shown,) = (
            message for message in requests[position + 1]["messages"][-2:] if message["role"] == "tool"
        )
        assert words in texts(shown)
        assert str(Path(__file__).parent.parent) not in failed["message"]
    assert run_door("cli.py", "verify", tmp_path).returncode == 0


def test_all_tools_work_together_in_either_door(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    reply = calls(
        ("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}),
        (CODE, {"code": "result_image = image.convert('L')"}),
        ("image_rotate_tool", {"angle": 30}),
    )
    for door in (DOOR, "demo_concurrent.py"):
        folder = tmp_path / door
        trace, requests, _ = run(
            run_door, photos, folder, [reply, says("no")], "--tools", "zoom,rotate,python_code", door=door
        )
        assert len(requests[0]["tools"]) == 3
        assert [call["result"]["mode"] for call in trace["tool_calls_log"]] == ["RGB", "L", "L"]
        assert (
            picture_facts(recipe(trace)).pixel_sha256 == trace["tool_calls_log"][-1]["result"]["pixel_sha256"]
        )
        assert run_door("cli.py", "verify", folder).returncode == 0


def test_no_picture_is_stored_and_the_settings_are(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    reply = calls((CODE, {"code": "result_image = image"}))
    trace, _, result = run(
        run_door, photos, tmp_path, [reply, says("no")], "--code_timeout", 7, "--code_memory_mb", 512
    )
    assert trace["settings"]["code"] == {
        "timeout_seconds": 7.0,
        "memory_bytes": 512 * 2**20,
        "unsafe_exec": False,
    }
    assert "base64" not in json.dumps(trace)
    assert json.dumps(trace).count('result_image = image"') == 1, "the code is stored once"
    assert "sandbox:" in result.stdout
    (record,) = json.loads((tmp_path / "run_record.json").read_text())["runs"]
    assert record["sandbox"]["seccomp"].startswith("on")


def test_unsafe_exec_shouts_and_is_recorded_in_every_trace(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    reply = calls((CODE, {"code": "import os\nprint(os.getcwd())\nresult_image = image"}))
    trace, _, result = run(run_door, photos, tmp_path, [reply, says("no")], "--unsafe_exec")
    assert trace["settings"]["code"]["unsafe_exec"] is True
    assert "NONE (--unsafe_exec)" in result.stdout


def test_verify_tells_code_that_gives_other_pixels(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    code = "import time\nresult_image = image.rotate(time.time_ns() % 359 + 1)"
    run(run_door, photos, tmp_path, [calls((CODE, {"code": code})), says("no")])
    result = run_door("cli.py", "verify", tmp_path)
    assert result.returncode == 1
    assert "call 1 (python_code_tool)" in result.stdout


def test_random_code_gives_the_same_pixels_again(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    code = "import random\narr = np.random.randint(0, 255, (random.randint(50, 90), 60, 3), dtype=np.uint8)\nresult_image = Image.fromarray(arr)"
    run(run_door, photos, tmp_path, [calls((CODE, {"code": code})), says("no")])
    assert run_door("cli.py", "verify", tmp_path).returncode == 0


def test_the_viewer_shows_the_code(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    code = "print('seen')\nresult_image = image.rotate(90)"
    run(run_door, photos, tmp_path, [calls((CODE, {"code": code})), says("no")])
    result = run_door("view_traces_enhanced.py", tmp_path / "trace_00000.json", env={"FORCE_COLOR": "1"})
    assert "\x1b[" in result.stdout, "highlighted"
    plain = run_door("view_traces_enhanced.py", tmp_path / "trace_00000.json").stdout
    assert "result_image = image.rotate(90)" in plain and "printed: seen" in plain


def test_the_doctor_shows_the_layers(run_door: RunDoor) -> None:
    result = run_door("cli.py", "doctor", "--sandbox")
    assert result.returncode == 0, result.stderr
    assert "seccomp" in result.stdout and "canaries" in result.stdout


def test_nothing_is_started_where_no_code_tool_is_offered(
    run_door: RunDoor, photos: Path, tmp_path: Path
) -> None:
    _, _, result = run(run_door, photos, tmp_path, [says("no")], door="demo_concurrent.py")
    assert "sandbox" not in result.stdout


@pytest.mark.parametrize(
    ("code", "plain"),
    [
        ("```python\na\nb\n```", "a\nb\n"),
        ("```\na\n```\n", "a\n"),
        ("  ```py\na\n```  ", "a\n"),
        ("a = '```'", "a = '```'"),
        ("```", "```"),
        ("```python\nunclosed", "```python\nunclosed"),
    ],
)
def test_a_fence_is_taken_off(code: str, plain: str) -> None:
    assert unfenced(code) == plain


@pytest.mark.parametrize("raw", [{}, {"code": 3}, {"code": ""}, {"code": " \n"}, {"source": "x"}])
def test_a_call_without_code_is_a_message(raw: dict[str, Any], photos: Path) -> None:
    image = datasets.load_from_disk(str(photos))[0]["image"]
    seen = SeenSizes(Scene.start(image), image.size, image.size)
    with pytest.raises(ToolError, match="code"):
        PythonCodeTool().resolve(raw, seen, BoxFrame(Frame.PIXEL))


def test_code_is_never_run_without_a_sandbox(photos: Path) -> None:
    image = datasets.load_from_disk(str(photos))[0]["image"]
    (tool,) = load_tools("python_code")
    with pytest.raises(SandboxUnavailable):
        tool.apply({"code": "result_image = image"}, Scene.start(image))
    with Sandbox() as sandbox:
        (tool,) = load_tools("python_code", sandbox)
        assert (
            tool.apply({"code": "result_image = image"}, Scene.start(image)).scene.current.size == image.size
        )


def test_the_memory_of_a_call_is_what_the_flag_says(run_door: RunDoor, photos: Path, tmp_path: Path) -> None:
    code = "block = bytearray(700 * 2**20)\nresult_image = image.rotate(90)"
    for memory_mb, succeeds in ((512, False), (1536, True)):
        replies = [calls((CODE, {"code": code})), says("no")]
        folder = tmp_path / str(memory_mb)
        trace, _, _ = run(run_door, photos, folder, replies, "--code_memory_mb", memory_mb)
        (call,) = trace["tool_calls_log"]
        assert call["success"] is succeeds, call["message"]
        assert succeeds or "MemoryError" in call["message"]
