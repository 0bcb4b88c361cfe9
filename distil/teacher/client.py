"""Asking the teacher: one chat completion per call, over the `openai` client.

A conversation only grows, so a request's body is the messages as they were encoded once, sent in pieces and
never joined. What is here makes one attempt; `attempts` decides on the next one, `replicas` where it goes,
and `connection` takes it there.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field, replace

import openai

from distil.errors import ContextOverflow, RunHalted, TeacherError, TeacherRefused
from distil.messages.read import parse_reply, read_usage
from distil.records import Json, Reply
from distil.spending.budget import Budget, Request
from distil.teacher.attempts import AttemptFailed, Attempts
from distil.teacher.availability import NEVER, RAISE_TIME_OUT, Availability, Patience, Sign
from distil.teacher.connection import Connection, Server, Watchdog, shown_url
from distil.teacher.refusals import (
    Means,
    advised_seconds,
    is_context_overflow,
    is_moderation,
    is_too_large,
    meaning,
)
from distil.teacher.replicas import Replicas, SampleReplica
from distil.teacher.slots import Slots
from distil.teacher.wire import ReplyTooLarge

_PATH = "/chat/completions"
_UNKNOWN_KEY = "No connected db"  # what LiteLLM's proxy without a database says of one, with 400
_NO_TOOLS = "[]"
NO_KEY = "EMPTY"  # what servers without keys are sent, as the openai client must send something
_UNAUTHORIZED = 401
_NO_CREDIT_CODE = "insufficient_quota"  # what OpenAI says with a 429
_MAX_MESSAGE_CHARS = 500
_NO_CONNECTION_ERRORS = ("ConnectError", "ConnectTimeout", "ProxyError")  # of httpx, by whatever name
_UNKNOWN_FIELD_WORDS = ("unsupported", "not support", "unknown", "unrecognized", "extra")
_MAX_MORE_ROUNDS = 4  # over all replicas, before a request that none replies to is given up
_MAX_FIELD_REFUSALS = 1  # in a row; one may be an odd conversation's own fault
_MAX_SIZE_REFUSALS = 2  # in a row, each of another sample; a few photos may be larger than all others


ADAPTED = ("token_field", "sends_temperature", "sends_seed")  # settings that a server's refusals change


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """Where the teacher is and how it is asked.

    `may_adapt`: leave out or rename request fields that the server refuses; only before a run, since its
    traces say what was sent.
    """

    api_base: str
    api_key: str = field(repr=False)
    model: str = ""
    _: KW_ONLY
    temperature: float
    max_tokens: int
    patience: Patience
    token_field: str = "max_tokens"
    sends_temperature: bool = True
    sends_seed: bool = True
    may_adapt: bool = False

    def opening(self, tools_text: str, seed: int) -> bytes:
        """A request's body up to its first message, with tools as JSON."""
        request: dict[str, Json] = {"model": self.model, self.token_field: self.max_tokens}
        if self.sends_temperature:
            request["temperature"] = self.temperature
        if self.sends_seed:
            request["seed"] = seed
        tools = "" if tools_text == _NO_TOOLS else f', "tools": {tools_text}'  # vLLM refuses an empty list
        return f'{json.dumps(request)[:-1]}{tools}, "messages": ['.encode()

    def adapted_like(self, other: TeacherSettings) -> TeacherSettings:
        """The settings with the request fields that others have found to be taken."""
        return replace(self, **{name: getattr(other, name) for name in ADAPTED})

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
    """A teacher that many threads may ask at once; a context manager that closes its connections."""

    def __init__(
        self,
        settings: TeacherSettings,
        tools: Sequence[Mapping[str, Json]] = (),
        slots: Slots | None = None,
        budget: Budget | None = None,
        api_bases: Sequence[str] = (),
    ) -> None:
        """`slots` are those of requests in flight; None for as many as there are threads.

        `budget` counts every request for a reply and may end the run. `api_bases` are replicas of one server,
        in place of the settings' own.
        """
        urls = tuple(api_bases) or (settings.api_base,)
        self.settings = settings if len(urls) == 1 else _of_several(settings)
        self.slots = slots or Slots.unlimited()
        self.budget = budget or Budget()
        self._availability = Availability(self.settings.patience, ", ".join(map(shown_url, urls)))
        self._replicas = Replicas(urls)
        self._tools_text = json.dumps(list(tools))  # the longest part of a request's opening
        self._local = threading.local()
        self._servers: dict[str, Server] = {}
        self._connections: list[Connection] = []
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._is_closed = False
        self._num_field_refusals = dict.fromkeys(urls, 0)  # since the last reply
        self._num_size_refusals = 0  # likewise

    @property
    def refuses_fields(self) -> bool:
        """Whether the last that a server said was that it does not know a request field it was to take."""
        return any(self._num_field_refusals.values())

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell_by(self, tell: Callable[[str], None]) -> None:
        """Have lines on servers that go and come back told this way."""
        self._availability.tell = self._replicas.tell = tell

    def drain(self, seconds: float) -> None:
        """Send nothing more, and tell what is waited for, at most so long.

        Pauses and waits end at once; requests in flight go on, but none is asked again.
        """
        self._availability.close()
        self.slots.close()
        number = self._watchdog.num_watched
        waited = {0: "no request is", 1: "1 request is"}.get(number, f"{number} requests are")
        until = f", waited for up to {seconds:g} s (--grace_seconds)" if number else ""
        with suppress(BrokenPipeError):  # Ctrl-C ends the reader of our output too
            self._availability.tell(
                f"Interrupted: {waited} in flight{until}; nothing more is asked. "
                "The next signal leaves at once."
            )

    def close(self) -> None:
        """Close every connection and wake every thread: requests in flight, pauses and waits end at once."""
        self._is_closed = True
        self._availability.close()
        self.slots.close()
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()
        self._watchdog.close()

    @contextmanager
    def asking(
        self, sample_seconds: float = math.inf, *, offers_tools: bool = True
    ) -> Iterator[SampleTeacher]:
        """What asks for one sample, for so long; raises RunHalted where nothing more is asked."""
        availability = self._availability
        availability.check_open()
        with closing(SampleReplica(self._replicas)) as replica:
            attempts = Attempts(
                self.settings.patience, availability, replica, sample_seconds, availability.sleep
            )
            yield SampleTeacher(self, attempts, self._tools_text if offers_tools else _NO_TOOLS)

    def ask(self, messages: Sequence[bytes], seed: int) -> Reply:
        """Ask once, as for a sample of its own; raises as `SampleTeacher.ask` does."""
        with self.asking() as sample:
            return sample.ask(messages, seed)

    @contextmanager
    def _connected(self, url: str, seconds: float) -> Iterator[Connection]:
        """This thread's connection, for so long; every failure but a status is an AttemptFailed."""
        connection = self._connection(url)
        try:
            with self._watchdog.watching(connection, seconds):
                yield connection
        except openai.APIStatusError:
            raise
        except (openai.APIConnectionError, ReplyTooLarge, ConnectionAbortedError, RuntimeError) as error:
            cause = error.__cause__ or error  # older clients wrap whatever is raised while they read
            if isinstance(cause, ReplyTooLarge):
                raise AttemptFailed(TeacherError(f"{shown_url(url)}: {cause}"), False, Sign.ALIVE) from None
            self._availability.check_open()  # a closed client raises RuntimeError
            raise self._connection_failure(url, error, seconds if connection.is_cut else None) from None

    def _connection(self, url: str) -> Connection:
        """This thread's own connection to a server: one shared pool becomes a lock above 100 threads."""
        connections: dict[str, Connection] = self._local.__dict__
        if url not in connections:
            with self._lock:
                if url not in self._servers:
                    self._servers[url] = Server(url, self.settings.api_key)
                connections[url] = Connection(self._servers[url])
                self._connections.append(connections[url])
        if self._is_closed:  # after it is listed, so that `close` misses none
            raise RunHalted("the run was given up")
        return connections[url]

    def _status_failure(self, url: str, error: openai.APIStatusError, path: str = "") -> AttemptFailed:
        status = error.status_code
        text = f"HTTP {status} from {shown_url(url)}{path}: {_error_text(error)}"
        if status == _UNAUTHORIZED or _UNKNOWN_KEY in text:
            is_set = self.settings.api_key != NO_KEY
            text += f" (the key is OPENAI_API_KEY's{'' if is_set else ', which is not set'})"
        means = meaning(status)
        if Means.GATEWAY in means and Means.PERHAPS_BILLED in means:
            text += f" (a gateway gave up waiting: {RAISE_TIME_OUT})"
        is_broke = Means.NO_CREDIT in means or error.code == _NO_CREDIT_CODE
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return AttemptFailed(
            _status_error(error, without_key(text, self.settings.api_key), is_broke),
            Means.RETRIED in means and not is_broke,
            Sign.BROKEN if Means.BROKEN in means else Sign.ALIVE,
            advised_seconds(status, headers, time.time()),
        )

    def _own_failure(self, url: str, error: openai.APIStatusError) -> AttemptFailed:
        """The failure of a sample; of the run where those before it were refused for their size too."""
        failed = self._status_failure(url, error)
        if _is_overflow(error) or not is_too_large(error.status_code, _error_text(error)):
            return failed
        with self._lock:
            self._num_size_refusals += 1
            number = self._num_size_refusals
        text = f"{failed}; --image_max_pixels sends smaller pictures (1000000 is enough for most)"
        if number <= _MAX_SIZE_REFUSALS:
            return AttemptFailed(TeacherError(text, error.status_code), False, failed.sign)
        text = (
            f"the server refuses what is sent for its size, {number} samples in a row: {text}; a gateway's "
            "own limit can be raised (nginx: client_max_body_size)"
        )
        return AttemptFailed(TeacherRefused(text, error.status_code), False, failed.sign)

    def _field_failure(self, url: str, error: openai.APIStatusError) -> AttemptFailed:
        """The failure of a sample, or of the run where the sample before met the same."""
        self._num_field_refusals[url] += 1
        failed = self._status_failure(url, error)
        if self._num_field_refusals[url] <= _MAX_FIELD_REFUSALS:
            return failed
        text = (
            f"{shown_url(url)} refuses a request field that was taken before the first sample, "
            f"so traces would not say what was sent ({failed}). Run again with "
            "--on_change keep (or another --output_dir): it is asked anew which it takes"
        )
        return AttemptFailed(TeacherRefused(text, error.status_code), False, failed.sign)

    def _connection_failure(self, url: str, error: Exception, passed_seconds: float | None) -> AttemptFailed:
        cause = error.__cause__ or error
        sign = Sign.NO_CONNECTION if type(cause).__name__ in _NO_CONNECTION_ERRORS else Sign.BROKEN
        reason = f"{type(cause).__name__}: {cause}"
        if passed_seconds is not None or isinstance(error, openai.APITimeoutError):
            reason = f"time-out after {passed_seconds:.4g} s" if passed_seconds else f"time-out ({reason})"
        text = without_key(f"no reply from {shown_url(url)}: {reason}", self.settings.api_key)
        return AttemptFailed(TeacherError(text), True, sign)


