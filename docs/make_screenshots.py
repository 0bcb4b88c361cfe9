"""Draws the pictures of docs/viewer.md: runs of the embedded teacher, looked at in Chromium.

    python docs/make_screenshots.py [--chromium /usr/bin/chromium]

Needs the extras `view`, `local` and `dev`, and a Chromium.
"""

from __future__ import annotations

import argparse
import io
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


if __name__ == "__main__":
    main()
