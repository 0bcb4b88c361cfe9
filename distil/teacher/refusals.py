"""What a server's refusal means: its status, by one table, and its words.

They say whether to ask again and how long to wait, and whether it is this conversation's own fault.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import math
import re
from collections.abc import Mapping
from enum import Flag, auto

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_LONGEST_SPAN_SECONDS = 1e8  # a larger number is a date in seconds, not a span
_LIMIT_RESET = "x-ratelimit-reset-"
_LIMIT_REMAINING = "x-ratelimit-remaining-"

_OVERFLOW_CODES = ("context_length_exceeded", "exceed_context_size_error")
_OVERFLOW_WORDS = (
    "maximum context length",  # OpenAI, vLLM, SGLang
    "model's context length",  # vLLM "… is only 4096 tokens", SGLang "longer than the …"
    "maximum model length",  # vLLM, prompts with pictures
    "too long to fit into the model",  # vLLM before 0.8
    "maximum allowed length",  # SGLang
    "available context size",  # llama.cpp
    "exceeds the maximum number of tokens allowed",  # Gemini, after "The input token count (…)"
    "prompt is too long",  # Anthropic
    "`max_tokens` exceed context limit",  # Anthropic, after "input length and"
    "maximum prompt length",  # xAI
)

_TOO_LARGE_PICTURE = (
    re.compile(  # "Image size (… pixels) exceeds limit", "image dimensions exceed max allowed"
        r"too many pixels|image_too_large|\b(image|picture|photo)\b.{0,80}\b(too (large|big)|exceeds?)\b"
    )
)

# OpenRouter's 403 "… requires moderation … Your input was flagged for …"; a wrong key is not "flagged".
_MODERATION_WORDS = ("flagged", "moderation", "content policy", "content filter", "safety")


class Means(Flag):
    """What a status may say about the request, the server and the run."""

    NOTHING = 0
    RETRIED = auto()  # the same request may do better later
    PASSING = auto()  # a busy server, which says nothing about what was asked
    OVERLOAD = auto()  # too many requests in flight
    RATE_LIMIT = auto()  # headers of limits say when the next request may come
    BROKEN = auto()  # an error of the server's own: one whose engine has died says 500 to everything
    GATEWAY = auto()  # a proxy's, which answers for servers that are down
    GAVE_UP = auto()  # perhaps a proxy's own time limit, shorter than the generation
    PERHAPS_BILLED = auto()  # a time-out on the server's side: the reply may have been made
    WRONG_KEY = auto()
    FORBIDDEN = auto()  # the key may not do this; or the content is refused (see `is_moderation`)
    FATAL = auto()  # the same for every request of a run
    NO_CREDIT = auto()
    NOT_FOUND = auto()  # perhaps the URL lacks its /v1
    BAD_REQUEST = auto()  # perhaps the conversation is too long (see `is_context_overflow`)
    TOO_LARGE = auto()  # the request's body
    PICTURE_REFUSED = auto()  # perhaps for its size (see `is_too_large`)
    FIELD_REFUSED = auto()  # perhaps a request field that the server does not know
    TOOLS_REFUSED = auto()  # perhaps `tools`, without a tool parser (llama.cpp: 500, OpenRouter: 404)
    PLAINLY_REFUSED = auto()  # of the plainest request there is: then nothing else works either


_PASSING = Means.RETRIED | Means.PASSING
_BROKEN = Means.RETRIED | Means.BROKEN  # every 5xx
_GATEWAY = _BROKEN | Means.PASSING | Means.GATEWAY
_CUT_OFF = _GATEWAY | Means.OVERLOAD | Means.PERHAPS_BILLED | Means.GAVE_UP  # or the server queues
_UNFIT = Means.TOOLS_REFUSED | Means.PLAINLY_REFUSED

_MEANINGS = {
    400: _UNFIT | Means.FIELD_REFUSED | Means.PICTURE_REFUSED | Means.BAD_REQUEST,
    401: Means.FATAL | Means.PLAINLY_REFUSED | Means.WRONG_KEY,
    402: Means.FATAL | Means.NO_CREDIT,
    403: Means.FATAL | Means.PLAINLY_REFUSED | Means.FORBIDDEN,
    404: Means.FATAL | _UNFIT | Means.NOT_FOUND,
    405: _UNFIT,
    408: _PASSING | Means.PERHAPS_BILLED | Means.GAVE_UP,
    409: _PASSING,
    413: Means.TOO_LARGE,
    415: _UNFIT,
    422: _UNFIT | Means.FIELD_REFUSED | Means.PICTURE_REFUSED,
    429: _PASSING | Means.OVERLOAD | Means.RATE_LIMIT,
    500: _BROKEN | Means.TOOLS_REFUSED,
    501: _BROKEN | Means.TOOLS_REFUSED,
    502: _GATEWAY | Means.GAVE_UP,
    503: _GATEWAY | Means.OVERLOAD,
    504: _CUT_OFF,
    524: _CUT_OFF,  # Cloudflare's 504
}


def meaning(status: int | None) -> Means:
    """All that a status means; nothing where no status came."""
    if status is None:
        return Means.NOTHING
    return _MEANINGS.get(status, _BROKEN if status >= 500 else Means.NOTHING)


def advised_seconds(status: int, headers: Mapping[str, str], now: float) -> float | None:
    """How long the server asks to wait before the next request, None where it does not say.

    `headers` have lower-case names; `now` is the time of day in seconds since 1970, used where the server
    does not tell its own: a date is told by the server's clock, and ours may be set wrong.
    """
    server_now = parse_date(headers.get("date"))
    milliseconds = parse_number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    told = parse_retry_after(headers.get("retry-after"), now if server_now is None else server_now)
    if told is not None:
        return told
    return _limit_reset_seconds(headers) if Means.RATE_LIMIT in meaning(status) else None


def parse_retry_after(text: str | None, now: float) -> float | None:
    """The seconds of a `retry-after` header, which holds seconds or an HTTP date."""
    seconds = parse_number(text)
    if seconds is not None:
        return seconds
    moment = parse_date(text)
    return None if moment is None else max(0.0, moment - now)


def parse_date(text: str | None) -> float | None:
    """The seconds since 1970 of an HTTP date."""
    if text is None:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:  # "-0000", or no zone at all
            moment = moment.replace(tzinfo=dt.UTC)
        return moment.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def parse_span(text: str | None) -> float | None:
    """The seconds of a span such as `1s`, `6m0s`, `20ms` or `1h2m3.5s`; a bare number is seconds."""
    number = parse_number(text)
    if number is not None or text is None:
        return number
    parts = _SPAN_PART.findall(text.strip())
    if not parts or "".join(amount + unit for amount, unit in parts) != text.strip():
        return None
    return parse_number(str(sum(float(amount) * _UNITS[unit] for amount, unit in parts)))


def parse_number(text: str | None) -> float | None:
    """A header's number if it can be a span of time."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number < _LONGEST_SPAN_SECONDS else None


