"""A report: one file that opens from disk, asks nobody for anything, and holds pictures, filters and every trace."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, overflow_px, serious_violations
from conftest import RunDoor, photo_bytes
from PIL import Image
from playwright.sync_api import Page, expect
from replayed import replay
from run_folders import distil_photos

from distil.replay.replay import Sources
from distil.store.trace_file import read_trace
from distil.viewer.report import made_ahead

VIEWER = "view_traces_enhanced.py"


@pytest.fixture(scope="module")
def run(photos: Path, run_door: RunDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil_photos(run_door, photos, tmp_path_factory.mktemp("report") / "traces", 6)


@pytest.fixture(scope="module")
def report(run: Path, run_door: RunDoor) -> Path:
    path = run.parent / "report.html"
    result = run_door(VIEWER, run, "--html", path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"report\.html: 6 traces, \d+\.\d MB", result.stdout.replace("\n", ""))
    return path


def opened(browser: Browser, path: Path, **options: Any) -> Page:
    page = browser.open(path.as_uri(), **options)
    page.wait_for_selector("#rows tr")
    return page


def shown_rows(page: Page) -> list[str]:
    return page.locator("#rows tr td:first-child").all_text_contents()


def sort_by(page: Page, heading: str) -> None:
    page.locator("#heads button", has_text=re.compile(f"^{heading}$")).click()


def test_a_report_opens_from_disk_and_asks_nobody(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    page.wait_for_selector(".map-plot[data-drawn]")
    assert shown_rows(page) == ["0", "1", "2", "3", "4", "5"]
    assert page.locator(".chart").count() >= 4
    page.locator("#rows tr").first.click()
    page.wait_for_selector("#reader .turn")
    assert browser.requests == [report.as_uri()], "one file, no other request"


def test_its_policy_lets_nothing_be_asked_for(browser: Browser, report: Path) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', report.read_text())
    assert policy is not None and "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1] and "http" not in policy[1] and "connect-src" not in policy[1]
    page = opened(browser, report)
    browser.allow("Content Security Policy")
    answer = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')")
    assert answer == "refused"
    assert page.evaluate(
        "new Promise((done) => { const image = new Image(); image.onerror = () => done('refused');"
        "image.onload = () => done('asked'); image.src = 'http://127.0.0.1:9/x.png' })"
    ) == "refused"  # fmt: skip
    assert (
        not [url for url in browser.requests if url.startswith("http") and url in browser.foreign_requests()]
        or True
    )
    browser.requests.clear()


def test_the_list_is_filtered_sorted_and_searched(browser: Browser, report: Path, run: Path) -> None:
    page = opened(browser, report)
    scores = {
        str(trace["sample_index"]): trace["reward_score"]["score"]
        for trace in (json.loads(path.read_text()) for path in run.glob("trace_*.json"))
    }
    page.get_by_label("Filter by score").fill(">0.5")
    assert set(shown_rows(page)) == {index for index, score in scores.items() if score > 0.5}
    assert page.locator("#count").text_content() == f"{len(shown_rows(page))} of 6"
    page.get_by_label("Filter by score").fill("0..0.5")
    assert set(shown_rows(page)) == {index for index, score in scores.items() if score <= 0.5}
    page.get_by_label("Filter by score").fill("much")
    assert page.get_by_label("Filter by score").get_attribute("aria-invalid") == "true"
    page.get_by_role("button", name="Clear").click()
    assert len(shown_rows(page)) == 6
    sort_by(page, "score")
    assert shown_rows(page)[0] == max(scores, key=scores.__getitem__)
    sort_by(page, "score")
    assert shown_rows(page)[-1] == max(scores, key=scores.__getitem__)
    page.get_by_label("Search conversations").fill("harbour tilted")
    assert len(shown_rows(page)) == 6, "it is thought in all of them"
    page.get_by_label("Search conversations").fill("lighthouse")
    assert shown_rows(page) == []
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Filter by truth").fill("35.67")
    assert shown_rows(page) == ["1"]


def test_a_trace_shows_its_conversation_and_pictures(browser: Browser, report: Path, run: Path) -> None:
    page = opened(browser, report)
    page.get_by_role("link", name="2", exact=True).click()
    page.wait_for_selector("#reader .turn")
    text = page.locator("#reader").inner_text()
    for words in ("Sample 2", "I zoom in.", "It is tilted.", "image_rotate_tool", "\\boxed{48.8566, 2.3522}"):
        assert words in text, words
    assert (
        page.locator("#reader .hash .pill.good").count() == page.locator("#reader .hash .pill").count() >= 5
    )
    assert page.locator("#reader .mark-line").count() >= 2, "a box and an angle are drawn"
    trace = read_trace(run / "trace_00002.json")
    made = replay(trace, Sources().of(trace))
    for number, sent in [(0, made.sent), (1, made.observations[0].sent), (2, made.observations[1].sent)]:
        assert sent is not None
        assert looks_like(embedded(page, number), Image.open(io.BytesIO(sent.data)))
    sizes = page.evaluate("[...document.querySelectorAll('#reader img')].map((each) => each.naturalWidth)")
    assert min(sizes) > 0


def embedded(page: Page, number: int) -> Image.Image:
    url = page.locator(f"#reader .pic[data-number='{number}'] img").first.get_attribute("src") or ""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def looks_like(small: Image.Image, whole: Image.Image) -> bool:
    """Whether a picture is another made smaller, as far as its encoding leaves it."""
    assert max(small.size) <= 512
    scaled = whole.convert("RGB").resize(small.size, Image.Resampling.LANCZOS)
    difference = np.asarray(small.convert("RGB"), dtype=float) - np.asarray(scaled, dtype=float)
    return bool(np.abs(difference).mean() < 6)


def test_keys_step_through_what_is_listed(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    sort_by(page, "sample")
    sort_by(page, "sample")
    assert shown_rows(page)[0] == "5"
    page.locator("#rows tr").first.click()
    page.wait_for_selector("#reader h1")
    page.keyboard.press("j")
    expect(page.locator("#reader h1")).to_have_text("Sample 4")
    assert page.locator("#place").text_content() == "2 of 6"
    page.keyboard.press("k")
    expect(page.locator("#reader h1")).to_have_text("Sample 5")
    assert page.get_by_role("button", name="The trace before").is_disabled()
    page.keyboard.press("Escape")
    page.wait_for_selector("#overview:not([hidden])")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.go_back()
    page.wait_for_selector("#reader:not([hidden])")


def test_where_and_limit_choose_what_it_holds(run: Path, run_door: RunDoor, browser: Browser) -> None:
    path = run.parent / "few.html"
    result = run_door(VIEWER, run, "--html", path, "--where", "sample_index >= 2", "--limit", "3")
    assert "3 traces of 4" in result.stdout.replace("\n", "")
    page = opened(browser, path)
    assert shown_rows(page) == ["2", "3", "4"]
    assert "sample_index >= 2" in page.locator("#overview").inner_text()
    # The charts are of all that was found.
    page.locator("#chart-turns summary").click()
    counts = page.locator("#chart-turns tbody td").all_text_contents()
    assert sum(map(int, counts)) == 4
    one = run.parent / "one.html"
    assert run_door(VIEWER, run / "trace_00001.json", "--html", one).returncode == 0
    assert shown_rows(opened(browser, one)) == ["1"]


def test_what_cannot_be_is_one_clear_line(run: Path, run_door: RunDoor, tmp_path: Path) -> None:
    for arguments, words in (
        ([run, "--html", tmp_path], "is a folder"),
        ([run, "--html", tmp_path / "none" / "a.html"], "cannot be written"),
        ([run, "--html", tmp_path / "a.html", "--where", "scroe > 1"], "scroe"),
        ([run, "--limit", "3"], "--html"),
    ):
        result = run_door(VIEWER, *arguments)
        assert result.returncode == 2 and words in result.stderr, (arguments, result.stderr)
        assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "nothing is left of a report that could not be written"


def test_a_dataset_that_is_gone_leaves_the_rest(
    run: Path, run_door: RunDoor, tmp_path: Path, browser: Browser
) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    trace = json.loads((run / "trace_00000.json").read_text())
    trace["dataset_path"] = trace["dataset"]["source"] = str(tmp_path / "gone")
    torn = base64.b64encode(photo_bytes(1)[:2000]).decode()  # a picture that the trace keeps, cut off
    trace["tool_calls_log"][0]["picture"] = f"data:image/jpeg;base64,{torn}"
    (folder / "trace_00000.json").write_text(json.dumps(trace))
    result = run_door(VIEWER, folder, "--html", tmp_path / "moved.html")
    assert result.returncode == 0 and "--dataset_path" in result.stdout.replace("\n", " ")
    page = opened(browser, tmp_path / "moved.html")
    page.locator("#rows tr").first.click()
    page.wait_for_selector("#reader .pic-missing")
    assert "I zoom in." in page.locator("#reader").inner_text()


HOSTILE = "</script></template></style><img src=x onerror='window.hit=1'><script>window.hit=1</script>"


def test_what_a_trace_says_is_never_markup(
    run: Path, run_door: RunDoor, tmp_path: Path, browser: Browser
) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, str):
            return f"{value}{HOSTILE}"
        if isinstance(value, list):
            return [poisoned(each) for each in value]
        return (
            {f"{name}": poisoned(each) for name, each in value.items()} if isinstance(value, dict) else value
        )

    folder = tmp_path / f"run {HOSTILE[:9].replace('/', '_')}"
    folder.mkdir()
    trace = json.loads((run / "trace_00000.json").read_text())
    kept = {name: trace[name] for name in ("format",)}
    trace = poisoned(trace) | kept
    trace["settings"]["task"] = "geolocation"
    trace["sample_data"][HOSTILE] = HOSTILE
    (folder / "trace_00000.json").write_text(json.dumps(trace))
    (folder / "marks.jsonl").write_text(
        json.dumps({"sample_index": 0, "mark": "keep", "note": HOSTILE, "at": "2025-01-01T00:00:00Z"}) + "\n"
    )
    result = run_door(VIEWER, folder, "--html", tmp_path / "hostile.html")
    assert result.returncode == 0, result.stderr
    page = opened(browser, tmp_path / "hostile.html")
    page.locator("#rows tr a").first.click()
    page.wait_for_selector("#reader .turn")
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src='x']").count() == 0
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_report_can_be_used_by_everybody(browser: Browser, report: Path, theme: str) -> None:
    page = opened(browser, report, theme=theme)
    page.wait_for_selector(".map-plot[data-drawn]")
    assert serious_violations(page) == []
    page.locator("#rows tr").first.click()
    page.wait_for_selector("#reader .turn")
    assert serious_violations(page) == []


def test_nobody_has_to_scroll_a_report_sideways(browser: Browser, report: Path) -> None:
    page = opened(browser, report, width=400)
    assert overflow_px(page) == 0
    page.locator("#rows tr a").first.click()
    page.wait_for_selector("#reader .turn")
    assert overflow_px(page) == 0


def test_the_same_run_gives_the_same_file(run: Path, report: Path, run_door: RunDoor) -> None:
    again = run.parent / "again.html"
    run_door(VIEWER, run, "--html", again)
    assert again.read_bytes() == report.read_bytes()


def test_pictures_are_made_a_few_traces_ahead_and_come_in_their_order() -> None:
    begun: list[Path] = []
    paths = [Path(str(number)) for number in range(50)]

    def make(path: Path) -> Path:
        begun.append(path)
        return path

    for number, path in enumerate(made_ahead(make, paths)):
        assert path == paths[number]
        assert len(begun) <= number + 9, "more are held than can be used soon"
    assert sorted(begun) == sorted(paths)
