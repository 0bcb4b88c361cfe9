"""The lines that start a trainer, as an export's README has them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path


def start_line(export: Path) -> list[str]:
    """The words of the command."""
    readme = (export / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```bash\n(.*?)```", readme.partition("## Start")[2], re.DOTALL)
    return shlex.split(code[0].replace("\\\n", " "))


def flags(export: Path) -> dict[str, str]:
    """`--name value` by name."""
    words = start_line(export)
    return {word[2:]: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}


def assignments(export: Path) -> dict[str, str]:
    """`name=value` by name."""
    return dict(word.split("=", 1) for word in start_line(export) if "=" in word)
