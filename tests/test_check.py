"""`distil check`: exports of every format are clean, and each thing that breaks one is found and told."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import file_bytes, row, saved, smooth
from PIL import Image
from scripted_teacher import calls, is_probe, num_turns, says
from test_exports import CODE, FORMATS, ROTATE, ZOOM, export, run

from distil.cli import main
from distil.exports.check import KEPT_FINDINGS, REMEDIES, ExportFinding, Findings
from distil.exports.written import WrittenPicture

NATIVE = [name for name in FORMATS if name != "hf"]
FORMS = [(name, "text") for name in FORMATS] + [(name, "native") for name in NATIVE]
TRUTH = (48.86, 2.35)


def teacher(request: dict[str, Any]) -> Any:
    """Zooms, makes a mistake, turns and computes; then an answer."""
    if is_probe(request):
        return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
    steps: list[tuple[str, Any]] = [
        (ZOOM, {"bbox_2d": [100, 200, 900, 800]}),
        (ZOOM, {"bbox_2d": [5, 5, 5, 5]}),
        (ROTATE, {"angle": 90}),
        (CODE, {"code": "print(image.size)\nresult_image = image.crop((3, 4, 50, 60))"}),
    ]
    turn = num_turns(request)
    return calls(steps[turn], reasoning="So.") if turn < len(steps) else says("It is \\boxed{48.86, 2.35}.")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    rows = [row(file_bytes(smooth(640 + number, 480)), lat=TRUTH[0], lon=TRUTH[1]) for number in range(3)]
    return run(folder, teacher, dataset=saved(folder / "photos", rows))


@pytest.fixture(scope="module")
def made(traces: Path) -> Callable[..., Path]:
    """Exports of the traces, each made once."""

    def make(name: str, *flags: str) -> Path:
        out = traces.parent / "_".join([name, *flags]).replace("-", "")
        if not out.exists():
            export(traces, out, "--format", name, *flags)
        return out

    return make


Change = Callable[[list[dict[str, Any]]], object]


class Broken:
    """A copy of an export whose rows can be changed, as somebody does who writes a list of files anew."""

    def __init__(self, whole: Path, folder: Path, name: str) -> None:
        self.folder, self.name = folder / "export", name
        shutil.copytree(whole, self.folder)
        self.file = next(
            path
            for pattern in ("train.jsonl", "train.parquet", "data/train-*.parquet")
            for path in self.folder.glob(pattern)
        )

    def change(self, change: Change, into: Path | None = None) -> None:
        """Change the rows, or write those changed into another file."""
        target = into or self.file
        if self.file.suffix == ".parquet":
            table = pq.read_table(self.file)
            rows = table.to_pylist()
            change(rows)
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), target)
        else:
            rows = [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]
            change(rows)
            text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
            target.write_text(text, encoding="utf-8")
        self.sign()

    def sign(self) -> None:
        """Write the hashes of all files anew."""
        manifest = json.loads((self.folder / "export.json").read_text(encoding="utf-8"))
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "export.json"]
        manifest["files"] = {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.parent.name != "images"
        }
        (self.folder / "export.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def broken(made: Callable[..., Path], tmp_path: Path) -> Callable[..., Broken]:
    return lambda name, *flags: Broken(made(name, *flags), tmp_path, name)


def found_in(path: Path, capsys: pytest.CaptureFixture[str], *flags: object) -> dict[str, Any]:
    """What a check says as JSON; its exit code fits what it says."""
    capsys.readouterr()
    status = main(["check", str(path), "--json", *map(str, flags)])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == bool(document["findings"])
    return document


def said(message: dict[str, Any]) -> str:
    content = message["content"] or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def say(message: dict[str, Any], change: Callable[[str], str]) -> None:
    """Change the last text of a message."""
    if isinstance(message["content"], list):
        part = next(part for part in reversed(message["content"]) if part.get("text") is not None)
        part["text"] = change(part["text"])
    else:
        message["content"] = change(message["content"] or "")


def of_role(row: dict[str, Any], *roles: str) -> list[dict[str, Any]]:
    return [message for message in row["messages"] if message["role"] in roles]


def first_call(row: dict[str, Any], change: Callable[[str], str]) -> None:
    """Change the first call as JSON text, in whatever form it stands."""
    for message in of_role(row, "assistant", "function_call", "tool_call"):
        if message.get("tool_calls"):
            function = message["tool_calls"][0]["function"]
            function["arguments"] = change(function["arguments"])
            return
        text = said(message)
        if "bbox_2d" in text:
            say(message, change)
            return


def give_picture(broken: Broken, row: dict[str, Any], data: bytes) -> None:
    """Another file for the second picture of a row."""
    if broken.name == "openai":
        parts = [
            part for message in row["messages"] for part in message["content"] or [] if isinstance(part, dict)
        ]
        pictures = [part for part in parts if part["type"] == "image_url"]
        pictures[1]["image_url"]["url"] = "data:image/png;base64," + base64.b64encode(data).decode()
    elif broken.file.suffix == ".parquet":
        row["images"][1]["bytes"] = data
    else:
        path = broken.folder / "images" / f"{hashlib.sha256(data).hexdigest()}.png"
        path.write_bytes(data)
        row["images"][1] = str(path) if broken.name == "ms_swift" else f"images/{path.name}"


# --- what is sound


@pytest.mark.parametrize(("name", "form"), FORMS)
@pytest.mark.parametrize("errors", ["mask", "train", "drop"])
def test_an_export_has_nothing_that_is_found(
    name: str, form: str, errors: str, made: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    document = found_in(made(name, "--errors", errors, "--call_form", form), capsys)
    assert document["findings"] == [] and document["counts"] == {}
    assert document["format"] == name and document["num_truths"] == sum(document["rows"].values())
    assert document["max_length"] is None or document["longest_tokens"] <= document["max_length"]


@pytest.mark.parametrize(
    "flags", [("--coordinates", "pixel"), ("--reasoning", "keep"), ("--image_max_pixels", "90000")]
)
def test_whatever_a_row_is_like_nothing_is_found(
    flags: tuple[str, str], made: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert found_in(made("trl", *flags), capsys)["findings"] == []


def test_boxes_of_the_photo_are_measured_by_the_photo(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(request: dict[str, Any]) -> Any:
        boxes = [[0, 0, 128, 128], [300, 200, 600, 470]]
        if is_probe(request):
            return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
        turn = num_turns(request)
        return calls((ZOOM, {"bbox_2d": boxes[turn]})) if turn < 2 else says("\\boxed{1, 2}")

    flags = ["--crop_from", "original", "--coordinates", "pixel", "--num_samples", 1]
    of_photo = run(tmp_path, script, *flags, dataset=traces.parent / "photos")
    out = export(of_photo, tmp_path / "out", "--format", "verl", "--coordinates", "pixel")
    assert found_in(out, capsys)["findings"] == []
    broken = Broken(out, tmp_path / "broken", "verl")
    broken.change(
        lambda rows: say(of_role(rows[0], "system")[0], lambda text: text.replace("original", "recent"))
    )
    assert set(found_in(broken.folder, capsys)["counts"]) == {"box"}


# --- what is broken


def _one_picture_less(broken: Broken, rows: list[dict[str, Any]]) -> None:
    if broken.name == "openai":  # no list of pictures: one stands where none may
        parts = rows[0]["messages"][1]["content"]
        of_role(rows[0], "assistant")[0]["content"] = [{"type": "text", "text": "Look."}, parts[0]]
    else:
        rows[0]["images"].pop()


def _one_picture_more(broken: Broken, rows: list[dict[str, Any]]) -> None:
    if broken.name == "openai":
        _one_picture_less(broken, rows)
    else:
        rows[0]["images"].append(rows[1]["images"][0])


def _placeholder_as_text(broken: Broken, rows: list[dict[str, Any]]) -> None:
    say(rows[0]["messages"][1], lambda text: text + " <image>")


def _no_picture(broken: Broken, rows: list[dict[str, Any]]) -> None:
    give_picture(broken, rows[0], b"\xff\xd8 no picture")


def _half_a_picture(broken: Broken, rows: list[dict[str, Any]]) -> None:
    data = file_bytes(smooth(300, 200), "JPEG")
    give_picture(broken, rows[0], data[: len(data) // 2])


def _a_strip(broken: Broken, rows: list[dict[str, Any]]) -> None:
    give_picture(broken, rows[0], file_bytes(Image.new("RGB", (2000, 10))))


def _two_users(broken: Broken, rows: list[dict[str, Any]]) -> None:
    rows[0]["messages"].insert(1, {**rows[0]["messages"][1], "content": _text(broken, "Hello")})


def _ends_with_user(broken: Broken, rows: list[dict[str, Any]]) -> None:
    rows[0]["messages"].append({**rows[0]["messages"][1], "content": _text(broken, "Thanks")})


def _strange_role(broken: Broken, rows: list[dict[str, Any]]) -> None:
    rows[0]["messages"][1]["role"] = "visitor"


def _text(broken: Broken, text: str) -> Any:
    return [{"type": "text", "text": text}] if broken.name in ("trl", "hf") else text


def _call_without_name(broken: Broken, rows: list[dict[str, Any]]) -> None:
    first_call(rows[0], lambda text: text.replace('"name"', '"called"', 1))


def _call_of_half_json(broken: Broken, rows: list[dict[str, Any]]) -> None:
    first_call(rows[0], lambda text: text.replace("]}", "]", 1))


def _box_outside(broken: Broken, rows: list[dict[str, Any]]) -> None:
    first_call(rows[0], lambda text: text.replace("900", "1900"))


def _box_turned(broken: Broken, rows: list[dict[str, Any]]) -> None:
    first_call(rows[0], lambda text: text.replace("100", "950"))


def _control_token(broken: Broken, rows: list[dict[str, Any]]) -> None:
    say(rows[0]["messages"][1], lambda text: text + "<|im_end|>\n<|im_start|>user")


def _video(broken: Broken, rows: list[dict[str, Any]]) -> None:
    say(rows[0]["messages"][1], lambda text: text + "<video>")


def _stray_tag(broken: Broken, rows: list[dict[str, Any]]) -> None:
    say(rows[0]["messages"][-1], lambda text: text + "</tool_call>")


def _empty_thoughts(broken: Broken, rows: list[dict[str, Any]]) -> None:
    say(rows[0]["messages"][-1], lambda text: "<think>\n\n</think>\n\n" + text)


def _open_thoughts(broken: Broken, rows: list[dict[str, Any]]) -> None:
    say(rows[0]["messages"][-1], lambda text: "<think>" + text)


def _nothing_trained(broken: Broken, rows: list[dict[str, Any]]) -> None:
    for message in of_role(rows[0], "assistant", "tool_call"):
        message["weight" if broken.name == "openai" else "loss"] = 0 if broken.name == "openai" else False


def _failed_turn_trained(broken: Broken, rows: list[dict[str, Any]]) -> None:
    if broken.name == "llamafactory":
        path = broken.folder / "train.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("mask_history: true", "mask_history: false"))
    for message in rows[0]["messages"]:
        if message.get("loss") is False:
            message["loss"] = True
        message.pop("weight", None)


def _truth_in_question(broken: Broken, rows: list[dict[str, Any]]) -> None:
    say(rows[0]["messages"][1], lambda text: text + " (at 48.86 N and 2.35 E)")


def _truth_in_result(broken: Broken, rows: list[dict[str, Any]]) -> None:
    result = next(each for each in rows[0]["messages"] if "Success" in said(each))
    say(result, lambda text: text.replace("Success", "GPS 48.8600, 2.3500: Success"))


def _twice(broken: Broken, rows: list[dict[str, Any]]) -> None:
    rows.append(rows[0])


def _no_messages(broken: Broken, rows: list[dict[str, Any]]) -> None:
    rows[0]["messages"] = []


BREAKS: list[tuple[Callable[[Broken, list[dict[str, Any]]], None], str]] = [
    (_one_picture_less, "picture_count"),
    (_one_picture_more, "picture_count"),
    (_placeholder_as_text, "special_word or picture_count"),
    (_no_picture, "picture_file"),
    (_half_a_picture, "picture_file"),
    (_a_strip, "picture_file"),
    (_two_users, "role_order"),
    (_ends_with_user, "role_order"),
    (_strange_role, "role_order"),
    (_call_without_name, "call"),
    (_call_of_half_json, "call"),
    (_box_outside, "box"),
    (_box_turned, "box"),
    (_control_token, "special_word"),
    (_video, "special_word"),
    (_stray_tag, "special_word"),
    (_empty_thoughts, "think"),
    (_open_thoughts, "think"),
    (_nothing_trained, "loss"),
    (_failed_turn_trained, "loss"),
    (_truth_in_question, "leak"),
    (_truth_in_result, "leak"),
    (_twice, "duplicate"),
    (_no_messages, "unreadable_row"),
]


def flags_for(name: str, change: Any) -> list[str]:
    """LLaMA-Factory's rows are whole where none of their turns is masked."""
    is_whole = name == "llamafactory" and change is not _failed_turn_trained
    return ["--errors", "drop"] if is_whole else []


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("change", "kind"), BREAKS, ids=[change.__name__[1:] for change, _ in BREAKS])
def test_what_is_broken_is_found_and_nothing_else(
    name: str, change: Any, kind: str, broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = broken(name, *flags_for(name, change))
    if kind.startswith("special_word or"):
        kind = "special_word" if name in ("trl", "hf", "openai") else "picture_count"
    copy.change(lambda rows: change(copy, rows))
    document = found_in(copy.folder, capsys)
    assert set(document["counts"]) == {kind}, document["findings"]
    first = document["findings"][0]
    assert first["file"].endswith(copy.file.name) and first["remedy"] == REMEDIES[kind]
    assert first["row"] == 1 or kind in ("duplicate", "loss")
    assert first["field"] and first["message"]


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    ("change", "kind"),
    [(_call_of_half_json, "call"), (_box_outside, "box"), (_control_token, "special_word"), (_truth_in_result, "leak"),
     (_failed_turn_trained, "loss")],
)  # fmt: skip
def test_native_forms_are_read_as_they_are(
    name: str, change: Any, kind: str, broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = broken(name, "--call_form", "native", *flags_for(name, change))
    copy.change(lambda rows: change(copy, rows))
    assert set(found_in(copy.folder, capsys)["counts"]) == {kind}


@pytest.mark.parametrize("name", FORMATS)
def test_a_photo_on_both_sides_of_a_split_is_found(
    name: str, broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = broken(name, "--errors", "drop")

    def other_words(rows: list[dict[str, Any]]) -> None:
        del rows[1:]
        say(rows[0]["messages"][-1], lambda text: "Well. " + text)

    copy.change(other_words, copy.file.with_name(copy.file.name.replace("train", "validation")))
    document = found_in(copy.folder, capsys)
    assert set(document["counts"]) == {"shared_photo"} and document["rows"]["validation"] == 1
    assert "train" in document["findings"][0]["message"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_not_as_it_was_exported_is_found(
    name: str, broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = broken(name)
    page = copy.folder / "README.md"
    page.write_text(page.read_text(encoding="utf-8") + "\nMine.\n", encoding="utf-8")
    assert [(each["kind"], each["file"]) for each in found_in(copy.folder, capsys)["findings"]] == [
        ("changed_file", "README.md")
    ]
    page.unlink()
    assert set(found_in(copy.folder, capsys)["counts"]) == {"changed_file"}


@pytest.mark.parametrize("name", ["llamafactory", "ms_swift"])
def test_a_picture_with_another_content_than_its_name_says_is_found(
    name: str, broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = broken(name)
    if name == "ms_swift":  # its rows name the export that was copied
        copy.change(
            lambda rows: [
                each.update(images=[str(copy.folder / "images" / Path(path).name) for path in each["images"]])
                for each in rows
            ]
        )
    assert found_in(copy.folder, capsys)["findings"] == []
    one, other = sorted((copy.folder / "images").iterdir())[:2]
    swapped = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(swapped)
    assert set(found_in(copy.folder, capsys)["counts"]) == {"picture_file"}
    one.unlink()
    assert "cannot be read" in json.dumps(found_in(copy.folder, capsys)["findings"])


def test_relative_paths_for_ms_swift_are_found(
    broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = broken("ms_swift")
    copy.change(
        lambda rows: [
            each.update(images=[f"images/{Path(path).name}" for path in each["images"]]) for each in rows
        ]
    )
    document = found_in(copy.folder, capsys)
    assert set(document["counts"]) == {"picture_file"}
    assert "folder that the trainer runs in" in document["findings"][0]["message"]


def test_a_file_picture_of_an_unwritable_field_is_told_not_raised() -> None:
    picture = WrittenPicture("images[0]", "missing.jpg")
    with pytest.raises(OSError, match=r"missing\.jpg"):
        picture.read(Path("/nowhere"))


# --- lengths


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_over_the_length_that_is_set_is_found(
    name: str, broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = broken(name)
    assert set(found_in(copy.folder, capsys, "--max_length", 300)["counts"]) == {"length"}
    for file in ("train.yaml", "README.md", "train.py"):
        path = copy.folder / file
        if path.exists():
            text = re.sub(r"(cutoff_len: |data\.max_length=|--max_length |max_length=)(\d+|None)", r"\g<1>300",
                          path.read_text(encoding="utf-8"))  # fmt: skip
            path.write_text(text, encoding="utf-8")
    copy.sign()
    is_set = name not in ("hf", "openai")
    assert set(found_in(copy.folder, capsys)["counts"]) == ({"length"} if is_set else set())


def test_tokens_are_counted_by_a_tokenizer_where_one_is_at_hand(
    made: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    estimated = found_in(made("trl"), capsys)
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as where it is not installed
    without = found_in(made("trl"), capsys, "--tokenizer", tmp_path)
    assert "tokenizers is not installed" in without["tokens"]
    assert without["longest_tokens"] == estimated["longest_tokens"]

    class Tokenizer:
        """A token a character."""

        @classmethod
        def from_file(cls, path: str) -> Tokenizer:
            assert path == str(tmp_path / "tokenizer.json")
            return cls()

        def encode(self, text: str, add_special_tokens: bool) -> Any:
            return types.SimpleNamespace(ids=list(text))

    module = types.ModuleType("tokenizers")
    module.Tokenizer = Tokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    assert main(["check", str(made("trl")), "--tokenizer", str(tmp_path)]) == 2  # no tokenizer.json
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    counted = found_in(made("trl"), capsys, "--tokenizer", tmp_path)
    assert counted["longest_tokens"] > estimated["longest_tokens"] and "counted by" in counted["tokens"]


# --- files of others


def test_rows_that_somebody_else_wrote_are_checked_by_the_named_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(file_bytes(smooth(64, 48)))
    rows = [
        {"conversations": [{"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": "Here."}],
         "images": ["a.png"]},
        {"messages": [{"role": "user", "content": "<image>Where?"}, {"role": "user", "content": "Hm?"}],
         "images": []},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\nno json\n", encoding="utf-8")
    assert main(["check", str(path)]) == 2
    assert "--format" in capsys.readouterr().err
    document = found_in(path, capsys, "--format", "llamafactory")
    assert document["counts"] == {"unreadable_row": 1, "picture_count": 1, "role_order": 1, "loss": 1}
    assert {each["row"] for each in document["findings"]} == {2, 3}
    (tmp_path / "rows.json").write_text(json.dumps(rows[:1]), encoding="utf-8")
    assert found_in(tmp_path / "rows.json", capsys, "--format", "llamafactory")["findings"] == []


def test_without_a_trace_the_answer_is_looked_for_and_that_is_said(
    broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = broken("openai")
    copy.change(lambda rows: _truth_in_question(copy, rows))
    bare = tmp_path / "bare" / "train.jsonl"
    bare.parent.mkdir()
    shutil.copy(copy.file, bare)
    assert set(found_in(bare, capsys, "--format", "openai")["counts"]) == {"leak"}
    assert set(found_in(bare, capsys, "--format", "openai", "--traces", tmp_path)["counts"]) == {"leak"}


def test_nothing_to_check_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "bad.parquet").write_text("hello", encoding="utf-8")
    for name, text in [("missing", "does not exist"), ("empty", "holds no rows"), ("page.txt", "no file of rows"),
                       ("bad.parquet", "cannot be read")]:  # fmt: skip
        assert main(["check", str(tmp_path / name), "--format", "trl"]) == 2
        assert text in capsys.readouterr().err


# --- what is said


def test_findings_are_grouped_and_counted_each_with_its_place_and_what_to_do(
    broken: Callable[..., Broken], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = broken("verl")
    copy.change(lambda rows: [_control_token(copy, [each]) for each in rows])
    assert main(["check", str(copy.folder)]) == 1
    printed = capsys.readouterr().out
    assert "6 × special word: escape it" in printed  # two tokens in each of three rows
    assert "train.parquet, row 2, messages[1].content: <|im_end|> in the text of user" in printed
    assert "3 train rows with" in printed and "6 findings" in printed


def test_findings_are_kept_up_to_a_number_and_counted_beyond() -> None:
    findings = Findings()
    for number in range(KEPT_FINDINGS + 7):
        findings.add(ExportFinding("call", "train.jsonl", number, "messages", "a call"))
    assert len(findings.kept) == KEPT_FINDINGS and findings.counts["call"] == KEPT_FINDINGS + 7


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by resource there")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    import tracemalloc  # noqa: PLC0415

    from distil.commands.flags import CheckFlags  # noqa: PLC0415
    from distil.exports.check import check_export  # noqa: PLC0415
    from distil.records import ExportFormat  # noqa: PLC0415

    url = "data:image/jpeg;base64," + base64.b64encode(file_bytes(smooth(640, 480), "JPEG")).decode()

    def peak(num_rows: int) -> int:
        path = tmp_path / f"{num_rows}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(num_rows):
                parts = [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": f"{number}?"},
                ]
                said = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x" * 20_000}]
                file.write(json.dumps({"messages": said}) + "\n")
        tracemalloc.start()
        check_export(CheckFlags(path=path, format=ExportFormat.OPENAI))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(5)
    assert peak(300) < peak(20) + 1_000_000


def test_the_folder_for_the_hub_has_a_card_that_can_be_pushed_as_it_is(made: Callable[..., Path]) -> None:
    from datasets import load_dataset  # noqa: PLC0415
    from huggingface_hub import DatasetCard  # noqa: PLC0415

    out = made("hf")
    card = DatasetCard.load(out / "README.md", ignore_metadata_errors=False).data.to_dict()
    assert card["task_categories"] == ["image-text-to-text"]
    (config,) = card["configs"]
    found = {path for each in config["data_files"] for path in out.glob(each["path"])}
    assert found == set(out.rglob("*.parquet")) and found
    rows = load_dataset(str(out), split="train")
    assert len(rows) == 3 and rows[0]["images"][0].size == (640, 480)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student": "qwen4"}, "options.student is 'qwen4', none of qwen3-vl, qwen2.5-vl"),
        ({"errors": ["mask"]}, "options.errors is ['mask'], none of mask, train, drop"),
        ({"coordinates": "rel1"}, "options.coordinates is 'rel1', none of rel1000, pixel"),
        ({"format": None}, "options.format is None, none of trl, "),
        (None, "lacks the options or the files of an export"),
    ],
)
def test_what_an_export_cannot_say_of_itself_is_one_clear_line(
    change: dict[str, Any] | None,
    words: str,
    broken: Callable[..., Broken],
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = broken("openai")
    path = copy.folder / "export.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    options = None if change is None else manifest["options"] | change
    path.write_text(json.dumps(manifest | {"options": options}), encoding="utf-8")
    assert main(["check", str(copy.folder)]) == 2
    assert f"distil: {path}" in (said := capsys.readouterr().err) and words in said
    if options is not None:  # of another file it says nothing
        shutil.copy(copy.file, other := copy.folder / "other.jsonl")
        assert main(["check", str(other), "--format", "openai"]) == 0
