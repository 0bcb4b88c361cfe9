"""Photograph the viewer for the README and docs/viewer.md: light and dark, 1280 and 400 wide.

Without folders it first makes two runs of the embedded teacher, with tools and without, in /tmp/distil:

    python docs/make_screenshots.py docs
    python docs/make_screenshots.py docs traces_a traces_b
"""

from __future__ import annotations

import argparse
import io
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


def trace_page(pages: Browser, address: str) -> Image.Image:
    return seen(pages, address + CALL, "#turn-1 .pic img[src]")


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
    "trace": trace_page,
    "compare": compare_page,
    "narrow": narrow,
}


if __name__ == "__main__":
    main()
