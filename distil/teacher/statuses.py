"""What an HTTP status means: one table, asked by everything that judges a reply by its status.

Texts that tell two refusals of one status apart are in `refusals`.
"""

from __future__ import annotations

from enum import Flag, auto


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
