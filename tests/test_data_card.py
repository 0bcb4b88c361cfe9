"""The data card beside an export: it says how the rows were chosen and what is in them, always the same way."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from builders import file_bytes, row, saved, smooth
from conftest import PACKAGE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from warm_door import start_door

from distil.cli import main
from distil.exports.card import card_text, figure_json
from distil.exports.conversation import attribution_of, is_attribution
from distil.exports.plots import draw_plots

FORMATS = ["trl", "verl", "llamafactory", "ms_swift", "openai", "hf"]
NUM = 56  # enough traces for two processes
STRANGE = "中国 | `$x^2$`\n<script>"


def make(folder: Path, number: int, *flags: object) -> Path:
    """Traces that zoom now and then, of rows with licences and authors."""
    columns = {name: datasets.Value("string") for name in ("country", "license", "photo_author")}
    rows = [
        row(
            file_bytes(smooth(40 + each, 32)),
            country=("France", "Japan", STRANGE)[each % 3],
            license="CC BY 4.0" if each % 2 else "CC0",
            photo_author=f"author {each % 5}",
        )
        for each in range(number)
    ]
    dataset = saved(folder / "photos", rows, columns)

    def script(request: dict[str, Any]) -> Any:
        zoom = ("image_zoom_in_tool", {"bbox_2d": [0, 0, 500, 500]})
        if is_probe(request):
            return calls(zoom)
        return calls(zoom) if num_turns(request) < request["seed"] % 3 else says("\\boxed{48.5, 2.25}")

    with ScriptedTeacher(script) as teacher:
        asked = [
            "run", "--api_base", teacher.api_base, "--dataset_path", dataset, "--output_dir",
            folder / "traces", "--num_samples", 0, "--quiet", *flags,
        ]  # fmt: skip
        assert main([str(each) for each in asked]) == 0
    return folder / "traces"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("card"), NUM)


def process(*arguments: object, cwd: Path = PACKAGE) -> None:
    """An export as a process of its own: in that of the tests there are threads, and nothing forks."""
    door = start_door(str(PACKAGE / "__main__.py"), "export", *map(str, arguments), cwd=cwd)
    said, errors = door.communicate(timeout=200)
    assert door.wait() == 0, said + errors


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(out: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of an export of any format."""
    tables = [*out.glob(f"{split}.parquet"), *out.glob(f"data/{split}-*.parquet")]
    if tables:
        return [each for table in tables for each in pq.read_table(table).to_pylist()]
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def export(traces: Path, out: Path, *flags: object, expected: int = 0) -> Path:
    assert main(["export", str(traces), "--out", str(out), *map(str, flags)]) == expected
    return out


def card_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "card.json").read_text(encoding="utf-8")))


CHOICE = (
    "--validation",
    0.1,
    "--balance",
    "country",
    "--where",
    "score >= 0",
    "--near_duplicates",
    "together",
)


def test_the_same_command_gives_the_same_bytes_by_one_and_by_two_workers(
    traces: Path, tmp_path: Path
) -> None:
    found = []
    for workers in (1, 2, 2):
        out = tmp_path / "out"
        process(
            traces, "--out", out, "--format", "llamafactory", *CHOICE, "--max_workers", workers, "--overwrite"
        )
        found.append(contents(out))
    assert found[0] == found[1] == found[2]
    assert {"card/figures.png", "card/values.png", "card.json", "README.md", "export.json"} <= set(found[0])


def test_the_card_says_what_each_filter_left_and_what_the_rows_are_like(traces: Path, tmp_path: Path) -> None:
    out = export(traces, tmp_path / "out", "--format", "trl", "--where", "calls > 0", "--limit", 20)
    card, rows = card_of(out), rows_of(out)
    num_calling = sum(
        bool(json.loads(path.read_text())["tool_calls_log"]) for path in traces.glob("trace_*.json")
    )
    assert card["traces_found"] == NUM and 20 < num_calling < NUM
    assert card["filters"] == [
        {"filter": "not marked drop", "before": NUM, "after": NUM},
        {"filter": "with an answer", "before": NUM, "after": NUM},
        {"filter": "--where calls > 0", "before": NUM, "after": num_calling},
        {"filter": "replayed, --limit 20", "before": num_calling, "after": 20},
    ]
    assert card["rows"] == {"train": 20} and len(rows) == 20
    assert sum(card["figures"]["calls"]["bins"]) == card["figures"]["calls"]["traces"] == 20
    turns = [sum(message["role"] == "assistant" for message in each["messages"]) for each in rows]
    assert card["figures"]["turns"]["mean"] == pytest.approx(sum(turns) / 20)
    assert card["values"]["tools"] == [{"value": "image_zoom_in_tool", "traces": 20}]
    assert sum(each["traces"] for each in card["values"]["country"]) == 20
    page = (out / "README.md").read_text(encoding="utf-8")
    assert f"| `--where calls > 0` | {NUM} | {num_calling} |" in page


