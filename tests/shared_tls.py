"""One TLS context for all clients of a process.

Each client reads the machine's certificates as it is made, 25 ms of processor time, and no test speaks TLS.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any


def share_tls() -> None:
    """Read the certificates once, where the HTTP library of openai is the one that is known here."""
    with contextlib.suppress(ImportError, AttributeError):
        library: Any = importlib.import_module("httpcore2")
        library.default_ssl_context = functools.cache(library.default_ssl_context)
