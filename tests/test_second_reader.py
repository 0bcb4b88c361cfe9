"""What a second reader found: each of these was wrong once."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from test_exports import export, photos, rows_of, run

from distil.cli import main
from distil.commands.flags import ExportFlags, FormFlags
from distil.errors import FolderError, SampleError, TraceError, UsageError
from distil.exports.export import export_traces
from distil.exports.pictures import student_rule, student_size
from distil.exports.selection import select_traces
from distil.own_code import OwnTool
from distil.pictures import sent_size
from distil.records import ExportFormat, Frame, Student
from distil.tools.base import Tool
from distil.tools.zoom import ZoomTool

# --- code of the user's own

SPOT = """
from dataclasses import dataclass
from distil.pictures import box_to_pixels, pixels_to_box
from distil.tools.base import Applied, Resolved, Tool, function_schema

@dataclass(frozen=True)
class Spot(Tool):
    name: str = "spot"

    def schema(self, boxes):
        return function_schema(self.name, "Crop.", {"where": {"type": "array"}}, ["where"])

    def resolve(self, raw, seen, boxes):
        box, is_clamped = box_to_pixels(raw["where"], boxes.frame, seen.current_sent, seen.scene.picture.size)
        return Resolved({"where": list(box)}, is_clamped)

    def apply(self, arguments, scene):
        return Applied(scene.cropped(tuple(arguments["where"])))

    def restate(self, arguments, seen, boxes):
        box = tuple(arguments["where"])
        return {"where": list(pixels_to_box(box, boxes.frame, seen.current_sent, seen.scene.picture.size))}
"""


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


def test_the_boxes_of_an_own_tool_are_exported_in_the_students_frame(tmp_path: Path) -> None:
    file = tmp_path / "spot.py"
    file.write_text(SPOT, encoding="utf-8")

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request):
            return calls(("spot", {"where": [0, 0, 9, 9]}))
        return (
            says("\\boxed{1, 2}") if num_turns(request) else calls(("spot", {"where": [100, 200, 900, 800]}))
        )

    traces = run(tmp_path, script, "--tool_module", file, "--tools", "spot", "--tool_mode", "native")
    out = export(traces, tmp_path / "out", "--format", "ms_swift", "--tool_module", file)
    assert '{"where": [100, 200, 900, 800]}' in rows_of(out)[0]["messages"][2]["content"]


REWARDS = {
    "a number of 5,000 digits": ("{'score': 1, 'n': 10**5000}", 1.0),
    "a lone surrogate": ("{'score': 1, 's': '\\ud800', '\\udfff': 1}", 1.0),
    "texts and numbers of its own classes": ("{'score': Level.LOW, 't': Text('abc'), 'f': Real(1.5)}", 1.0),
    "an error that says a lone surrogate": ("fail(ValueError('\\ud800'))", None),
    "an error that cannot say what it is": ("fail(Mute())", None),
    "an exception that is no Exception": ("fail(Odd())", None),
    "a cancelled coroutine": ("fail(asyncio.CancelledError())", None),
}
HEAD = """
import asyncio, enum
class Odd(BaseException): pass
class Mute(Exception):
    def __str__(self): raise RuntimeError
class Level(enum.IntEnum):
    LOW = 1
class Text(str):
    def __getitem__(self, place): return object()
class Real(float): pass
def fail(error): raise error
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return """


@pytest.mark.parametrize("given", REWARDS)
def test_whatever_a_reward_gives_or_raises_the_trace_is_written(given: str, tmp_path: Path) -> None:
    body, expected = REWARDS[given]
    file = tmp_path / "reward.py"
    file.write_text(HEAD + body + "\n", encoding="utf-8")
    traces = run(
        tmp_path,
        lambda _: says("\\boxed{1, 2}"),
        "--tools",
        "none",
        "--reward",
        file,
        dataset=photos(tmp_path, 1),
    )
    (path,) = traces.glob("trace_*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["reward_score"]["reward@compute_score"] == expected
    assert main(["verify", str(traces), "--reward", str(file)]) == 0
    assert main(["score", str(traces), "--reward", str(file)]) == (0 if expected is not None else 1)


TASK = """
from dataclasses import dataclass
from distil.records import Score
from distil.tasks.base import Task

