"""The embedded teacher over real HTTP: protocol, honesty (it looks at pixels and needs its tools), drawing."""

from __future__ import annotations

import ast
import base64
import hashlib
import http.client
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("rapidocr", reason="the local teacher's OCR is an optional extra")

from distil.embedded import drawn_signs
from distil.embedded.drawn_signs import SignScene, draw_row, draw_scene
from distil.embedded.eyes import Eyes
from distil.embedded.gazetteer import find_place

MODULE = [sys.executable, "-m", "distil.embedded"]
ROOT = Path(__file__).parents[1]
PICTURES = 12  # 11 are read with tools and 1 without: three misreadings from either bound
CONTROLS = 8
VARIANTS = 8  # the same signs, read in another way: all are, which is three from the bound
COMPARED = 4  # the same signs, asked in another form
MAX_TURNS = 10
ZOOM, ROTATE, CODE = "image_zoom_in_tool", "image_rotate_tool", "python_code_tool"
FIXED_TOOLS = (ZOOM, ROTATE)

Json = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    guess: tuple[float, float]
    calls: tuple[str, ...]
    texts: tuple[str, ...]


class Server:
    """The real server as a child process, and a connection to it for each thread."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [*MODULE, "serve"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        self._local = threading.local()

    def send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection("127.0.0.1", self.ready["port"], timeout=60)
        self._local.connection.request(method, path, body)
        reply = self._local.connection.getresponse()
        return reply.status, reply.read()

    def chat(self, **fields: Any) -> Json:
        status, body = self.send("POST", "/v1/chat/completions", json.dumps(fields).encode())
        assert status == 200, body
        return json.loads(body)

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


@pytest.fixture(scope="module")
def scenes() -> list[SignScene]:
    return [draw_scene(0, index) for index in range(PICTURES)]


@pytest.fixture(scope="module")
def with_tools(server: Server, scenes: list[SignScene]) -> list[Rollout]:
    return roll_all(server, [scene.picture for scene in scenes], FIXED_TOOLS)


# A small rollout of our own: the test must not lean on the pipeline that the server is there to try.


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def picture_part(picture: Image.Image) -> Json:
    data = base64.b64encode(jpeg(picture)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def schemas(names: Sequence[str]) -> list[Json]:
    return [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in names
    ]


def opening(picture: Image.Image, system: str = "You are a helpful assistant.") -> list[Json]:
    question = {"type": "text", "text": "Where was this photo taken? Answer as \\boxed{latitude, longitude}."}
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": [picture_part(picture), question]},
    ]


def apply(picture: Image.Image, call: Json) -> Image.Image:
    arguments = call["arguments"]
    if call["name"] == ZOOM:
        return picture.crop(arguments["bbox_2d"])
    if call["name"] == ROTATE:
        return picture.rotate(arguments["angle"], expand=True)
    scope: Json = {"image": picture, "Image": Image}
    exec(arguments["code"], scope)
    return scope["result_image"]


def native_turn(message: Json, picture: Image.Image) -> tuple[list[Json], Image.Image, list[Json]]:
    calls, answers = [], []
    for call in message.get("tool_calls", []):
        calls.append(call["function"] | {"arguments": json.loads(call["function"]["arguments"])})
        picture = apply(picture, calls[-1])
        answers.append({"role": "tool", "tool_call_id": call["id"], "content": "Done."})
    shown = {"role": "user", "content": [{"type": "text", "text": "The new picture:"}, picture_part(picture)]}
    return calls, picture, [*answers, shown]


def text_turn(message: Json, picture: Image.Image) -> tuple[list[Json], Image.Image, list[Json]]:
    calls = [json.loads(call) for call in re.findall(r"<tool_call>\n(.*)\n</tool_call>", message["content"])]
    for call in calls:
        picture = apply(picture, call)
    marks = [{"type": "text", "text": mark} for mark in ("<tool_response>\n", "\n</tool_response>")]
    return calls, picture, [{"role": "user", "content": [marks[0], picture_part(picture), marks[1]]}]


def roll(
    server: Server, picture: Image.Image, tools: Sequence[str], native: bool = True, **knobs: Any
) -> Rollout:
    block = "\n".join(json.dumps(schema) for schema in schemas(tools))
    described = f"\n\nFunctions stand within <tools></tools> XML tags:\n<tools>\n{block}\n</tools>"
    system = "You are a helpful assistant." + ("" if native or not tools else described)
    messages = opening(picture, system)
    offered = {"tools": schemas(tools)} if native and tools else {}
    calls: list[str] = []
    texts: list[str] = []
    for _ in range(MAX_TURNS):
        reply = server.chat(**({"model": "m", "messages": messages, "temperature": 0} | offered | knobs))
        message = reply["choices"][0]["message"]
        texts.append(message["content"])
        made, picture, shown = (native_turn if native else text_turn)(message, picture)
        if not made:
            break
        calls += [json.dumps(call, sort_keys=True) for call in made]
        messages = [*messages, message, *shown]
    boxed = re.search(r"\\boxed\{(-?[\d.]+), (-?[\d.]+)\}", texts[-1])
    assert boxed, texts
    return Rollout((float(boxed[1]), float(boxed[2])), tuple(calls), tuple(texts))


def roll_all(
    server: Server, pictures: Sequence[Image.Image], tools: Sequence[str], **knobs: Any
) -> list[Rollout]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda picture: roll(server, picture, tools, **knobs), pictures))


def is_near(rollout: Rollout, scene: SignScene, limit_km: float = 25.0) -> bool:
    lat, lon, place_lat, place_lon = map(math.radians, (*rollout.guess, scene.place.lat, scene.place.lon))
    inner = math.sin((lat - place_lat) / 2) ** 2
    inner += math.cos(lat) * math.cos(place_lat) * math.sin((lon - place_lon) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(inner)) < limit_km


def share_near(rollouts: Sequence[Rollout], scenes: Sequence[SignScene]) -> float:
    return sum(map(is_near, rollouts, scenes)) / len(scenes)


# Honesty: it looks at pixels, it needs its tools, and nothing but the sign decides.


def test_without_tools_it_hardly_reads_anything(server: Server, scenes: list[SignScene]) -> None:
    assert share_near(roll_all(server, [scene.picture for scene in scenes], ()), scenes) <= 0.25


def test_with_tools_it_reads_most_signs(with_tools: list[Rollout], scenes: list[SignScene]) -> None:
    assert share_near(with_tools, scenes) >= 0.75
    assert sum(len(rollout.calls) for rollout in with_tools) >= 1.5 * PICTURES


def test_at_the_default_temperature_it_still_reads_most_signs(
    server: Server, scenes: list[SignScene]
) -> None:
    few = scenes[:VARIANTS]
    warm = roll_all(server, [scene.picture for scene in few], FIXED_TOOLS, temperature=0.7, seed=1)
    assert share_near(warm, few) >= 0.75


def test_with_the_code_tool_only_it_writes_code_that_works(server: Server, scenes: list[SignScene]) -> None:
    few = scenes[:VARIANTS]
    assert share_near(roll_all(server, [scene.picture for scene in few], (CODE,)), few) >= 0.7


def test_zoom_and_rotate_are_preferred_to_code(
    server: Server, scenes: list[SignScene], with_tools: list[Rollout]
) -> None:
    assert roll(server, scenes[1].picture, (*FIXED_TOOLS, CODE)) == with_tools[1]


def test_a_sign_painted_over_is_not_guessed(server: Server, scenes: list[SignScene]) -> None:
    painted = [painted_over(scene) for scene in scenes[:CONTROLS]]
    assert share_near(roll_all(server, painted, FIXED_TOOLS), scenes[:CONTROLS]) == 0


def test_the_answer_follows_a_sign_pasted_in(
    server: Server, scenes: list[SignScene], with_tools: list[Rollout]
) -> None:
    read = [scene for scene, rollout in zip(scenes, with_tools, strict=True) if is_near(rollout, scene)]
    givers, hosts = read[:CONTROLS], [*read[1:CONTROLS], read[0]]
    pasted = [pasted_in(host, giver) for host, giver in zip(hosts, givers, strict=True)]
    rollouts = roll_all(server, pasted, FIXED_TOOLS)
    assert share_near(rollouts, hosts) == 0
    assert share_near(rollouts, givers) >= 0.75


def painted_over(scene: SignScene) -> Image.Image:
    picture = scene.picture.copy()
    left, top, right, bottom = scene.sign_box_px
    ImageDraw.Draw(picture).rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=(128, 128, 128))
    return picture


def pasted_in(host: SignScene, giver: SignScene) -> Image.Image:
    picture, sign = painted_over(host), giver.picture.crop(giver.sign_box_px)
    left, top, right, bottom = host.sign_box_px
    corner = (max(0, (left + right - sign.width) // 2), max(0, (top + bottom - sign.height) // 2))
    picture.paste(sign, (min(corner[0], picture.width - sign.width), corner[1]))
    return picture


def test_native_and_text_calls_take_the_same_decisions(
    server: Server, scenes: list[SignScene], with_tools: list[Rollout]
) -> None:
    written = roll_all(server, [scene.picture for scene in scenes[:COMPARED]], FIXED_TOOLS, native=False)
    assert [rollout.calls for rollout in written] == [rollout.calls for rollout in with_tools[:COMPARED]]
    assert [rollout.guess for rollout in written] == [rollout.guess for rollout in with_tools[:COMPARED]]


def test_when_nothing_is_readable_it_says_so(server: Server) -> None:
    rollout = roll(server, Image.new("RGB", (640, 480), "gray"), FIXED_TOOLS)
    assert rollout.guess == (20.0, 0.0)
    assert "no place name" in rollout.texts[-1]


def test_every_answer_says_what_wrote_it(with_tools: list[Rollout]) -> None:
    assert all("OCR and rules" in rollout.texts[-1] for rollout in with_tools)


def test_it_imports_nothing_from_the_pipeline() -> None:
    for path in set((ROOT / "distil" / "embedded").glob("*.py")) - {
        ROOT / "distil" / "embedded" / "launch.py"
    }:
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            assert not name.startswith(("distil", ".")) or name.startswith("distil.embedded"), (
                path,
                name,
            )


def imported_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


# Protocol.


def test_it_says_that_it_is_ready_and_what_it_is(server: Server) -> None:
    assert server.ready == {"event": "ready", "port": server.ready["port"], "model": "distil-sign-reader"}
    status, body = server.send("GET", "/v1/models")
    (model,) = json.loads(body)["data"]
    assert status == 200
    assert model["id"] == "distil-sign-reader"
    assert "not for training" in model["description"]


def test_native_calls_have_the_shape_that_clients_expect(server: Server, scenes: list[SignScene]) -> None:
    reply = server.chat(messages=opening(scenes[1].picture), tools=schemas(FIXED_TOOLS), temperature=0)
    (choice,) = reply["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    left, top, right, bottom = json.loads(call["function"]["arguments"])["bbox_2d"]
    assert 0 <= left < right <= 1920
    assert 0 <= top < bottom <= 1440
    usage = reply["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["prompt_tokens"] >= 1920 * 1440 // 1024


def test_the_openai_client_can_talk_to_it(server: Server, scenes: list[SignScene]) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.ready['port']}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["distil-sign-reader"]
        messages = opening(scenes[0].picture)
        reply = client.chat.completions.create(model="distil-sign-reader", messages=messages, temperature=0)
        assert "\\boxed{" in reply.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="stream"):
            client.chat.completions.create(model="distil-sign-reader", messages=messages, stream=True)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (ZOOM, {"bbox_2d": [0, 0, 64, 48]}),
        (ROTATE, {"angle": 90}),
        (CODE, {"code": "result_image = image"}),
    ],
)
def test_it_calls_the_tool_that_it_is_told_to_call(server: Server, tool: str, arguments: Json) -> None:
    messages = opening(Image.new("RGB", (64, 48)))
    messages[-1]["content"].append({"type": "text", "text": f"Call the tool {tool} once."})
    reply = server.chat(messages=messages, tools=schemas((ZOOM, ROTATE, CODE)))["choices"][0]["message"]
    (call,) = reply["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (tool, arguments)
    shown = native_turn(reply, Image.new("RGB", (64, 48)))[2]
    after = server.chat(messages=[*messages, reply, *shown], tools=schemas((tool,)))
    assert "tool_calls" not in after["choices"][0]["message"]


def test_after_a_failed_call_it_answers(server: Server, scenes: list[SignScene]) -> None:
    messages = opening(scenes[1].picture)
    first = server.chat(messages=messages, tools=schemas(FIXED_TOOLS), temperature=0)["choices"][0]["message"]
    call_id = first["tool_calls"][0]["id"]
    failed = [
        *messages,
        first,
        {"role": "tool", "tool_call_id": call_id, "content": "Error: the box is empty."},
    ]
    after = server.chat(messages=failed, tools=schemas(FIXED_TOOLS), temperature=0)["choices"][0]
    assert after["finish_reason"] == "stop"
    assert "\\boxed{" in after["message"]["content"]


def test_max_tokens_cuts_the_reply(server: Server, scenes: list[SignScene]) -> None:
    reply = server.chat(messages=opening(scenes[1].picture), tools=schemas(FIXED_TOOLS), max_tokens=3)
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert reply["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "content"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": true}', "stream"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 99}', "'n'"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": 1}', "tools"),
        (b'{"messages": [{"role": "assistant", "content": "x", "tool_calls": 1}]}', "tool_calls"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]}',
            "data URL",
        ),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}',
            "decoded",
        ),
    ],
)
def test_a_bad_body_gets_a_clear_400(server: Server, body: bytes, says: str) -> None:
    status, reply = server.send("POST", "/v1/chat/completions", body)
    error = json.loads(reply)["error"]
    assert status == 400
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"]


def test_a_damaged_picture_gets_a_400_and_odd_sizes_an_answer(
    server: Server, scenes: list[SignScene]
) -> None:
    cut = base64.b64encode(jpeg(scenes[0].picture)[:20000]).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{cut}"}}
    body = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    status, reply = server.send("POST", "/v1/chat/completions", body)
    assert (status, "decoded" in json.loads(reply)["error"]["message"]) == (400, True)
    for size in ((1, 1), (3000, 2), (2, 3000)):
        assert server.chat(messages=opening(Image.new("RGB", size)), tools=schemas(FIXED_TOOLS))["choices"]


def test_unknown_paths_get_a_404(server: Server) -> None:
    assert server.send("GET", "/v1/nothing")[0] == 404
    assert server.send("POST", "/v1/completions", b"{}")[0] == 404


def test_sixteen_clients_get_byte_identical_replies(server: Server, scenes: list[SignScene]) -> None:
    fields = {
        "messages": opening(scenes[1].picture),
        "tools": schemas(FIXED_TOOLS),
        "temperature": 0.7,
        "seed": 5,
    }
    body = json.dumps(fields).encode()
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: server.send("POST", "/v1/chat/completions", body), range(16)))
    assert {status for status, _ in replies} == {200}
    assert len({hashlib.sha256(reply).hexdigest() for _, reply in replies}) == 1


def test_n_and_seed_give_variety_only_above_temperature_0(server: Server, scenes: list[SignScene]) -> None:
    fields = {"messages": opening(scenes[1].picture), "tools": schemas(FIXED_TOOLS), "n": 6}
    cold = server.chat(**fields, temperature=0)["choices"]
    warm = server.chat(**fields, temperature=0.8, seed=1)["choices"]
    other = server.chat(**fields, temperature=0.8, seed=2)["choices"]
    assert [choice["index"] for choice in warm] == list(range(6))
    assert len({said(choice) for choice in cold}) == 1
    assert len({said(choice) for choice in warm}) > 2
    assert {said(choice) for choice in warm} != {said(choice) for choice in other}


def test_a_png_is_read_like_a_jpeg(server: Server) -> None:
    scene = next(scene for scene in (draw_scene(0, index) for index in range(99)) if is_easy(scene))
    buffer = io.BytesIO()
    scene.picture.save(buffer, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    reply = server.chat(messages=messages, temperature=0)["choices"][0]["message"]["content"]
    assert f"{scene.place.lat}, {scene.place.lon}" in reply


def is_easy(scene: SignScene) -> bool:
    return scene.tilt_degrees == 0 and scene.text_px > 36


def said(choice: Json) -> str:
    calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
    return json.dumps([choice["message"]["content"], calls])


def test_it_ends_when_its_stdin_closes() -> None:
    assert Server().close() == 0


def test_without_the_ocr_package_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "rapidocr.py").write_text("raise ImportError('no rapidocr here')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = subprocess.run(
        [*MODULE, "serve"],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert 'pip install -e ".[local]"' in ended.stderr


# Drawing.


def test_a_row_depends_on_seed_and_index_only(draw: Callable[..., Path]) -> None:
    datasets = pytest.importorskip("datasets")
    few, many = (datasets.load_from_disk(draw(rows, workers)) for rows, workers in ((5, 1), (9, 2)))
    assert few.column_names == [
        "image",
        "lat",
        "lon",
        "country",
        "city",
        "locatability_score",
        "image_source",
    ]
    plain = datasets.Image(decode=False)
    assert list(few.cast_column("image", plain)) == list(many.select(range(5)).cast_column("image", plain))
    assert few[0]["image"].size == (1920, 1440)
    assert few[0]["image"].format == "JPEG"
    assert all(0 <= score <= 1 for score in many["locatability_score"])
    assert draw_row(3, 4)["image"] == few.cast_column("image", plain)[4]["image"]
    assert draw_row(4, 4)["image"] != draw_row(3, 4)["image"]


def test_any_number_of_workers_writes_the_same_bytes(draw: Callable[..., Path]) -> None:
    one, two = draw(6, 1), draw(6, 2)
    assert file_hashes(one) == file_hashes(two)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    ended = run_draw(tmp_path, 1, 1)
    assert ended.returncode == 2
    assert "already exists" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def draw(tmp_path: Path) -> Callable[[int, int], Path]:
    def draw_rows(rows: int, workers: int) -> Path:
        folder = tmp_path / f"signs-{rows}-{workers}"
        ended = run_draw(folder, rows, workers)
        assert ended.returncode == 0, ended.stderr
        drawn = {"event": "drawn", "output_dir": str(folder), "num_rows": rows}
        assert json.loads(ended.stdout) == drawn
        assert not list(tmp_path.glob(".*")), "the scratch folder is gone"
        return folder

    return draw_rows


def run_draw(folder: Path, rows: int, workers: int) -> subprocess.CompletedProcess[str]:
    options = ["--output_dir", str(folder), "--num_rows", str(rows), "--workers", str(workers), "--seed", "3"]
    return subprocess.run(
        [*MODULE, "draw", *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def file_hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_drawing_needs_no_ocr() -> None:
    code = "import sys, distil.embedded.sign_dataset; print('rapidocr' in sys.modules, 'onnxruntime' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.stdout.split() == ["False", "False"]


# The gazetteer.


@pytest.mark.parametrize(
    ("line", "place", "is_exact"),
    [
        ("Köln", "Köln", True),
        ("MUNCHEN 12 km", "Munich", True),
        ("東京", "Tokyo", True),
        ("Rio de Janeiro", "Rio de Janeiro", True),
        ("RiodeJaneiro", "Rio de Janeiro", True),
        ("Amsterdm", "Amsterdam", False),
        ("Welcome to Amsterdam", "Amsterdam", False),
    ],
)
def test_lines_are_looked_up(line: str, place: str, is_exact: bool) -> None:
    match = find_place(line)
    assert match is not None
    assert (match.place.name, match.is_exact) == (place, is_exact)


@pytest.mark.parametrize("line", ["", "HOTEL", "OPEN", "BAR", "出口", "12 km", "→", "CGN"])
def test_shop_words_and_codes_are_no_places(line: str) -> None:
    assert find_place(line) is None


def test_the_fonts_have_every_letter_of_the_signs() -> None:
    tool = pytest.importorskip("fontTools.ttLib")
    latin, han = drawn_signs.drawable_places()
    for path, names in (
        (drawn_signs.LATIN_FONT_PATH, [p.name for p in latin]),
        (drawn_signs.HAN_FONT_PATH, [p.han_name for p in han]),
    ):
        letters = tool.TTFont(path).getBestCmap()
        assert [name for name in names if any(ord(letter) not in letters for letter in name)] == []


def test_a_picture_that_was_seen_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil.embedded.eyes.MAX_REMEMBERED", 2)
    eyes = Eyes(1)
    pictures = [jpeg(Image.new("RGB", (96 + number, 64), "white")) for number in range(3)]
    first = eyes.look(pictures[0], None)
    assert eyes.look(pictures[0], None) is first and eyes.look(pictures[0], "red") is not first
    for picture in pictures[1:]:
        eyes.look(picture, None)
    assert eyes.look(pictures[0], None) is not first, "the oldest make room"
    assert eyes.look(pictures[0], None) == first
