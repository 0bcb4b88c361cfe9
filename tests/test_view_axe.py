"""Every page for everybody: axe-core finds nothing serious, in both themes, and nobody has to scroll sideways."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NARROW_PX, Browser, Serve, overflow_px, serious_violations
from conftest import RunDoor
from playwright.sync_api import Page
from run_folders import a_trace, distil_photos, write_run

from distil.index.index import TraceIndex
from distil.viewer.app import create_app
from distil.viewer.viewer import Viewer

LONG = "a" * 300


@pytest.fixture(scope="module")
def folders(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run with pictures, with a broken file, marks and long words in it; and a run of many figures."""
    root = tmp_path_factory.mktemp("axe")
    run = distil_photos(run_door, photos, root / "traces", 4)
    (run / "trace_00008.json").write_text("{")
    trace = a_trace(9, random.Random(9))
    trace["sample_data"] |= {"city": LONG, LONG: "a value"}
    trace["conversation_log"][0] |= {"assistant_response": LONG, "reasoning": LONG}
    (run / "trace_00009.json").write_text(json.dumps(trace))
    (run / "marks.jsonl").write_text(
        '{"sample_index": 0, "mark": "keep", "note": "a good one", "at": "2025-01-01T00:00:00Z"}\n'
        '{"sample_index": 1, "mark": "drop", "at": "2025-01-01T00:00:00Z"}\n'
    )
    (run / "failed_samples.jsonl").write_text(
        '{"sample_index": 5, "kind": "teacher", "message": "500 from the server", "status": 500, "attempts": 3, "runs": 1, "turns_spent": 0}\n'
    )
    return [run, write_run(root / "other", 60)]


@pytest.fixture(scope="module")
def address(folders: list[Path], serve: Serve) -> Iterator[str]:
    yield serve(create_app(Viewer(tuple(folders), TraceIndex.open(folders))))


PAGES = {
    "run": "/",
    "list": "/traces",
    "list, filtered": "/traces?f=score%3E%3D0.1&sort=-score",
    "list, nothing found": "/traces?f=score%3E5",
    "trace": "/trace/0/00000",
    "trace of long words": "/trace/0/00009",
    "trace without pictures": "/trace/1/00003",
    "two traces": "/trace/0/00000?beside=1/00001",
    "broken trace": "/trace/0/00008",
    "compare": "/compare",
    "no page": "/nowhere",
}


def opened(browser: Browser, address: str, name: str, **options: object) -> Page:
    browser.allow("status of 404|status of 400")  # of pages that are errors, and of pictures that are gone
    page = browser.open(address + PAGES[name], **options)
    page.wait_for_load_state("networkidle")
    return page


@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_use_it_in_both_themes_wide_and_narrow(
    browser: Browser, address: str, name: str
) -> None:
    page = opened(browser, address, name)
    assert serious_violations(page) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": NARROW_PX, "height": 800})
    page.wait_for_timeout(100)
    assert overflow_px(page) == 0
    assert serious_violations(page) == []


def test_what_opens_can_be_used_by_everybody(browser: Browser, address: str) -> None:
    page = opened(browser, address, "list")
    for open_it in ("?", "c"):
        page.keyboard.press(open_it)
        page.wait_for_selector("dialog[open]")
        assert serious_violations(page) == []
        page.keyboard.press("Escape")
    page = opened(browser, address, "trace")
    page.wait_for_selector(".pic img[src]")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.wait_for_load_state("networkidle")
    assert serious_violations(page) == []
    page.locator(".pic-open").first.click()
    page.wait_for_selector("#lightbox[open]")
    assert serious_violations(page) == []
