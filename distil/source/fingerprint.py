"""The fingerprint that `datasets.load_from_disk` gives a saved dataset, without `datasets`.

Loading sets the dataset's format, and that counts as a change: its fingerprint is hashed anew from the one in
`state.json`. Traces and run records hold the result, so it must not depend on how a dataset was read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from importlib.metadata import version

_KNOWN = ((4, 0), (5, 2))  # the versions of `datasets`, first and last, that hash and store as is said here
_TRANSFORM = "datasets.arrow_dataset.Dataset.set_format"
_MAX_COLUMNS, _MAX_TEXT_BYTES = 200, 255  # beyond these a pickle has other forms


def loaded_fingerprint(saved: str, columns: Sequence[str] | None) -> str | None:
    """The fingerprint after loading of a dataset saved with this one; None where only `datasets` can tell.

    `columns` are those that its saved format states.
    """
    texts = [saved, *(columns or ())]
    is_plain = len(texts) <= _MAX_COLUMNS and all(len(text.encode()) <= _MAX_TEXT_BYTES for text in texts)
    if not (saved and is_plain and _is_known(version("datasets"))):
        return None
    try:
        from xxhash import xxh64  # noqa: PLC0415 - `datasets` brings it along
    except ImportError:
        return None
    parts = [("str", _pickled(_text(saved))), ("str", _pickled(_text(_TRANSFORM)))]
    if columns is not None:
        parts += [("str", _pickled(_text("columns"))), ("list", _pickled(_list(columns)))]
    parts += [("str", _pickled(_text("format_kwargs"))), ("dict", _pickled(b"}\x94"))]
    hashed = [f"==<class '{kind}'>=={xxh64(data).hexdigest()}" for kind, data in parts]
    return str(xxh64("".join(hashed).encode()).hexdigest())


def _is_known(version_text: str) -> bool:
    match = re.match(r"(\d+)\.(\d+)", version_text)
    first, last = _KNOWN
    return match is not None and first <= (int(match[1]), int(match[2])) <= last


# --- pickles as `datasets` makes them: no text is remembered, so that one that comes twice is written twice


def _pickled(body: bytes) -> bytes:
    head, body = b"\x80" + bytes([pickle.DEFAULT_PROTOCOL]), body + b"."
    is_framed = len(body) >= 4
    return head + (b"\x95" + len(body).to_bytes(8, "little") if is_framed else b"") + body


def _text(text: str) -> bytes:
    data = text.encode()
    return b"\x8c" + bytes([len(data)]) + data


def _list(texts: Sequence[str]) -> bytes:
    items = b"".join(map(_text, texts))
    if not texts:
        return b"]\x94"
    return b"]\x94" + (items + b"a" if len(texts) == 1 else b"(" + items + b"e")
