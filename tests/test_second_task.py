"""A second task and a further tool: a class and a line each, and nothing else knows of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from builders import file_bytes, noise, stored_picture
from PIL import Image, ImageOps
from replayed import replay
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

import distil.tasks
import distil.tools.toolbox
from distil.cli import main
from distil.errors import SampleError, SourceError
from distil.pictures import Frame
from distil.records import Json, SampleId, Score
from distil.replay.replay import Sources
from distil.rollout import turn_seed
from distil.store.trace_file import read_trace
from distil.tasks.base import Metric, Rows, Task
from distil.tools.base import Applied, BoxFrame, Resolved, Scene, SeenSizes, Tool, function_schema

COUNTS = [3, 14, 5, 9]


# --- the task: how many birds? What would be a file in `tasks/`


def _miss_rows(misses: Sequence[float], num_traces: int) -> Rows:
    exact = sum(miss == 0 for miss in misses)
    worst = f"{max(misses):.0f}" if misses else "none"
    return {"counted right": f"{exact} of {num_traces}", "worst miss": worst}


MISS = Metric("miss", "off by", "{:.0f}", "off by", "{:.0f} birds", _miss_rows, worst=99.0)


@dataclass(frozen=True)
class CountBirds(Task):
    """Another truth, another form of answer, another reward, other columns."""

    name: str = "count_birds"
    system_prompt: str = "You count."
    user_prompt: str = "How many birds are there? End with `birds: N`."
    metrics: tuple[Metric, ...] = (MISS,)

    def choose_columns(self, columns: Collection[str], asked: Mapping[str, str]) -> Mapping[str, str]:
        if "num_birds" not in columns:
            raise SourceError("the dataset has no column 'num_birds'")
        return {}

    def truth(self, row: Mapping[str, Json]) -> Mapping[str, Json]:
        if not isinstance(row["num_birds"], int):
            raise SampleError(f"column 'num_birds' is no number: {row['num_birds']!r}")
        return {"num_birds": row["num_birds"]}

    def parse_answer(self, response: str) -> Mapping[str, Json] | None:
        number = response.rpartition("birds:")[2].strip()
        return {"num_birds": int(number), "guess": "about" in response} if number.isdigit() else None

    def score(self, answer: Mapping[str, Json] | None, truth: Mapping[str, Json]) -> Score:
        if answer is None:
            return Score(0.0, False, {MISS.name: MISS.worst})
        miss = abs(answer["num_birds"] - truth["num_birds"])
        return Score(float(miss == 0), True, {MISS.name: float(miss)})

    def text(self, value: Mapping[str, Json]) -> str:
        return f"{value.get('num_birds', 'an unknown number of')} birds"

    def reward_text(self, value: float) -> str:
        return "right" if value else "wrong"


# --- the tool: turn the picture over. What would be a file in `tools/`


@dataclass(frozen=True)
class MirrorTool(Tool):
    """Another argument, and a picture that the restore recipe knows nothing of."""

    name: str = "mirror_tool"

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        axis = {"type": "string", "description": "`x` or `y`."}
        return function_schema(self.name, "Mirror the most recent image.", {"axis": axis}, ["axis"])

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        return Resolved({"axis": str(raw["axis"]).lower()})

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        turned = ImageOps.flip if arguments["axis"] == "y" else ImageOps.mirror
        return Applied(scene.replaced(turned(scene.current)))


# --- one line each, and a run


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The two lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distil.tasks.TASKS, "count_birds", CountBirds())
        patch.setattr(distil.tasks, "DEFAULT_TASK", "count_birds")
        patch.setitem(distil.tools.toolbox.TOOLS, "mirror", lambda _: MirrorTool())
        yield


def teacher(request: dict[str, Any]) -> Any:
    """Mirrors once, crops, and counts five birds, which is right for row 2; of row 0 it says nothing."""
    if is_probe(request):
        return calls((request["tools"][0]["function"]["name"], {}))
    if num_turns(request) == 0:
        return calls(("mirror_tool", {"axis": "Y"}), ("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]}))
    return says("I see none." if request["seed"] == turn_seed(0, SampleId(0), 2) else "So birds: 5")


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of a dataset without any coordinates; the last row's count is missing."""
    folder = tmp_path_factory.mktemp("data") / "birds"
    rows = {
        "image": [stored_picture(file_bytes(noise(96, 64, seed=seed))) for seed in range(len(COUNTS))],
        "num_birds": [*COUNTS[:-1], None],
    }
    features = datasets.Features(image=datasets.Image(), num_birds=datasets.Value("int64"))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def run(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a real run, and what the teacher was asked."""
    folder = tmp_path_factory.mktemp("run") / "traces"
    with ScriptedTeacher(teacher) as server:
        flags = ("--api_base", server.api_base, "--dataset_path", birds, "--output_dir", folder)
        assert main(["run", *map(str, flags), "--tools", "mirror,zoom"]) == 1  # the row without a count
    return folder, server.requests


def words_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command prints, with single spaces; it must end well."""
    assert main([*map(str, arguments)]) == 0
    return " ".join(capsys.readouterr().out.split())


def trace_of(run: tuple[Path, list[dict[str, Any]]], row: int) -> Any:
    return json.loads((run[0] / f"trace_{row:05d}.json").read_text())


def test_another_tasks_traces_hold_its_truth_answer_and_reward(run: tuple[Path, list[Any]]) -> None:
    trace = trace_of(run, 1)
    assert trace["settings"]["task"] == "count_birds"
    assert trace["settings"]["user_prompt"] == CountBirds.user_prompt
    assert trace["reward_score"] == {"score": 0.0, "miss": 9.0, "parse_success": True}
    assert list(trace["metadata"])[2:5] == ["parse_success", "score", "stop_reason"]
    assert trace["metadata"]["truth"] == {"num_birds": 14}
    assert trace["metadata"]["answer"] == {"num_birds": 5, "guess": False}
    assert trace_of(run, 2)["metadata"]["score"] == 1.0
    assert trace_of(run, 0)["reward_score"] == {"score": 0.0, "miss": 99.0, "parse_success": False}
    assert trace_of(run, 0)["metadata"]["answer"] is None


def test_a_row_without_its_truth_fails_by_name_before_anything_is_asked(
    run: tuple[Path, list[Any]], birds: Path
) -> None:
    (failure,) = map(json.loads, (run[0] / "failed_samples.jsonl").read_text().splitlines())
    assert failure["sample_index"] == 3
    assert failure["message"] == f"row 3 of {birds}: column 'num_birds' is no number: None"
    assert sum(not is_probe(request) for request in run[1]) == 2 * 3


def test_another_tasks_traces_verify_and_name_its_column(
    run: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "3 matched, 0 mismatched, 0 unreadable" in words_of(capsys, "verify", run[0])
    monkeypatch.setattr(CountBirds, "truth", lambda self, row: {"num_birds": row["num_birds"] + 1})
    assert main(["verify", str(run[0])]) == 1
    assert "metadata.truth.num_birds: stored 3, now 4" in " ".join(capsys.readouterr().out.split())


def test_the_viewer_shows_another_tasks_columns(
    run: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    one = words_of(capsys, "view", run[0] / "trace_00001.json")
    for words in (
        "truth 14 birds",
        "answer 5 birds",
        "off by 9 birds",
        "score wrong",
        "mirror_tool",
        '"axis": "y"',
    ):
        assert words in one, words
    listed = words_of(capsys, "view", run[0])
    assert "sample off by score turns" in listed and "1 9 0.000 2 2 0 answered" in listed
    assert "0 no answer 0.000 2 2 0 answered" in listed
    batch = words_of(capsys, "view", run[0], "--batch")
    mean = f"{statistics.fmean((0, 0, 1)):.3f}"
    for words in (f"mean score {mean}", "counted right 1 of 3", "worst miss 9", "mirror_tool 3, 0 failed"):
        assert words in batch, words
    for shown in (one, listed, batch):
        assert not {"km", "distance", "points"} & set(shown.split())


def test_the_runs_summary_shows_another_tasks_rows(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with ScriptedTeacher(teacher) as server:
        flags = ("--api_base", server.api_base, "--dataset_path", birds, "--output_dir", tmp_path / "out")
        printed = words_of(capsys, "run", *flags, "--num_samples", 3, "--tools", "mirror,zoom")
    assert "counted right 1 of 3" in printed and "worst miss 9" in printed and "km" not in printed.split()


def test_a_dataset_that_lacks_the_tasks_column_is_refused(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--dataset_path", str(photos), "--api_base", "http://127.0.0.1:9/v1"]) == 2
    assert "no column 'num_birds'" in capsys.readouterr().err


def test_traces_of_two_tasks_in_one_folder_have_the_columns_of_both(
    run: tuple[Path, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row, task in ((0, "count_birds"), (1, "geolocation"), (2, "count_fish")):
        trace = trace_of(run, row)
        trace["settings"]["task"] = task
        (tmp_path / f"trace_{row:05d}.json").write_text(json.dumps(trace))
    assert main(["view", str(tmp_path)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "off by distance km score" in printed
    assert "there is no task 'count_fish' to read it with; tasks: geolocation, vqa, count_birds" in printed


def test_another_tools_calls_are_kept_replayed_and_told_apart_from_the_recipes(
    run: tuple[Path, list[Any]], birds: Path
) -> None:
    trace = trace_of(run, 0)
    mirrored, zoomed = trace["tool_calls_log"]
    assert (mirrored["tool_arguments"], mirrored["raw_arguments"]) == ({"axis": "y"}, {"axis": "Y"})
    assert mirrored["success"] and zoomed["success"]
    assert trace["metadata"]["recipe_restores"] is False, "the recipe knows nothing of this tool"
    stored = read_trace(run[0] / "trace_00000.json")
    current = replay(stored, Sources().of(stored)).scene.current
    photo = datasets.load_from_disk(str(birds))[0]["image"]
    assert isinstance(photo, Image.Image)
    assert current.tobytes() == ImageOps.flip(photo).crop((0, 0, 48, 32)).tobytes()
    assert MirrorTool().schema(BoxFrame(Frame.PIXEL)) in trace["settings"]["tool_schemas"]
