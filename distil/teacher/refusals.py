"""What a server says about its refusal: how long to wait, and whether it is this conversation's own fault."""

from __future__ import annotations

import datetime as dt
import email.utils
import math
import re
from collections.abc import Mapping

from distil.teacher.statuses import Means, meaning

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