def _limit_reset_seconds(headers: Mapping[str, str]) -> float | None:
    """When the limit that was hit resets; where none is said to be used up, when all of them have."""
    spans = {
        name.removeprefix(_LIMIT_RESET): span
        for name, value in headers.items()
        if name.startswith(_LIMIT_RESET) and (span := parse_span(value)) is not None
    }
    used_up = [span for name, span in spans.items() if headers.get(_LIMIT_REMAINING + name) == "0"]
    return max(used_up or spans.values(), default=None)


def is_moderation(status: int, text: str) -> bool:
    """Whether a refusal is of this conversation's content, not of the key."""
    return Means.FORBIDDEN in meaning(status) and any(words in text.lower() for words in _MODERATION_WORDS)


def is_too_large(status: int, text: str) -> bool:
    """Whether a refusal that is no context overflow is of the size of what was sent."""
    means = meaning(status)
    return Means.TOO_LARGE in means or (
        Means.PICTURE_REFUSED in means and _TOO_LARGE_PICTURE.search(text.lower()) is not None
    )


def is_context_overflow(status: int, code: str, text: str) -> bool:
    """Whether a refusal means that the conversation is longer than the model takes."""
    if Means.BAD_REQUEST not in meaning(status):
        return False
    if code in _OVERFLOW_CODES or any(name in text for name in _OVERFLOW_CODES):
        return True
    return any(words in text.lower() for words in _OVERFLOW_WORDS)
