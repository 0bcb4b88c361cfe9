"""A real browser and a real server for tests of pages: headless Chromium, driven by Playwright.

`conftest.py` makes the fixtures known to every test. `browser` opens pages, each in a context of its own (no
cookies or cache of another test), and after the test it looks back: nothing may have stood in a console as an
error, no script may have ended with one, and every request must have gone to the page's own address.

    def test_the_list_can_be_searched(browser: Browser, serve: Serve) -> None:
        page = browser.open(serve(create_app(...)) + "/traces")
        page.get_by_role("searchbox").fill("harbour")

Chromium is a program of the system (`chromium` in Debian), Playwright's own need not be there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    import playwright.sync_api as pw

ROOT = Path(__file__).parent.parent
WIDE_PX, NARROW_PX, HEIGHT_PX = 1280, 400, 800
PATIENCE_SECONDS = 15
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_CHROMIUM_FLAGS = (
    "--no-sandbox",  # root has no other choice; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
)
_OF_NO_NETWORK = ("data:", "blob:", "about:")

Serve = Callable[..., str]


def chromium_program() -> str:
    """Where Chromium is: $DISTIL_CHROMIUM, else what the system has; a test without one fails and says so."""
    asked = os.environ.get("DISTIL_CHROMIUM")
    found = asked or next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        pytest.fail(
            "pages are tested in Chromium, and there is none: apt-get install chromium (or name one in "
            "$DISTIL_CHROMIUM)",
            pytrace=False,
        )
    return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[pw.Browser]:
    """One Chromium for a file of tests.

    Not one for all: while Playwright runs, its event loop is the thread's own, and others could not run one.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    program = chromium_program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_CHROMIUM_FLAGS))
        yield browser
        browser.close()


class Browser:
    """Opens pages and keeps what went on in them; `check` is called after each test."""

    def __init__(self, chromium: pw.Browser) -> None:
        self._chromium = chromium
        self._origins: set[str] = set()
        self._allowed: list[re.Pattern[str]] = []
        self._contexts: list[pw.BrowserContext] = []
        self.requests: list[str] = []
        self.errors: list[str] = []  # of consoles and scripts

    def open(
        self, url: str, *, width: int = WIDE_PX, height: int = HEIGHT_PX, theme: str = "light", **options: Any
    ) -> pw.Page:
        """A page of its own context; its address is one that requests may go to.

        `theme` is what the system prefers, "light" or "dark"; `options` are those of Playwright's `new_context`.
        """
        context = self._chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            reduced_motion="reduce",
            **options,  # type: ignore[arg-type]
        )
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        self._contexts.append(context)
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.errors.append(f"a script ended: {error.error}"))
        self._origins.add(_origin(url))
        page = context.new_page()
        page.goto(url)
        return page

    def allow(self, pattern: str) -> None:
        """Let console errors that match pass: for a test that provokes one, such as a refused request."""
        self._allowed.append(re.compile(pattern))

    def check(self) -> None:
        """Fail where a console has an error or a request went elsewhere."""
        errors = [each for each in self.errors if not any(known.search(each) for known in self._allowed)]
        assert not errors, "errors in the browser:\n" + "\n".join(errors)
        foreign = self.foreign_requests()
        assert not foreign, "requests to other addresses:\n" + "\n".join(foreign)

    def foreign_requests(self) -> list[str]:
        """Requests that went to another address than the pages that were opened."""
        return [
            url
            for url in self.requests
            if not url.startswith(_OF_NO_NETWORK) and _origin(url) not in self._origins
        ]

    def close(self) -> None:
        """Close all pages."""
        for context in self._contexts:
            context.close()

    def _hear(self, message: pw.ConsoleMessage) -> None:
        if message.type == "error":
            place = message.location
            self.errors.append(f"{message.text} ({place.get('url')}:{place.get('lineNumber')})")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@pytest.fixture
def browser(chromium: pw.Browser) -> Iterator[Browser]:
    """Opens pages; after the test no console may have an error and no request have gone elsewhere."""
    browser = Browser(chromium)
    try:
        yield browser
        browser.check()
    finally:
        browser.close()


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Serve an ASGI application on a port of its own, in this process; gives its address, without a slash."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(served(app))


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The same as a context manager."""
    import uvicorn  # noqa: PLC0415

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        listening.close()


@pytest.fixture
def start_viewer() -> Iterator[Serve]:
    """Start `distil view FOLDER… --serve` as a process, as a user does; gives the address that it says.

    It costs a cold start: `serve` is for what can do without.
    """
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(viewing(*arguments))


@contextlib.contextmanager
def viewing(*arguments: object) -> Iterator[str]:
    """The same as a context manager."""
    command = [sys.executable, "-m", "distil", "view", *map(str, arguments), "--serve", "--no_open"]
    command += [] if "--port" in arguments else ["--port", "0"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield _said_address(process, said)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _said_address(process: subprocess.Popen[bytes], said: Any) -> str:
    """The first address that a server says, without a slash at its end."""
    deadline = time.monotonic() + 4 * PATIENCE_SECONDS
    while True:
        text = os.pread(said.fileno(), 1 << 20, 0).decode()  # it shares the file's position with the process
        found = re.search(r"http://[^\s\"'<>]+(?=\s)", text)
        if found:
            return found[0].rstrip("/.,")
        assert process.poll() is None, f"the viewer ended with {process.returncode}:\n{text}"
        assert time.monotonic() < deadline, f"the viewer says no address:\n{text}"
        time.sleep(0.05)


def serious_violations(page: pw.Page) -> list[str]:
    """What axe-core finds on a page that keeps people from using it, a line each: the rule and the elements."""
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)  # by the debugger's protocol: the page's own policy allows no script from elsewhere
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']} ({violation['impact']}): {violation['help']}: "
        + "; ".join(node["html"][:160] for node in violation["nodes"][:5])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


def overflow_px(page: pw.Page) -> int:
    """How far a page reaches beyond its window to the right: 0 where nobody has to scroll sideways."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def set_theme(page: pw.Page, theme: str) -> None:
    """What the system prefers from now on, "light" or "dark"."""
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]


def screenshot(page: pw.Page, path: Path, *, whole: bool = False) -> Path:
    """A PNG of what is seen, or of the whole page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=whole, animations="disabled")
    return path
