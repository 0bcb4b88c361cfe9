"""What a person types: dashes in flags, slips told with what was perhaps meant, examples, completion."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from distil.errors import UsageError

_FLAG = re.compile(r"^--[A-Za-z][\w-]*(?==|$)")
_WIDTH = 78


class Parser(argparse.ArgumentParser):
    """Reads the arguments of `distil`, whose first word is one of `commands`, or those of one command.

    `layers`, where there is one, gives what is said of the flags elsewhere, by the file of `--config`, which
    may be None; raises UsageError.
    """

    def __init__(
        self, prog: str | None = None, description: str = "", epilog: str = "", **others: Any
    ) -> None:
        super().__init__(
            prog=prog,
            description=textwrap.fill(description, _WIDTH),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **others,
        )
        self.commands: Sequence[str] = ()
        self.layers: Callable[[str | None], Mapping[str, object]] | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Read them all: those that are not known are an error here, where it is known what there is."""
        given = with_underscores(list(args or ()))
        if self.commands:
            self._check_command(given)
            return super().parse_known_args(given, namespace)
        if self.layers is not None and not {"-h", "--help"} & set(given):
            try:
                self._take_in(self.layers(self._config_path(given)))
            except UsageError as error:
                self.exit(2, f"{self.prog}: error: {error}\n")
        found, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(self._unknown_text(unknown[0]))
        return found, []

    def _config_path(self, given: Sequence[str]) -> str | None:
        parser = argparse.ArgumentParser(prog=self.prog, usage=self.format_usage()[7:], add_help=False)
        parser.add_argument("--config")
        path: str | None = parser.parse_known_args(given)[0].config
        return path

    def _take_in(self, values: Mapping[str, object]) -> None:
        self.set_defaults(**values)
        for action in self._actions:
            action.required = action.required and action.dest not in values

    def _check_command(self, given: Sequence[str]) -> None:
        first = given[0] if given else "-"
        if not first.startswith("-") and first not in self.commands:
            self.error(f"unknown command {first}{suggestion(first, self.commands, f'{self.prog} --help')}")

    def _unknown_text(self, argument: str) -> str:
        flag = _FLAG.match(argument)
        if flag is None:
            return f"unexpected argument {argument}; flags begin with --"
        known = [name for action in self._actions for name in action.option_strings]
        return f"unknown flag {flag[0]}{suggestion(flag[0], known, f'{self.prog} --help')}"


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """The arguments with dashes within the names of flags as underscores; what follows `--` stays."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spelled = [_FLAG.sub(lambda name: "--" + name[0][2:].replace("-", "_"), each) for each in arguments[:end]]
    return [*spelled, *arguments[end:]]


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """`: did you mean …?` where a known name is like it, else what lists them."""
    meant = closest(name, known)
    return f"; {otherwise} lists them" if meant is None else f": did you mean {meant}?"


def closest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that is most like another, None where none is; `likeness` is from 0 to 1."""
    by_word = {each.lstrip("-"): each for each in known}  # dashes in front would make all flags alike
    close = difflib.get_close_matches(name.lstrip("-"), list(by_word), n=1, cutoff=likeness)
    return by_word[close[0]] if close else None


def examples_text(prog: str, examples: Iterable[str]) -> str:
    """The lines with which a help ends."""
    return "\n".join(["examples:", *(f"  {prog} {example}".rstrip() for example in examples)])


def completion_script(parser: Parser, parsers: Mapping[str, Parser], shell: str) -> str:
    """The script for a shell; `parsers` are those of the commands, whose paths are completed as such.

    Raises UsageError where what writes it is not installed.
    """
    try:
        import shtab  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(f"completion needs {error.name}: pip install {error.name}") from None

    for action in chain.from_iterable(each._actions for each in parsers.values()):
        if action.metavar in ("PATH", "FILE"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script
