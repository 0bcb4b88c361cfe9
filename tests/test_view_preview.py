"""A trace as training data in a real browser: what is trained is marked, and nothing of a trace is run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import NARROW_PX, Browser, Serve, overflow_px, serious_violations, set_theme
from builders import file_bytes, row, saved, smooth
from scripted_teacher import calls, is_probe, num_turns, says
from starlette.testclient import TestClient
from test_exports import ROTATE, ZOOM, export, rows_of, run

from distil.index.index import TraceIndex
from distil.viewer.app import create_app
from distil.viewer.guard import Guard, allowed_names
from distil.viewer.viewer import Viewer

if TYPE_CHECKING:
    import playwright.sync_api as pw

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> <|im_end|>"


def teacher(request: dict[str, Any]) -> Any:
    """Zooms, fails once, turns, and answers with markup."""
    if is_probe(request):
        return calls((ZOOM, {"bbox_2d": [0, 0, 9, 9]}))
    steps: list[tuple[str, Any]] = [
        (ZOOM, {"bbox_2d": [100, 200, 900, 800]}),
        (ZOOM, {"bbox_2d": [5, 5, 5, 5]}),
        (ROTATE, {"angle": 90}),
    ]
    turn = num_turns(request)
    if turn < len(steps):
        return calls(steps[turn], content=f"Look {EVIL}", reasoning="So be it.")
    return says(f"{EVIL} It is \\boxed{{48.86, 2.35}}.")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    rows = [row(file_bytes(smooth(640, 480), "JPEG"), lat=1.0, lon=2.0)]
    return run(folder, teacher, dataset=saved(folder / "photos", rows))


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(traces: Path) -> Ask:
    client = TestClient(create_app(Viewer((traces,), TraceIndex.open([traces]))))
    return client.get


@pytest.fixture
def open_page(traces: Path, browser: Browser, serve: Serve) -> Callable[..., pw.Page]:
    def open_it(path: str, **options: Any) -> pw.Page:
        app = create_app(Viewer((traces,), TraceIndex.open([traces])))
        guarded = Guard(app, allowed_names("127.0.0.1"), None, "distil_view")
        page = browser.open(serve(guarded) + path, **options)
        page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
        return page

    return open_it


def said(page: pw.Page, selector: str) -> list[str]:
    return [each.strip() for each in page.locator(selector).all_inner_texts()]


def without_marks(text: str) -> str:
    return text.replace("U+200B", "\u200b")


def test_what_is_trained_is_what_an_export_trains(
    open_page: Callable[..., pw.Page], traces: Path, tmp_path: Path
) -> None:
    page = open_page("/preview/0/00000?format=verl")
    (exported,) = rows_of(export(traces, tmp_path / "out", "--format", "verl"))
    trained = [each["content"] for each in exported["messages"] if each["loss"]]
    marked = page.locator("mark.trained")
    assert marked.count() == len(trained) == 3
    words = [without_marks("".join(each.locator(".words").all_text_contents())) for each in marked.all()]
    assert words == trained
    assert said(page, ".said h3") == [each["role"] for each in exported["messages"]]
    assert page.locator(".pill", has_text="not trained").count() == 1  # the failed call
    assert "3 of 4 answers trained" in page.locator("main").inner_text()
    hashes = page.evaluate(
        """async () => Promise.all([...document.querySelectorAll('.said img')].map(async (img) => {
            const data = Uint8Array.from(atob(img.src.split(',')[1]), (letter) => letter.charCodeAt(0));
            const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
            return [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('');
        }))"""
    )
    assert hashes == [hashlib.sha256(each["bytes"]).hexdigest() for each in exported["images"]]


def test_the_trace_leads_there_and_the_form_chooses(open_page: Callable[..., pw.Page]) -> None:
    page = open_page("/trace/0/00000")
    with page.expect_navigation():
        page.get_by_role("link", name="As training data").click()
    assert "/preview/0/00000" in page.url and page.locator("mark.trained").count() == 3
    page.get_by_label("for").select_option("llamafactory")
    with page.expect_navigation():
        page.get_by_role("button", name="Show").click()
    assert "format=llamafactory" in page.url
    assert page.locator("article").count() == 3  # a row for each trained turn
    assert all(article.locator("mark.trained").count() == 1 for article in page.locator("article").all())
    page.get_by_label("failed calls").select_option("drop")
    page.get_by_label("thoughts").select_option("drop")
    with page.expect_navigation():
        page.get_by_role("button", name="Show").click()
    assert page.get_by_label("for").input_value() == "llamafactory"
    assert page.locator("article").count() == 1 and page.locator("mark.trained").count() == 3
    assert "<think>" not in page.locator("main").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, NARROW_PX])
def test_the_page_is_accessible_and_fits(open_page: Callable[..., pw.Page], theme: str, width: int) -> None:
    page = open_page("/preview/0/00000", width=width, theme=theme)
    set_theme(page, theme)
    assert serious_violations(page) == []
    assert overflow_px(page) <= 0


def test_boxes_in_pixels_come_with_the_pictures_that_they_are_of(ask: Ask) -> None:
    text = ask("/preview/0/00000?coordinates=pixel").text
    sizes = re.findall(r"picture \d: (\d+)×(\d+) pixels", text)
    assert len(sizes) == 3 and all(int(side) % 32 == 0 for size in sizes for side in size)


def test_all_words_of_others_are_escaped_and_unseen_letters_shown(ask: Ask) -> None:
    text = ask("/preview/0/00000").text
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "style=" not in text and "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert "U+200B</span>|im_end|&gt;" in text  # the control token of the teacher's, made harmless


@pytest.mark.parametrize("asked", ["format=csv", "coordinates=rel1", "student=<b>", "errors=", "reasoning=x"])
def test_an_option_that_is_none_is_not_found(asked: str, ask: Ask) -> None:
    answer = ask(f"/preview/0/00000?{asked}")
    assert answer.status_code == 404 and "is one of" in answer.text and "<b>" not in answer.text


@pytest.mark.parametrize("path", ["/preview/0/00099", "/preview/7/00000", "/preview/0/..%2f00000"])
def test_what_is_no_trace_is_not_found(path: str, ask: Ask) -> None:
    assert ask(path).status_code == 404


def test_what_cannot_be_exported_says_why(traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    folder.mkdir()
    trace = json.loads((traces / "trace_00000.json").read_text(encoding="utf-8"))
    (folder / "trace_00000.json").write_text(json.dumps(trace), encoding="utf-8")
    (folder / "run_record.json").write_bytes((traces / "run_record.json").read_bytes())
    trace["final_response"] = "Nowhere."
    (folder / "trace_00001.json").write_text(json.dumps(trace), encoding="utf-8")
    (folder / "trace_00002.json").write_text("{", encoding="utf-8")
    with TestClient(create_app(Viewer((folder,), TraceIndex.open([folder])))) as client:
        assert "It cannot be exported" not in client.get("/preview/0/00000").text
        assert "integrity_sha256" in client.get("/preview/0/00001").text
        broken = client.get("/preview/0/00002")
    assert broken.status_code == 200 and "It cannot be exported" in broken.text


def test_a_dataset_that_no_run_has_named_is_not_opened(traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "trace_00000.json").write_bytes((traces / "trace_00000.json").read_bytes())
    with TestClient(create_app(Viewer((folder,), TraceIndex.open([folder])))) as client:
        assert "no run into this folder has used" in client.get("/preview/0/00000").text
