"""The `distil` command and the scripts beside this file: one table, a line for each."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from distil import __version__, process
from distil.commands.flags import (
    CheckFlags,
    CleanFlags,
    CompletionFlags,
    DoctorFlags,
    EstimateFlags,
    ExportFlags,
    ImportFlags,
    RunFlags,
    SampleFlags,
    ScoreFlags,
    SignsFlags,
    StatusFlags,
    ToolFlags,
    VerifyFlags,
    ViewFlags,
    add_flags,
    read_flags,
    stated_flags,
)
from distil.commands.usage import Parser, completion_script, examples_text
from distil.errors import UsageError
from distil.terminal.terminal import Terminal
from distil.terminal.words import printable

_ADVICE = "; nothing is lost, the same command goes on from here"
_REAL = "--api_base http://localhost:8000/v1 --dataset_path /data/photos"
_FEW = f"{_REAL} --num_samples 10"
_TWO_RUNS = (f"{_REAL} --num_samples 1000 --max_workers 8", "--api_base embedded --num_samples 10")

# The heavy imports wait until a command is run, so that --help and usage errors are quick.


def _distil(flags: RunFlags) -> Callable[[], int]:
    if flags.quiet:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read as `datasets` is imported
    from distil.run.distillation import run_distillation  # noqa: PLC0415

    terminal = Terminal(is_quiet=flags.quiet, gives_json=flags.json)

    def run() -> int:
        with terminal.logging_to(flags.log_file):
            return run_distillation(flags, terminal)

    return run


def _view(flags: ViewFlags) -> Callable[[], int]:
    return partial(_with_own_code, _shown(flags), flags.task, flags.tool_module, None)


def _shown(flags: ViewFlags) -> Callable[[], int]:
    terminal = Terminal(gives_json=flags.json, ends_with_reader=True)
    if flags.serve:
        from distil.terminal.web import serve_traces  # noqa: PLC0415

        return partial(serve_traces, flags, terminal)
    if flags.html is not None:
        from distil.terminal.web import write_html  # noqa: PLC0415

        return partial(write_html, flags.html, flags, terminal)
    if flags.limit is not None:
        raise argparse.ArgumentTypeError(
            "--limit says how many traces a report holds: name its file with --html"
        )
    if flags.json and len(flags.paths) > 1:
        raise argparse.ArgumentTypeError("--json gives one document: name one file or folder")
    from distil.terminal.traces import view_all  # noqa: PLC0415

    return partial(view_all, flags, terminal)


def _verify(flags: VerifyFlags) -> Callable[[], int]:
    from distil.terminal.verification import verify  # noqa: PLC0415

    run = partial(verify, flags, Terminal(gives_json=flags.json))
    return partial(_with_own_code, run, flags.task, flags.tool_module, flags.reward)


def _score(flags: ScoreFlags) -> Callable[[], int]:
    if flags.reward is None:
        raise argparse.ArgumentTypeError("say by what to score: --reward FILE:FUNCTION")
    from distil.terminal.scores import score  # noqa: PLC0415

    run = partial(score, flags.path, Terminal(gives_json=flags.json))
    return partial(_with_own_code, run, None, None, flags.reward)


def _with_own_code(
    action: Callable[[], int], task: str | None, tool_module: str | None, reward: str | None
) -> int:
    """Run it with the user's own files at hand."""
    from distil.own_code import own_code  # noqa: PLC0415

    with own_code(task, tool_module, reward):
        return action()


def _export(flags: ExportFlags) -> Callable[[], int]:
    from distil.terminal.exporting import export, show_rows, show_selection  # noqa: PLC0415

    if flags.preview is None and not flags.dry_run and flags.out == Path():
        raise argparse.ArgumentTypeError("say where to write: --out PATH; or look first: --preview 3")
    asked = flags.selection
    if asked.split_step is not None and asked.split_by is None:
        raise argparse.ArgumentTypeError("--split_step: say of which columns, as --split_by COLUMN,COLUMN")
    if asked.split_by is not None and asked.validation is None:
        raise argparse.ArgumentTypeError("--split_by: say how much is for validation, as --validation 0.05")
    action = show_selection if flags.dry_run else export if flags.preview is None else show_rows
    run = partial(action, flags, Terminal(gives_json=flags.json))
    return partial(_with_own_code, run, flags.task, flags.tool_module, None)


def _check(flags: CheckFlags) -> Callable[[], int]:
    from distil.terminal.checking import check  # noqa: PLC0415

    return partial(check, flags, Terminal(gives_json=flags.json))


def _import(flags: ImportFlags) -> Callable[[], int]:
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read as `datasets` is imported
    from distil.terminal.exporting import import_files  # noqa: PLC0415

    return partial(import_files, flags, Terminal(gives_json=flags.json))


def _status(flags: StatusFlags) -> Callable[[], int]:
    from distil.terminal.status import show_status  # noqa: PLC0415

    return partial(show_status, flags.path, Terminal(gives_json=flags.json, ends_with_reader=True))


