"""A trace's page in a real browser: what is seen, what keys do, and that nothing of a trace is run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import NARROW_PX, PATIENCE_SECONDS, Browser, Serve, overflow_px, serious_violations, set_theme
from conftest import RunDoor
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from test_view_trace_page import SCRIPT, change, poisoned

from distil.index.index import TraceIndex
from distil.store.marks import read_marks
from distil.viewer.app import create_app
from distil.viewer.guard import Guard, allowed_names
from distil.viewer.viewer import Viewer

if TYPE_CHECKING:
    import playwright.sync_api as pw

# The pictures that have been shown: their numbers, and the hashes of what the browser got.
SHOWN = """async () => Promise.all([...document.querySelectorAll('.pic img')].map(async (img) => {
    const data = await (await fetch(img.src)).arrayBuffer();
    const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
    return [Number(img.closest('.pic').dataset.number), [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('')];
}))"""


def policy(request: dict[str, Any]) -> Any:
    """A zoom, a failing call, a slanted turn, an answer."""
    if is_probe(request):
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9]})) if "tools" in request else says("ok")
    turn = num_turns(request)
    if turn == 0:
        zoom = ("image_zoom_in_tool", {"bbox_2d": [100, 200, 700, 800]})
        return calls(zoom, ("image_rotate_tool", {"angle": "x"}), content="I look.", reasoning="I wonder.")
    if turn == 1:
        return calls(("image_rotate_tool", {"angle": 33.5}), content="I turn it.")
    return says("It is \\boxed{48.86, 12.35}")


@pytest.fixture(scope="module")
def traces(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four traces, with a reply of 5 MB in the last one."""
    folder = tmp_path_factory.mktemp("browsed") / "run"
    with ScriptedTeacher(policy) as server:
        result = run_door(
            "demo_concurrent.py", "--api_base", server.api_base, "--dataset_path", photos, "--num_samples", 4,
            "--output_dir", folder, "--coordinates", "rel1000",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    path = folder / "trace_00003.json"
    log = json.loads(path.read_text())["conversation_log"]
    log[0]["assistant_response"] = "long <b>words</b> " * 300_000
    change(path, conversation_log=log)
    return folder


OpenTrace = Callable[..., "pw.Page"]


@pytest.fixture
def open_trace(browser: Browser, serve: Serve) -> OpenTrace:
    """Open a page of a viewer of some folders; no page may ask anything of the one who looks."""

    def open_page(path: str, *folders: Path, **options: Any) -> pw.Page:
        app = create_app(Viewer(folders, TraceIndex.open(folders)))
        guarded = Guard(app, allowed_names("127.0.0.1"), None, "distil_view")
        page = browser.open(serve(_WithLifespan(guarded)) + path, **options)
        page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
        return page

    return open_page


class _WithLifespan:
    """An app that is told of its start and its end, and does nothing then."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for moment in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{moment}.complete"})


def wait_until(page: pw.Page, expression: str) -> None:
    """Wait for an expression to hold; Playwright's own way evaluates a text, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(20)


def wait_for_pictures(page: pw.Page) -> None:
    """Wait until all pictures have been made and loaded."""
    wait_until(
        page,
        "![...document.querySelectorAll('[data-verified]')].some((each) => each.textContent.includes('not compared'))",
    )


def test_the_pictures_are_those_of_the_trace_and_the_box_lies_where_it_was_cut(
    traces: Path, open_trace: OpenTrace
) -> None:
    page = open_trace("/trace/0/00000", traces)
    wait_for_pictures(page)
    assert page.locator("[data-verified]").first.inner_text() == "all 3 pictures verified"
    trace = json.loads((traces / "trace_00000.json").read_text())
    stored = {0: trace["image"]["sent"]["sha256"]} | {
        number: call["result"]["sent"]["sha256"]
        for number, call in enumerate(trace["tool_calls_log"], start=1)
        if call["success"]
    }
    shown = page.evaluate(SHOWN)
    assert {number for number, _ in shown} == set(stored) == {0, 1, 3}
    assert all(stored[number] == sha256 for number, sha256 in shown)
    picture = page.locator("[aria-label^='Call 1'] .pic").first
    frame = picture.locator("img").bounding_box()
    box = picture.locator("rect.mark-line").evaluate(
        "(rect) => { const b = rect.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }"
    )
    x1, y1, x2, y2 = trace["tool_calls_log"][0]["tool_arguments"]["bbox_2d"]
    width, height = trace["image"]["width_px"], trace["image"]["height_px"]
    assert frame is not None
    expected = [
        frame["x"] + frame["width"] * x1 / width,
        frame["y"] + frame["height"] * y1 / height,
        frame["width"] * (x2 - x1) / width,
        frame["height"] * (y2 - y1) / height,
    ]
    assert box == pytest.approx(expected, abs=3), "within the width of its line"


def test_keys_step_through_the_list_mark_and_write_a_note(
    traces: Path, tmp_path: Path, open_trace: OpenTrace
) -> None:
    folder = Path(shutil.copytree(traces, tmp_path / "run"))
    page = open_trace("/trace/0/00000?sort=-sample_index", folder)
    page.keyboard.press("k")
    page.wait_for_url("**/trace/0/00001?sort=-sample_index")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/trace/0/00000?sort=-sample_index")
    page.keyboard.press("m")
    page.locator(".marking [data-set=keep][aria-pressed=true]").wait_for()
    page.keyboard.press("n")
    page.keyboard.type("a good one, jk")
    page.keyboard.press("Control+Enter")
    page.get_by_text("Note kept").wait_for()
    page.reload()
    assert page.locator(".marking textarea").input_value() == "a good one, jk"
    assert page.locator("[data-set=keep]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("d")
    page.locator(".marking [data-set=drop][aria-pressed=true]").wait_for()
    (mark,) = read_marks(folder).values()
    assert (mark.mark, mark.note) == ("drop", "a good one, jk")
    page.keyboard.press("d")
    page.locator(".marking [data-set=drop][aria-pressed=false]").wait_for()
    page.keyboard.press("j")
    page.get_by_text("This is the last of the list").wait_for()


def test_a_picture_opens_in_full_resolution_and_zooms(traces: Path, open_trace: OpenTrace) -> None:
    page = open_trace("/trace/0/00000", traces)
    wait_for_pictures(page)
    page.locator("[aria-label^='Call 1'] .pic-open").first.click()
    picture = page.locator(".lightbox-img")
    wait_until(
        page,
        "document.querySelector('.lightbox-img').naturalWidth > 0 && !document.querySelector('.lightbox-img').hidden",
    )
    assert picture.evaluate("(img) => [img.naturalWidth, img.naturalHeight]") == [640, 480]
    assert page.locator(".lightbox-move svg rect.mark-line").count() == 1

    def zoom() -> int:
        return int(page.locator(".lightbox-zoom").inner_text().removesuffix("%"))

    fitted = zoom()
    page.mouse.move(640, 400)
    page.mouse.wheel(0, -600)
    wait_until(page, f"parseInt(document.querySelector('.lightbox-zoom').textContent) > {fitted}")
    before = picture.bounding_box()
    page.mouse.down()
    page.mouse.move(700, 430)
    page.mouse.up()
    after = picture.bounding_box()
    assert before is not None and after is not None
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((60, 30), abs=1)
    page.keyboard.press("0")
    assert zoom() == fitted
    page.keyboard.press("+")
    assert zoom() > fitted
    page.keyboard.press("b")
    assert page.locator(".lightbox-move svg").is_hidden()
    page.keyboard.press("ArrowRight")
    page.get_by_text("Picture that call 1 made").first.wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#lightbox").is_hidden()


def test_what_was_sent_and_the_raw_json_are_loaded_when_they_are_opened(
    traces: Path, browser: Browser, open_trace: OpenTrace
) -> None:
    page = open_trace("/trace/0/00003", traces)
    wait_for_pictures(page)
    assert not [url for url in browser.requests if "/raw/" in url or "/api/messages" in url]
    assert len(page.content()) < 200_000
    page.locator("[data-messages] summary").click()
    page.locator(".sent-request", has_text="request of turn 2").wait_for()
    assert page.locator(".sent-picture").count() == 3
    page.locator("[data-raw] > summary").click()
    page.locator(".tree summary", has_text="conversation_log").click()
    page.locator(".tree summary", has_text="0 {").first.click()
    page.locator(".tree button", has_text="show all 5,400,000 characters").wait_for()
    page.locator(".show-all", has_text="Show all 5,399,999 characters").click()
    wait_until(page, "document.querySelector('.said').textContent.length > 5000000")
    assert page.locator(".said b").count() == 0


def test_scripts_in_every_field_do_nothing(traces: Path, tmp_path: Path, open_trace: OpenTrace) -> None:
    folder = Path(shutil.copytree(traces, tmp_path / "run"))
    path = folder / "trace_00000.json"
    good = json.loads(path.read_text())
    change(path, **poisoned(good))
    page = open_trace("/trace/0/00000?beside=0/00001", folder)
    wait_for_pictures(page)
    for details in page.locator("#trace details").all():
        details.evaluate("(details) => { details.open = true; }")
    page.locator("#trace .tree").wait_for()
    for _ in range(4):  # as deep as a trace is
        page.evaluate(
            "for (const each of document.querySelectorAll('#trace .tree details')) each.open = true"
        )
        page.wait_for_timeout(50)
    assert page.locator("#trace .dataset-problem").is_visible()
    assert page.locator("#trace img[src=x], #trace [onerror], #trace [onload], article script").count() == 0
    assert page.evaluate("[...document.querySelectorAll('a')].every((link) => link.protocol === 'http:')")
    assert "alert(1)" in page.locator("#trace").inner_text()
    assert "\u202e" not in page.locator("#trace").inner_text()
    assert SCRIPT.startswith("<script>"), "what is looked for above"
    page.set_viewport_size({"width": NARROW_PX, "height": 800})
    assert overflow_px(page) == 0


def test_a_dataset_that_is_gone_is_said_without_an_error(
    traces: Path, photos: Path, tmp_path: Path, open_trace: OpenTrace
) -> None:
    folder = Path(shutil.copytree(traces, tmp_path / "run"))
    for file in [folder / "trace_00000.json", folder / "run_record.json"]:
        file.write_text(file.read_text().replace(str(photos), "/gone/photos"))
    page = open_trace("/trace/0/00000", folder)
    notice = page.locator(".dataset-problem")
    notice.wait_for()
    assert "/gone/photos" in notice.inner_text() and "--dataset_path" in notice.inner_text()
    assert page.locator(".pic.is-missing").count() == page.locator(".pic").count() > 3
    assert page.get_by_text("I turn it.").is_visible()


def test_the_map_joins_answer_and_truth(traces: Path, open_trace: OpenTrace) -> None:
    page = open_trace("/trace/0/00000", traces)
    page.locator(".trace-map canvas").first.wait_for()
    page.get_by_text("as a table").click()
    page.get_by_role("cell", name="48.86, 12.35").wait_for()


@pytest.mark.parametrize("path", ["/trace/0/00000", "/trace/0/00000?beside=0/00001", "/trace/0/00009"])
def test_the_page_can_be_used_by_everybody(
    path: str, traces: Path, tmp_path: Path, open_trace: OpenTrace
) -> None:
    folder = Path(shutil.copytree(traces, tmp_path / "run"))
    (folder / "trace_00009.json").write_text('{"broken')
    page = open_trace(path, folder)
    for theme in ("light", "dark"):
        set_theme(page, theme)
        assert not serious_violations(page), theme
    page.set_viewport_size({"width": NARROW_PX, "height": 800})
    assert overflow_px(page) == 0
    assert not serious_violations(page)
