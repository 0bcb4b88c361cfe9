"""The fingerprint that `datasets.load_from_disk` gives a saved dataset, without `datasets`.

Loading sets the dataset's format, and that counts as a change: its fingerprint is hashed anew from the one in
`state.json`. Traces and run records hold the result, so it must not depend on how a dataset was read.
"""

from __future__ import annotations

import pickle
import re
from importlib.metadata import version

_KNOWN = ((4, 0), (5, 2))  # the versions of `datasets`, first and last, that hash and store as is said here
_TRANSFORM = "datasets.arrow_dataset.Dataset.set_format"
_MAX_CHARS = 64  # `datasets` writes 16


def loaded_fingerprint(saved: str) -> str | None:
    """The fingerprint after loading of a dataset saved with this one; None where only `datasets` can tell."""
    if not (saved.isascii() and 0 < len(saved) <= _MAX_CHARS and _is_known(version("datasets"))):
        return None
    try:
        from xxhash import xxh64  # noqa: PLC0415 - `datasets` brings it along
    except ImportError:
        return None
    parts = [("str", _pickled(text)) for text in (saved, _TRANSFORM, "format_kwargs")]
    parts.append(("dict", _head() + b"}\x94."))
    texts = [f"==<class '{kind}'>=={xxh64(data).hexdigest()}" for kind, data in parts]
    return str(xxh64("".join(texts).encode()).hexdigest())


def _is_known(version_text: str) -> bool:
    match = re.match(r"(\d+)\.(\d+)", version_text)
    first, last = _KNOWN
    return match is not None and first <= (int(match[1]), int(match[2])) <= last


def _pickled(text: str) -> bytes:
    """A short ASCII text as `datasets` pickles it: what it reads a second time is not remembered."""
    body = b"\x8c" + bytes([len(text)]) + text.encode() + b"."
    return _head() + b"\x95" + len(body).to_bytes(8, "little") + body


def _head() -> bytes:
    return b"\x80" + bytes([pickle.DEFAULT_PROTOCOL])