@dataclass(eq=False, slots=True)
class SampleTeacher:
    """What asks for one sample: the same replica for as long as that replies; used by one thread.

    `turn_seconds` are what each reply took, waits and all.
    """

    _teacher: Teacher
    _attempts: Attempts
    _tools_text: str
    turn_seconds: list[float] = field(default_factory=list, init=False)

    def ask(self, messages: Sequence[bytes], seed: int) -> Reply:
        """Send the messages, each an encoded JSON object, and read the reply.

        Raises TeacherRefused where every request would fail alike, BudgetExceeded, ContextOverflow,
        DeadlinePassed, or else TeacherError.
        """
        started = time.perf_counter()
        self._attempts.begin_turn()
        while True:
            with self._attempts as seconds, self._sending() as request:
                reply = self._answered(messages, seed, seconds, request)
                self.turn_seconds.append(round(time.perf_counter() - started, 4))
                return reply

    def fetch(self, path: str) -> bytes:
        """A document of the server, unread; raises as `ask` does."""
        self._attempts.begin_turn()
        while True:
            with self._attempts as seconds:
                url = self._attempts.replica.url
                try:
                    with self._teacher._connected(url, seconds) as connection:
                        return connection.ask(path, (), seconds)
                except openai.APIStatusError as error:
                    raise self._teacher._status_failure(url, error, path) from None

    @contextmanager
    def _sending(self) -> Iterator[Request]:
        """Around one attempt at a reply, as soon as the budget has room for it and a slot is free."""
        slots = self._teacher.slots
        asked = time.monotonic()
        with self._teacher.budget.request() as request, slots.slot() as ticket:
            self._attempts.extend(time.monotonic() - asked)  # waiting to be sent is not the teacher's time
            request.sent()
            sent = time.monotonic()
            try:
                yield request
            except AttemptFailed as failed:
                failed.seconds = time.monotonic() - sent
                if failed.sign is Sign.NO_CONNECTION:
                    request.refused()
                if Means.OVERLOAD in meaning(failed.error.status):
                    slots.refuse(ticket)
                raise

    def _answered(self, messages: Sequence[bytes], seed: int, seconds: float, request: Request) -> Reply:
        """The reply; where it may adapt, asked for again at once without each field that is refused."""
        teacher, url = self._teacher, self._attempts.replica.url
        until = time.monotonic() + seconds
        for _ in range(4):
            settings = teacher.settings
            pieces = _pieces(settings.opening(self._tools_text, seed), messages)
            left = max(0.001, until - time.monotonic())
            try:
                with teacher._connected(url, left) as connection:
                    reply_body = connection.ask(_PATH, pieces, left)
            except openai.APIStatusError as error:
                if Means.PERHAPS_BILLED not in meaning(error.status_code):
                    request.refused()
                adapted = settings.adapted_to(error.status_code, _error_text(error))
                if adapted is None or _is_overflow(error):
                    raise teacher._own_failure(url, error) from None
                if not settings.may_adapt:
                    raise teacher._field_failure(url, error) from None
                teacher.settings = adapted
            else:
                teacher._num_field_refusals[url] = teacher._num_size_refusals = 0
                return _parsed(reply_body, request)
        raise AttemptFailed(
            TeacherError("the server refuses the request fields one after another", 400), False, Sign.ALIVE
        )


