"""Make `land.json`, the outlines that the viewer draws maps of, from Natural Earth's as npm has them.

    npm pack world-atlas && tar xzf world-atlas-*.tgz
    python docs/make_map.py package/land-110m.json package/package.json

What it writes is part of the package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path

from distil.records import Json
from distil.viewer.pages import LAND_FILE

_HALF_TURN, _POLE = 180.0, 90.0
_DECIMALS = 2  # a hundredth of a degree is half a pixel where the world is 20,000 wide

Vertex = tuple[float, float]  # degrees east, degrees north
Ring = list[Vertex]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("topology", type=Path)
    parser.add_argument("package", type=Path, help="its package.json, for the version")
    options = parser.parse_args()
    topology = json.loads(options.topology.read_text(encoding="utf-8"))
    version = json.loads(options.package.read_text(encoding="utf-8"))["version"]
    LAND_FILE.write_text(land_text(topology, version), encoding="utf-8")


def land_text(topology: Json, version: str) -> str:
    """The outlines as the file has them: a line a ring, so that a change of one can be seen."""
    land, lakes = outlines(topology)
    source = (
        f"Natural Earth 1:110m land (public domain), as packed in world-atlas {version}; rings of degrees "
        "east and north in turn, cut at 180 degrees"
    )
    return (
        f'{{\n "source": {json.dumps(source)},\n "land": [\n{_lines(land)}\n ],\n'
        f' "lakes": [\n{_lines(lakes)}\n ]\n}}\n'
    )


def outlines(topology: Json) -> tuple[list[Ring], list[Ring]]:
    """The outer rings of all polygons of a TopoJSON, and the holes in them."""
    arcs = [list(_arc(arc, topology["transform"])) for arc in topology["arcs"]]
    outer: list[Ring] = []
    holes: list[Ring] = []
    for polygon in _polygons(topology["objects"]["land"]):
        for position, numbers in enumerate(polygon):
            (holes if position else outer).extend(cut(_ring(numbers, arcs)))
    return outer, holes


def _arc(deltas: Iterable[list[int]], transform: Json) -> Iterator[Vertex]:
    """An arc's vertices: they are stored as steps on a grid."""
    (scale_x, scale_y), (left, bottom) = transform["scale"], transform["translate"]
    for x, y in accumulate(deltas, lambda place, step: [place[0] + step[0], place[1] + step[1]]):
        yield x * scale_x + left, y * scale_y + bottom


def _polygons(geometry: Json) -> Iterator[Json]:
    if geometry["type"] == "GeometryCollection":
        for inner in geometry["geometries"]:
            yield from _polygons(inner)
    elif geometry["type"] == "MultiPolygon":
        yield from geometry["arcs"]
    else:
        yield geometry["arcs"]


def _ring(numbers: list[int], arcs: list[Ring]) -> Ring:
    """The arcs of a ring one after the other; a negative number is an arc backwards."""
    ring: Ring = []
    for number in numbers:
        ring += (arcs[number] if number >= 0 else arcs[~number][::-1])[bool(ring) :]
    return ring


def cut(ring: Ring) -> list[Ring]:
    """A ring on the globe as rings on a flat map: what leaves it at 180 degrees comes in opposite."""
    unrolled = _unrolled(ring)
    if abs(unrolled[-1][0] - unrolled[0][0]) > _HALF_TURN:  # all around a pole, which then is inside
        pole = -_POLE if unrolled[0][1] < 0 else _POLE
        unrolled = [*unrolled, (unrolled[-1][0], pole), (unrolled[0][0], pole)]
    pieces = []
    for shift in (-2 * _HALF_TURN, 0.0, 2 * _HALF_TURN):
        shifted = [(x + shift, y) for x, y in unrolled]
        piece = _clipped(_clipped(shifted, _HALF_TURN, -1), -_HALF_TURN, 1)
        if len(piece) > 2:
            pieces.append(piece)
    return pieces


def _unrolled(ring: Ring) -> Ring:
    """The ring without jumps from one end of the map to the other."""
    turned = [ring[0]]
    for (before, _), (x, y) in pairwise(ring):
        step = (x - before + _HALF_TURN) % (2 * _HALF_TURN) - _HALF_TURN
        turned.append((turned[-1][0] + step, y))
    return turned


def _clipped(ring: Ring, limit: float, side: int) -> Ring:
    """The part of a ring on one side of a meridian, 1 for east of it (Sutherland and Hodgman's way)."""
    kept: Ring = []
    for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], *ring[:1]], strict=True):
        is_in, next_is_in = side * (x - limit) >= 0, side * (next_x - limit) >= 0
        if is_in:
            kept.append((x, y))
        if is_in != next_is_in:
            kept.append((limit, y + (next_y - y) * (limit - x) / (next_x - x)))
    return kept


def _lines(rings: list[Ring]) -> str:
    return ",\n".join(f"  {json.dumps(_flat(ring), separators=(',', ':'))}" for ring in rings)


def _flat(ring: Ring) -> list[float]:
    """x and y in turn, rounded, without vertices that fall on the one before."""
    rounded = [(_rounded(x), _rounded(y)) for x, y in ring]
    kept = [place for place, before in zip(rounded, [None, *rounded], strict=False) if place != before]
    return [number for place in kept for number in place]


def _rounded(degrees: float) -> float:
    value = round(degrees, _DECIMALS)
    return int(value) if value == int(value) else value


if __name__ == "__main__":
    main()