def _clean(flags: CleanFlags) -> Callable[[], int]:
    from distil.store.claim import clean_folder  # noqa: PLC0415

    def clean() -> str:
        return "\n".join(f"Removed {line}" for line in clean_folder(flags.path))

    return partial(_print, lambda: clean() or "There was nothing to remove.")


def _print(text: Callable[[], str]) -> int:
    print(text())
    return process.EXIT_DONE


def _doctor(flags: DoctorFlags) -> Callable[[], int]:
    if not (flags.sandbox or flags.names_teacher):
        raise argparse.ArgumentTypeError(
            "say what to check: --api_base URL for a teacher, --sandbox for this machine"
        )
    from distil.terminal.doctor import examine_all  # noqa: PLC0415

    return partial(examine_all, flags, Terminal(gives_json=flags.json))


def _signs(flags: SignsFlags) -> Callable[[], int]:
    from distil.embedded.launch import draw_data  # noqa: PLC0415

    def draw() -> str:
        if flags.output_dir.exists():
            raise UsageError(f"--output_dir {flags.output_dir} exists already")
        draw_data(flags.output_dir, flags.num_rows, flags.seed, flags.kind)
        return f"Drawn: --dataset_path {shlex.quote(str(flags.output_dir))}"

    return partial(_print, draw)


def _completion(flags: CompletionFlags) -> Callable[[], int]:
    return partial(_print, lambda: completion_script(*_parsers(), flags.shell))


@dataclass(frozen=True)
class Command:
    """A command of `distil`, its script, its flags with their defaults, and what it starts.

    `start` imports what is needed and gives what is to be run; raises ArgumentTypeError for wrong usage.
    """

    name: str
    script: str | None
    about: str
    flags: Any
    start: Callable[[Any], Callable[[], int]]
    examples: tuple[str, ...]
    advice: str = ""  # to who interrupts it
    takes_config: bool = False  # flags from a file and from the environment


COMMANDS: tuple[Command, ...] = (
    Command(
        "run",
        "demo_concurrent.py",
        "Distil with zoom and rotate, many samples at once; traces store only tool arguments.",
        RunFlags(),
        _distil,
        _TWO_RUNS,
        _ADVICE,
        takes_config=True,
    ),
    Command(
        "code",
        "demo_python_code.py",
        "Distil with Python code that the teacher writes, run in a sandbox; traces store only the code.",
        RunFlags(SampleFlags(output_dir="traces_python_code"), tools=ToolFlags(tools="python_code")),
        _distil,
        _TWO_RUNS,
        _ADVICE,
        takes_config=True,
    ),
    Command(
        "with-tools",
        "demo_distillation_with_tools.py",
        "The sequential baseline: one sample at a time, tool pictures kept in the trace.",
        RunFlags(SampleFlags(output_dir="traces_with_tools", max_workers=1), keep_pictures=True),
        _distil,
        (_FEW,),
        _ADVICE,
        takes_config=True,
    ),
    Command(
        "one-turn",
        "demo_distillation.py",
        "The basic baseline: one turn a sample, no tools.",
        RunFlags(
            SampleFlags(output_dir="traces_demo", max_workers=1), tools=ToolFlags(tools="none", max_turns=1)
        ),
        _distil,
        (_FEW,),
        _ADVICE,
        takes_config=True,
    ),
    Command(
        "estimate",
        None,
        "Run a few samples of a selection, keep them, and say what the whole will take.",
        EstimateFlags(),
        _distil,
        (f"{_REAL} --num_samples 1000 --output_dir traces_1k",),
        _ADVICE,
        takes_config=True,
    ),
    Command(
        "view",
        "view_traces_enhanced.py",
        "Show one trace, a folder of traces, or their totals.",
        ViewFlags(),
        _view,
        ("traces_concurrent --batch", "traces_concurrent/trace_00003.json"),
    ),
    Command(
        "status",
        None,
        "Say where a run's folder stands: done, failed, spent, time left; also while a run writes to it.",
        StatusFlags(),
        _status,
        ("traces_concurrent", "traces_concurrent --json"),
    ),
    Command(
        "clean",
        None,
        "Remove from a run's folder what it needs no more; no trace, failure or turn that is of use.",
        CleanFlags(),
        _clean,
        ("traces_concurrent",),
    ),
    Command(
        "score",
        None,
        "Score traces by a function of your own, without a request; writes scores.jsonl beside them.",
        ScoreFlags(),
        _score,
        ("traces_concurrent --reward reward.py:compute_score",),
    ),
    Command(
        "verify",
        None,
        "Replay traces from dataset and stored actions, and compare.",
        VerifyFlags(),
        _verify,
        ("traces_concurrent", "traces_concurrent --dataset_path /moved/photos"),
        takes_config=True,
    ),
    Command(
        "export",
        None,
        "Write traces as training data: for TRL, verl, LLaMA-Factory, ms-swift, chat APIs or the hub.",
        ExportFlags(),
        _export,
        (
            "traces_concurrent --format trl --out sft_trl",
            "run_a run_b --format llamafactory --out sft --best_of 1 --validation 0.1 --errors drop",
            "traces_concurrent --format trl --preview 3",
        ),
    ),
    Command(
        "check",
        None,
        "Say what a trainer's loader would find wrong with an export, or with a file of rows.",
        CheckFlags(),
        _check,
        ("sft_trl", "rows.jsonl --format ms_swift --max_length 8192"),
    ),
    Command(
        "import",
        None,
        "Make traces of conversations that others had: chat messages with pictures.",
        ImportFlags(),
        _import,
        ("theirs.jsonl --output_dir traces_theirs",),
    ),
    Command(
        "doctor",
        None,
        "Check what a teacher can do, or what this machine offers.",
        DoctorFlags(),
        _doctor,
        ("--api_base http://localhost:8000/v1 --model NAME", "--sandbox"),
        takes_config=True,
    ),
    Command(
        "signs",
        None,
        "Draw a dataset for the embedded teacher: street signs, or scenes of coloured shapes.",
        SignsFlags(),
        _signs,
        ("--output_dir signs --num_rows 1000",),
    ),
    Command(
        "completion",
        None,
        "Print a script that completes commands and flags in a shell.",
        CompletionFlags(),
        _completion,
        (
            "bash > ~/.local/share/bash-completion/completions/distil",
            "zsh > ~/.zfunc/_distil",
            "fish > ~/.config/fish/completions/distil.fish",
        ),
    ),
)