def test_what_is_refused_or_left_out_is_counted_by_its_reason(traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in sorted(traces.glob("trace_*.json"))[:4]:
        trace = json.loads(path.read_text())
        number = trace["sample_index"]
        if number == 0:
            trace["metadata"]["stop_reason"] = "max_turns"
        if number in (1, 2):
            trace["final_response"] += "!"
        (folder / path.name).write_text(json.dumps(trace) if number < 3 else path.read_text())
    out = export(folder, tmp_path / "out", "--format", "trl", expected=1)
    card = card_of(out)
    assert card["left_out"] == {"it ended without an answer (max_turns)": 1}
    assert card["filters"][-1] == {"filter": "replayed", "before": 3, "after": 1}
    ((reason, number),) = card["refused_by_reason"].items()
    assert "it was edited" in reason and number == 2
    page = (out / "README.md").read_text()
    assert "2 were refused: its content does not fit its integrity_sha256" in page


def test_the_command_on_the_card_makes_the_same_export_again(traces: Path, tmp_path: Path) -> None:
    flags = ("--where", "country != 'It''s'\nand score >= 0", "--best_of", 2, "--validation", 0.2)
    out = export(traces, tmp_path / "my out", "--format", "ms_swift", *flags)
    before, command = contents(out), card_of(out)["command"]
    assert command in (out / "README.md").read_text()
    words = shlex.split(command)
    assert words[:2] == ["distil", "export"]
    assert main([*words[1:], "--overwrite"]) == 0
    assert contents(out) == before


@pytest.mark.parametrize("name", FORMATS)
def test_rows_keep_whose_they_are_and_the_card_counts_it(name: str, traces: Path, tmp_path: Path) -> None:
    out = export(traces, tmp_path / "out", "--format", name, "--limit", 6)
    stated = [json.loads(each["attribution"]) for each in rows_of(out)]
    assert stated[:2] == [
        {"license": "CC0", "photo_author": "author 0"},
        {"license": "CC BY 4.0", "photo_author": "author 1"},
    ]
    card = card_of(out)
    assert card["attribution"]["license"] == [
        {"value": "CC BY 4.0", "traces": 3},
        {"value": "CC0", "traces": 3},
    ]
    assert [each["traces"] for each in card["attribution"]["photo_author"]] == [2, 1, 1, 1, 1]
    assert "license" not in card["values"]
    page = (out / "README.md").read_text(encoding="utf-8")
    assert page.count("# Traces for") == 1 and "| `CC BY 4.0` | 3 |" in page


def test_settings_in_which_the_traces_differ_are_told(traces: Path, tmp_path: Path) -> None:
    other = make(tmp_path, 3, "--temperature", 0.2, "--max_turns", 5)
    out = tmp_path / "out"
    assert main(["export", str(traces), str(other), "--format", "hf", "--out", str(out)]) == 0
    settings = card_of(out)["settings"]
    assert settings["differing"] == {
        "max_turns": [{"value": 10, "traces": NUM}, {"value": 5, "traces": 3}],
        "temperature": [{"value": 0.2, "traces": 3}, {"value": 0.7, "traces": NUM}],
    }
    assert settings["same"]["model"].startswith("scripted") and settings["same"]["task"] == "geolocation"
    assert "| `max_turns` | `5` | 3 |" in (out / "README.md").read_text(encoding="utf-8")


def test_the_card_has_the_hash_of_every_file_and_of_the_list_of_rows(traces: Path, tmp_path: Path) -> None:
    out = export(traces, tmp_path / "out", "--format", "hf", "--validation", 0.1)
    card, manifest = card_of(out), json.loads((out / "export.json").read_text())
    there = contents(out)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in there.items()}
    del hashes["export.json"]
    assert manifest["files"] == hashes
    del hashes["card.json"]
    assert card["files"] == hashes
    again = card_of(export(traces, tmp_path / "trl", "--format", "trl", "--validation", 0.1))
    other = card_of(export(traces, tmp_path / "other", "--format", "trl", "--validation", 0.1, "--seed", 1))
    assert card["selection_sha256"] == again["selection_sha256"] != other["selection_sha256"]


