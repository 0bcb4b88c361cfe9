"""Tasks, tools and rewards of the user's own files: as docs/tasks.md shows them, and what goes wrong with them."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conversations import quiet
from PIL import ImageOps
from replayed import replay
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

import distil.tasks
from distil.cli import main
from distil.commands.flags import ViewFlags
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.own_code import OwnTool, own_code
from distil.replay import processes
from distil.replay.replay import Sources
from distil.store.trace_file import read_trace
from distil.tasks.rewards import REWARDS
from distil.terminal.traces import view
from distil.tools.base import Tool
from distil.tools.toolbox import all_tools, find_tool
from distil.tools.zoom import ZoomTool

PAGE = Path(__file__).parent.parent / "docs" / "tasks.md"
TASK, TOOL, REWARD = "city_task.py", "contrast_tool.py", "reward.py"
NUM_SAMPLES = 4


def page_files() -> dict[str, str]:
    """The files that the page shows, by their names."""
    blocks = re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return {name: text for text, name in blocks}


def teacher(request: dict[str, Any]) -> Any:
    """Raises the contrast, looks closer, and answers with the city of row 1, right only there."""
    if is_probe(request):
        return calls((request["tools"][0]["function"]["name"], {}))
    if num_turns(request) == 0:
        return calls(("contrast_tool", {"cutoff": "5"}), content="It is dull.")
    if num_turns(request) == 1:
        return calls(("contrast_tool", {"cutoff": 99}), ("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    return says("It is \\boxed{City 1}.")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in page_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def own_flags(files: Path) -> list[str]:
    """What has the page's three files at hand."""
    return [
        *("--task", f"{files / TASK}:which_city"),
        *("--tool_module", str(files / TOOL)),
        *("--reward", f"{files / REWARD}:compute_score"),
    ]


