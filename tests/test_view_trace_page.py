"""A trace's page over HTTP: its pictures are those of a replay, and what a trace says does nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from browser import Serve
from builders import file_bytes, noise, row, same_pixels, saved
from conftest import RunDoor
from PIL import Image
from replayed import replay
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says, text_call

import distil.viewer.pictures
from distil.errors import SandboxUnavailable, TraceError
from distil.index.index import TraceIndex
from distil.pictures import picture_facts
from distil.replay.replay import Executors, Sources
from distil.sandbox.sandbox import Sandbox
from distil.store.trace_file import read_trace
from distil.store.trace_settings import json_sha256
from distil.viewer.app import create_app
from distil.viewer.pictures import PictureMatch, Pictures, View
from distil.viewer.viewer import Viewer
from distil.viewer.visible import plain, visible

CODE = "print('seen', image.size)\nresult_image = image.crop((10, 10, 200, 150))"


def policy(request: dict[str, Any]) -> Any:
    """A box that has to be cut, calls that fail, a slanted turn, reasoning in two places, an answer."""
    if is_probe(request):
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9]})) if "tools" in request else says("ok")
    steps: list[list[tuple[str, Any]]] = [
        [("image_zoom_in_tool", {"bbox_2d": [-50, 100, 700, 800]}), ("image_rotate_tool", {"angle": "x"})],
        [("image_rotate_tool", {"angle": 33.5}), ("image_zoom_in_tool", {"bbox_2d": [200, 300, 700, 800]})],
    ]
    turn = num_turns(request)
    if turn < len(steps):
        return calls(*steps[turn], content=f"<think>inner {turn}</think>I say {turn}.", reasoning="I wonder.")
    return says("It is \\boxed{48.86, 12.35}")


@pytest.fixture(scope="module")
def run_folder(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four traces of zooming and turning."""
    folder = tmp_path_factory.mktemp("seen") / "run"
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 4,
            "--output_dir", folder, "--coordinates", "rel1000",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (folder / "requests.json").write_text(json.dumps(server.requests))
    return folder


