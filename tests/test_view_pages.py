"""The viewer's pages in a real browser: runs, the list, marks, two runs side by side, a run that goes on."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import NARROW_PX, Browser, overflow_px, serious_violations
from conftest import PACKAGE

from distil.index.index import TraceIndex
from distil.store.marks import read_marks
from distil.viewer.server import bind, serving
from distil.viewer.viewer import Viewer

if TYPE_CHECKING:
    from playwright.sync_api import Page

sys.path.append(str(PACKAGE.parent / "benchmarks"))

from many_traces import make_traces

NUM_TRACES = 350
NO_PHOTO = r"/picture/"  # the made traces' dataset is nowhere
Show = Callable[..., str]


@pytest.fixture(scope="module")
def show() -> Iterator[Show]:
    """Serve folders in this process, guard and all; gives the address."""
    with ExitStack() as stack:

        def start(*folders: Path) -> str:
            listening = stack.enter_context(bind("127.0.0.1", 0, may_be_another=False))
            viewer = Viewer(tuple(folders), TraceIndex.open(folders))
            stack.enter_context(serving(viewer, listening, "127.0.0.1"))
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "first"
    make_run(folder, NUM_TRACES)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, show: Show) -> str:
    return show(folder)


@pytest.fixture(scope="module")
def both(folder: Path, show: Show, tmp_path_factory: pytest.TempPathFactory) -> str:
    other = tmp_path_factory.mktemp("pages") / "second"
    make_run(other, 120, temperature=0.1)
    return show(folder, other)


def make_run(folder: Path, number: int, **settings: Any) -> None:
    """Traces with the record and the failures of a run."""
    make_traces(folder, number)
    made_with = json.loads((folder / "trace_00000.json").read_text())["settings"] | settings
    record = {
        "started_at": "2026-01-02T03:04:05+00:00", "seconds": 600.0, "num_samples": number + 1,
        "num_finished": number, "num_failed": 1, "settings": made_with, "warnings": ["3 boxes were cut."],
        "dataset": {"source": "/data/photos", "num_rows": 1000},
    }  # fmt: skip
    (folder / "run_record.json").write_text(json.dumps({"runs": [record]}))
    failure = {
        "sample_index": number, "kind": "teacher", "message": "no reply came", "status": 500, "attempts": 4,
        "runs": 1, "turns_spent": 0,
    }  # fmt: skip
    (folder / "failed_samples.jsonl").write_text(json.dumps(failure) + "\n")


def samples(page: Page) -> list[str]:
    """The samples of the rows in sight."""
    return page.locator("#rows a.id").all_inner_texts()


def shows_total(page: Page, text: str) -> None:
    page.locator("#total", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()


def active_sample(page: Page) -> str:
    return page.locator("#rows tr[aria-current] a.id").inner_text()


# --- every page in both themes and widths


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "path", ["/", "/traces", "/traces?where=score+%3E+0.9&f=tools~zoom", "/compare", "/traces?f=score%3E9"]
)
def test_pages_can_be_used_by_everyone_and_fit_narrow_windows(
    browser: Browser, both: str, path: str, theme: str
) -> None:
    browser.allow(NO_PHOTO)
    page = browser.open(both + path, theme=theme)
    page.wait_for_load_state("networkidle")
    assert serious_violations(page) == []
    assert overflow_px(page) == 0
    page.set_viewport_size({"width": NARROW_PX, "height": 800})
    page.wait_for_timeout(100)
    assert overflow_px(page) == 0
    assert serious_violations(page) == []


def test_a_theme_that_is_chosen_stays(browser: Browser, address: str) -> None:
    page = browser.open(address, theme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Change between light and dark").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_the_question_mark_shows_the_keys_of_a_page(browser: Browser, address: str) -> None:
    page = browser.open(f"{address}/traces")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    assert "mark: keep" in dialog.inner_text()
    assert serious_violations(page) == []
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


# --- the run


def test_the_run_page_shows_what_a_run_is_and_came_to(browser: Browser, address: str) -> None:
    page = browser.open(address)
    page.get_by_text("ended", exact=True).wait_for()
    for words in ("3 boxes were cut.", "no reply came", "/data/photos"):
        assert page.get_by_text(words).first.is_visible()
    assert page.locator("#chart-score svg").is_visible()
    assert page.locator("#chart-shares svg").is_visible()
    assert page.locator("[data-map] canvas").first.is_visible()
    assert page.locator(".tile", has_text="traces").locator("dd").first.inner_text() == str(NUM_TRACES)
    page.locator(".run-head").get_by_role("link", name="Traces").click()
    shows_total(page, f"{NUM_TRACES} traces")


def test_settings_of_two_runs_that_are_equal_are_shown_when_asked(browser: Browser, both: str) -> None:
    page = browser.open(both)
    table = page.locator("#settings")
    assert table.get_by_role("rowheader", name="temperature").is_visible()
    equal = table.locator("tr.equal").first
    assert not equal.is_visible()
    page.get_by_label("those that are equal too").check()
    assert equal.is_visible()


# --- the list


def test_the_list_is_walked_by_keys_and_holds_only_the_rows_in_sight(browser: Browser, address: str) -> None:
    page = browser.open(f"{address}/traces")
    shows_total(page, f"{NUM_TRACES} traces")
    assert page.locator("#rows tr").count() < 60
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert active_sample(page) == "1"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert active_sample(page) == "1"
    page.keyboard.press("G")
    page.locator("#rows tr[aria-current] a.id", has_text=str(NUM_TRACES - 1)).wait_for()
    assert page.locator("#rows tr").count() < 60
    page.keyboard.press("g")
    assert active_sample(page) == "0"
    page.keyboard.press("Enter")
    page.wait_for_url("**/trace/0/00000")


def test_conditions_of_columns_search_and_sql_are_in_the_address(browser: Browser, address: str) -> None:
    page = browser.open(f"{address}/traces")
    page.get_by_label("Filter by score").fill(">= 0.5")
    page.wait_for_url("**f=score%3E%3D0.5*")
    first = page.locator("#total").inner_text()
    page.locator("#total", has_text=re.compile(f"^(?!{NUM_TRACES} )")).wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("bollard")
    page.wait_for_url("**q=bollard*")
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.keyboard.type("turns > 2")
    page.keyboard.press("Enter")
    page.wait_for_url("**where=turns*")
    page.wait_for_load_state("networkidle")
    found, total = samples(page), page.locator("#total").inner_text()
    assert found
    assert total != first
    page.reload()
    page.wait_for_load_state("networkidle")
    assert samples(page) == found
    assert page.get_by_label("Filter by score").input_value() == ">=0.5"
    assert page.get_by_label("Search conversations").input_value() == "bollard"
    page.get_by_role("button", name="Clear all").click()
    shows_total(page, f"{NUM_TRACES} traces")
    page.go_back()
    shows_total(page, total)


def test_a_heading_sorts_down_up_and_not(browser: Browser, address: str) -> None:
    page = browser.open(f"{address}/traces")
    head = page.get_by_role("columnheader", name="score")
    for way in ("descending", "ascending", "none"):
        with page.expect_response("**/api/rows?*"):
            head.get_by_role("button").click()
        page.wait_for_timeout(100)
        assert head.get_attribute("aria-sort") == way
        scores = [float(text) for text in page.locator("#rows .score-cell").all_inner_texts()]
        if way != "none":
            assert scores == sorted(scores, reverse=way == "descending")


def test_a_wrong_condition_is_said_and_the_list_comes_back(browser: Browser, address: str) -> None:
    browser.allow(r"400 \(Bad Request\)")
    page = browser.open(f"{address}/traces?where=nothing+%3E+1")
    alert = page.get_by_role("alert")
    assert "nothing" in alert.inner_text()
    page.get_by_label("where").fill("score >")
    page.keyboard.press("Enter")
    page.get_by_text("syntax error").wait_for()
    page.get_by_label("where").fill("")
    page.keyboard.press("Enter")
    shows_total(page, f"{NUM_TRACES} traces")
    assert not alert.is_visible()


def test_columns_are_chosen_and_stay_in_the_address(browser: Browser, address: str) -> None:
    page = browser.open(f"{address}/traces")
    page.keyboard.press("c")
    page.get_by_label("Find a column").fill("model")
    page.get_by_label(re.compile("^model")).check()
    page.keyboard.press("Escape")
    assert page.get_by_role("columnheader", name="model").is_visible()
    page.reload()
    assert page.get_by_role("columnheader", name="model").is_visible()
    assert "cols=" in page.url


def test_scrolling_far_shows_rows_of_there(browser: Browser, address: str) -> None:
    page = browser.open(f"{address}/traces")
    shows_total(page, f"{NUM_TRACES} traces")
    page.evaluate("document.getElementById('scroller').scrollTop = 32 * 200")
    page.locator("#rows a.id", has_text=re.compile("^210$")).wait_for()
    assert page.locator("#rows tr.waiting").count() == 0


# --- marks


def test_marks_and_notes_are_set_by_keys_and_are_there_after_a_reload(
    browser: Browser, show: Show, tmp_path: Path
) -> None:
    make_traces(tmp_path, 6)
    address = show(tmp_path)
    page = browser.open(f"{address}/traces")
    shows_total(page, "6 traces")
    page.keyboard.press("j")
    page.keyboard.press("m")
    page.locator("#num-keep", has_text="1").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("d")
    page.locator("#num-drop", has_text="1").wait_for()
    page.keyboard.press("n")
    page.keyboard.type("too dark <b>")
    page.keyboard.press("Control+Enter")
    page.get_by_text("Note saved").wait_for()
    page.reload()
    shows_total(page, "6 traces")
    assert page.locator("#rows tr").nth(0).locator(".mark-sign.keep").is_visible()
    assert page.locator("#rows tr").nth(1).locator(".note-sign").get_attribute("title") == "too dark <b>"
    page.get_by_role("button", name=re.compile("drop")).click()
    shows_total(page, "1 trace")
    assert samples(page) == ["1"]
    page.keyboard.press("j")
    page.keyboard.press("d")  # again: it is taken away
    page.locator("#num-drop", has_text="0").wait_for()
    marks = {sample.index: (mark.mark, mark.note) for sample, mark in read_marks(tmp_path).items()}
    assert marks == {0: ("keep", None), 1: (None, "too dark <b>")}


def test_a_mark_that_cannot_be_written_is_said_and_not_shown(
    browser: Browser, show: Show, tmp_path: Path
) -> None:
    make_traces(tmp_path, 2)
    page = browser.open(f"{show(tmp_path)}/traces")
    browser.allow("400")
    (tmp_path / "marks.jsonl").mkdir()
    page.keyboard.press("j")
    page.keyboard.press("m")
    page.locator("#said.bad").wait_for()
    assert page.locator(".mark-sign.keep").count() == 1  # that of the count above


# --- compare


def test_two_runs_are_compared_row_by_row(browser: Browser, both: str) -> None:
    browser.allow(NO_PHOTO)
    page = browser.open(both)
    page.get_by_role("link", name="Compare").click()
    page.wait_for_url("**/compare")
    assert page.get_by_text("120 equal").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/trace/0/00000?beside=1%2F00000")


# --- a run that goes on


def test_a_run_that_goes_on_grows_on_the_page_without_a_reload(
    browser: Browser, show: Show, tmp_path: Path
) -> None:
    fcntl = pytest.importorskip("fcntl")
    make_traces(tmp_path, 4)
    settings = json.loads((tmp_path / "trace_00000.json").read_text())["settings"]
    record = {"runs": [{"started_at": "2026-01-02T03:04:05+00:00", "num_samples": 9, "settings": settings}]}
    (tmp_path / "run_record.json").write_text(json.dumps(record))
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        address = show(tmp_path)
        runs, listed = browser.open(address), browser.open(f"{address}/traces")
        runs.get_by_text("running", exact=True).wait_for()
        runs.evaluate("window.isSamePage = true")
        assert runs.get_by_text("4 of 9").is_visible()
        shows_total(listed, "4 traces")
        make_traces(tmp_path, 7)
        runs.get_by_text("7 of 9").wait_for()
        runs.locator(".tile", has_text="traces").locator("dd", has_text="7").first.wait_for()
        runs.locator("[data-map]", has_text="7 with both").wait_for()
        shows_total(listed, "7 traces")
        assert runs.evaluate("window.isSamePage")
    runs.get_by_text(
        "broken off", exact=True
    ).wait_for()  # its lock is gone, and it did not say that it ended


def test_a_run_without_traces_yet_is_waited_for(browser: Browser, show: Show, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / "run_record.json").write_text(
            '{"runs": [{"started_at": "2026-01-02T03:04:05+00:00", "num_samples": 3}]}'
        )
        page = browser.open(show(tmp_path))
        assert page.get_by_text("No traces yet").is_visible()
        make_traces(tmp_path, 2)
        page.locator("#chart-score svg").wait_for()
