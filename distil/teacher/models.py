"""The names of models: one that a server does not list, and those that its replies give."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher

from distil.teacher.profile import Profile

_MAX_NEAREST = 3


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