def _of_several(settings: TeacherSettings) -> TeacherSettings:
    """The settings for replicas: it takes all of them to make an outage, and one round of them to see it."""
    patience = settings.patience
    retries = min(patience.max_retries, patience.max_unreachable_retries, _MAX_MORE_ROUNDS)
    return replace(settings, patience=replace(patience, max_unreachable_retries=retries, num_failures=1))


_SETUP_RETRIES, _SETUP_UNREACHABLE_RETRIES = 5, 2


def for_setup(settings: TeacherSettings) -> TeacherSettings:
    """The settings for the few requests that come before a run and find out which fields the server takes.

    A wrong address is told within seconds, not after the retries of a long run; a server that says when to
    come back is waited for.
    """
    patience = replace(
        settings.patience,
        max_retries=min(settings.patience.max_retries, _SETUP_RETRIES),
        first_pause_seconds=0.5,
        max_pause_seconds=1.0,
        max_unreachable_retries=min(settings.patience.max_unreachable_retries, _SETUP_UNREACHABLE_RETRIES),
        num_failures=NEVER,
    )
    return replace(settings, patience=patience, may_adapt=True)


def without_key(text: str, api_key: str) -> str:
    """The text with the key blacked out: servers quote it in their error messages."""
    return text.replace(api_key, "[key]") if len(api_key) >= 6 else text


def request_body(
    settings: TeacherSettings, tools: Sequence[Mapping[str, Json]], messages: Sequence[bytes], seed: int
) -> bytes:
    """A request's body, whole."""
    return b"".join(_pieces(settings.opening(json.dumps(list(tools)), seed), messages))


def _pieces(head: bytes, messages: Sequence[bytes]) -> list[bytes]:
    """A request's body, unjoined: joined, each picture would be held twice while it is sent."""
    pieces = [head]
    for message in messages:
        pieces += (message, b",")
    pieces[-1] = b"]}"
    return pieces


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
    is_general = Means.FATAL in meaning(status) and not is_moderation(status, _error_text(error))
    is_refused = is_general or (is_broke and Means.BROKEN not in meaning(status))
    return TeacherRefused(text, status) if is_refused else TeacherError(text, status)


def _error_text(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    text = " ".join(str(message or error.message).split())
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[:_MAX_MESSAGE_CHARS] + "…"


def _is_overflow(error: openai.APIStatusError) -> bool:
    body = error.body if isinstance(error.body, dict) else {}
    code = f"{body.get('code')} {body.get('type')}"
    return is_context_overflow(error.status_code, code, f"{code} {_error_text(error)}")
