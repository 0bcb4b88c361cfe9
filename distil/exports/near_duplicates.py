"""Photos that are nearly the same, by perceptual hashes of 64 bits."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distil.errors import DistilError, UsageError
from distil.replay.replay import Executors, Sources
from distil.store.trace_file import read_trace

HASH_BITS = 64
_ROWS_AT_ONCE = 512  # of a table of pairs
_BITS_OF_16 = np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)

_Hashes = NDArray[np.uint64]


def check_imagehash() -> None:
    """Raise UsageError where there is nothing to hash with."""
    if find_spec("imagehash") is None:
        raise UsageError("--near_duplicates needs the package ImageHash: pip install 'distil[export]'")


def photo_hash(path: Path, sources: Sources, _: Executors) -> int | None:
    """The perceptual hash of a trace's photo; None where it cannot be read: the export says why."""
    import imagehash  # noqa: PLC0415 - heavy, and seldom asked for

    try:
        trace = read_trace(path)
        picture = sources.of(trace).load(trace.sample_id).picture
        if picture.file_sha256 != trace.file_sha256:
            return None
        return int(str(imagehash.phash(picture.image)), 16)
    except (DistilError, LookupError, ValueError, TypeError, AttributeError):
        return None


def near_pairs(hashes: Collection[int], max_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of different hashes that differ in `max_bits` bits at most, each once, in no order.

    Hashes that differ in few bits have one of some pieces in common: only those that do are compared.
    """
    values = np.array(sorted(set(hashes)), dtype=np.uint64)
    seen: set[tuple[int, int]] = set()
    for start, end in _pieces(max_bits + 1):
        piece = (values >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
        for pair in _pairs_within(values, piece, max_bits):
            if pair not in seen:
                seen.add(pair)
                yield pair


def _pieces(number: int) -> list[tuple[int, int]]:
    """The bits of a hash in so many pieces: where each begins and ends."""
    edges = [HASH_BITS * each // number for each in range(number + 1)]
    return list(pairwise(edges))


def _pairs_within(values: _Hashes, piece: _Hashes, max_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of values with the same piece that are near, the smaller one first."""
    order = np.argsort(piece, kind="stable")  # equal ones stay in the order of their values
    edges = np.flatnonzero(np.diff(piece[order])) + 1
    for group in np.split(order, edges):
        for start in range(0, len(group) if len(group) > 1 else 0, _ROWS_AT_ONCE):
            some = group[start : start + _ROWS_AT_ONCE]
            num_bits = _num_bits(values[some][:, None] ^ values[group][None, :])
            for row, column in zip(*np.nonzero(num_bits <= max_bits), strict=True):
                if start + row < column:
                    yield int(values[some[row]]), int(values[group[column]])


def _num_bits(values: _Hashes) -> NDArray[np.uint8]:
    """How many bits of each value are set."""
    bits: NDArray[np.uint8] = _BITS_OF_16[values[..., None].view(np.uint16)].sum(axis=-1, dtype=np.uint8)
    return bits