@pytest.fixture(scope="module")
def code_folder(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two traces with code."""
    folder = tmp_path_factory.mktemp("coded") / "run"

    def script(request: dict[str, Any]) -> Any:
        if is_probe(request) or num_turns(request) == 0:
            return calls(("python_code_tool", {"code": CODE}))
        return says("\\boxed{1, 2}")

    with ScriptedTeacher(script) as server:
        result = run_door(
            "demo_python_code.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 2,
            "--output_dir", folder,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


class Sites:
    """Many apps on one server, told apart by a header: to start and end one for each test takes its time."""

    def __init__(self) -> None:
        self.apps: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # there is nothing to start
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        number = int(dict(scope["headers"])[b"x-site"])
        await self.apps[number](scope, receive, send)


class Site:
    """A viewer that is served, asked as a client asks it."""

    def __init__(self, address: str, number: int) -> None:
        self.address, self.number = address, number

    def get(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        sent = {"X-Site": str(self.number), **(headers or {})}
        request = urllib.request.Request(self.address + path, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def text(self, path: str, status: int = 200) -> str:
        code, data, _ = self.get(path)
        assert code == status, data[:500]
        return data.decode()

    def image(self, path: str) -> Image.Image:
        code, data, headers = self.get(path)
        assert code == 200, data[:500]
        image = Image.open(io.BytesIO(data))
        assert headers["content-type"] == f"image/{str(image.format).lower()}"
        image.load()
        return image

    def marks(self, path: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text(f"/api/pictures{path}").splitlines()]


Show = Callable[..., Site]


@pytest.fixture(scope="module")
def sites(serve: Serve) -> tuple[str, Sites]:
    """The one server's address, and its apps."""
    found = Sites()
    return serve(found), found


@pytest.fixture
def show(sites: tuple[str, Sites]) -> Show:
    """Serve the viewer of some folders."""
    address, served = sites

    def start(*folders: Path, dataset: Path | str | None = None) -> Site:
        override = None if dataset is None else str(dataset)
        index = TraceIndex.open(folders)
        served.apps.append(create_app(Viewer(tuple(folders), index, dataset_override=override)))
        return Site(address, len(served.apps) - 1)

    return start


@pytest.fixture
def copied(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the traces, to be spoilt."""
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def change(path: Path, **fields: Any) -> None:
    """Write other values into a trace, with the checksum that a forger would give it."""
    trace = json.loads(path.read_text()) | fields
    unsigned = {name: value for name, value in trace.items() if name != "integrity_sha256"}
    path.write_text(json.dumps(unsigned | {"integrity_sha256": json_sha256(unsigned)}))


# --- pictures


def test_pictures_are_those_of_a_replay_pixel_for_pixel(run_folder: Path, show: Show) -> None:
    site = show(run_folder)
    trace = read_trace(run_folder / "trace_00001.json")
    again = replay(trace, Sources().of(trace))
    sent = [again.sent, *(observation.sent for observation in again.observations)]
    for number, picture in enumerate(sent):
        path = f"/picture/0/00001/{number}"
        if picture is None:
            assert site.get(path)[0] == 404
            continue
        assert site.get(path)[1] == picture.data, number
        assert site.get(f"{path}?view=sent")[1] == picture.data
    last = max(number for number, picture in enumerate(sent) if picture is not None)
    assert same_pixels(site.image(f"/picture/0/00001/{last}?view=full"), again.scene.current)
    assert picture_facts(site.image("/picture/0/00001/0?view=full")) == again.sample.picture.facts
    assert max(site.image(f"/picture/0/00001/{last}?view=thumb").size) == 160


def test_each_picture_has_a_mark_whether_its_hash_matches(copied: Path, show: Show) -> None:
    path = copied / "trace_00002.json"
    trace = json.loads(path.read_text())
    assert trace["tool_calls_log"][2]["success"]
    trace["tool_calls_log"][2]["result"]["pixel_sha256"] = "0" * 64
    trace["tool_calls_log"][3]["result"]["sent"]["sha256"] = "0" * 64
    del trace["tool_calls_log"][0]["result"]["pixel_sha256"]
    change(path, **trace)
    site = show(copied)
    matches = [(mark["number"], mark["match"]) for mark in site.marks("/0/00001")]
    assert matches == [(0, "matched"), (1, "matched"), (3, "matched"), (4, "matched")], (
        "the second call failed"
    )
    # A trace whose hashes cannot be read is another program's, and replayed by the restore recipe.
    assert {mark["match"] for mark in site.marks("/0/00002")} == {"missing"}
    trace["tool_calls_log"][0]["result"]["pixel_sha256"] = None
    change(path, **trace)
    marks = show(copied).marks("/0/00002")
    assert [(mark["number"], mark["match"]) for mark in marks] == [
        (0, "matched"),
        (1, "matched"),
        (3, "differs"),
        (4, "differs"),
    ]
    assert "other" in marks[2]["detail"] and "another file" in marks[3]["detail"]


def test_pictures_that_browsers_cannot_show_are_made_ones_they_can(
    tmp_path: Path, run_door: RunDoor, show: Show
) -> None:
    kinds = {"I;16": "PNG", "F": "TIFF", "CMYK": "JPEG", "RGBA": "PNG", "P": "PNG", "1": "PNG"}
    pictures = [file_bytes(noise(120, 90, mode), form) for mode, form in kinds.items()]
    data = saved(tmp_path / "data", [row(picture) for picture in pictures])
    with ScriptedTeacher(lambda request: says("\\boxed{1, 2}")) as server:
        result = run_door(
            "demo_distillation.py", "--api_base", server.api_base, "--dataset_path", data,
            "--output_dir", tmp_path / "run", "--num_samples", 0,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    site = show(tmp_path / "run")
    for number, mode in enumerate(kinds):
        assert site.marks(f"/0/{number:05d}")[0]["match"] == "matched", mode
        full = site.image(f"/picture/0/{number:05d}/0?view=full")
        assert (full.format, full.size) == ("PNG", (120, 90)) and full.mode in ("RGB", "L"), mode


def test_a_trace_that_many_ask_for_at_once_is_replayed_once(run_folder: Path) -> None:
    pictures = Pictures()
    path = run_folder / "trace_00000.json"
    numbers = [0, 1, 3, 4] * 5
    found: list[bytes] = []
    askers = [
        threading.Thread(target=lambda number=number: found.append(pictures.file(path, number, View.SENT)))
        for number in numbers
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(30)
    assert len(found) == len(numbers) and len(set(found)) == 4
    assert pictures.num_replays == 1


def test_what_is_kept_is_bounded_and_a_changed_file_is_another(copied: Path) -> None:
    pictures = Pictures(max_bytes=60_000)
    for number in range(4):
        path = copied / f"trace_{number:05d}.json"
        assert len(list(pictures.marks(path))) == 4
        assert pictures.file(path, 0, View.FULL)
        assert pictures.num_bytes <= 60_000
    path = copied / "trace_00000.json"
    before = pictures.file(path, 1, View.SENT)
    other = json.loads((copied / "trace_00001.json").read_text())
    path.write_text(json.dumps(other))
    assert pictures.file(path, 1, View.SENT) != before


def test_code_is_run_in_the_sandbox_alone(code_folder: Path, show: Show) -> None:
    site = show(code_folder)
    assert [mark["match"] for mark in site.marks("/0/00000")] == ["matched", "matched"]
    trace = read_trace(code_folder / "trace_00000.json")
    with Executors() as executors:
        again = replay(trace, Sources().of(trace), executors.of(trace))
    assert site.get("/picture/0/00000/1")[1] == again.observations[0].sent.data  # type: ignore[union-attr]


def test_where_there_is_no_sandbox_code_is_not_run_and_the_photo_is_shown(code_folder: Path) -> None:
    pictures = Pictures(sandbox=Sandbox(_disable=("seccomp",)))
    marks = list(pictures.marks(code_folder / "trace_00000.json"))
    assert [mark.match for mark in marks] == [PictureMatch.MATCHED, PictureMatch.MISSING]
    assert "cannot be contained here" in marks[1].detail
    for view in View:
        with pytest.raises(TraceError, match="cannot be contained here"):
            pictures.file(code_folder / "trace_00000.json", 1, view)


def test_what_keeps_the_sandbox_from_starting_is_found_out_once(code_folder: Path) -> None:
    class Counted(Sandbox):
        num_starts = 0

        def _start_server(self) -> Any:
            self.num_starts += 1
            return super()._start_server()

    sandbox = Counted(_disable=("seccomp",))
    pictures = Pictures(sandbox=sandbox)
    path = code_folder / "trace_00000.json"
    for _ in range(3):
        with pytest.raises(TraceError, match="cannot be contained here"):
            pictures.file(path, 1, View.FULL)
    assert [mark.match for mark in pictures.marks(path)] == [PictureMatch.MATCHED, PictureMatch.MISSING]
    assert sandbox.num_starts == 1


def test_an_unsafe_sandbox_is_not_used(code_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(code_folder, tmp_path / "unsafe"))
    path = folder / "trace_00000.json"
    trace = json.loads(path.read_text())
    evil = tmp_path / "evil"
    trace["settings"]["code"]["unsafe_exec"] = True
    trace["tool_calls_log"][0]["code"] = f"open({str(evil)!r}, 'w').write('x')\nresult_image = image"
    change(path, **trace)
    marks = list(Pictures().marks(path))
    assert [mark.match for mark in marks] == [PictureMatch.MATCHED, PictureMatch.MISSING]
    with pytest.warns(RuntimeWarning, match="UNSAFE"):
        unsafe = Sandbox(unsafe=True)
    with pytest.raises(SandboxUnavailable, match="outside the sandbox"):
        Pictures(sandbox=unsafe)
    assert not evil.exists()


def test_a_dataset_that_is_gone_is_said_and_the_rest_is_shown(
    copied: Path, photos: Path, tmp_path: Path, show: Show
) -> None:
    gone = str(tmp_path / "gone")
    for path in [*copied.glob("trace_*.json"), copied / "run_record.json"]:
        path.write_text(path.read_text().replace(str(photos), gone))
    site = show(copied)
    marks = site.marks("/0/00000")
    assert {mark["match"] for mark in marks} == {"missing"} and len(marks) == 4
    assert gone in marks[0]["detail"] and "--dataset_path" in marks[0]["detail"]
    assert "I say 0." in site.text("/trace/0/00000")
    assert site.get("/picture/0/00000/0?view=thumb")[0] == 200, "a list shows a sign in its place"
    moved = show(copied, dataset=photos)
    assert {mark["match"] for mark in moved.marks("/0/00000")} == {"matched"}
    assert f"--dataset_path {photos}" in moved.text("/trace/0/00000")


def test_only_a_dataset_that_a_run_of_the_folder_used_is_opened(
    copied: Path, tmp_path: Path, show: Show
) -> None:
    secret = saved(tmp_path / "secret", [row(file_bytes(noise(64, 48)))])
    path = copied / "trace_00000.json"
    dataset = json.loads(path.read_text())["dataset"]
    change(path, dataset_path=str(secret), dataset=dataset | {"source": str(secret)})
    change(copied / "trace_00001.json", dataset_path="/etc", dataset=dataset | {"source": "/etc"})
    change(copied / "trace_00002.json", dataset=dataset | {"kind": "hub", "source": "evil/data"})
    change(copied / "trace_00003.json", dataset=dataset | {"kind": "folder", "source": "../../../etc"})
    site = show(copied)
    for number in range(4):
        marks = site.marks(f"/0/{number:05d}")
        assert {mark["match"] for mark in marks} == {"missing"}
        assert "no run into this folder has used" in marks[0]["detail"], marks[0]
    assert site.marks("/0/00000") == site.marks("/0/00000")


def test_pictures_that_the_trace_keeps_are_shown_from_it(
    photos: Path, tmp_path: Path, run_door: RunDoor, show: Show
) -> None:
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "demo_distillation_with_tools.py", "--api_base", server.api_base, "--dataset_path", photos,
            "--num_samples", 1, "--output_dir", tmp_path / "kept", "--coordinates", "rel1000",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (tmp_path / "kept" / "run_record.json").unlink()  # so that no dataset may be opened
    site = show(tmp_path / "kept")
    marks = site.marks("/0/00000")
    assert [(mark["number"], mark["match"]) for mark in marks] == [
        (0, "missing"),
        (1, "matched"),
        (3, "matched"),
        (4, "matched"),
    ]
    assert marks[1]["is_kept"]
    trace = read_trace(tmp_path / "kept" / "trace_00000.json")
    assert (
        len(site.get("/picture/0/00000/1")[1])
        == trace.json["tool_calls_log"][0]["result"]["sent"]["num_bytes"]
    )
    assert site.image("/picture/0/00000/1?view=full").size == site.image("/picture/0/00000/1").size


def test_pictures_that_the_earlier_system_kept_are_shown(tmp_path: Path, show: Show) -> None:
    photo, crop = (file_bytes(noise(64, 48, seed=seed)) for seed in range(2))
    urls = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in (photo, crop)]
    content = [{"type": "image_url", "image_url": {"url": urls[0]}}, {"type": "text", "text": "Where is it?"}]
    call = {"turn": 1, "tool_name": "image_zoom_in_tool", "arguments": {}, "result": {"image": urls[1]}}
    evil = "data:image/svg+xml;base64," + base64.b64encode(b"<svg onload='alert(1)'/>").decode()
    history = [{"role": "user", "content": content}, *old_trace()["conversation_history"]]
    trace = old_trace(conversation_history=history, tool_calls=[call, call | {"result": {"image": evil}}])
    (tmp_path / "trace_00000.json").write_text(json.dumps(trace))
    site = show(tmp_path)
    assert [(mark["match"], mark["is_kept"]) for mark in site.marks("/0/00000")] == [
        ("unstated", True),
        ("unstated", True),
        ("missing", False),
    ]
    assert site.get("/picture/0/00000/0")[1] == photo
    assert site.get("/picture/0/00000/1?view=full")[1] == crop
    assert site.get("/picture/0/00000/2")[0] == 404
    assert "Where is it?" in site.text("/trace/0/00000")


def test_a_picture_is_sent_again_only_where_the_trace_is_another(copied: Path, show: Show) -> None:
    site = show(copied)
    tag = site.get("/picture/0/00000/1")[2]["etag"]
    assert site.get("/picture/0/00000/1", {"If-None-Match": tag})[0] == 304
    shutil.copy(copied / "trace_00001.json", copied / "trace_00000.json")
    assert site.get("/picture/0/00000/1", {"If-None-Match": tag})[0] == 200


# --- the page


def test_the_page_shows_the_whole_conversation(run_folder: Path, show: Show) -> None:
    page = show(run_folder).text("/trace/0/00000")
    for words in (
        "Sample 0", "I say 0.", "inner 0", "I wonder.", "You are a helpful assistant.", "Where was this photo taken?",
        "[-50, 100, 700, 800]", "as written", "0–1000", "{&#34;bbox_2d&#34;: [0, 48, 448, 384]}", "cut to the picture",
        "number of degrees", "33.5° counter-clockwise", "48.86000, 12.35000", "48.85660, 2.35220", "730.89 km",
        "acc@750km", "city 0", "100 in", "10 out", "1 of 4", str(run_folder / "trace_00000.json"), "distil verify",
    ):  # fmt: skip
        assert words in page, words
    assert re.search(r'<rect class="mark-line" x="0.0" y="48.0" width="448.0" height="336.0"/>', page)
    assert page.count("data-number=") == 8, "the photo, four pictures before calls, three after"


def test_the_messages_are_those_that_were_sent(run_folder: Path, show: Show) -> None:
    sent = json.loads(show(run_folder).text("/api/messages/0/00000?whole=1"))
    requests = [
        request for request in json.loads((run_folder / "requests.json").read_text()) if not is_probe(request)
    ]
    first = {request["seed"]: request for request in requests}
    for stated in sent["requests"]:
        request = first[stated["seed"]]
        found = sent["messages"][: stated["num_messages"]]
        assert [texts_of(message) for message in found] == [
            texts_of(message) for message in request["messages"]
        ]
        assert {name: request[name] for name in sent["body"]} == sent["body"]
    pictures = [part for message in sent["messages"] for part in message["content"] or () if is_picture(part)]
    assert [picture["number"] for picture in pictures] == [0, 1, 3, 4]


def test_the_messages_of_text_calls_too(photos: Path, tmp_path: Path, run_door: RunDoor, show: Show) -> None:
    def script(request: dict[str, Any]) -> Any:
        if is_probe(request) or num_turns(request):
            return says("\\boxed{1, 2}")
        calls_made = [("image_rotate_tool", {"angle": 90}), ("image_rotate_tool", {"angle": "x"})]
        return says("I turn it.\n" + "\n".join(text_call(*call) for call in calls_made))

    with ScriptedTeacher(script) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 1,
            "--output_dir", tmp_path / "run", "--tool_mode", "text",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    site = show(tmp_path / "run")
    sent = json.loads(site.text("/api/messages/0/00000"))
    last = server.requests[-1]["messages"]
    assert [texts_of(message) for message in sent["messages"][: len(last)]] == [
        texts_of(each) for each in last
    ]
    page = site.text("/trace/0/00000")
    assert "As it was written" in page and '<div class="words said" dir="auto">I turn it.</div>' in page


def is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part["type"] in ("picture", "image_url")


def texts_of(message: dict[str, Any]) -> Any:
    """A message without what its pictures are."""
    content = message["content"]
    parts = (
        ["picture" if is_picture(part) else part for part in content]
        if isinstance(content, list)
        else content
    )
    return message | {"content": parts}


def test_the_recipe_that_is_copied_gives_the_last_picture(run_folder: Path, show: Show) -> None:
    page = show(run_folder).text("/trace/0/00001")
    recipe = re.search(r'data-copy="(import json[^"]*)"', page)
    assert recipe is not None
    scope: dict[str, Any] = {}
    exec(recipe[1].replace("&#39;", "'").replace("&#34;", '"'), scope)
    trace = read_trace(run_folder / "trace_00001.json")
    assert same_pixels(scope["image"], replay(trace, Sources().of(trace)).scene.current)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for line in recipe[1].replace("&#39;", "'").splitlines():
        if line.strip().startswith(("if call['tool", "elif", "image =", "scope")):
            assert line.strip() in readme


def test_what_is_left_of_a_list_is_kept_on_the_way_through_it(run_folder: Path, show: Show) -> None:
    site = show(run_folder)
    page = site.text("/trace/0/00002?f=sample_index%3E0&sort=-sample_index")
    assert 'href="/trace/0/00003?f=sample_index%3E0&amp;sort=-sample_index"' in page
    assert 'href="/trace/0/00001?f=sample_index%3E0&amp;sort=-sample_index"' in page
    assert "2 of 3" in page
    assert "not in the list" in site.text("/trace/0/00000?f=sample_index%3E0")
    assert "no_such_column" in site.text("/trace/0/00000?f=no_such_column%3E0")


def test_a_row_is_shown_beside_the_same_row_of_another_run(
    run_folder: Path, copied: Path, show: Show
) -> None:
    shutil.copy(copied / "trace_00002.json", copied / "trace_00002_r1.json")
    change(copied / "trace_00002_r1.json", rollout=1)
    site = show(run_folder, copied)
    page = site.text("/trace/0/00002")
    assert 'href="/trace/0/00002?beside=1/00002_r1"' in page and 'href="/trace/1/00002"' in page
    change(copied / "trace_00002.json", image=json.loads((copied / "trace_00001.json").read_text())["image"])
    assert 'href="/trace/1/00002"' not in show(run_folder, copied).text("/trace/0/00002"), "another photo"
    both = site.text("/trace/0/00002?beside=1/00002_r1")
    assert both.count("<article") == 2 and "rollout 1" in both
    assert site.get("/trace/0/00002?beside=1/../00002")[0] == 404
    assert site.get("/trace/0/00002?beside=9/00002")[0] == 404


def test_a_5_mb_reply_is_cut_and_all_of_it_can_be_asked_for(copied: Path, show: Show) -> None:
    path = copied / "trace_00000.json"
    trace = json.loads(path.read_text())
    text = "é <b>" * 1_000_000
    trace["conversation_log"][0]["assistant_response"] = text
    trace["tool_calls_log"][0]["stdout"] = "y" * 3_000_000
    change(path, **trace)
    site = show(copied)
    started = time.process_time()
    page = site.text("/trace/0/00000")
    assert len(page) < 150_000 and time.process_time() - started < 5
    assert "5,000,000 characters" in page
    assert site.text("/api/text/0/00000?at=/conversation_log/0/assistant_response") == text
    assert len(site.text("/api/messages/0/00000")) < 200_000
    assert site.get("/raw/0/00000")[1] == path.read_bytes()


def test_two_hundred_turns_are_shown(copied: Path, show: Show) -> None:
    path = copied / "trace_00000.json"
    trace = json.loads(path.read_text())
    turn, call = trace["conversation_log"][0], trace["tool_calls_log"][2]
    log = [turn | {"turn": number} for number in range(1, 201)]
    turned = [call | {"turn": number, "tool_arguments": {"angle": 360}} for number in range(1, 201)]
    change(path, conversation_log=log, tool_calls_log=turned)
    site = show(copied)
    assert site.text("/trace/0/00000").count('class="turn"') == 200
    assert len(site.marks("/0/00000")) == 201


def test_a_trace_that_was_edited_is_said_to_be(copied: Path, show: Show) -> None:
    path = copied / "trace_00000.json"
    path.write_text(path.read_text().replace("I say 0.", "I said 0."))
    site = show(copied)
    assert "edited since it was written" in site.text("/trace/0/00000")
    assert "edited since it was written" not in site.text("/trace/0/00001")


# --- anything readable


def old_trace(**changes: Any) -> dict[str, Any]:
    """A trace as the earlier system wrote it."""
    return {
        "sample_index": 0,
        "conversation_history": [
            {"turn": 1, "response": "I zoom in.", "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
            {"turn": 2, "response": "\\boxed{1, 2}", "usage": {"prompt_tokens": 6, "completion_tokens": 3}},
        ],
        "tool_calls": [
            {"turn": 1, "tool_name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 30, 40]}}
        ],
        "final_response": "\\boxed{1, 2}",
        "reward_score": {"score": 0.5, "distance@km": 1000.0, "parse_success": True},
        "metadata": {"total_turns": 2},
    } | changes


def test_traces_of_the_earlier_system_are_shown_and_replayed_where_the_dataset_is_said(
    tmp_path: Path, photos: Path, show: Show
) -> None:
    (tmp_path / "trace_00000.json").write_text(json.dumps(old_trace(dataset_path=str(photos))))
    site = show(tmp_path)
    page = site.text("/trace/0/00000")
    for words in ("I zoom in.", "[1, 2, 30, 40]", "1,000.00 km", "1.00000, 2.00000"):
        assert words in page, words
    assert {mark["match"] for mark in site.marks("/0/00000")} == {"missing"}
    there = show(tmp_path, dataset=photos)
    assert [mark["match"] for mark in there.marks("/0/00000")] == ["unstated", "unstated"]
    assert there.image("/picture/0/00000/1?view=full").size == (29, 38)


def test_a_broken_file_is_shown_as_text(tmp_path: Path, show: Show) -> None:
    (tmp_path / "trace_00000.json").write_text('{"sample_index": 0, "x": "<script>')
    (tmp_path / "trace_00001.json").write_bytes(b"")
    (tmp_path / "trace_00002.json").write_bytes(b"\xff\xfe\x00nonsense")
    (tmp_path / "trace_00003.json").write_text("[" * 100_000)
    (tmp_path / "trace_00004.json").write_text("[1, 2]")
    site = show(tmp_path)
    for number in range(5):
        page = site.text(f"/trace/0/{number:05d}")
        assert "cannot be read as a trace" in page and '<script>"' not in page
    assert "&lt;script&gt;" in site.text("/trace/0/00000")


@pytest.mark.parametrize(
    "changes",
    [
        {"conversation_history": "x", "tool_calls": [3]},
        {"conversation_history": [3, None, {"turn": {}}], "tool_calls": [{}, {"turn": 1, "result": 3}]},
        {"reward_score": {"score": float("nan"), "distance@km": 10**400}},
        {"settings": {"task": "no_such_task", "tool_schemas": [3], "coordinates": ["x"], "view_rule": 3}},
        {"settings": {"task": 3, "coordinates": "rel1000", "crop_from": "current"}, "image": {"width_px": -1}},
        {"metadata": None, "reward_score": None, "sample_data": [1], "dataset": 3, "image": "x"},
        {"tool_calls": [{"tool_name": "image_rotate_tool", "arguments": {"angle": 1e400}, "turn": 9}]},
        {"tool_calls": [{"tool_name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, "4"]}, "turn": True}]},
        {"tool_calls": [{"tool_name": ["x"], "code": 3, "stdout": 4, "message": [], "raw_arguments": "\ud800"}]},
        {"conversation_log": [{"turn": 1, "assistant_response": "\ud800", "calls_not_run": [3, {"name": 4}], "other_reasoning": {"a": 3}}]},
        {"format": "distil-trace/9"},
        {"format": "distil-trace/1", "settings": {}},
        {"sample_index": 10**30, "rollout": "x"},
    ],
)  # fmt: skip
def test_whatever_a_trace_holds_its_page_is_shown(changes: Any, tmp_path: Path, show: Show) -> None:
    value = old_trace(**changes)
    for number in range(2):
        sample = value if number or "sample_index" in changes else value | {"sample_index": 0}
        (tmp_path / f"trace_{number:05d}.json").write_text(json.dumps(sample))
    site = show(tmp_path)
    assert "<article" in site.text("/trace/0/00000")
    assert site.marks("/0/00000")
    assert site.get("/api/messages/0/00000")[0] == 200
    assert site.get("/api/pair/0/00000")[0] == 200


# --- hostile traces

SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)><svg onload=alert(3)>javascript:alert(4)\u202e\0{{7*7}}"


def poisoned(value: Any) -> Any:
    """The value with a script in every text and every name."""
    if isinstance(value, str):
        return value + SCRIPT
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {name: poisoned(item) for name, item in value.items()} | {SCRIPT: SCRIPT}
    return value


def test_a_script_in_every_field_is_shown_as_text(copied: Path, show: Show) -> None:
    for number in range(2):
        path = copied / f"trace_{number:05d}.json"
        trace = poisoned(json.loads(path.read_text()))
        if number:
            names = ("tool_name", "success")
            real = json.loads(path.read_text())["tool_calls_log"]
            for call, good in zip(trace["tool_calls_log"], real, strict=True):
                call |= {name: good[name] for name in names}
        change(path, **trace)
    site = show(copied)
    for number in range(2):
        page = site.text(f"/trace/0/{number:05d}")
        assert "alert(1)" in page and "&lt;script&gt;" in page
        assert "<script>alert" not in page and "<img src=x" not in page and "<svg onload" not in page
        assert "\u202e" not in page and "\0" not in page and "U+202E" in page
        assert 'href="javascript' not in page and "49" not in re.findall(r"\u202e.{0,9}", page)
        assert not re.search(r"\sstyle=|\son[a-z]+=\"|<script>", page), "nothing inline"
        assert site.marks(f"/0/{number:05d}")


@pytest.mark.parametrize(
    "part",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "00000%00",
        "..%5c..%5cx",
        "a%2fb",
        "x" * 300,
        "",
        "%ff%fe",
        "00000.json/../x",
    ],
)
def test_no_name_leads_out_of_the_folder(part: str, run_folder: Path, show: Show) -> None:
    site = show(run_folder)
    for path in (
        "/trace/0/{}",
        "/raw/0/{}",
        "/picture/0/{}/0",
        "/api/text/0/{}?at=",
        "/api/messages/0/{}",
        "/api/pictures/0/{}",
    ):
        assert site.get(path.format(part))[0] in (404, 307)
    assert site.get("/trace/9/00000")[0] == 404


def test_the_name_of_a_file_is_text_too(copied: Path, show: Show) -> None:
    name = "trace_a\"'<b>\u202e&amp;%2f#?.json"
    shutil.copy(copied / "trace_00000.json", copied / name)
    site = show(copied)
    part = urllib.parse.quote(name.removeprefix("trace_").removesuffix(".json"), safe="")
    page = site.text(f"/trace/0/{part}")
    assert "<b>" not in page and "\u202e" not in page
    assert f'data-raw="/raw/0/{part}"' in page
    assert site.get(f"/raw/0/{part}")[0] == 200
    assert site.marks(f"/0/{part}")[0]["match"] == "matched"


def test_a_link_out_of_the_folder_and_a_pipe_are_not_followed(
    copied: Path, tmp_path: Path, show: Show
) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(old_trace(final_response="secret")))
    (copied / "trace_00009.json").symlink_to(outside)
    site = show(copied)
    assert site.get("/trace/0/00009")[0] == 404
    assert site.get("/raw/0/00009")[0] == 404
    os.mkfifo(copied / "trace_00010.json")
    assert site.get("/trace/0/00010")[0] == 404


def test_a_trace_that_asks_for_enormous_pictures_gets_none(
    copied: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil.viewer.pictures, "MAX_RESULT_PIXELS", 4_000_000)  # or it takes its time
    trace = json.loads((copied / "trace_00000.json").read_text())
    zoom, _, turn, _ = trace["tool_calls_log"]
    huge = zoom | {"tool_arguments": {"bbox_2d": [-60000, -60000, 60000, 60000]}}
    change(copied / "trace_00000.json", tool_calls_log=[huge])
    change(copied / "trace_00001.json", tool_calls_log=[turn | {"tool_arguments": {"angle": 45}}] * 60)
    rule = trace["settings"]["view_rule"] | {"min_side_px": 60000}
    change(copied / "trace_00002.json", settings=trace["settings"] | {"view_rule": rule})
    change(copied / "trace_00003.json", tool_calls_log=[turn | {"tool_arguments": {"angle": "x"}}])
    site = show(copied)
    assert "outside its picture" in site.marks("/0/00000")[1]["detail"]
    many = site.marks("/0/00001")
    assert len(many) == 61 and "more than any run allows" in many[-1]["detail"]
    assert "larger than any run" in site.marks("/0/00002")[0]["detail"]
    assert [mark["match"] for mark in site.marks("/0/00003")] == ["matched", "missing"]


def test_unseen_letters_are_seen() -> None:
    shown = str(visible("a\u202eb\0<\ud800\u200b\n\té日\u200d"))
    assert (
        "U+202E" in shown
        and "U+0000" in shown
        and "U+D800" in shown
        and "U+200B" in shown
        and "&lt;" in shown
    )
    assert "\u202e" not in shown and shown.endswith("\n\té日\u200d")
    plain("\ud800\u202e").encode()