@pytest.fixture(scope="module")
def made(photos: Path, own_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run with all three."""
    folder = tmp_path_factory.mktemp("run") / "traces"
    with ScriptedTeacher(teacher) as server:
        flags = ["--api_base", server.api_base, "--dataset_path", str(photos), "--output_dir", str(folder)]
        flags += ["--num_samples", str(NUM_SAMPLES), "--tools", "zoom,contrast_tool", "--keep_going"]
        assert main(["run", *flags, *own_flags]) == 0
    return folder


@pytest.fixture
def traces(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "traces"))


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What a command puts into the registries is gone when it ends."""
    before = (dict(distil.tasks.TASKS), all_tools(), dict(REWARDS), set(sys.modules))
    yield
    assert (dict(distil.tasks.TASKS), all_tools(), dict(REWARDS)) == before[:3]
    assert not [name for name in set(sys.modules) - before[3] if name.startswith("distil_own_")]


def trace_of(folder: Path, row: int) -> Any:
    return json.loads((folder / f"trace_{row:05d}.json").read_text(encoding="utf-8"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a run is refused with."""
    assert main(["run", "--api_base", "http://127.0.0.1:9/v1", *map(str, arguments)]) == 2
    return said(capsys)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- what the page shows


def test_the_pages_files_make_traces_that_say_what_made_them(made: Path, files: Path) -> None:
    trace = trace_of(made, 1)
    own = trace["settings"]["own_code"]
    assert trace["settings"]["task"] == "which_city"
    assert [own["task"]["file"], own["tools"][0]["file"], own["reward"]["file"]] == [TASK, TOOL, REWARD]
    assert own["reward"]["function"] == "compute_score"
    assert {len(each["sha256"]) for each in (own["task"], own["tools"][0], own["reward"])} == {64}
    assert str(files) not in json.dumps(trace), "where a file lies depends on the machine"


def test_an_own_tasks_truth_answer_and_reward_stand_in_its_traces(made: Path) -> None:
    right, wrong = trace_of(made, 1), trace_of(made, 2)
    assert right["metadata"]["truth"] == {"city": "city 1"} and wrong["metadata"]["truth"] == {
        "city": "city 2"
    }
    assert right["metadata"]["answer"] == {"city": "City 1"}
    assert (right["reward_score"]["score"], wrong["reward_score"]["score"]) == (1.0, 0.0)


def test_an_own_reward_stands_beside_the_documented_one(made: Path) -> None:
    assert trace_of(made, 1)["reward_score"] == {
        "score": 1.0,
        "parse_success": True,
        "reward@compute_score": 0.97,
        "reward@compute_score/acc": 1.0,
        "reward@compute_score/num_calls": 3,
    }
    assert trace_of(made, 0)["reward_score"]["reward@compute_score"] == -0.03


def test_an_own_tools_calls_are_stored_resolved_and_replayed(made: Path, own_flags: list[str]) -> None:
    worked, failed, zoomed = trace_of(made, 0)["tool_calls_log"]
    assert worked["tool_arguments"] == {"cutoff": 5.0} and worked["raw_arguments"] == {"cutoff": "5"}
    assert (
        worked["success"]
        and zoomed["success"]
        and failed["message"] == "Error: cutoff must be a number from 0 to 40"
    )
    assert trace_of(made, 0)["metadata"]["recipe_restores"] is False
    stored = read_trace(made / "trace_00000.json")
    with own_code(None, own_flags[3], None):
        made_again = replay(stored, Sources().of(stored))
        photo = made_again.sample.picture.image
        expected = ImageOps.autocontrast(photo, cutoff=5.0).crop((0, 0, 320, 240))
        assert made_again.scene.current.tobytes() == expected.tobytes()


def test_traces_verify_with_their_files_at_hand(
    made: Path, own_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(made), *own_flags]) == 0
    assert f"{NUM_SAMPLES} matched, 0 mismatched" in (text := said(capsys))
    assert "Matched, but" not in text


def test_the_view_shows_them_with_the_task_and_without_says_which_flag_helps(
    made: Path, own_flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["view", str(made / "trace_00001.json"), *own_flags[:2]]) == 0
    assert "reward@compute_score 0.97" in said(capsys)
    assert main(["view", str(made / "trace_00001.json")]) == 1
    text = said(capsys)
    assert f"its own was in {TASK}: give that by --task FILE:which_city" in text
    for shown in (
        "It is dull.",
        '"cutoff": 5.0',
        '{"city": "city 1"}',
        "1.0000",
        "reward@compute_score 0.97",
    ):
        assert shown in text, shown
    assert main(["view", str(made), "--batch"]) == 1
    text = said(capsys)
    assert "and 3 more: there is no task 'which_city'" in text and "mean score 0.250" in text


def test_the_index_has_traces_of_an_own_task_whether_or_not_it_is_at_hand(
    traces: Path, own_flags: list[str]
) -> None:
    names = ["score", "truth_city", "answer", "reward_compute_score"]
    values = (0.0, "city 0", '{"city": "City 1"}', -0.03)
    with closing(TraceIndex.open([traces])) as index:
        assert next(index.rows(Query(), names)) == values and index.broken == []
    (traces / "index.sqlite").unlink()
    with own_code(own_flags[1], None, None), closing(TraceIndex.open([traces])) as index:
        assert next(index.rows(Query(), names)) == values


def test_verify_without_the_files_says_which_flag_helps(
    made: Path, own_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    task, tool = own_flags[:2], own_flags[2:4]
    assert main(["verify", str(made)]) == 1
    text = said(capsys)
    assert f"{NUM_SAMPLES} unreadable" in text
    assert "give that by --tool_module FILE" in text and TOOL in text
    assert main(["verify", str(made), *tool]) == 1
    assert "--task FILE:which_city" in said(capsys)
    assert main(["verify", str(made), *task, *tool]) == 0
    assert "the user's own reward gave was taken as stored: --reward computes it again" in said(capsys)


def test_another_task_or_tool_than_the_traces_is_told_by_verify(
    made: Path, files: Path, own_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = written(
        tmp_path, TASK, (files / TASK).read_text().replace("float(is_right)", "float(not is_right)")
    )
    assert main(["verify", str(made), "--task", f"{task}:which_city", *own_flags[2:]]) == 1
    text = said(capsys)
    assert "reward_score.score: stored 0.0, now 1.0" in text
    assert f"perhaps because {TASK} held something else then" in text
    tool = written(tmp_path, TOOL, (files / TOOL).read_text().replace("cutoff=cutoff", "cutoff=cutoff + 1"))
    assert main(["verify", str(made), *own_flags[:2], "--tool_module", str(tool), *own_flags[4:]]) == 1
    assert "call 1 (contrast_tool) gives other pixels" in said(capsys)


def test_a_stored_reward_that_the_function_does_not_give_is_found(
    made: Path, files: Path, own_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = written(tmp_path, REWARD, (files / REWARD).read_text().replace("0.01", "0.02"))
    assert main(["verify", str(made), *own_flags[:4], "--reward", str(other)]) == 1
    text = said(capsys)
    assert "reward@compute_score: stored -0.03, now -0.06" in text
    assert f"perhaps because {REWARD} held something else then" in text


def test_processes_that_share_the_verifying_have_the_files_too(
    made: Path, own_flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_processes, used = processes._by_processes, []
    monkeypatch.setattr(processes, "_TRACES_A_PROCESS", 2)
    monkeypatch.setattr(processes, "_can_fork", lambda: True)
    monkeypatch.setattr(processes, "_by_processes", lambda *args: used.append(1) or by_processes(*args))
    assert main(["verify", str(made), "--max_workers", "2", *own_flags]) == 0
    assert f"{NUM_SAMPLES} matched, 0 mismatched" in said(capsys) and used


def test_settings_of_runs_without_own_code_do_not_speak_of_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], own_flags: list[str]
) -> None:
    with ScriptedTeacher(teacher) as server:
        flags = [
            "--api_base",
            server.api_base,
            "--dataset_path",
            str(photos),
            "--num_samples",
            "1",
            "--keep_going",
        ]
        flags += ["--output_dir", str(tmp_path / "t"), "--tools", "zoom", *own_flags[2:4]]
        assert main(["run", *flags]) == 0
    assert "Not offered to the teacher, as --tools does not name them: contrast_tool" in said(capsys)
    assert "own_code" not in trace_of(tmp_path / "t", 0)["settings"]


def test_another_version_of_a_file_is_another_setting(
    traces: Path,
    photos: Path,
    files: Path,
    own_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reward = written(tmp_path, REWARD, (files / REWARD).read_text() + "# another\n")
    with ScriptedTeacher(teacher) as server:
        flags = ["--api_base", server.api_base, "--dataset_path", str(photos), "--output_dir", str(traces)]
        flags += ["--tools", "zoom,contrast_tool", *own_flags[:4], "--reward", str(reward)]
        assert main(["run", *flags]) == 2
    assert "own_code" in said(capsys)


def test_whatever_an_own_tool_raises_is_a_failed_call_and_the_sample_goes_on(
    photos: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (files / TOOL).read_text()
    tool = written(tmp_path, TOOL, text.replace("ImageOps.autocontrast(", "ImageOps.no_such("))
    with ScriptedTeacher(teacher) as server:
        flags = [
            "--api_base",
            server.api_base,
            "--dataset_path",
            str(photos),
            "--num_samples",
            "1",
            "--keep_going",
        ]
        flags += [
            "--output_dir",
            str(tmp_path / "t"),
            "--tools",
            "zoom,contrast_tool",
            "--tool_module",
            str(tool),
        ]
        assert main(["run", *flags]) == 0
    first = trace_of(tmp_path / "t", 0)["tool_calls_log"][0]
    message = "Error: contrast_tool failed: AttributeError: module 'PIL.ImageOps' has no attribute 'no_such'"
    assert first["success"] is False and first["message"] == f"{message} (contrast_tool.py, line 26)"
    assert main(["verify", str(tmp_path / "t"), "--tool_module", str(tool)]) == 0


def test_a_task_that_fails_in_verify_ends_that_traces_verdict_alone(
    made: Path, files: Path, own_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = 'return {"city": row["city"], "n": 1 / (row["city"] != "city 2")}'
    text = (files / TASK).read_text().replace('return {"city": row["city"]}', broken)
    assert main(["verify", str(made), "--task", str(written(tmp_path, TASK, text)), *own_flags[2:]]) == 1
    printed = said(capsys)
    assert "trace_00002.json: unreadable: a field cannot be read, or own code fails on it" in printed
    assert "ZeroDivisionError: division by zero (city_task.py, line 18)" in printed
    assert "0 matched, 3 mismatched (inconsistent 3), 1 unreadable" in printed


# --- a trace alone never has a file run


def test_a_trace_that_names_a_file_never_has_it_run(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(traces)
    evil = written(traces, "evil.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for path in traces.glob("trace_*.json"):
        trace = json.loads(path.read_text())
        named = {"file": str(evil), "sha256": "0" * 64}
        trace["settings"]["own_code"] = {
            "task": named,
            "tools": [named],
            "reward": {"function": "f", **named},
        }
        trace["settings"]["task"] = f"{evil}:f"
        path.write_text(json.dumps(trace))
    for command in (
        ["view", "."],
        ["view", ".", "--batch"],
        ["view", "trace_00000.json"],
        ["verify", "."],
        ["status", "."],
    ):
        main(command)
    assert not (tmp_path / "ran").exists()
    with own_code(f"{written(tmp_path, 'ok.py', page_files()[TASK])}:which_city", None, None):
        view(traces, ViewFlags(batch=True, verbose=True), quiet())
    assert not (tmp_path / "ran").exists()


# --- files that cannot be used


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = (\n", r"own\.py cannot be run: SyntaxError: .* \(own\.py, line 1\)"),
        (
            "\n\nimport no_such_module\n",
            r"ModuleNotFoundError: No module named 'no_such_module' \(own\.py, line 3\)",
        ),
        ("def f():\n    1 / 0\nf()\n", r"ZeroDivisionError: division by zero \(own\.py, line 2\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(own\.py, line 2\)"),
        ("x = 1\n", r"no (tool|task) in it: one is a subclass of distil\.(tools|tasks)\.base\.(Tool|Task)"),
    ],
)
@pytest.mark.parametrize("flag", ["--task", "--tool_module"])
def test_a_file_that_cannot_be_used_is_told_with_its_line(
    flag: str, text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "own.py", text)
    printed = refused(capsys, flag, f"{path}:thing" if flag == "--task" else path)
    assert re.search(f"{flag} .*{expected}", printed), printed


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, name in (("--task", "no.py:x"), ("--tool_module", "no.py"), ("--reward", "no.py:f")):
        assert f"{flag} {tmp_path / 'no.py'}: No such file or directory" in refused(
            capsys, flag, tmp_path / name
        )


def test_an_unknown_task_is_told_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--task gelocation: the tasks are geolocation, vqa; one of your own file is FILE:NAME" in refused(
        capsys, "--task", "gelocation"
    )


def test_a_task_of_another_name_is_told_with_those_in_the_file(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = refused(capsys, "--task", f"{files / TASK}:which_town")
    assert "the tasks in it are which_city, and not 'which_town'" in printed


def test_a_file_with_one_task_needs_no_name_and_a_class_is_named_as_well(files: Path) -> None:
    for named in (files / TASK, f"{files / TASK}:WhichCity", f"{files / TASK}:which_city"):
        with own_code(str(named), None, None) as own:
            assert own.task.name == "which_city"


@pytest.mark.parametrize(
    ("name", "text", "flag", "expected"),
    [
        (TASK, '"which_city"|"geolocation"', "--task", "there is a task called 'geolocation' already; rename yours"),
        (TOOL, '"contrast_tool"|"image_zoom_in_tool"', "--tool_module", "a tool called 'image_zoom_in_tool' already"),
        (TOOL, '"contrast_tool"|"zoom"', "--tool_module", "there is a tool called 'zoom' already"),
        (TASK, "def truth|def a_truth", "--task", "WhichCity has no truth"),
        (TOOL, "def apply|def do", "--tool_module", "ContrastTool has no apply"),
        (TOOL, "function_schema(self.name|function_schema('x'", "--tool_module", "the schema of 'contrast_tool' calls it 'x'"),
    ],
)  # fmt: skip
def test_names_that_are_taken_and_parts_that_are_missing_are_told(
    name: str,
    text: str,
    flag: str,
    expected: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = (files / name).read_text().replace(*text.split("|"))
    assert expected in refused(capsys, flag, written(tmp_path, name, changed))


def test_a_tool_that_two_files_have_is_refused_and_the_first_is_not_left_behind(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = written(tmp_path, "other.py", (files / TOOL).read_text())
    assert "a tool called 'contrast_tool' already" in refused(
        capsys, "--tool_module", f"{files / TOOL},{other}"
    )
    assert find_tool("contrast_tool") is None


def test_of_a_file_with_a_tool_that_is_refused_no_other_is_left_behind(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (files / TOOL).read_text()
    second = text.replace("class ContrastTool", "class ZoomToo").replace('"contrast_tool"', '"zoom"')
    path = written(tmp_path, TOOL, text + second)
    assert "there is a tool called 'zoom' already" in refused(capsys, "--tool_module", path)
    assert find_tool("contrast_tool") is None


def test_one_file_may_hold_all_three_and_is_run_once(tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    text = f"open({str(counter)!r}, 'a').write('x')\n" + "".join(page_files().values())
    path = written(tmp_path, "all.py", text)
    with own_code(f"{path}:which_city", str(path), f"{path}:compute_score") as own:
        assert own.task.name == "which_city" and find_tool("contrast_tool") and "compute_score" in REWARDS
    assert counter.read_text() == "x"


def test_what_runs_is_the_file_as_it_is_now_and_no_bytecode_is_left_beside_it(tmp_path: Path) -> None:
    """Two versions of the same length and time: an import would take the first one's bytecode again."""
    path = written(tmp_path, TASK, page_files()[TASK])
    with own_code(str(path), None, None):
        pass
    written(tmp_path, TASK, page_files()[TASK].replace('"which_city"', '"which_town"'))
    with own_code(str(path), None, None) as own:
        assert own.task.name == "which_town"
    assert [each.name for each in tmp_path.iterdir()] == [TASK]


def test_an_own_task_without_a_dataset_is_told_to_name_one(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = refused(capsys, "--task", f"{files / TASK}:which_city")
    assert "the task which_city has no data of its own: say which by --dataset_path" in printed


def test_columns_of_another_task_are_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused(capsys, "--dataset_path", photos, "--question_column", "city")
    assert "--question_column says nothing to the task geolocation" in printed


def test_a_tool_of_an_own_file_is_asked_all_that_distils_own_are_asked() -> None:
    asked = [name for name, value in vars(Tool).items() if not name.startswith("_")]
    tool = ZoomTool()
    own = OwnTool(tool, "own.py")
    assert {name for name in asked if not hasattr(own, name)} == set()
    assert (own.name, own.runs_code, own.work) == (tool.name, tool.runs_code, tool.work)
    assert own.box_of({"bbox_2d": [1, 2, 3, 4]}) == (1, 2, 3, 4)
    assert own.restores({}) and own.works_on_photo({"crop_from": "original"})


@pytest.mark.parametrize("asked", ["box_of", "angle_of"])
def test_what_an_own_tool_raises_where_it_is_only_asked_of_a_call_is_no_answer(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZoomTool, asked, lambda self, call: call["nothing"])
    assert getattr(OwnTool(ZoomTool(), "own.py"), asked)({}) is None


def test_an_own_tool_can_be_copied_and_sent_to_another_process() -> None:
    own = OwnTool(ZoomTool(), "own.py")
    assert copy.deepcopy(own) == own == pickle.loads(pickle.dumps(own))
