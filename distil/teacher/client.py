"""Asking the teacher: one chat completion per call, over the `openai` client.

A conversation only grows, so a request's body is joined from message parts that were encoded once, and
`client.post` sends the bytes as they are: 2 ms a call instead of the 5 ms of `create()`. The client makes
one attempt; `retry` decides on the next one.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

import openai

from distil.errors import ContextOverflow, TeacherError, TeacherRefused, TeacherUnreachable
from distil.messages.read import parse_reply, read_usage
from distil.records import Json, Reply
from distil.spending.budget import Budget, Request
from distil.teacher.attempts import (
    AttemptFailed,
    Attempts,
    Deadline,
    RetryPolicy,
    Timing,
)
from distil.teacher.availability import NEVER, Availability, OutagePolicy, Sign
from distil.teacher.connection import Connection, ReplyTooLarge, Watchdog
from distil.teacher.refusals import advised_seconds, is_context_overflow, is_moderation
from distil.teacher.slots import Slots
from distil.teacher.statuses import Means, meaning

OPENAI_URL = "https://api.openai.com/v1"
_NO_CREDIT_CODE = "insufficient_quota"  # what OpenAI says with a 429
_MAX_MESSAGE_CHARS = 500
_NO_CONNECTION_ERRORS = ("ConnectError", "ConnectTimeout", "ProxyError")  # of httpx, by whatever name
_UNKNOWN_FIELD_WORDS = ("unsupported", "not support", "unknown", "unrecognized", "extra")
_MAX_FIELD_REFUSALS = 1  # in a row; one may be an odd conversation's own fault
_NO_MODEL_LIST = 200  # the status of an answer that is no list of models

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """Where the teacher is and how it is asked.

    `timeout_seconds` is of one attempt, `turn_timeout_seconds` of all that one reply takes.
    `may_adapt`: leave out or rename request fields that the server refuses; only before a run, since its
    traces say what was sent.
    """

    api_base: str | None
    api_key: str = field(repr=False)
    model: str = ""
    temperature: float = 0.7
    max_tokens: int = 2048
    timeout_seconds: float = 600.0
    turn_timeout_seconds: float = 1800.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    outage: OutagePolicy = field(default_factory=OutagePolicy)
    token_field: str = "max_tokens"
    sends_temperature: bool = True
    sends_seed: bool = True
    may_adapt: bool = False

    def adapted_to(self, status: int, error_text: str) -> TeacherSettings | None:
        """The settings without the request field that a server's error complains about, None for none."""
        text = error_text.lower()
        is_told = any(word in text for word in _UNKNOWN_FIELD_WORDS)
        if not is_told or Means.FIELD_REFUSED not in meaning(status):
            return None
        if self.token_field in text:
            other = {"max_tokens": "max_completion_tokens"}.get(self.token_field, "max_tokens")
            return replace(self, token_field=other)
        if "temperature" in text and self.sends_temperature:
            return replace(self, sends_temperature=False)
        if "seed" in text and self.sends_seed:
            return replace(self, sends_seed=False)
        return None


