"""Shell completion, written by shtab from the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import shtab

_FILES = frozenset({"PATH", "FILE"})
_FOLDERS = frozenset({"DIR"})


def completion_script(
    parser: argparse.ArgumentParser, parsers: Iterable[argparse.ArgumentParser], shell: str
) -> str:
    """The script for a shell; `parsers` are those of the commands, whose paths are completed as such."""
    for each in parsers:
        for action in each._actions:
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script
