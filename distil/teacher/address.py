"""Where the teacher is: the flag, the environment, or the embedded one, started for a run."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from distil.embedded.launch import TEACHER_NOTE, check_installed, embedded_teacher
from distil.errors import UsageError
from distil.teacher.client import NO_KEY

EMBEDDED = "embedded"
_OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Address:
    """Where the teacher is, and a note on what it is where it is not a real one."""

    api_bases: tuple[str, ...]  # several are replicas of one server
    api_key: str
    note: str | None = None

    @property
    def api_base(self) -> str:
        """The one that is asked for models and tool mode."""
        return self.api_bases[0]


def find_teacher(api_base: str | None) -> Address:
    """The teacher that flag and environment name; raises UsageError where it cannot be used.

    `OPENAI_BASE_URL` stands in for the flag, and a key alone means OpenAI's own API; with none of them
    it is the embedded teacher.
    """
    api_key = _read_key()
    named = api_base or os.environ.get("OPENAI_BASE_URL") or (_OPENAI_URL if api_key else EMBEDDED)
    if named == EMBEDDED:
        check_installed()
        return Address((EMBEDDED,), NO_KEY, TEACHER_NOTE)
    return Address(_checked_urls(named), api_key or NO_KEY)


@contextmanager
def served(address: Address, tell: Callable[[str], None]) -> Iterator[Address]:
    """The address with a server at it: the embedded teacher is started, and ended afterwards."""
    if address.api_base != EMBEDDED:
        yield address
        return
    tell(
        "Teacher: the embedded sign reader (OCR and rules, for trying the pipeline, not for training). "
        "A real one: --api_base URL --model NAME, its key in OPENAI_API_KEY."
    )
    with embedded_teacher() as api_base:
        yield replace(address, api_bases=(api_base,))


def _read_key() -> str:
    """The key of the environment; raises UsageError, without quoting it, where no header can carry it."""
    key = (os.environ.get("OPENAI_API_KEY") or "").strip()  # `KEY="$(cat file; echo)"`, .env files
    if not (key.isascii() and key.isprintable()):
        raise UsageError("OPENAI_API_KEY holds a character that no HTTP header can carry: copy the key again")
    return key


def _checked_urls(api_bases: str) -> tuple[str, ...]:
    """The URLs of a comma-separated list, each once."""
    return tuple(dict.fromkeys(_checked_url(part.strip()) for part in api_bases.split(",")))


def _checked_url(api_base: str) -> str:
    try:
        parts = urllib.parse.urlsplit(api_base)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise UsageError(
            "--api_base (or OPENAI_BASE_URL) is no URL of the form http://HOST:PORT/v1, or URL,URL,…"
        )
    return api_base