class Teacher:
    """A teacher that many threads may ask at once; a context manager that closes its connections.

    `availability.tell` gets a line when the server goes and when it is back.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        tools: Sequence[Mapping[str, Json]] = (),
        slots: Slots | None = None,
        budget: Budget | None = None,
    ) -> None:
        """`slots` say how many requests may be in flight; None for as many as there are threads.

        `budget` counts every request for a reply and may end the run.
        """
        self.settings = settings
        self.availability = Availability(settings.outage, base_url_text(settings))
        self._slots = slots or Slots.unlimited()
        self._budget = budget or Budget.unlimited()
        self._tools = tools
        self._local = threading.local()
        self._connections: list[Connection] = []
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._num_field_refusals = 0  # since the last reply

    @property
    def refuses_fields(self) -> bool:
        """Whether the last that the server said was that it does not know a request field it was to take."""
        return self._num_field_refusals > 0

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection and wake every thread: requests in flight and pauses end at once."""
        self.availability.close()
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()
        self._watchdog.close()

    def ask(self, messages: Sequence[bytes], seed: int, deadlines: tuple[Deadline, ...] = ()) -> Reply:
        """Send the messages, each an encoded JSON object, and read the reply; without deadlines, a turn's.

        Raises TeacherRefused where every request would fail alike, BudgetExceeded, ContextOverflow,
        DeadlinePassed, or else TeacherError.
        """
        return self._retried(
            lambda seconds, request: self._attempt(messages, seed, seconds, request),
            self._budget.request,
            deadlines,
        )

    def model_names(self) -> list[str]:
        """The models that the server offers; raises as `ask` does."""

        def attempt(seconds: float, _: Request) -> list[str]:
            try:
                return _model_names(
                    self._sent(lambda connection: connection.get("/models", seconds), seconds)
                )
            except openai.APIStatusError as error:
                raise self._status_failure(error, "/models") from None

        return self._retried(attempt, lambda: nullcontext(Request()), ())

    def _retried(
        self,
        attempt: Callable[[float, Request], ResultT],
        reserve: Callable[[], AbstractContextManager[Request]],
        deadlines: tuple[Deadline, ...],
    ) -> ResultT:
        deadlines = deadlines or (Deadline.after("turn", self.settings.turn_timeout_seconds),)
        attempts = Attempts(
            self.settings.retry, self.availability, deadlines, Timing(self.availability.sleep)
        )

        def attempt_in_slot(seconds: float) -> ResultT:
            asked = time.monotonic()
            with reserve() as request, self._slots.slot() as slot:
                for deadline in deadlines:
                    deadline.extend(time.monotonic() - asked)  # waiting to be sent is not the teacher's time
                try:
                    return attempt(seconds, request)
                except AttemptFailed as failed:
                    if Means.OVERLOAD in meaning(failed.error.status):
                        slot.refused()
                    raise

        return attempts.run(attempt_in_slot, self.settings.timeout_seconds)

    def _attempt(self, messages: Sequence[bytes], seed: int, seconds: float, request: Request) -> Reply:
        """One attempt; where it may adapt, sent again at once without each field that the server refuses."""
        request.sent()
        until = time.monotonic() + seconds
        for _ in range(4):
            settings = self.settings
            body = b"".join((self._head(settings, seed), b",".join(messages), b"]}"))
            left = max(0.001, until - time.monotonic())
            try:
                reply_body = self._sent(
                    lambda connection: connection.post("/chat/completions", body, left),  # noqa: B023
                    left,
                )
                self._num_field_refusals = 0
                return _parsed(reply_body, request)
            except AttemptFailed as failed:
                if failed.sign is Sign.NO_CONNECTION:
                    request.refused()
                raise
            except openai.APIStatusError as error:
                if Means.PERHAPS_BILLED not in meaning(error.status_code):
                    request.refused()
                adapted = settings.adapted_to(error.status_code, _error_text(error))
                if adapted is None or _is_overflow(error):
                    raise self._status_failure(error) from None
                if not settings.may_adapt:
                    raise self._field_failure(error) from None
                self.settings = adapted
        raise AttemptFailed(
            TeacherError("the server refuses the request fields one after another", 400), False, Sign.ALIVE
        )

    def _sent(self, send: Callable[[Connection], bytes], seconds: float) -> bytes:
        """What the server sent within so many seconds; every failure but a status is an AttemptFailed."""
        connection = self._connection()
        try:
            with self._watchdog.watching(connection, seconds) as watch:
                return send(connection)
        except openai.APIStatusError:
            raise
        except (openai.APIConnectionError, ReplyTooLarge, ConnectionAbortedError, RuntimeError) as error:
            cause = error.__cause__ or error  # older clients wrap whatever is raised while they read
            if isinstance(cause, ReplyTooLarge):
                text = f"{base_url_text(self.settings)}: {cause}"
                raise AttemptFailed(TeacherError(text), False, Sign.ALIVE) from None
            self.availability.check_open()  # a closed client raises RuntimeError
            raise self._connection_failure(error, seconds if watch.has_passed else None) from None

    def _head(self, settings: TeacherSettings, seed: int) -> bytes:
        request: dict[str, Json] = {"model": settings.model, settings.token_field: settings.max_tokens}
        if settings.sends_temperature:
            request["temperature"] = settings.temperature
        if settings.sends_seed:
            request["seed"] = seed
        if self._tools:  # vLLM refuses an empty list
            request["tools"] = list(self._tools)
        return json.dumps(request)[:-1].encode() + b', "messages": ['

    def _connection(self) -> Connection:
        """This thread's own connection: one shared pool becomes a lock above 100 threads."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = Connection(self.settings.api_base, self.settings.api_key)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        self.availability.check_open()  # after it is listed, so that `close` misses none
        return connection

    def _status_failure(self, error: openai.APIStatusError, path: str = "") -> AttemptFailed:
        status = error.status_code
        text = f"HTTP {status} from {base_url_text(self.settings)}{path}: {_error_text(error)}"
        means = meaning(status)
        is_broke = Means.NO_CREDIT in means or error.code == _NO_CREDIT_CODE
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return AttemptFailed(
            _status_error(error, without_key(text, self.settings.api_key), is_broke),
            Means.RETRIED in means and not is_broke,
            Sign.BROKEN if Means.BROKEN in means else Sign.ALIVE,
            advised_seconds(status, headers, time.time()),
        )

    def _field_failure(self, error: openai.APIStatusError) -> AttemptFailed:
        """The failure of a sample, or of the run where the sample before met the same."""
        self._num_field_refusals += 1
        failed = self._status_failure(error)
        if self._num_field_refusals <= _MAX_FIELD_REFUSALS:
            return failed
        text = (
            f"{base_url_text(self.settings)} refuses a request field that was taken before the first sample, "
            f"so traces would not say what was sent ({failed}). Run again: it is asked anew which it takes"
        )
        return AttemptFailed(TeacherRefused(text, error.status_code), False, failed.sign)

    def _connection_failure(self, error: Exception, passed_seconds: float | None) -> AttemptFailed:
        cause = error.__cause__ or error
        sign = Sign.NO_CONNECTION if type(cause).__name__ in _NO_CONNECTION_ERRORS else Sign.BROKEN
        reason = f"{type(cause).__name__}: {cause}"
        if passed_seconds is not None or isinstance(error, openai.APITimeoutError):
            reason = f"time-out after {passed_seconds:.4g} s" if passed_seconds else f"time-out ({reason})"
        text = f"no reply from {base_url_text(self.settings)}: {reason}"
        unreachable = TeacherUnreachable(
            without_key(text, self.settings.api_key), has_connected=sign is not Sign.NO_CONNECTION
        )
        return AttemptFailed(unreachable, True, sign)


_SETUP_RETRIES, _SETUP_UNREACHABLE_RETRIES = 5, 2


def for_setup(settings: TeacherSettings) -> TeacherSettings:
    """The settings for the few requests that come before a run and find out which fields the server takes.

    A wrong address is told within seconds, not after the retries of a long run; a server that says when to
    come back is waited for.
    """
    retry = replace(
        settings.retry,
        max_retries=min(settings.retry.max_retries, _SETUP_RETRIES),
        first_pause_seconds=0.5,
        max_pause_seconds=1.0,
        max_unreachable_retries=min(settings.retry.max_unreachable_retries, _SETUP_UNREACHABLE_RETRIES),
    )
    outage = replace(settings.outage, num_failures=NEVER)
    return replace(settings, retry=retry, outage=outage, may_adapt=True)


def load_model_names(settings: TeacherSettings, tell: Callable[[str], None] = lambda _: None) -> list[str]:
    """The models that the server offers; raises TeacherRefused where it cannot be asked at all.

    `tell` gets a line where the server asks to be waited for.
    """
    with Teacher(for_setup(settings)) as teacher:
        teacher.availability.tell = tell
        try:
            return teacher.model_names()
        except TeacherError as error:
            text = str(error)
            if Means.NOT_FOUND in meaning(error.status):
                text += " (does the URL need /v1 at its end? a server without a model list needs --model)"
            raise TeacherRefused(text, error.status, error.attempts) from None
        except (AttributeError, KeyError, TypeError, ValueError):  # a web page, or JSON of another kind
            text = (
                f"{base_url_text(settings)}/models gave no list of models: is this an OpenAI-compatible API?"
            )
            raise TeacherRefused(text, _NO_MODEL_LIST) from None


def _model_names(body: bytes) -> list[str]:
    models = json.loads(body)["data"]
    names = [model["id"] for model in models]
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return names


def first_reachable(
    settings: TeacherSettings, api_bases: Sequence[str], tell: Callable[[str], None]
) -> TeacherSettings:
    """The settings with the first of several replicas that is there; `tell` gets a line for each that is not.

    Raises TeacherRefused where none is, or where one refuses the key.
    """
    for api_base in api_bases[:-1]:
        settings = replace(settings, api_base=api_base)
        try:
            check_reachable(settings, tell)
            return settings
        except TeacherRefused as error:
            if error.status is not None and Means.GATEWAY not in meaning(error.status):
                raise
            tell(f"A replica is not there: {error}")
    return replace(settings, api_base=api_bases[-1])


def check_reachable(
    settings: TeacherSettings, tell: Callable[[str], None] = lambda _: None
) -> list[str] | None:
    """The models that the server offers, None where it has no list that this key may read.

    Raises TeacherRefused where no server answers or the key is wrong.
    """
    try:
        return load_model_names(settings, tell)
    except TeacherRefused as error:
        if error.status is None or meaning(error.status) & (Means.GATEWAY | Means.WRONG_KEY):
            raise
        return None


def base_url_text(settings: TeacherSettings) -> str:
    """The server's address as it may be shown and stored: without user name, password and query."""
    parts = urllib.parse.urlsplit(settings.api_base or OPENAI_URL)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def without_key(text: str, api_key: str) -> str:
    """The text with the key blacked out: servers quote it in their error messages."""
    return text.replace(api_key, "[key]") if len(api_key) >= 6 else text


def _parsed(body: bytes, request: Request) -> Reply:
    try:
        reply = parse_reply(body)
    except TeacherError as error:
        request.unusable(read_usage(body))
        raise AttemptFailed(error, True, Sign.ALIVE) from None
    request.answered(reply.usage)
    return reply


def _status_error(error: openai.APIStatusError, text: str, is_broke: bool) -> TeacherError:
    status = error.status_code
    if _is_overflow(error):
        return ContextOverflow(text, status)
    means = meaning(status)
    if Means.BROKEN in means:
        return TeacherUnreachable(text, status=status)
    is_general = Means.FATAL in means and not is_moderation(status, _error_text(error))
    return TeacherRefused(text, status) if is_broke or is_general else TeacherError(text, status)


def _error_text(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    text = " ".join(str(message or error.message).split())
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[:_MAX_MESSAGE_CHARS] + "…"


def _is_overflow(error: openai.APIStatusError) -> bool:
    body = error.body if isinstance(error.body, dict) else {}
    code = f"{body.get('code')} {body.get('type')}"
    return is_context_overflow(error.status_code, code, f"{code} {_error_text(error)}")