def enter(script: str | None = None) -> NoReturn:
    """The `distil` command, or one of the scripts, as a process of its own."""
    process.enter(script or "distil", partial(run_door, script) if script else main)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `distil` command."""
    command, parser, namespace = _parse(arguments)
    return _run(command, namespace, parser)


def read_command(arguments: Sequence[str]) -> tuple[Command, Any]:
    """The command that arguments name, and its flags with what they say."""
    command, _, namespace = _parse(arguments)
    return command, read_flags(namespace, command.flags)


def _parse(arguments: Sequence[str] | None) -> tuple[Command, Parser, argparse.Namespace]:
    parser, parsers = _parsers()
    namespace = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    chosen = next(command for command in COMMANDS if command.name == namespace.command)
    return chosen, parsers[chosen.name], namespace


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """That of the `distil` command, and those of its commands by name."""
    parser = Parser(
        prog="distil",
        description="Distil visual tool-use traces from a vision-language teacher.",
        epilog="Without --api_base and key an embedded sign reader plays the teacher.\n\n"
        + examples_text("distil", [f"{command.name} {command.examples[0]}" for command in COMMANDS[:1]]),
    )
    parser.add_argument("--version", action="version", version=f"distil {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        command.name: commands.add_parser(
            command.name,
            help=command.about,
            description=command.about,
            epilog=examples_text(f"distil {command.name}", command.examples),
        )
        for command in COMMANDS
    }
    for command in COMMANDS:
        _add_all_flags(parsers[command.name], command)
    parser.commands = tuple(parsers)
    return parser, parsers


def _add_all_flags(parser: Parser, command: Command) -> None:
    add_flags(parser, command.flags)
    if not command.takes_config:
        return
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config", metavar="FILE", help="TOML, with the flags' names; flags win, then $DISTIL_…"
    )
    group.add_argument("--dump_config", action="store_true", help="print such a file of these flags, and end")

    def layers(path: str | None) -> dict[str, object]:
        from distil.commands.config_file import read_layers  # noqa: PLC0415

        return read_layers(command.flags, _known_names(), path)

    parser.layers = layers


def _known_names() -> set[str]:
    """The names of all flags that a file may hold, for whatever command it is."""
    return {
        name
        for command in COMMANDS
        if command.takes_config
        for name, flag, *_ in stated_flags(command.flags)
        if not flag.is_positional
    }


def run_door(script: str, arguments: Sequence[str] | None = None) -> int:
    """One of the scripts."""
    command = next(command for command in COMMANDS if command.script == script)
    parser = Parser(
        prog=script,
        description=command.about,
        epilog=f"The same as: distil {command.name}\n\n"
        + examples_text(f"python {script}", command.examples),
    )
    _add_all_flags(parser, command)
    return _run(command, parser.parse_args(sys.argv[1:] if arguments is None else arguments), parser)


def _run(command: Command, namespace: argparse.Namespace, parser: Parser) -> int:
    flags = read_flags(namespace, command.flags)
    if getattr(namespace, "dump_config", False):
        from distil.commands.config_file import config_text  # noqa: PLC0415

        print(config_text(command.name, flags, command.flags), end="")
        return process.EXIT_DONE
    try:
        ready = command.start(flags)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    return process.exit_code_of(ready, parser.prog.split()[0], command.advice, printable)


if __name__ == "__main__":
    enter()
