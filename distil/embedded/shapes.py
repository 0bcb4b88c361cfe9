"""Coloured shapes in a view: found by their colour, told apart by how much of their box they fill."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

CIRCLE, SQUARE, TRIANGLE = "circle", "square", "triangle"
SHAPE_NAMES = (CIRCLE, SQUARE, TRIANGLE)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 40),
    "green": (40, 150, 60),
    "blue": (35, 80, 200),
    "yellow": (240, 205, 30),
    "purple": (130, 50, 160),
    "orange": (240, 130, 25),
}
MAX_COLOUR_DISTANCE = 60.0  # in RGB: the palette's closest two are 76 apart
CELL_PX = 4  # shapes are looked for in cells of this side
MIN_CELLS = 12
MIN_CELL_SHARE = 0.5  # of a cell's pixels that have the colour
# A circle fills 0.79 of its box, a square all of it, a triangle half; print in it takes a little away.
SQUARE_SHARE, CIRCLE_SHARE = 0.88, 0.62


def find_shapes(view: Pixels, colour: str) -> list[tuple[str, Box]]:
    """The shapes of one colour, the largest first: name, and box in pixels of the view, far edge excluded."""
    groups = [group for group in connected(coloured_cells(view, colour)) if len(group) >= MIN_CELLS]
    return [measure(group) for group in sorted(groups, key=len, reverse=True)]


def coloured_cells(view: Pixels, colour: str) -> set[tuple[int, int]]:
    """The cells (row, column) that mostly have a colour."""
    away = view.astype(np.float32) - np.array(PALETTE[colour], np.float32)
    has_colour = np.sqrt((away**2).sum(axis=2)) <= MAX_COLOUR_DISTANCE
    height, width = (side // CELL_PX for side in has_colour.shape)
    blocks = has_colour[: height * CELL_PX, : width * CELL_PX].reshape(height, CELL_PX, width, CELL_PX)
    rows, columns = np.nonzero(blocks.mean(axis=(1, 3)) >= MIN_CELL_SHARE)
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


def connected(cells: set[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The groups of cells that touch, also at a corner."""
    left, groups = set(cells), []
    for start in sorted(cells):
        if start not in left:
            continue
        left.remove(start)
        group, open_cells = [], [start]
        while open_cells:
            row, column = open_cells.pop()
            group.append((row, column))
            near = {(row + down, column + across) for down in (-1, 0, 1) for across in (-1, 0, 1)} & left
            left -= near
            open_cells.extend(sorted(near))
        groups.append(group)
    return groups


def measure(group: list[tuple[int, int]]) -> tuple[str, Box]:
    """The shape that a group of cells is, and its box; what is written in it is filled in."""
    rows, columns = zip(*group, strict=True)
    top, bottom, left, right = min(rows), max(rows) + 1, min(columns), max(columns) + 1
    in_row: dict[int, list[int]] = {}
    for row, column in group:
        in_row.setdefault(row, []).append(column)
    filled = sum(max(cells) - min(cells) + 1 for cells in in_row.values())
    share = filled / ((bottom - top) * (right - left))
    name = SQUARE if share >= SQUARE_SHARE else CIRCLE if share >= CIRCLE_SHARE else TRIANGLE
    return name, (left * CELL_PX, top * CELL_PX, right * CELL_PX, bottom * CELL_PX)
