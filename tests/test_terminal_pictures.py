"""Pictures in the terminal: what is written is read back, by decoders that know only the protocols, as pixels."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PACKAGE, RunDoor, photo_bytes
from numpy.typing import NDArray
from PIL import Image
from replayed import replay
from run_folders import distil_photos

from distil.records import Protocol
from distil.replay.replay import Sources
from distil.store.trace_file import read_trace
from distil.terminal.pictures import MAX_ROWS, Window, picture_text, sixel_text
from distil.terminal.terminal import find_protocol

WINDOW = Window(80, 8, 16)


def a_picture(width: int = 300, height: int = 200) -> Image.Image:
    """Few colours, each side another: what is turned, shifted or cut shows."""
    image = Image.new("RGB", (width, height), (20, 40, 200))
    image.paste((220, 30, 30), (0, 0, width // 3, height // 2))
    image.paste((240, 230, 60), (width // 2, height // 4, width, height // 3))
    image.putpixel((width - 1, height - 1), (255, 255, 255))
    return image


def decoded_kitty(text: str) -> tuple[Image.Image, dict[str, str]]:
    """A picture and the keys it came with; every escape sequence but the last says that more comes."""
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) == text
    keys = [dict(pair.split("=") for pair in each.split(",")) for each, _ in parts]
    assert [each["m"] for each in keys] == ["1"] * (len(parts) - 1) + ["0"]
    assert all(len(data) <= 4096 and (len(data) % 4 == 0) for _, data in parts)
    data = base64.b64decode("".join(data for _, data in parts), validate=True)
    return Image.open(io.BytesIO(data)), keys[0]


def decoded_iterm(text: str) -> tuple[Image.Image, dict[str, str]]:
    match = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", text)
    assert match is not None
    keys = dict(pair.split("=") for pair in match[1].split(";"))
    data = base64.b64decode(match[2], validate=True)
    assert len(data) == int(keys["size"])
    return Image.open(io.BytesIO(data)), keys


def decoded_sixel(text: str) -> NDArray[np.uint8]:
    """The pixels of a sixel picture; one that nothing was drawn on is an error."""
    match = re.fullmatch(r'\x1bP[0-9;]*q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert match is not None
    width, height, commands = int(match[1]), int(match[2]), match[3]
    pixels = np.full((height + 5, width, 3), -1, dtype=np.int64)
    colours: dict[int, tuple[int, ...]] = {}
    x, y, colour = 0, 0, -1
    tokens = re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])|(.)", commands)
    for number, red, green, blue, chosen, count, repeated, letter, move, junk in tokens:
        assert not junk, repr(junk)
        if number:
            colours[int(number)] = tuple(round(int(part) * 2.55) for part in (red, green, blue))
        elif chosen:
            colour = int(chosen)
        elif move:
            x, y = 0, y + (6 if move == "-" else 0)
        else:
            end = x + int(count or 1)
            for bit in range(6):
                if (ord(repeated or letter) - 63) >> bit & 1:
                    assert (pixels[y + bit, x:end] == -1).all(), "drawn twice"
                    pixels[y + bit, x:end] = colours[colour]
            x = end
    assert (pixels[height:] == -1).all() and (pixels[:height] >= 0).all()
    return pixels[:height].astype(np.uint8)


def difference(one: NDArray[np.uint8], other: Image.Image) -> float:
    return float(np.abs(one.astype(int) - np.asarray(other.convert("RGB")).astype(int)).max())


@pytest.mark.parametrize("size", [(300, 200), (7, 5), (1, 1), (64, 13)])
def test_sixels_decode_to_the_same_pixels(size: tuple[int, int]) -> None:
    image = a_picture(*size) if min(size) > 3 else Image.new("RGB", size, (10, 200, 30))
    assert difference(decoded_sixel(sixel_text(image)), image) <= 3  # colours are hundredths there


def test_sixels_of_a_photo_are_near_it() -> None:
    y, x = np.mgrid[0:180, 0:240]
    photo = Image.fromarray(np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8))
    decoded = decoded_sixel(sixel_text(photo))
    assert np.abs(decoded.astype(int) - np.asarray(photo).astype(int)).mean() < 8


def test_kitty_and_iterm_get_the_picture_whole_and_its_width_in_letters() -> None:
    image = a_picture()
    for decode, protocol, width in (
        (decoded_kitty, Protocol.KITTY, "c"),
        (decoded_iterm, Protocol.ITERM, "width"),
    ):
        shown, keys = decode(picture_text(image, protocol, WINDOW))
        assert difference(np.asarray(shown), image) == 0
        assert keys[width] == "38"  # 300 pixels in letters of 8


def test_a_large_picture_is_made_smaller_and_keeps_its_shape() -> None:
    large = a_picture(4000, 2000)
    shown, keys = decoded_kitty(picture_text(large, Protocol.KITTY, WINDOW))
    assert max(shown.size) <= 80 * 8 and abs(shown.width / shown.height - 2) < 0.02
    assert int(keys["c"]) < WINDOW.columns and shown.height <= MAX_ROWS * WINDOW.cell_height_px
    pixels = decoded_sixel(picture_text(large, Protocol.SIXEL, WINDOW))
    assert pixels.shape[0] <= MAX_ROWS * 16 and pixels.shape[1] < WINDOW.columns * 8


def test_a_picture_of_many_bytes_goes_to_kitty_in_chunks() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    text = picture_text(noise, Protocol.KITTY, WINDOW)
    assert text.count("\x1b_G") > 20
    shown, _ = decoded_kitty(text)
    assert difference(np.asarray(shown), noise) == 0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_every_mode_can_be_shown(mode: str) -> None:
    assert decoded_sixel(picture_text(a_picture(60, 40).convert(mode), Protocol.SIXEL, WINDOW)).size


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, Protocol.KITTY),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, Protocol.ITERM),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, Protocol.ITERM),
        ({"TERM": "foot"}, Protocol.SIXEL),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "230802"}, Protocol.SIXEL),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "210400"}, Protocol.NONE),
        ({"TERM": "xterm-256color", "WT_SESSION": "x"}, Protocol.SIXEL),
        ({"TERM": "xterm-256color"}, Protocol.NONE),
        ({"TERM": "tmux-256color", "TMUX": "x", "KITTY_WINDOW_ID": "1"}, Protocol.NONE),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, Protocol.NONE),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, Protocol.NONE),
        ({}, Protocol.NONE),
    ],
)
def test_a_terminal_is_known_by_what_it_says_of_itself(
    environment: dict[str, str], protocol: Protocol
) -> None:
    assert find_protocol(Protocol.AUTO, environment, is_terminal=True) is protocol
    assert find_protocol(Protocol.AUTO, environment, is_terminal=False) is Protocol.NONE
    assert find_protocol(Protocol.SIXEL, environment, is_terminal=False) is Protocol.SIXEL


# --- the viewer in the terminal

VIEWER = "view_traces_enhanced.py"
KITTY_PICTURE = re.compile(r"(?:\x1b_G[^\x1b]*\x1b\\)+")


@pytest.fixture(scope="module")
def run(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil_photos(run_door, photos, tmp_path_factory.mktemp("pictures") / "traces", 3)


def test_a_trace_shows_its_photo_and_what_each_call_made(run: Path, run_door: RunDoor) -> None:
    path = run / "trace_00001.json"
    plain = run_door(VIEWER, path)
    result = run_door(VIEWER, path, "--pictures", "kitty")
    assert result.returncode == 0, result.stderr
    drawn = [decoded_kitty(text)[0] for text in KITTY_PICTURE.findall(result.stdout)]
    trace = read_trace(path)
    made = replay(trace, Sources().of(trace))
    sent = [made.sent, *(each.sent for each in made.observations if each.sent is not None)]
    assert len(drawn) == len(sent) == 3, "the photo and the two calls that worked"
    for image, picture in zip(drawn, sent, strict=True):
        whole = Image.open(io.BytesIO(picture.data)).convert("RGB")
        scaled = whole.resize(image.size, Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(scaled).astype(int)).mean() < 3
    assert KITTY_PICTURE.sub("", result.stdout).replace("\n", "") == plain.stdout.replace("\n", "")


def test_a_batch_shows_a_sheet_of_photos_below_its_totals(run: Path, run_door: RunDoor) -> None:
    result = run_door(VIEWER, run, "--batch", "--pictures", "sixel")
    assert result.returncode == 0, result.stderr
    (sheet,) = re.findall(r"\x1bP.*?\x1b\\", result.stdout, re.DOTALL)
    assert result.stdout.index("mean score") < result.stdout.index("\x1bP")
    pixels = decoded_sixel(sheet)
    assert pixels.shape[1] > 2 * pixels.shape[0], "three photos side by side"


def test_nothing_is_drawn_into_a_pipe_or_a_document(run: Path, run_door: RunDoor) -> None:
    kitty = {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}
    assert "\x1b" not in run_door(VIEWER, run / "trace_00000.json", env=kitty).stdout
    assert "\x1b" not in run_door(VIEWER, run, "--batch", env=kitty).stdout
    document = run_door(VIEWER, run / "trace_00000.json", "--json", "--pictures", "kitty").stdout
    assert "\x1b" not in document and json.loads(document)


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal is a POSIX thing")
def test_a_terminal_that_can_is_given_pictures_without_being_asked(run: Path) -> None:
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1", "COLUMNS": "100"}
    environment.pop("TMUX", None)
    viewer = subprocess.Popen(
        [sys.executable, VIEWER, str(run / "trace_00000.json")], cwd=PACKAGE, stdout=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    assert viewer.wait(60) == 0
    assert len(KITTY_PICTURE.findall(shown.decode())) == 3


def test_where_the_dataset_is_gone_a_line_says_so_once(run: Path, run_door: RunDoor, tmp_path: Path) -> None:
    trace = json.loads((run / "trace_00000.json").read_text())
    trace["dataset_path"] = trace["dataset"]["source"] = str(tmp_path / "gone")
    (tmp_path / "trace_00000.json").write_text(json.dumps(trace))
    for arguments in ([tmp_path / "trace_00000.json"], [tmp_path, "--batch"]):
        result = run_door(VIEWER, *arguments, "--pictures", "iterm")
        assert result.returncode == 0 and "\x1b" not in result.stdout
        assert result.stdout.count("No picture") == 1 and "--dataset_path" in result.stdout
    torn = base64.b64encode(photo_bytes(1)[:2000]).decode()
    trace["tool_calls_log"][0]["picture"] = f"data:image/jpeg;base64,{torn}"  # a kept one, cut off
    (tmp_path / "trace_00000.json").write_text(json.dumps(trace))
    result = run_door(VIEWER, tmp_path / "trace_00000.json", "--pictures", "iterm")
    assert result.returncode == 0 and "truncated" in result.stdout
