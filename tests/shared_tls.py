"""One TLS context for all clients of a process.

Each client reads the machine's certificates as it is made, 25 ms of processor time, and no test speaks TLS.
"""

from __future__ import annotations

import contextlib
import functools


def share_tls() -> None:
    """Read the certificates once, where the HTTP library of openai is the one that is known here."""
    with contextlib.suppress(ImportError, AttributeError):
        import httpcore2

        httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)
