"""The one table of HTTP statuses, against what is known of each group of them."""

from __future__ import annotations

import pytest

from distil.teacher.refusals import Means, meaning

SERVER_ERRORS = tuple(range(500, 600))
STATUSES_OF = {
    Means.RETRIED: (408, 409, 429, *SERVER_ERRORS),
    Means.PASSING: (408, 409, 429, 502, 503, 504, 524),
    Means.OVERLOAD: (429, 503, 504, 524),
    Means.RATE_LIMIT: (429,),
    Means.BROKEN: SERVER_ERRORS,
    Means.GATEWAY: (502, 503, 504, 524),
    Means.GAVE_UP: (408, 502, 504, 524),
    Means.PERHAPS_BILLED: (408, 504, 524),
    Means.WRONG_KEY: (401,),
    Means.FORBIDDEN: (403,),
    Means.FATAL: (401, 402, 403, 404),
    Means.NO_CREDIT: (402,),
    Means.NOT_FOUND: (404,),
    Means.BAD_REQUEST: (400,),
    Means.TOO_LARGE: (413,),
    Means.PICTURE_REFUSED: (400, 422),
    Means.FIELD_REFUSED: (400, 422),
    Means.TOOLS_REFUSED: (400, 404, 405, 415, 422, 500, 501),
    Means.PLAINLY_REFUSED: (400, 401, 403, 404, 405, 415, 422),
}


@pytest.mark.parametrize("means", Means, ids=lambda means: str(means.name).lower())
def test_a_meaning_is_that_of_these_statuses_and_no_others(means: Means) -> None:
    assert tuple(status for status in range(100, 600) if means in meaning(status)) == STATUSES_OF[means]


def test_no_status_means_nothing() -> None:
    assert meaning(None) is meaning(200) is Means.NOTHING
