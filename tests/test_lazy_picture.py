"""Pictures are in memory only while they are worked on, or while there is room: bounded, and pixel for pixel."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import file_bytes, noise, row, same_pixels, saved
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import distil.lazy_picture
from distil.errors import SampleError
from distil.lazy_picture import MAX_STEPS, PIXEL_WORK, LazyPicture, Room, memory_bytes
from distil.messages.compose import encoded
from distil.pictures import ResizeRule, decode_stored, encode_sent, picture_facts
from distil.records import CropFrom, Frame, Json, Prompt, RawCall, Reply, SampleId, ToolMode
from distil.rollout import Conversation, RolloutSettings, run_conversation
from distil.run.solver import RolloutSolver
from distil.source.rows import Source, open_source
from distil.tasks import TASKS
from distil.tools.base import Applied, BoxFrame, Resolved, Scene, SeenSizes, Tool, function_schema
from distil.tools.toolbox import Toolbox, load_tools

LARGE_BYTES = 2**30
ZOOM, ROTATE, MIRROR = "image_zoom_in_tool", "image_rotate_tool", "mirror_tool"
PHOTO = noise(96, 64, seed=3)
PHOTO_FILE = file_bytes(PHOTO, "PNG")


@dataclass(frozen=True)
class MirrorTool(Tool):
    """A tool that does not say how its picture can be made again, like code."""

    name: str = MIRROR

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        return function_schema(self.name, "Mirror.", {}, [])

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        return Resolved({})

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        return Applied(scene.replaced(ImageOps.mirror(scene.current)))


def toolbox(crop_from: CropFrom = CropFrom.CURRENT) -> Toolbox:
    tools = (*load_tools("zoom,rotate"), MirrorTool())
    return Toolbox(tools, BoxFrame(Frame.REL1, crop_from), ResizeRule(min_side_px=1))


@contextmanager
def room_of(max_bytes: int) -> Iterator[Room]:
    with pytest.MonkeyPatch.context() as patch:
        room = Room(max_bytes)
        patch.setattr(distil.lazy_picture, "ROOM", room)
        yield room


@contextmanager
def opened_pictures() -> Iterator[tuple[list[int], list[int]]]:
    """For each file that Pillow opens a number, and how many of those opened before are still alive then."""
    opened, alive, lock = list[int](), list[int](), threading.Lock()
    pictures: list[weakref.ref[Image.Image]] = []
    pillow_open = Image.open

    def counted(*arguments: Any) -> Image.Image:
        picture = pillow_open(*arguments)
        with lock:
            pictures.append(weakref.ref(picture))
            opened.append(len(opened))
            alive.append(sum(one() is not None for one in pictures))
        time.sleep(0.005)  # large ones take their time too, and let others go ahead
        return picture

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", counted)
        yield opened, alive


# --- the same pictures, whatever is kept

SHARE = st.floats(0, 0.6)
STEP = (
    st.builds(lambda x, y, side: RawCall(ZOOM, {"bbox_2d": [x, y, x + side, y + side]}), SHARE, SHARE, SHARE)
    | st.builds(lambda angle: RawCall(ROTATE, {"angle": angle}), st.sampled_from([0, 30, 90, 180, -7.5]))
    | st.just(RawCall(MIRROR, {}))
    | st.just(RawCall("nonsense", {}))
)


def observed(room_bytes: int, steps: Sequence[RawCall], crop_from: CropFrom) -> list[Any]:
    """What a teacher is shown, and the pictures themselves, with so much room."""
    box, seen = toolbox(crop_from), []
    with room_of(room_bytes):
        stored = decode_stored(PHOTO_FILE, read=lambda: PHOTO_FILE)
        scene, sent = Scene.start(stored.picture), encode_sent(stored.image, box.rule)
        scene.rest()
        current = sent
        for step in steps:
            call, scene = box.run(step, scene, sent, current)
            current = call.observation.sent or current
            seen.append((call, scene.corner))
        assert picture_facts(scene.current) == (seen[-1][0].observation.facts or picture_facts(scene.current))
        assert same_pixels(scene.original, PHOTO)
    return seen


@given(st.lists(STEP, min_size=1, max_size=14), st.sampled_from(CropFrom))
def test_observations_are_the_same_whether_pictures_are_kept_or_made_again(
    steps: list[RawCall], crop_from: CropFrom
) -> None:
    expected = observed(LARGE_BYTES, steps, crop_from)
    assert observed(0, steps, crop_from) == expected
    assert observed(memory_bytes(PHOTO), steps, crop_from) == expected


def test_what_nothing_can_make_again_is_kept_without_any_room() -> None:
    with room_of(0):
        scene = Scene.start(PHOTO)
        scene = scene.replaced(ImageOps.mirror(PHOTO)).changed(lambda image: image.rotate(90, expand=True))
        scene.rest()
        crop = scene.cropped((3, 3, 40, 40))
        crop.rest()
        scene.let_go()
        expected = ImageOps.mirror(PHOTO).rotate(90, expand=True)
        assert same_pixels(crop.current, expected.crop((3, 3, 40, 40)))
        assert same_pixels(scene.current, expected)


def test_a_picture_many_steps_away_is_kept_rather_than_made_again() -> None:
    num_turns = 0

    def turned(image: Image.Image) -> Image.Image:
        nonlocal num_turns
        num_turns += 1
        return image.rotate(90, expand=True)

    with room_of(0):
        picture = LazyPicture(PHOTO.copy, PHOTO)
        for _ in range(100):
            picture.rest()
            picture = picture.changed(turned)
        assert same_pixels(picture.image(), PHOTO)
    assert num_turns <= 100 * (MAX_STEPS + 2)


def test_the_room_is_free_again_when_pictures_are_gone() -> None:
    photo_bytes = memory_bytes(PHOTO)
    with room_of(3 * photo_bytes) as room:
        pictures = [LazyPicture(PHOTO.copy, PHOTO.copy()) for _ in range(5)]
        for picture in pictures:
            picture.rest()
        assert room.num_bytes == 2 * photo_bytes  # photos get no more than their share
        crops = [picture.changed(lambda image: image.copy()) for picture in pictures]
        for crop in crops:
            crop.rest()
        assert room.num_bytes == 3 * photo_bytes
        del picture, pictures, crop, crops
        assert room.num_bytes == 0


# --- samples that wait for their teacher


def settings(crop_from: CropFrom = CropFrom.CURRENT) -> RolloutSettings:
    task, box = TASKS["geolocation"], toolbox(crop_from)
    prompt = Prompt(task.system_prompt, task.user_prompt, box.schemas(), ToolMode.TEXT)
    return RolloutSettings(task, prompt, box, 5, 0, keeps_pictures=False)


def reply(*calls: RawCall) -> Reply:
    return Reply("\\boxed{1, 2}", None, None, "stop", calls, ToolMode.TEXT, None)


def opening(source: Source, index: int) -> Conversation:
    """As a run opens it."""
    solver: Any = SimpleNamespace(source=source, rollout=settings())
    return RolloutSolver._opening(solver, SampleId(index))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    rows = [row(file_bytes(noise(96, 64, seed=seed))) for seed in range(64)]
    return open_source(str(saved(tmp_path_factory.mktemp("lazy") / "photos", rows)))


@pytest.mark.parametrize("kept", [0, 5])
def test_of_64_samples_that_wait_for_their_teacher_only_the_kept_photos_are_in_memory(
    source: Source, kept: int
) -> None:
    num_at_once = PIXEL_WORK._initial_value  # type: ignore[attr-defined]
    all_wait = threading.Barrier(64)
    zoom = RawCall(ZOOM, {"bbox_2d": [0.1, 0.1, 0.9, 0.9]})

    def solve(index: int) -> None:
        turns = iter([reply(zoom), reply(zoom, RawCall(ROTATE, {"angle": 30})), reply()])

        def ask(messages: Sequence[bytes], seed: int) -> Reply:
            all_wait.wait(60)
            return next(turns)

        run_conversation(opening(source, index), ask)

    photo_bytes = memory_bytes(PHOTO)
    with room_of(int(kept * photo_bytes * 1.5) + 1), opened_pictures() as (_, alive):
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(solve, range(64)))
        assert max(alive) <= num_at_once + kept + 1  # a thread may just be returning with its picture


@pytest.mark.parametrize(("room_bytes", "most"), [(LARGE_BYTES, 1), (0, 3)])
def test_a_photo_is_decoded_once_and_without_room_once_more_for_each_turn_of_calls(
    source: Source, room_bytes: int, most: int
) -> None:
    turns = [reply(RawCall(ZOOM, {"bbox_2d": [0.1, 0.1, 0.9, 0.9]})) for _ in range(2)] + [reply()]
    with room_of(room_bytes), opened_pictures() as (opened, _):
        rollout = run_conversation(opening(source, 0), lambda messages, seed: turns.pop(0))
    assert len(opened) == most
    assert [len(turn.calls) for turn in rollout.turns] == [1, 1, 0]


def test_a_broken_photo_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    whole = file_bytes(noise(96, 64))
    broken = open_source(str(saved(tmp_path / "broken", [row(whole[:-300]), row(whole)])))
    with pytest.raises(SampleError, match=r"row 0 of .*: the picture cannot be decoded"):
        opening(broken, 0)
    assert opening(broken, 1).sent.num_bytes > 0


def test_a_photo_whose_file_changes_before_it_is_decoded_again_fails(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(PHOTO_FILE)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": str(photo), "lat": 1.0, "lon": 2.0}) + "\n")
    changing = open_source(str(tmp_path / "rows.jsonl"))
    with room_of(0):
        conversation = opening(changing, 0)
        assert same_pixels(conversation.scene.current, PHOTO)
        conversation.scene.rest()
        photo.write_bytes(file_bytes(ImageOps.mirror(PHOTO), "PNG"))
        with pytest.raises(SampleError, match="changed"):
            _ = conversation.scene.current


def test_a_conversation_that_waits_holds_each_picture_once(source: Source) -> None:
    """Encoded in its messages; neither as the file of the row nor as the one that was sent."""
    with room_of(0):
        conversation = opening(source, 0)
        turn_calls = conversation.run_calls(reply(RawCall(ROTATE, {"angle": 10})))
        assert turn_calls[0].observation.sent is not None
        assert turn_calls[0].observation.sent.data
        assert conversation.sent.data == b""
        turns = [reply(RawCall(ROTATE, {"angle": 10})), reply()]
        rollout = run_conversation(opening(source, 0), lambda messages, seed: turns.pop(0))
        sent = rollout.turns[0].calls[0].observation.sent
        assert sent is not None
        assert (sent.data, sent.num_bytes > 0) == (b"", True)


# --- messages

TEXT = st.text() | st.sampled_from(['"image_url": {"url": ""}', '\\"image_url": {"url": ""}"}', "data:;,"])
PART = st.builds(lambda text: {"type": "text", "text": text}, TEXT) | st.builds(
    lambda data: {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
    st.from_regex(r"[A-Za-z0-9+/]*={0,2}", fullmatch=True),
)


@given(st.fixed_dictionaries({"role": TEXT, "content": TEXT | st.none() | st.lists(PART)}))
def test_a_message_is_encoded_as_json_dumps_does(message: dict[str, Any]) -> None:
    assert encoded(message) == json.dumps(message).encode()
