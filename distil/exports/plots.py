"""The plots of a data card, as PNG files with the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distil.records import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

FOLDER = "card"
NO_PLOTS = "There are no plots, as matplotlib is not installed: `pip install 'distil[export]'`."
_COLUMNS = 3
_MAX_PANELS = 18
_MAX_BARS = 12
_MAX_LABEL_CHARS = 24
_PANEL_INCHES: tuple[float, float] = (4.0, 2.6)
_RIGHT_INCHES, _TOP_INCHES, _BOTTOM_INCHES = 0.2, 0.35, 0.5
_BLUE, _GREY = "#2f6db3", "#8a8f98"
_STYLE: dict[Any, Any] = {  # what a user's own settings would change
    "font.family": ["DejaVu Sans"],  # it comes with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.parse_math": False,
    "text.usetex": False,
}
_Panel = tuple[str, "Callable[[Axes, Any], None]", Json]  # its title, what draws it, and what of


def can_plot() -> bool:
    """Whether there is something to draw with."""
    return find_spec("matplotlib") is not None


def draw_plots(card: Mapping[str, Json], folder: Path) -> dict[str, str]:
    """Draw what a card holds into files of an export; their paths within it, by what they show."""
    figures: list[_Panel] = [
        (name, _histogram, each) for name, each in card["figures"].items() if _has_shape(each)
    ]
    values: list[_Panel] = [
        (name, _bars, each)
        for part in ("values", "attribution")
        for name, each in card[part].items()
        if len(each) > 1
    ]
    written = {}
    for title, panels in (("Figures", figures), ("Values", values)):
        if panels:
            (folder / FOLDER).mkdir(exist_ok=True)
            written[title] = f"{FOLDER}/{title.lower()}.png"
            _draw(panels[:_MAX_PANELS], folder / written[title])
    return written


def _has_shape(found: Mapping[str, Json]) -> bool:
    """Whether a figure says more than its mean does: not where it is one number, or 0 and 1."""
    return bool(found["lowest"] < found["highest"] and (found["highest"] > 1 or len(found["bins"]) > 2))


def _draw(panels: Sequence[_Panel], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - half a second

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = _figure(panels)
        # What wrote it would be in the file, and be another with each version.
        figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def _figure(panels: Sequence[_Panel]) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    columns = min(_COLUMNS, len(panels))
    num_rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * num_rows
    figure = Figure(figsize=(width, height))
    for number, (name, draw, found) in enumerate(panels):
        row, column = divmod(number, columns)
        left = column * _PANEL_INCHES[0] + _LEFT_INCHES[draw]
        bottom = (num_rows - 1 - row) * _PANEL_INCHES[1] + _BOTTOM_INCHES
        right, top = (column + 1) * _PANEL_INCHES[0], (num_rows - row) * _PANEL_INCHES[1]
        # Placed here: a layout that is computed takes longer than all else.
        axes = figure.add_axes(
            (
                left / width,
                bottom / height,
                (right - _RIGHT_INCHES - left) / width,
                (top - _TOP_INCHES - bottom) / height,
            )
        )
        axes.set_title(_label(name, ""))
        draw(axes, found)
    return figure


def _histogram(axes: Axes, found: Mapping[str, Json]) -> None:
    edges = found["edges"]
    axes.stairs(found["bins"], edges, fill=True, color=_BLUE)
    axes.set_ylim(bottom=0)
    axes.axvline(found["median"], color=_GREY, linewidth=1, linestyle="--")
    axes.set_ylabel("traces")
    axes.yaxis.set_major_locator(_whole_numbers())


def _bars(axes: Axes, found: Sequence[Mapping[str, Json]]) -> None:
    shown = found[:_MAX_BARS]
    labels = [_label(_text(each), f"({number})") for number, each in enumerate(shown, start=1)]
    positions = range(len(shown))
    axes.barh(positions, [each["traces"] for each in shown], color=_BLUE)
    axes.set_yticks(list(positions), labels)
    axes.invert_yaxis()
    num_more = len(found) - len(shown)
    axes.set_xlabel(f"traces; {num_more} more values" if num_more else "traces")
    axes.xaxis.set_major_locator(_whole_numbers())


_LEFT_INCHES = {_histogram: 0.6, _bars: 1.75}  # for what stands beside the axis


def _whole_numbers() -> Locator:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    return MaxNLocator(nbins=5, integer=True)


def _text(each: Mapping[str, Json]) -> str:
    if "value" not in each:
        return "others"
    return "nothing" if each["value"] is None else str(each["value"])


def _label(text: str, otherwise: str) -> str:
    """A short text that the font can draw; `otherwise`, its line in the table, where it cannot."""
    text = " ".join(text.split())
    short = text if len(text) <= _MAX_LABEL_CHARS else text[: _MAX_LABEL_CHARS - 1] + "…"
    return short if _can_draw(short) else otherwise


def _can_draw(text: str) -> bool:
    return all(ord(character) in _glyphs() for character in text)


@cache
def _glyphs() -> Container[int]:
    from matplotlib.font_manager import findfont, get_font  # noqa: PLC0415

    return get_font(findfont("DejaVu Sans")).get_charmap()
