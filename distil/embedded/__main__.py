"""The command line: `serve` the sign reader, or `draw` the signs and scenes that it reads."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def main() -> int:
    """Run one of the two commands and return the exit code."""
    options = parse_options()
    return run_serve(options) if options.command == "serve" else run_draw(options)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m distil.embedded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the sign reader on 127.0.0.1 until stdin closes")
    serve.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    serve.add_argument("--concurrency", type=at_least(1), default=2, help="pictures read at once (default 2)")
    draw = commands.add_parser("draw", help="draw a dataset")
    draw.add_argument("--kind", choices=("signs", "scenes"), default="signs")
    draw.add_argument("--output_dir", type=Path, required=True)
    draw.add_argument("--num_rows", type=at_least(1), default=240)
    draw.add_argument("--seed", type=at_least(0), default=0)
    draw.add_argument("--workers", type=at_least(1), default=min(8, os.cpu_count() or 1))
    return parser.parse_args()


def at_least(lowest: int) -> Callable[[str], int]:
    """What parses a whole number that is not lower."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number of {lowest} or more, not {text!r}")
        return int(text)

    return parse


def run_serve(options: argparse.Namespace) -> int:
    """Serve until stdin closes."""
    from distil.embedded.server import serve  # noqa: PLC0415  `draw` must not need it

    try:
        serve(options.port, options.concurrency)
    except ImportError as missing:
        return complain(f'the local teacher needs OCR ({missing}): pip install -e ".[local]"')
    except OSError as refused:
        return complain(f"cannot serve on port {options.port}: {refused}")
    except KeyboardInterrupt:
        return 130
    return 0


def run_draw(options: argparse.Namespace) -> int:
    """Draw the dataset."""
    from distil.embedded.sign_dataset import write_dataset  # noqa: PLC0415  seconds to import

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # half a drawing is cleared away
    try:
        write_dataset(options.output_dir, options.num_rows, options.seed, options.workers, options.kind)
    except FileExistsError as refused:
        return complain(str(refused))
    except KeyboardInterrupt:
        return 130
    return 0


def complain(text: str) -> int:
    """Print one line on stderr and return the exit code of a wrong call."""
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
