"""The kit for pages notices what it is there to notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser, Serve, chromium_program, overflow_px, screenshot, serious_violations, set_theme
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

GOOD = """<!doctype html><html lang="en"><head><title>page</title><link rel="icon" href="data:,">
<style>:root { color-scheme: light dark } @media (prefers-color-scheme: dark) { body { background: #000 } }</style></head>
<body><main><h1>Words</h1></main></body></html>"""
BODIES = {
    "good": GOOD,
    "logs": GOOD.replace("Words", "<script>console.error('that went wrong')</script>"),
    "throws": GOOD.replace("Words", "<script>null.x</script>"),
    "foreign": GOOD.replace("Words", "<img alt='a dot' src='http://127.0.0.2:9/dot.png'>"),
    "unlabelled": GOOD.replace("Words", "Words <img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"),
    "broad": GOOD.replace("Words", "<div style='width: 900px'>Words</div>"),
}


@pytest.fixture(scope="module")
def address(serve: Serve) -> str:
    def route(name: str, body: str) -> Route:
        return Route(f"/{name}", lambda request: HTMLResponse(body))

    return serve(Starlette(routes=[route(*item) for item in BODIES.items()]))


def test_a_good_page_passes_and_can_be_photographed(browser: Browser, address: str, tmp_path: Path) -> None:
    page = browser.open(f"{address}/good")
    assert page.title() == "page"
    assert not serious_violations(page)
    light = screenshot(page, tmp_path / "light.png").read_bytes()
    set_theme(page, "dark")
    assert screenshot(page, tmp_path / "dark.png").read_bytes() != light
    assert browser.requests == [f"{address}/good"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("logs", "that went wrong"), ("throws", "a script ended"), ("foreign", "other addresses")],
)
def test_a_page_that_errs_or_asks_elsewhere_fails_its_test(
    browser: Browser, address: str, name: str, words: str
) -> None:
    page = browser.open(f"{address}/{name}")
    page.wait_for_load_state("networkidle")
    browser.allow("127.0.0.2")  # where it asked: that no request was answered stands in the console, too
    with pytest.raises(AssertionError, match=words):
        browser.check()
    browser.requests.clear()
    browser.errors.clear()


def test_what_a_screen_reader_misses_is_named(browser: Browser, address: str) -> None:
    assert "image-alt" in serious_violations(browser.open(f"{address}/unlabelled"))[0]


def test_a_page_that_is_too_broad_is_measured(browser: Browser, address: str) -> None:
    assert overflow_px(browser.open(f"{address}/broad", width=400)) > 400
    assert overflow_px(browser.open(f"{address}/good", width=400)) == 0


def test_where_there_is_no_chromium_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTIL_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        chromium_program()