def test_the_card_does_not_know_where_the_traces_lie(traces: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "another"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(traces, folder / "traces")
        (folder / "traces" / "index.sqlite").unlink(missing_ok=True)
        process("traces", "--out", "out", "--format", "openai", cwd=folder)
        assert str(tmp_path) not in (folder / "out" / "card.json").read_text()
        found.append({name: contents(folder / "out")[name] for name in ("card/figures.png", "train.jsonl")})
    assert found[0] == found[1]


def test_without_matplotlib_the_card_comes_without_plots_and_says_so(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_plots = export(traces, tmp_path / "with", "--format", "trl", "--limit", 5)
    assert "![Figures](card/figures.png)" in (with_plots / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr("distil.exports.plots.find_spec", lambda name: None)
    out = export(traces, tmp_path / "out", "--format", "trl", "--limit", 5)
    page = (out / "README.md").read_text(encoding="utf-8")
    assert "There are no plots, as matplotlib is not installed" in page and "![" not in page
    assert not (out / "card").exists()
    assert card_of(out)["figures"] == card_of(with_plots)["figures"]


def chunks(png: bytes) -> list[bytes]:
    kinds, position = [], 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kinds.append(png[position + 4 : position + 8])
        position += length + 12
    return kinds


def test_plots_have_the_same_bytes_whatever_the_users_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl  # noqa: PLC0415

    card = {
        "figures": {"score": figure_json([0.1, 0.5, 0.7]), "same": figure_json([1.0, 1.0])},
        "values": {"country": [{"value": STRANGE, "traces": 4}, {"value": "$a", "traces": 2}]},
        "attribution": {},
    }
    found = []
    for number, colour in enumerate(("white", "red")):
        monkeypatch.setitem(mpl.rcParams, "axes.facecolor", colour)
        (tmp_path / str(number)).mkdir()
        names = draw_plots(card, tmp_path / str(number))
        assert names == {"Figures": "card/figures.png", "Values": "card/values.png"}
        found.append(contents(tmp_path / str(number)))
        assert mpl.rcParams["axes.facecolor"] == colour
    assert found[0] == found[1]
    for data in found[0].values():
        assert set(chunks(data)) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
    assert Image.open(tmp_path / "0" / "card" / "values.png").width >= 300


def test_whatever_a_dataset_holds_the_tables_stay_tables(traces: Path, tmp_path: Path) -> None:
    page = (export(traces, tmp_path / "out", "--format", "trl") / "README.md").read_text(encoding="utf-8")
    assert "| `中国 \\| '$x^2$' <script>` | 18 |" in page
    for line in page.splitlines():
        assert "<script>" not in line or line.startswith("| `")


numbers = st.lists(st.integers(-(10**6), 10**6).map(float) | st.floats(-1e15, 1e15), min_size=1, max_size=60)


@given(numbers)
def test_a_figures_bins_hold_each_number_once(values: list[float]) -> None:
    found = figure_json(values)
    assert sum(found["bins"]) == found["traces"] == len(values)
    assert len(found["edges"]) == len(found["bins"]) + 1
    assert found["edges"][0] <= min(values) and max(values) <= found["edges"][-1]
    assert found["lowest"] <= found["median"] <= found["highest"]


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=4))
def test_any_row_says_whose_it_is_as_json(stated: dict[str, Any]) -> None:
    row = {**stated, "license": "CC0", "meta": {"authorName": "A", "size": 3}}
    found = json.loads(attribution_of(row))
    assert found["license"] == "CC0" and found["meta.authorName"] == "A" and "meta.size" not in found


def test_columns_of_licence_and_origin_are_known_by_their_names() -> None:
    for name in (
        "license", "Licence", "license_url", "image_source", "photoAuthor", "attribution", "SOURCE",
        "meta.credit", "copyright_holder", "photographer",
    ):  # fmt: skip
        assert is_attribution(name), name
    for name in ("country", "resource", "authority", "locatability_score", "accredited", "lat"):
        assert not is_attribution(name), name


def test_a_card_of_nothing_much_is_still_a_page() -> None:
    card = {
        "filters": [], "traces_found": 1, "left_out": {}, "refused_by_reason": {}, "rows": {"train": 1},
        "figures": {}, "values": {}, "attribution": {}, "settings": {"same": {}, "differing": {}},
        "versions": {"distil": "0"}, "selection_sha256": "0",
    }  # fmt: skip
    page = card_text(card, {})
    assert "who passes these rows on has to know" in page and "No filter was asked for." in page
