<<<<<<< HEAD
"""Draws the pictures of docs/viewer.md: runs of the embedded teacher, looked at in Chromium.

    python docs/make_screenshots.py [--chromium /usr/bin/chromium]

Needs the extras `view`, `local` and `dev`, and a Chromium.
=======
"""Photograph the viewer for the README and docs/viewer.md: light and dark, 1280 and 400 wide.

Without folders it first makes two runs of the embedded teacher, with tools and without, in /tmp/distil:

    python docs/make_screenshots.py docs
    python docs/make_screenshots.py docs traces_a traces_b
>>>>>>> charts
"""

from __future__ import annotations

import argparse
import io
<<<<<<< HEAD
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent
ROOT = DOCS.parent
NUM_SAMPLES = 60
WIDTH = 1280
COLOURS = 256


def main() -> None:
    """Run, look, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument(
        "--folder", help="of the runs, which are gone on with (default: a new one, removed at the end)"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as new:
        folder = asked.folder or new
        runs = {"run": "signs_with_tools", "one-turn": "signs_one_turn"}
        for command, name in runs.items():
            distil(
                command,
                "--api_base",
                "embedded",
                "--num_samples",
                NUM_SAMPLES,
                "--output_dir",
                Path(folder) / name,
            )
        paths = [str(Path(folder) / name) for name in runs.values()]
        with subprocess.Popen(
            [sys.executable, "-m", "distil", "view", *paths, "--serve", "--no_open", "--port", "0"],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        ) as viewer:  # fmt: skip
            assert viewer.stdout is not None
            address = next(
                found[0] for line in viewer.stdout if (found := re.search(r"http://\S+(?=/\s)", line))
            )
            try:
                look(address, asked.chromium)
            finally:
                viewer.terminate()


def distil(command: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "distil", command, *map(str, arguments)], cwd=ROOT, check=True)


def look(address: str, program: str | None) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for theme, name, path, height in (
            ("light", "run", "/", 1560),
            ("light", "list", "/traces?photos=1&sort=score", 720),
            ("light", "trace", "/trace/0/00003", 1100),
            ("dark", "compare", "/compare", 640),
        ):
            size = {"width": WIDTH, "height": height}
            context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
            page = context.new_page()
            page.goto(address + path)
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(500)
            write(page, DOCS / f"viewer-{name}.png")
            context.close()
        browser.close()


def write(page: Page, path: Path) -> None:
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)
=======
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from browser import HEIGHT_PX, NARROW_PX, WIDE_PX, Browser, chromium_program, served  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402
from starlette.applications import Starlette  # noqa: E402

from distil.index.index import TraceIndex  # noqa: E402
from distil.records import SampleId  # noqa: E402
from distil.store.marks import KEEP, append_mark  # noqa: E402
from distil.viewer.app import create_app  # noqa: E402
from distil.viewer.viewer import Viewer  # noqa: E402

HOME = Path("/tmp/distil")  # noqa: S108 - its name is in the pictures
NUM_SAMPLES = 40
NUM_EXACT = 112  # colours of a picture that stay what they are
TRACE = "/trace/0/00003?sort=-score"
CALL = f"{TRACE}#turn-1"
OF_ONE_RUN = frozenset({"run", "list", "trace", "narrow"})
GAP_PX, PAPER = 24, "white"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the folder that the PNGs go to")
    parser.add_argument("folders", type=Path, nargs="*", help="runs (default: two of the embedded teacher)")
    options = parser.parse_args()
    folders = options.folders or make_runs()
    with (
        served(app_of(folders[:1])) as one,
        served(app_of(folders)) as all_of_them,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=chromium_program(), args=["--no-sandbox"])
        pages = Browser(chromium)
        for name, take in PICTURES.items():
            address = one if name in OF_ONE_RUN else all_of_them
            save(take(pages, address), options.output / f"viewer-{name}.png")
        pages.check()
        pages.close()


def app_of(folders: list[Path]) -> Starlette:
    return create_app(Viewer(tuple(folders), TraceIndex.open(folders)))


