"""Every flag once, and the commands: the `distil` command and the scripts beside this file share them."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import NoReturn

from distil import __version__, interrupts
from distil.errors import DistilError, FolderError, TeacherRefused, UsageError

EXIT_DONE, EXIT_USAGE = 0, 2  # and 1, some samples failed: the commands return it
_ADVICE = "; nothing is lost, the same command goes on from here"
_VIEWER = "view_traces_enhanced.py"
COORDINATES = ("auto", "pixel", "rel1000", "rel1000_yx", "rel1")


@dataclass(frozen=True)
class Door:
    """One way to run a distillation: what it is for, and the defaults that make it different."""

    command: str  # of `distil`
    script: str
    about: str
    output_dir: str
    tools: str = "zoom,rotate"
    max_turns: int = 10
    max_workers: int = 4
    keep_pictures: bool = False


DOORS: tuple[Door, ...] = (
    Door(
        "run",
        "demo_concurrent.py",
        "Distil with zoom and rotate, many samples at once; traces store only tool arguments.",
        "traces_concurrent",
    ),
    Door(
        "code",
        "demo_python_code.py",
        "Distil with Python code that the teacher writes, run in a sandbox; traces store only the code.",
        "traces_python_code",
        tools="python_code",
    ),
    Door(
        "with-tools",
        "demo_distillation_with_tools.py",
        "The sequential baseline: one sample at a time, tool pictures kept in the trace.",
        "traces_with_tools",
        max_workers=1,
        keep_pictures=True,
    ),
    Door(
        "one-turn",
        "demo_distillation.py",
        "The basic baseline: one turn a sample, no tools.",
        "traces_demo",
        tools="none",
        max_turns=1,
        max_workers=1,
    ),
)


Command = Callable[[], int]  # ready to run: all that it needs is imported


def enter(script: str = "distil") -> NoReturn:
    """A door as a process of its own: from here to its end no signal leaves a traceback."""
    interrupts.handle(script)
    doors = {"distil": main, _VIEWER: run_viewer_door}
    try:
        status = doors.get(script, partial(run_door, script))()
    except SystemExit as leaving:  # argparse, after --help and on wrong usage
        status = leaving.code if isinstance(leaving.code, int) else EXIT_DONE
    interrupts.ignore()
    _leave(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `distil` command."""
    parser = argparse.ArgumentParser(
        prog="distil",
        description="Distil visual tool-use traces from a vision-language teacher.",
        epilog="Without --api_base and key an embedded sign reader plays the teacher.",
    )
    parser.add_argument("--version", action="version", version=f"distil {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for door in DOORS:
        add_run_flags(commands.add_parser(door.command, help=door.about, description=door.about), door)
    estimate = "Run a few samples of a selection, keep them, and say what the whole will take."
    add_estimate_flags(commands.add_parser("estimate", help=estimate, description=estimate))
    for name, about, add_flags in (
        ("view", "Show one trace, a folder of traces, or their totals.", add_view_flags),
        ("verify", "Replay traces from dataset and stored actions, and compare.", add_verify_flags),
        ("doctor", "Check what a teacher can do, or what this machine offers.", add_doctor_flags),
        ("signs", "Draw a dataset of street signs for the embedded teacher.", add_signs_flags),
    ):
        add_flags(commands.add_parser(name, help=about, description=about))
    return run_command(parser, arguments)


def run_door(script: str, arguments: Sequence[str] | None = None) -> int:
    """One of the scripts that run a distillation."""
    door = next(door for door in DOORS if door.script == script)
    parser = argparse.ArgumentParser(
        prog=door.script, description=door.about, epilog=f"The same as: distil {door.command}"
    )
    add_run_flags(parser, door)
    return run_command(parser, arguments)


def run_viewer_door(arguments: Sequence[str] | None = None) -> int:
    """The viewer script."""
    parser = argparse.ArgumentParser(
        prog=_VIEWER,
        description="Show one trace, a folder of traces, or their totals.",
        epilog="The same as: distil view",
    )
    add_view_flags(parser)
    return run_command(parser, arguments)


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse, run and turn every error meant for the user into one message and an exit code."""
    options = parser.parse_args(arguments)
    load: Callable[[argparse.Namespace], Command] = options.load
    command, advice = load(options), _ADVICE if load is _load_distillation else ""
    interrupts.advise(advice)
    try:
        status = command()
        interrupts.ignore()
        return status
    except (TeacherRefused, FolderError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        _leave(EXIT_USAGE)  # other samples' requests may be in flight: their answers are of no use
    except DistilError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"\n{interrupts.interrupted_text(parser.prog, advice)}", file=sys.stderr)
        _leave(interrupts.EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _leave(status: int) -> NoReturn:
    """Exit without waiting for threads that are blocked in a request; the kernel closes their connections."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        print(f"standard output cannot be written: {error.strerror}", file=sys.stderr)
        status = status or EXIT_USAGE
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def add_run_flags(parser: argparse.ArgumentParser, door: Door) -> None:
    """The flags of every door that runs a distillation, with the door's own defaults."""
    parser.set_defaults(load=_load_distillation, keep_pictures=door.keep_pictures)
    data = parser.add_argument_group("samples")
    data.add_argument(
        "--dataset_path",
        metavar="PATH",
        help="save_to_disk folder (PATH:split for a DatasetDict), parquet / JSONL / CSV file, folder of "
        "pictures, or hub name (default: drawn street signs)",
    )
    data.add_argument("--num_samples", type=_count, default=10, metavar="N", help="0 for all (default: 10)")
    data.add_argument(
        "--order",
        default="dataset",
        metavar="ORDER",
        help="dataset, random, COLUMN or COLUMN:desc; a trace keeps its true row number (default: dataset)",
    )
    data.add_argument("--seed", type=int, default=0, help="of random order and of every request (default: 0)")
    data.add_argument("--output_dir", default=door.output_dir, metavar="DIR", help="(default: %(default)s)")
    data.add_argument(
        "--on_change",
        choices=("refuse", "new", "keep", "redo"),
        default="refuse",
        help="what to do with traces in DIR that were made with other settings (default: refuse to run)",
    )
    data.add_argument("--retry_failed", action="store_true", help="only the samples that failed before")
    data.add_argument(
        "--keep_going",
        action="store_true",
        help="go on where the first 20 samples have no answer, or all tool calls fail",
    )
    data.add_argument(
        "--max_workers",
        type=_positive,
        default=door.max_workers,
        metavar="K",
        help="samples at once, and the ceiling of requests at once, whose number follows what the server "
        "can take (default: %(default)s)",
    )
    data.add_argument(
        "--fixed_workers", action="store_true", help="K requests at once, whatever the server makes of them"
    )
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument(
        "--api_base",
        metavar="URL[,URL…]",
        help="OpenAI-compatible server, several replicas of one, or 'embedded' (default: $OPENAI_BASE_URL; "
        "its key: $OPENAI_API_KEY; with neither, the embedded sign reader)",
    )
    teacher.add_argument("--model", help="(default: the server's only model)")
    teacher.add_argument("--temperature", type=_temperature, default=0.7, help="(default: 0.7)")
    teacher.add_argument(
        "--max_tokens", type=_positive, default=2048, metavar="N", help="of one turn (default: 2048)"
    )
    teacher.add_argument(
        "--request_timeout_seconds",
        type=_seconds,
        default=600.0,
        metavar="S",
        help="of one attempt at a reply (default: 600)",
    )
    teacher.add_argument(
        "--turn_timeout_seconds",
        type=_seconds,
        default=1800.0,
        metavar="S",
        help="of all attempts at one reply (default: 1800)",
    )
    teacher.add_argument(
        "--sample_timeout_seconds",
        type=_seconds,
        default=7200.0,
        metavar="S",
        help="of all turns of one sample; pauses that the server asks for are not counted (default: 7200)",
    )
    teacher.add_argument(
        "--max_outage_seconds",
        type=_seconds,
        default=1800.0,
        metavar="S",
        help="how long a server that is down is waited for (default: 1800)",
    )
    teacher.add_argument("--system_prompt", metavar="TEXT", help="(default: You are a helpful assistant.)")
    teacher.add_argument(
        "--user_prompt_file", metavar="FILE", help="a text file to ask instead of the standard prompt"
    )
    tools = parser.add_argument_group("tools")
    tools.add_argument(
        "--tools",
        default=door.tools,
        metavar="NAMES",
        help="zoom,rotate,python_code or none (default: %(default)s)",
    )
    tools.add_argument(
        "--max_turns",
        type=_positive,
        default=door.max_turns,
        metavar="N",
        help="of one sample (default: %(default)s)",
    )
    tools.add_argument(
        "--tool_mode",
        choices=("auto", "native", "text"),
        default="auto",
        help="how tool calls are written; auto asks for one to find out (default: auto)",
    )
    tools.add_argument(
        "--coordinates",
        choices=COORDINATES,
        default="auto",
        help="the frame of the teacher's boxes; auto goes by the model's name (default: auto)",
    )
    tools.add_argument(
        "--crop_from",
        choices=("current", "original"),
        default="current",
        help="the picture that boxes refer to (default: current)",
    )
    tools.add_argument(
        "--image_max_pixels",
        type=_positive,
        metavar="N",
        help="send pictures at no more than N pixels; crops are cut at full resolution all the same "
        "(default: as the teacher's family needs)",
    )

    code = parser.add_argument_group("the code tool")
    code.add_argument(
        "--code_timeout",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds of a call (default: 10)",
    )
    code.add_argument(
        "--code_memory_mb",
        type=_positive,
        default=2048,
        metavar="N",
        help="memory of a call (default: 2048)",
    )
    code.add_argument(
        "--sandbox_workers",
        type=_positive,
        metavar="N",
        help="calls at once (default: one per processor)",
    )
    code.add_argument(
        "--unsafe_exec",
        action="store_true",
        help="DANGER: run model-written code without containment; recorded in every trace",
    )

    budget = parser.add_argument_group("budget, counted over all runs into DIR")
    budget.add_argument("--max_cost_usd", type=_amount, metavar="USD")
    budget.add_argument("--max_total_tokens", type=_positive, metavar="N", help="prompt and completion")
    budget.add_argument(
        "--max_calls",
        type=_positive,
        metavar="N",
        help="without those that end in an error status",
    )
    budget.add_argument(
        "--price_per_million",
        type=_prices,
        metavar="IN,OUT[,CACHED_IN]",
        help="USD per million tokens (default: as the extra 'prices' knows them)",
    )
    parser.set_defaults(estimate_samples=None)


def add_estimate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `distil estimate`: those of `distil run`, and how many samples to run."""
    add_run_flags(parser, DOORS[0])
    parser.add_argument("--estimate_samples", type=_positive, default=8, metavar="N", help="(default: 8)")


def add_view_flags(parser: argparse.ArgumentParser) -> None:
    """The viewer's flags."""
    parser.set_defaults(load=_load_view)
    parser.add_argument("path", metavar="PATH", type=Path, help="a trace file or a folder of them")
    parser.add_argument("--batch", action="store_true", help="totals over the folder")
    parser.add_argument(
        "--verbose", action="store_true", help="nothing shortened; with --batch a line per trace"
    )


def add_verify_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `distil verify`."""
    parser.set_defaults(load=_load_verify)
    parser.add_argument("path", metavar="PATH", type=Path, help="a trace file or a folder of them")
    parser.add_argument(
        "--dataset_path", metavar="PATH", help="where the dataset is now (default: as the traces say)"
    )
    parser.add_argument(
        "--max_workers",
        type=_positive,
        default=os.cpu_count() or 1,
        metavar="K",
        help="(default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="a line per trace, matched ones too")


def add_doctor_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `distil doctor`."""
    parser.set_defaults(load=_load_doctor, error=parser.error)
    parser.add_argument("--sandbox", action="store_true", help="the layers that contain code")
    parser.add_argument(
        "--api_base",
        metavar="URL[,URL…]",
        help="the teacher to examine with about ten small requests to each replica, or 'embedded' (its key: "
        "$OPENAI_API_KEY)",
    )
    parser.add_argument(
        "--model", help="(default: the server's only model; without --api_base at $OPENAI_BASE_URL)"
    )
    parser.add_argument(
        "--coordinates",
        choices=COORDINATES,
        default="auto",
        help="the frame to tell the teacher; auto goes by the model's name (default: auto)",
    )
    parser.add_argument(
        "--max_tokens", type=_positive, default=2048, metavar="N", help="of one reply (default: 2048)"
    )
    parser.add_argument(
        "--request_timeout_seconds",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="of one request (default: 120)",
    )


def add_signs_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `distil signs`."""
    parser.set_defaults(load=_load_signs)
    parser.add_argument("--output_dir", required=True, type=Path, metavar="DIR")
    parser.add_argument("--num_rows", type=_positive, default=240, metavar="N", help="(default: 240)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")


# The heavy imports wait until a command is run, so that --help and usage errors are quick.


def _load_distillation(namespace: argparse.Namespace) -> Command:
    from rich.console import Console  # noqa: PLC0415

    from distil.run.distillation import run_distillation  # noqa: PLC0415
    from distil.run.preparation import Options  # noqa: PLC0415

    values = {field.name: getattr(namespace, field.name) for field in fields(Options)}
    return partial(run_distillation, Options(**values), Console())


def _load_view(namespace: argparse.Namespace) -> Command:
    from rich.console import Console  # noqa: PLC0415

    from distil.terminal.traces import view  # noqa: PLC0415

    return partial(view, namespace.path, batch=namespace.batch, verbose=namespace.verbose, console=Console())


def _load_verify(namespace: argparse.Namespace) -> Command:
    from rich.console import Console  # noqa: PLC0415

    from distil.terminal.verification import verify  # noqa: PLC0415

    return partial(
        verify,
        namespace.path,
        namespace.dataset_path,
        namespace.max_workers,
        namespace.verbose,
        Console(),
    )


def _load_doctor(namespace: argparse.Namespace) -> Command:
    names_teacher = namespace.api_base is not None or namespace.model is not None
    if not (namespace.sandbox or names_teacher):
        namespace.error("say what to check: --api_base URL for a teacher, --sandbox for this machine")
    from rich.console import Console  # noqa: PLC0415

    from distil.terminal.doctor import DoctorOptions, examine_all  # noqa: PLC0415

    values = {field.name: getattr(namespace, field.name) for field in fields(DoctorOptions)}
    return partial(examine_all, DoctorOptions(**values), Console())


def _load_signs(namespace: argparse.Namespace) -> Command:
    from distil.embedded.launch import draw_signs  # noqa: PLC0415

    def draw() -> int:
        if namespace.output_dir.exists():
            raise UsageError(f"--output_dir {namespace.output_dir} exists already")
        draw_signs(namespace.output_dir, namespace.num_rows, namespace.seed)
        print(f"Drawn: --dataset_path {namespace.output_dir}")
        return EXIT_DONE

    return draw


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _amount(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError("must be an amount above 0")
    return value


def _prices(text: str) -> object:
    from distil.spending.prices import parse_prices  # noqa: PLC0415

    try:
        return parse_prices(text)
    except ValueError:
        raise argparse.ArgumentTypeError("use IN,OUT or IN,OUT,CACHED_IN, USD per million tokens") from None


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError("must be from 0 to 2")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return value


if __name__ == "__main__":
    enter()
