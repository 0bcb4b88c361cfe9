"""All that is claimed of speed, memory and start-up, measured in one run; contestants take turns.

    python benchmarks/run.py [--quick] [--only SECTION …] [--output_dir DIR]

Starts its own scripted teacher on loopback. Writes results.json, tables.md and, where matplotlib is installed,
plots as PNG and SVG. To compare two checkouts, name both: they take turns in one run.

    python benchmarks/run.py --only workers --tree before=../old --tree after=.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import adaptive
import journal
import level
import memory
import replay
import sandbox
import signs
import slow_teacher
import start
import tables
import trace_index
import viewer
import workers
from measure import MAX_ERROR_CHARS, Bench, Tree, machine, say
from targets import judge

SECTIONS = {
    "workers": workers,
    "slow_teacher": slow_teacher,
    "memory": memory,
    "journal": journal,
    "level": level,
    "sandbox": sandbox,
    "replay": replay,
    "index": trace_index,
    "viewer": viewer,
    "start": start,
    "adaptive": adaptive,
    "signs": signs,
}
NOT_QUICK = ("signs",)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer points, in about two minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_results"))
    parser.add_argument(
        "--tree",
        action="append",
        type=Tree.parse,
        metavar="NAME=PATH",
        help="a checkout, or the Python that has distil installed; may be given several times "
        "(default: the checkout that this file is in)",
    )
    parser.add_argument("--repeats", type=int, help="of what the targets compare (default: 3, quick 1)")
    parser.add_argument(
        "--cache_dir", type=Path, help="for datasets and runs (default: ~/.cache/distil-benchmarks)"
    )
    options = parser.parse_args()
    cache_dir = options.cache_dir or _cache_dir()
    cache_dir.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        trees=tuple(options.tree or [Tree("here", checkout=Path(__file__).absolute().parent.parent)]),
        cache_dir=cache_dir.absolute(),
        is_quick=options.quick,
        num_repeats=options.repeats or (1 if options.quick else 3),
    )
    chosen = options.only or [name for name in SECTIONS if not (options.quick and name in NOT_QUICK)]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    measure_all(bench, chosen, options.output_dir)
    if bench.failures:
        sys.exit("failed: " + "; ".join(bench.failures))


def measure_all(bench: Bench, chosen: list[str], output_dir: Path) -> None:
    """Measure section by section; what is done is written after each."""
    results: dict[str, Any] = {
        "started_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "is_quick": bench.is_quick,
        "trees": {tree.name: tree.version() for tree in bench.trees},
        "sections": {},
        "seconds": {},
    }
    for name in chosen:
        say(f"— {SECTIONS[name].TITLE}")
        started = time.monotonic()
        try:
            results["sections"][name] = SECTIONS[name].measure(bench)
        except RuntimeError as error:
            say(f"  FAILED: {error}")
            bench.failures.append(f"{name}: {str(error)[:MAX_ERROR_CHARS]}")
            results["sections"][name] = []
        results["seconds"][name] = time.monotonic() - started
        results["machine"]["load_after"] = os.getloadavg()[0]
        results["targets"] = judge(results["sections"], bench)
        results["failures"] = bench.failures
        text = json.dumps(results, ensure_ascii=False, indent=1)
        (output_dir / "results.json").write_text(text + "\n", encoding="utf-8")
    markdown = tables.markdown(results, {name: SECTIONS[name].TITLE for name in chosen})
    (output_dir / "tables.md").write_text(markdown, encoding="utf-8")
    print(markdown)
    try:
        import plots  # noqa: PLC0415 - not before all is measured, a child's peak starts at its parent's size
    except ImportError as error:
        say(f"no plots: {error} (pip install matplotlib)")
    else:
        plots.draw(results, output_dir)
    say(f"written to {output_dir}")


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distil-benchmarks"


if __name__ == "__main__":
    main()
