"""The bar of commands that work through traces."""

from __future__ import annotations

from tqdm import tqdm

from distil.terminal.terminal import Terminal


class Bar(tqdm):  # type: ignore[misc]
    """A bar without tqdm's own thread, beside which no process could fork."""

    monitor_interval = 0


def say_above_bar(terminal: Terminal, line: str, style: str = "") -> None:
    """A line in the terminal while a bar is drawn."""
    with Bar.external_write_mode():
        terminal.say(line, style)
