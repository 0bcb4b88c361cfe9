"""The names of models: the list of a server, one that it does not list, and those that its replies give."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from distil.errors import TeacherError, TeacherRefused, UsageError
from distil.teacher.client import Teacher, TeacherSettings, for_setup
from distil.teacher.connection import shown_url
from distil.teacher.profile import Profile
from distil.teacher.refusals import Means, meaning

_PATH = "/models"
_MAX_NEAREST = 3
_MAX_LISTED = 20


def ask_models(
    settings: TeacherSettings,
    tell: Callable[[str], None] = lambda _: None,
    fatal: Means = Means.GATEWAY | Means.WRONG_KEY,
) -> tuple[tuple[str, ...], str | None]:
    """The names of a server's models, and why it gives none where it gives none.

    Raises TeacherRefused where no server answers, or with a `fatal` status. `tell` gets a line where the
    server asks to be waited for.
    """
    with Teacher(for_setup(settings)) as teacher:
        teacher.tell_by(tell)
        try:
            with teacher.asking() as sample:
                return _parse_names(sample.fetch(_PATH)), None
        except TeacherError as error:
            text = str(error)
            if Means.NOT_FOUND in meaning(error.status):
                text += " (does the URL need /v1 at its end? a server without a model list needs --model)"
            if error.status is None or meaning(error.status) & fatal:
                raise TeacherRefused(text, error.status, error.attempts) from None
            return (), text
        except (AttributeError, KeyError, TypeError, ValueError):  # a web page, or JSON of another kind
            where = f"{shown_url(settings.api_base)}{_PATH}"
            return (), f"{where} gave no list of models: is this an OpenAI-compatible API?"


def _parse_names(body: bytes) -> tuple[str, ...]:
    names = tuple(model["id"] for model in json.loads(body)["data"])
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return names


def with_model(settings: TeacherSettings, names: Sequence[str], problem: str | None) -> TeacherSettings:
    """The settings with the one model that the server offers, where they name none.

    Raises TeacherRefused where there is no list, UsageError, naming them, for no model or several.
    """
    if settings.model:
        return settings
    if problem is not None:
        raise TeacherRefused(problem)
    if len(names) == 1:
        return replace(settings, model=names[0])
    listed = ", ".join(sorted(names)[:_MAX_LISTED]) or "none"
    if len(names) > _MAX_LISTED:
        listed += f", … ({len(names)} in all)"
    raise UsageError(
        f"--model is missing; {shown_url(settings.api_base)} offers: {listed}\n"
        f"(for the embedded teacher: --api_base embedded)"
    )


def ask_first_replica(
    settings: TeacherSettings, api_bases: Sequence[str], tell: Callable[[str], None]
) -> tuple[TeacherSettings, tuple[str, ...]]:
    """The settings with the first of several replicas that is there, and the names of its models.

    Where the settings name no model, it is its only one. `tell` gets a line for each replica that is not
    there; raises TeacherRefused where none is, or one refuses the key, and as `with_model` does.
    """
    for api_base in api_bases[:-1]:
        settings = replace(settings, api_base=api_base)
        try:
            names, problem = ask_models(settings, tell)
        except TeacherRefused as error:
            if error.status is not None and Means.GATEWAY not in meaning(error.status):
                raise
            tell(f"A replica is not there: {error}")
        else:
            return with_model(settings, names, problem), names
    settings = replace(settings, api_base=api_bases[-1])
    names, problem = ask_models(settings, tell)
    return with_model(settings, names, problem), names


def nearest_names(model: str, names: Sequence[str]) -> list[str]:
    """The names most like a model's, the nearest first; an owner before a `/` need not be alike."""
    wanted = model.lower()

    def likeness(name: str) -> float:
        forms = {name.lower(), name.lower().rpartition("/")[2]}
        return max(SequenceMatcher(None, wanted, form).ratio() + (wanted in form) for form in forms)

    return sorted(names, key=likeness, reverse=True)[:_MAX_NEAREST]


def unlisted_warning(model: str, names: Sequence[str], profile: Profile) -> str | None:
    """What to say of a model that the server does not list, None where it does or lists nothing."""
    if not names or model in names:
        return None
    return (
        f"the server does not list the model {model}; the nearest that it lists: "
        f"{', '.join(nearest_names(model, names))}. It is asked for as named, since providers have aliases; "
        f"boxes are taken as {profile.frame.value} (profile {profile.name}, chosen by that name)"
    )


class AnsweredModels:
    """The names that a run's replies give their model, and how often; safe from many threads.

    Another name than the one that was asked for is an alias; another one than before is a change, and `tell`
    gets a line when it comes for the first time.
    """

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = lambda _: None
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def counts(self) -> Mapping[str, int]:
        """The replies by the name of their model, those without a name left out."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def note(self, name: str | None) -> None:
        """Count a reply."""
        if name is None:
            return
        with self._lock:
            earlier = next(iter(self._counts), name)
            is_first_change = name != earlier and len(self._counts) == 1
            self._counts[name] += 1
        if is_first_change:
            self.tell(f"Warning: replies came from the model {earlier}, and now one came from {name}")

    def warning(self) -> str | None:
        """The warning to end a run with, None where all replies named the same model."""
        counts = self.counts
        if len(counts) < 2:
            return None
        shares = ", ".join(f"{name} ({count})" for name, count in counts.items())
        return f"replies came from more than one model: {shares}; each trace says which, turn by turn"
