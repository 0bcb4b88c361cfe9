"""`distil import`: conversations of others become traces; what nothing proves is kept as it came, and said."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import file_bytes, row, saved, smooth
from PIL import Image
from scripted_teacher import calls, is_probe, num_turns, says
from test_exports import CODE, ROTATE, ZOOM, export, rows_of, run

from distil.cli import main

TOOL = [{"type": "function", "function": {"name": ZOOM, "parameters": {"type": "object"}}}]


def teacher(request: dict[str, Any]) -> Any:
    """Zooms, fails, turns, runs code and crops what came of it; thinks at times; then an answer."""
    if is_probe(request):
        return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
    steps: list[list[tuple[str, Any]]] = [
        [(ZOOM, {"bbox_2d": [125, 250, 875, 750]})],
        [(ZOOM, {"bbox_2d": [5, 5, 5, 5]}), (ROTATE, {"angle": 90})],
        [(CODE, {"code": "print('<image>')\nresult_image = image.crop((0, 0, 200, 100))"})],
        [(ZOOM, {"bbox_2d": [0, 0, 500, 500]})],
    ]
    turn = num_turns(request)
    return calls(*steps[turn], content="Hm.", reasoning="So.") if turn < len(steps) else says("\\boxed{1, 2}")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("import")
    rows = [row(file_bytes(smooth(640, 480 + 8 * number), "JPEG")) for number in range(2)]
    return run(folder, teacher, "--rollouts_per_sample", 2, dataset=saved(folder / "photos", rows))


@pytest.fixture(scope="module")
def imported(traces: Path) -> Path:
    out = export(traces, traces.parent / "native", "--format", "openai", "--call_form", "native")
    folder = traces.parent / "imported"
    assert main(["import", str(out / "train.jsonl"), "--output_dir", str(folder)]) == 0
    return folder


def trace(folder: Path, part: str = "00000") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"trace_{part}.json").read_text(encoding="utf-8"))
    return found


def url(image: Image.Image | bytes, kind: str = "JPEG") -> str:
    data = image if isinstance(image, bytes) else file_bytes(image, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(data).decode()


def picture(at: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": at}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def say(role: str, *parts: Any, **fields: Any) -> dict[str, Any]:
    return {
        "role": role,
        "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts),
        **fields,
    }


def imported_rows(
    folder: Path, *rows: dict[str, Any], expected: int = 0, flags: tuple[str, ...] = ()
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    arguments = ["import", str(folder / "rows.jsonl"), "--output_dir", str(folder / "made"), *flags]
    assert main(arguments) == expected
    return folder / "made"


# --- there and back


@pytest.mark.parametrize("form", ["text", "native"])
@pytest.mark.parametrize("errors", ["mask", "drop"])
def test_an_export_that_is_imported_and_exported_again_is_the_same_conversation(
    form: str, errors: str, traces: Path, tmp_path: Path
) -> None:
    flags = ("--format", "openai", "--call_form", form, "--errors", errors)
    first = export(traces, tmp_path / "first", *flags)
    assert main(["import", str(first / "train.jsonl"), "--output_dir", str(tmp_path / "made")]) == 0
    again = export(tmp_path / "made", tmp_path / "again", *flags)
    assert [(each["messages"], each.get("tools")) for each in rows_of(again)] == [
        (each["messages"], each.get("tools")) for each in rows_of(first)
    ]


def test_every_format_takes_imported_traces_and_check_finds_nothing(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("trl", "verl", "llamafactory", "ms_swift", "hf"):
        out = export(imported, tmp_path / name, "--format", name)
        capsys.readouterr()
        main(["check", str(out), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert set(found["counts"]) <= {"duplicate"}, found["findings"]  # the rollouts said the same


def test_what_a_tool_of_ours_gives_again_is_an_action_and_all_else_is_kept(imported: Path) -> None:
    log = trace(imported)["tool_calls_log"]
    assert [call["tool_name"] for call in log] == [ZOOM, ZOOM, ROTATE, CODE, ZOOM]
    assert [call.get("verified") for call in log] == [True, None, True, False, False]
    assert ["picture" in call for call in log] == [
        False,
        False,
        False,
        True,
        True,
    ]  # what is made of a kept JPEG has other pixels
    assert log[0]["tool_arguments"] == {"bbox_2d": [80, 120, 560, 360]} and log[1]["success"] is False
    assert log[3]["tool_arguments"] == {} and "result_image" in log[3]["raw_arguments"]["code"]


def test_rollouts_of_a_photo_are_rollouts_of_its_row(imported: Path) -> None:
    assert sorted(path.name for path in imported.glob("trace_*.json")) == [
        "trace_00000.json", "trace_00000_r1.json", "trace_00001.json", "trace_00001_r1.json"
    ]  # fmt: skip
    assert trace(imported, "00001_r1")["format"] == "distil-import/1"
    assert not (imported / "photo_files").exists()


# --- understood by all else


def test_imported_traces_are_viewed_and_verified_as_far_as_that_goes(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["view", imported], ["view", imported / "trace_00000.json"], ["status", imported]):
        assert main([str(each) for each in arguments]) == 0
    assert main(["verify", str(imported)]) == 0
    said = capsys.readouterr().out
    assert "4 matched" in said and "only photos, kept pictures and verified calls are proven" in said
    assert "ended" in said


@pytest.mark.parametrize("what", ["text", "picture", "file", "pixels", "box", "huge_box", "photo"])
def test_what_is_changed_later_is_found(
    what: str, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(imported, folder)
    found = trace(folder)
    if what == "text":
        found["final_response"] = "Elsewhere."
    else:
        from distil.store.trace_settings import json_sha256  # noqa: PLC0415

        if what == "picture":
            found["tool_calls_log"][3]["picture"] = url(smooth(200, 100))
        elif what == "file":  # the same pixels, in another file
            data = base64.b64decode(found["tool_calls_log"][3]["picture"].partition(",")[2])
            found["tool_calls_log"][3]["picture"] = url(Image.open(io.BytesIO(data)), "PNG")
        elif what == "pixels":
            found["tool_calls_log"][3]["result"]["pixel_sha256"] = "0" * 64
        elif what == "box":
            found["tool_calls_log"][0]["tool_arguments"]["bbox_2d"][0] += 1
        elif what == "huge_box":  # it could be gigabytes
            found["tool_calls_log"][0]["tool_arguments"]["bbox_2d"] = [0, 0, 4000, 4000]
        else:
            found["image"]["sent"]["sha256"] = "0" * 64
        del found["integrity_sha256"]
        found["integrity_sha256"] = json_sha256(found)
    (folder / "trace_00000.json").write_text(json.dumps(found), encoding="utf-8")
    assert main(["verify", str(folder)]) == 1
    assert main(["export", str(folder), "--format", "trl", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "1 refused" in said and "3 matched" in said
    assert ("lies outside its picture" in said) == (what == "huge_box")


def test_the_viewer_shows_the_pictures_of_an_imported_trace(imported: Path) -> None:
    from starlette.testclient import TestClient  # noqa: PLC0415

    from distil.index.index import TraceIndex  # noqa: PLC0415
    from distil.viewer.app import create_app  # noqa: PLC0415
    from distil.viewer.viewer import Viewer  # noqa: PLC0415

    with TestClient(create_app(Viewer((imported,), TraceIndex.open([imported])))) as client:
        marks = [json.loads(line) for line in client.get("/api/pictures/0/00000").text.splitlines()]
        assert [mark["match"] for mark in marks] == ["matched"] * 5
        kept = trace(imported)["tool_calls_log"][3]["picture"]
        assert client.get("/picture/0/00000/4").content == base64.b64decode(kept.partition(",")[2])
        for page in ("/", "/traces", "/trace/0/00000", "/preview/0/00000"):
            assert client.get(page).status_code == 200


def test_index_columns_choose_among_imported_traces(imported: Path, tmp_path: Path) -> None:
    out = export(imported, tmp_path / "out", "--format", "hf", "--where", "rollout = 1 AND imported_row > 2")
    assert len(rows_of(out)) == 1


def test_boxes_are_restated_where_a_picture_proves_them_and_else_refused(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = smooth(640, 480)
    crop = photo.crop((80, 120, 560, 360)).resize((100, 100))
    rows = [
        {"messages": [say("user", picture(url(photo)), text("Where?")),
                      say("assistant", f'<tool_call>\n{{"name": "{ZOOM}", "arguments": {{"bbox_2d": [125, 250, 875, 750]}}}}\n</tool_call>'),
                      say("user", text("<tool_response>\n"), picture(url(crop)), text("\nDone\n</tool_response>")),
                      say("assistant", "There.")]}
    ]  # fmt: skip
    folder = imported_rows(tmp_path / "rows", *rows)
    assert (
        main(
            ["export", str(folder), "--format", "trl", "--coordinates", "pixel", "--out", str(tmp_path / "a")]
        )
        == 2
    )
    assert "no picture proves it" in capsys.readouterr().out
    assert len(rows_of(export(folder, tmp_path / "b", "--format", "trl"))) == 1


# --- rows of others


def test_paths_and_parquet_and_plain_results_are_taken(tmp_path: Path) -> None:
    photo = file_bytes(smooth(320, 240))
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a b.png").write_bytes(photo)
    call = {"id": "1", "type": "function", "function": {"name": "magnify", "arguments": '{"by": 2}'}}
    messages = [
        say("system", "Be brief."),
        say("user", text("Where is it?"), picture("pics/a b.png")),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seen larger"},
        say("user", picture(url(smooth(64, 48), "PNG"))),
        say("assistant", "There.", weight=0),
    ]
    assert imported_rows(tmp_path, {"messages": messages, "tools": TOOL}, expected=0)
    made = trace(tmp_path / "made")
    assert (
        made["settings"]["system_prompt"] == "Be brief." and made["settings"]["user_prompt"] == "Where is it?"
    )
    (entry,) = made["tool_calls_log"]
    assert (entry["tool_name"], entry["verified"], entry["message"]) == ("magnify", False, "seen larger")
    assert made["conversation_log"][1]["trained"] is False
    (again,) = rows_of(
        export(tmp_path / "made", tmp_path / "out", "--format", "openai", "--call_form", "native")
    )
    assert [each["role"] for each in again["messages"]] == [
        "system",
        "user",
        "assistant",
    ]  # to what is trained
    assert base64.b64decode(entry["picture"].partition(",")[2]) == file_bytes(smooth(64, 48), "PNG")


def test_a_png_crop_is_verified_by_its_pixels_and_kept_as_it_came(tmp_path: Path) -> None:
    photo = smooth(320, 240)
    block = f'<tool_call>\n{{"name": "{ZOOM}", "arguments": {{"bbox_2d": [80, 60, 240, 180]}}}}\n</tool_call>'
    messages = [
        say("user", picture(url(photo, "PNG")), text("Where?")),
        say("assistant", f"I look.\n{block}"),
        say("user", text("Here it is: "), picture(url(photo.crop((80, 60, 240, 180)), "PNG"))),
        say("assistant", "There."),
    ]
    (entry,) = trace(imported_rows(tmp_path, {"messages": messages}, flags=("--coordinates", "pixel")))[
        "tool_calls_log"
    ]
    assert entry["verified"] is True and "picture" in entry and entry["message"] == "Here it is: "
    assert entry["tool_arguments"] == {"bbox_2d": [80, 60, 240, 180]}


PHOTO = picture(url(Image.new("RGB", (40, 30))))
CALL = '<tool_call>\n{"name": "zoom", "arguments": {}}\n</tool_call>'
REFUSED: list[tuple[list[dict[str, Any]], str]] = [
    ([say("user", picture("https://example.org/a.png"), text("?")), say("assistant", "!")], "nothing is fetched"),
    ([say("user", picture("missing.png"), text("?")), say("assistant", "!")], "cannot be read"),
    ([say("user", picture("data:image/png;base64,AAAA"), text("?")), say("assistant", "!")], "no JPEG or PNG"),
    ([say("user", text("No picture.")), say("assistant", "!")], "has 0 pictures"),
    ([say("user", PHOTO, PHOTO), say("assistant", "!")], "has 2 pictures"),
    ([say("user", PHOTO)], "says nothing"),
    ([say("assistant", "Hello"), say("user", PHOTO)], "does not speak first"),
    ([say("user", PHOTO), say("assistant", "!"), say("user", "And?"), say("assistant", "!")], "no tool was called"),
    ([say("user", PHOTO), say("assistant", CALL), say("user", PHOTO, PHOTO), say("assistant", "!")], "several pictures"),
    ([say("user", PHOTO), say("assistant", CALL + CALL), say("user", "ok"), say("assistant", "!")], "2 calls have 1 results"),
    ([say("user", PHOTO), say("assistant", PHOTO)], "message has a picture"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_no_trace_can_hold_is_refused_and_said(
    messages: list[dict[str, Any]], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = {"messages": [say("user", PHOTO, text("?")), say("assistant", "!")]}
    folder = imported_rows(tmp_path, {"messages": messages}, sound, expected=1)
    assert "rows.jsonl, row 1: not imported: " in (said := capsys.readouterr().out) and reason in said
    assert len(list(folder.glob("trace_*.json"))) == 1
    shutil.rmtree(folder)
    imported_rows(tmp_path, {"messages": messages}, expected=2)
    assert not folder.exists()


def test_a_folder_that_is_there_is_left_alone(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in imported.iterdir())
    assert main(["import", str(imported / "x.jsonl"), "--output_dir", str(imported)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert sorted(path.name for path in imported.iterdir()) == before


def test_as_json_it_says_what_became_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = {"messages": [say("user", PHOTO, text("?")), say("assistant", "!")]}
    capsys.readouterr()
    imported_rows(tmp_path, sound, sound, {"messages": REFUSED[3][0]}, expected=1, flags=("--json",))
    document = json.loads(capsys.readouterr().out)
    assert (document["num_traces"], document["num_photos"]) == (2, 1)
    assert list(document["refused"].values()) == [1]


def test_rows_that_are_refused_for_the_same_are_counted_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = {"messages": [say("user", PHOTO, text("?")), say("assistant", "!")]}
    half = {"messages": REFUSED[2][0]}
    capsys.readouterr()
    imported_rows(tmp_path, half, half, sound, half, expected=1, flags=("--json",))
    ((reason, count),) = json.loads(capsys.readouterr().out)["refused"].items()
    assert count == 3 and "no JPEG or PNG" in reason and "0x" not in reason