def make_runs() -> list[Path]:
    """The same photos with tools and without, some of them marked."""
    os.environ["DISTIL_CACHE"] = str(HOME / "cache")
    folders = []
    for command in ("run", "one-turn"):
        folder = HOME / {"run": "with_tools", "one-turn": "without_tools"}[command]
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "distil", command, "--api_base", "embedded", "--num_samples",
             str(NUM_SAMPLES), "--output_dir", str(folder), "--quiet"],
            cwd=ROOT, check=True,
        )  # fmt: skip
        folders.append(folder)
    for index in (2, 3, 5, 8):
        append_mark(folders[0], SampleId(index), mark=KEEP)
    return folders


def seen(
    pages: Browser, url: str, wait_for: str, *, width: int = WIDE_PX, theme: str = "light"
) -> Image.Image:
    """What a window of that width shows of a page, once a part of it is there and at rest."""
    page = pages.open(url, width=width, height=HEIGHT_PX, theme=theme)
    page.wait_for_selector(wait_for)
    page.wait_for_load_state("networkidle")
    if "#" in url:
        page.evaluate("scrollBy(0, -16)")  # out from below the bar
    page.wait_for_timeout(500)  # until maps and charts are at rest
    return photograph(page)


def photograph(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(animations="disabled")))


def run_page(pages: Browser, address: str) -> Image.Image:
    return seen(pages, f"{address}/", ".map-plot[data-drawn]")


def map_of_runs(pages: Browser, address: str) -> Image.Image:
    page = pages.open(f"{address}/", theme="dark")
    page.wait_for_selector(".map-plot[data-drawn]")
    page.wait_for_timeout(500)
    return Image.open(io.BytesIO(page.locator(".map").screenshot(animations="disabled")))


def list_page(pages: Browser, address: str) -> Image.Image:
    return seen(pages, f"{address}/traces?photos=1&sort=score", "#rows img")


def list_page_dark(pages: Browser, address: str) -> Image.Image:
    return seen(pages, f"{address}/traces?f=score%3C0.5&sort=score", "#rows tr", theme="dark")


def trace_page(pages: Browser, address: str) -> Image.Image:
    return seen(pages, address + CALL, "#turn-1 .pic img[src]")


def trace_page_dark(pages: Browser, address: str) -> Image.Image:
    return seen(pages, address + CALL, "#turn-1 .pic img[src]", theme="dark")


def compare_page(pages: Browser, address: str) -> Image.Image:
    return seen(pages, f"{address}/compare", "#pairs tr")


def narrow(pages: Browser, address: str) -> Image.Image:
    """Three pages side by side as a telephone shows them."""
    shots = [
        seen(pages, f"{address}/", ".map-plot[data-drawn]", width=NARROW_PX),
        seen(pages, f"{address}/traces", "#rows tr", width=NARROW_PX, theme="dark"),
        seen(pages, address + CALL, "#turn-1 .pic img[src]", width=NARROW_PX),
    ]
    return beside(shots)


def beside(shots: Sequence[Image.Image]) -> Image.Image:
    width = sum(shot.width for shot in shots) + GAP_PX * (len(shots) - 1)
    sheet = Image.new("RGB", (width, max(shot.height for shot in shots)), PAPER)
    left = 0
    for shot in shots:
        sheet.paste(shot, (left, 0))
        left += shot.width + GAP_PX
    return sheet


def save(picture: Image.Image, path: Path) -> None:
    paletted(picture.convert("RGB")).save(path, optimize=True)
    print(f"{path}: {picture.width}×{picture.height}, {path.stat().st_size:,} bytes")


def paletted(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours: those of pages as they are, which fill most of it, photos in the others."""
    counts = sorted(picture.getcolors(picture.width * picture.height) or [], reverse=True)
    exact = [colour for _, colour in counts[:NUM_EXACT]]
    others = picture.quantize(256 - len(exact), Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(part for colour in exact for part in colour), *others])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


PICTURES: dict[str, Callable[[Browser, str], Image.Image]] = {
    "run": run_page,
    "map": map_of_runs,
    "list": list_page,
    "list-dark": list_page_dark,
    "trace": trace_page,
    "trace-dark": trace_page_dark,
    "compare": compare_page,
    "narrow": narrow,
}
>>>>>>> charts


if __name__ == "__main__":
    main()