@dataclass(frozen=True)
class Odd(Task):
    name: str = "odd"
    user_prompt: str = "Which city?"

    def truth(self, row):
        {truth}
        return {{"city": "x", "all": ("a", "b")}}

    def parse_answer(self, response):
        {answer}
        return {{"city": response}}

    def score(self, answer, truth):
        {score}
        return Score(1.0, True, {{}})
"""


def ask_task(tmp_path: Path, *flags: object, **bodies: str) -> tuple[int, int, Path]:
    """A run's exit code, how many requests it made, and its folder; for a task with such methods."""
    file = tmp_path / "task.py"
    file.write_text(TASK.format(**({"truth": "pass", "answer": "pass", "score": "pass"} | bodies)))
    with ScriptedTeacher(lambda _: says("Paris")) as teacher:
        arguments = [
            "run", "--api_base", teacher.api_base, "--dataset_path", photos(tmp_path / "photos", 2),
            "--output_dir", tmp_path / "traces", "--num_samples", 0, "--tools", "none", "--quiet",
            "--task", f"{file}:odd", *flags,
        ]  # fmt: skip
        code = main([str(each) for each in arguments])
        asked = [request for request in teacher.requests if not is_probe(request)]
        return code, len(asked), tmp_path / "traces"


@pytest.mark.parametrize("what", ["truth", "answer", "score"])
@pytest.mark.parametrize("raised", ["SystemExit(0)", "type('Odd', (BaseException,), {})('no')"])
def test_a_task_that_ends_the_program_fails_its_samples(what: str, raised: str, tmp_path: Path) -> None:
    code, num_asked, traces = ask_task(tmp_path, **{what: f"raise {raised}"})
    assert (code, num_asked) == (1, 0 if what == "truth" else 2)
    failures = (traces / "failed_samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in failures] == ["unexpected"] * 2


@pytest.mark.parametrize(
    "truth", ["{'a': {1, 2}}", "{'a': float('nan')}", "{'a': '\\ud800'}", "'text'", "{'a': 10**5000}", "None"]
)
def test_nothing_is_paid_for_a_row_whose_truth_no_trace_can_hold(truth: str, tmp_path: Path) -> None:
    code, num_asked, traces = ask_task(tmp_path, truth=f"return {truth}")
    assert (code, num_asked) == (1, 0)
    assert "its truth is no JSON object" in (traces / "failed_samples.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("score", ["float('nan')", "float('inf')", "10**400"])
def test_a_score_that_is_no_finite_number_fails_its_sample_alone(score: str, tmp_path: Path) -> None:
    code, num_asked, traces = ask_task(tmp_path, score=f"return Score({score}, True, {{}})")
    assert (code, num_asked) == (1, 2)
    assert not [*traces.glob("trace_*.json")]


def test_a_task_that_changes_what_it_is_given_changes_no_trace(tmp_path: Path) -> None:
    code, _, traces = ask_task(tmp_path, score="truth.clear(); answer.clear()")
    metadata = json.loads((traces / "trace_00000.json").read_text(encoding="utf-8"))["metadata"]
    assert code == 0
    assert (metadata["truth"], metadata["answer"]) == ({"city": "x", "all": ["a", "b"]}, {"city": "Paris"})
    assert main(["verify", str(traces), "--task", f"{tmp_path / 'task.py'}:odd"]) == 0


def test_accept_says_so_where_a_task_can_use_none_of_the_first_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, num_asked, _ = ask_task(tmp_path, "--accept", "score > 0.5", truth="raise ValueError('no')")
    assert (code, num_asked) == (2, 0)
    assert "none of the first rows can be used" in capsys.readouterr().err


# --- pictures and boxes


@given(
    st.tuples(st.integers(1, 9000), st.floats(0.01, 100)),
    st.one_of(st.none(), st.integers(100_000, 10**7)),
    st.sampled_from(list(Student)),
)
def test_a_student_sees_a_picture_with_boxes_in_pixels_in_the_size_it_is_exported_in(
    shape: tuple[int, float], limit: int | None, student: Student
) -> None:
    form = FormFlags(coordinates=Frame.PIXEL, image_max_pixels=limit, student=student)
    width, height = shape[0], max(1, int(shape[0] * shape[1]))
    try:
        size = student_size((width, height), form)
    except (TraceError, SampleError):  # too long, or a limit that is too small for its shape
        assert max(width, height) > 10 * min(width, height)
        return
    assert sent_size(size, student_rule(form)) == size
    assert limit is None or size[0] * size[1] <= limit


@pytest.mark.parametrize("sent", [(320, 240), (90, 70), (640, 480)])
def test_a_picture_that_the_student_would_see_in_another_size_is_refused(sent: tuple[int, int]) -> None:
    with pytest.raises(TraceError, match="70000 is too small for it"):
        student_size(sent, FormFlags(coordinates=Frame.PIXEL, image_max_pixels=70_000))


# --- words and calls


@pytest.mark.parametrize("name", ["ms_swift", "llamafactory"])
@pytest.mark.parametrize("given", [json.dumps('["\\u003cimage\\u003e"]'), "[" * 100_000])
def test_a_failed_native_call_of_any_arguments_is_exported_without_special_words(
    name: str, given: str, tmp_path: Path
) -> None:
    def script(request: dict[str, Any]) -> Any:
        is_first = is_probe(request) or num_turns(request) == 0
        return calls(("image_rotate_tool", given)) if is_first else says("\\boxed{1, 2}")

    traces = run(tmp_path, script, "--tool_mode", "native", dataset=photos(tmp_path / "photos", 1))
    out = export(traces, tmp_path / "out", "--format", name, "--call_form", "native", "--errors", "train")
    (row,) = rows_of(out)
    assert sum(message["content"].count("<image>") for message in row["messages"]) == 1


# --- the folder of an export


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three traces of one turn."""
    return run(tmp_path_factory.mktemp("traces"), lambda _: says("\\boxed{1, 2}"), "--tools", "none")


def test_of_two_exports_to_one_place_the_later_replaces_nothing(traces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def another_comes_first(_: object) -> None:
        if not out.exists():
            out.mkdir()
            (out / "mine").write_text("of somebody else")

    flags = ExportFlags(paths=(traces,), format=ExportFormat.OPENAI, out=out)
    with pytest.raises(UsageError, match="exists already"):
        export_traces(select_traces(flags), flags, another_comes_first)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_an_export_in_which_a_training_left_its_model_is_not_replaced(traces: Path, tmp_path: Path) -> None:
    out = export(traces, tmp_path / "out", "--format", "llamafactory")
    (out / "__pycache__").mkdir()
    export(traces, out, "--format", "verl", "--overwrite")
    (out / "trl_output").mkdir()
    (out / "trl_output" / "model.safetensors").write_text("a night's work")
    export(traces, out, "--format", "llamafactory", "--overwrite", expected=2)
    assert (out / "trl_output" / "model.safetensors").exists() and (out / "train.parquet").exists()


def test_an_export_that_cannot_be_put_in_its_place_leaves_the_former_one(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(traces, tmp_path / "out", "--format", "openai")
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    flags = ExportFlags(paths=(traces,), format=ExportFormat.HF, out=out, overwrite=True)
    with pytest.raises(FolderError):
        export_traces(select_traces(flags), flags)
    assert (out / "train.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_verl_is_started_on_a_folder_of_any_name(traces: Path, tmp_path: Path) -> None:
    out = export(traces, tmp_path / "照片 d'été", "--format", "verl")
    (block,) = re.findall(r"```bash\n(torchrun.*?)```", (out / "README.md").read_text("utf-8"), re.DOTALL)
    given = shlex.split(block.replace("\\\n", " "))
    # Hydra takes letters that are not ASCII, commas, brackets and the like only within double quotes.
    assert f'data.train_files="{out}/train.parquet"' in given
    assert f'data.custom_cls.path="{out}/verl_dataset.py"' in given
    plain = export(traces, tmp_path / "plain", "--format", "verl")
    assert f"data.train_files={plain}/train.parquet " in (plain / "README.md").read_text("utf-8")


def test_what_an_export_left_that_was_killed_while_it_removed_the_former_one_is_removed(
    traces: Path, tmp_path: Path
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    kinds = {kind: tmp_path / f".out.{ended.pid}.{kind}" for kind in ("tmp", "old", "mine")}
    for folder in kinds.values():
        folder.mkdir()
    export(traces, tmp_path / "out", "--format", "openai")
    assert [kinds[kind].exists() for kind in ("tmp", "old", "mine")] == [False, True, True]
    export(traces, tmp_path / "out", "--format", "openai", "--overwrite")
    assert [kinds[kind].exists() for kind in ("tmp", "old", "mine")] == [False, False, True]
