"""A run's plan: what was asked for and what was found, as pure data that another process can work by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from distil.commands.flags import CodeFlags, RunFlags, TeacherFlags, flags_from_json, flags_json
from distil.records import DatasetIdentity, Json, OnChange
from distil.spending.prices import PICTURES_DROPPED
from distil.store.trace_file import RunFacts, versions_now
from distil.store.trace_settings import CodeLimits, TraceSettings
from distil.teacher.availability import Patience
from distil.teacher.client import TeacherSettings
from distil.teacher.connection import shown_url


@dataclass(frozen=True)
class Plan:
    """All that a run does; what has to be open is opened from it (`distil.run.solver`).

    It holds no key, but addresses as they were given, perhaps with a password: it is for workers, not to be
    shown.
    """

    flags: RunFlags
    dataset_path: str  # where it is opened from
    dataset: DatasetIdentity
    settings: TraceSettings
    api_bases: tuple[str, ...]  # several are replicas of one server
    api_base: str  # the one of them that was asked
    output_dir: str  # may be another than was asked for
    probe: Mapping[str, Json]  # what was asked before the first sample, as the run's record keeps it

    @property
    def on_change(self) -> OnChange:
        """What to do with traces that were made with other settings."""
        return self.flags.samples.on_change

    @property
    def sight_warning(self) -> str | None:
        """Why the teacher seems not to see pictures, None where it does."""
        warning: str | None = self.probe["sight_warning"]
        return warning

    @property
    def seems_blind(self) -> bool:
        """Whether the teacher answered and did not name the word in a picture."""
        return PICTURES_DROPPED in (self.sight_warning or "")

    @property
    def shown_urls(self) -> str:
        """The servers' addresses as they may be shown."""
        return urls_text(self.api_bases)

    def facts(self) -> RunFacts:
        """What its traces share, with the versions of this process."""
        return RunFacts(self.dataset, self.settings, versions_now())

    def teacher(self, api_key: str) -> TeacherSettings:
        """How the teacher is asked: as the traces say."""
        asked = teacher_settings(self.flags.teacher, self.api_base, api_key)
        return as_traces_say(asked, self.settings)

    def as_json(self) -> dict[str, Json]:
        """As JSON values."""
        return vars(self) | {
            "flags": flags_json(self.flags),
            "dataset": asdict(self.dataset),
            "settings": self.settings.as_json(),
            "api_bases": list(self.api_bases),
            "probe": dict(self.probe),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Plan:
        """From what `as_json` gave."""
        typed = {
            "flags": flags_from_json(RunFlags(), value["flags"]),
            "dataset": DatasetIdentity(**value["dataset"]),
            "settings": TraceSettings.from_json(value["settings"]),
            "api_bases": tuple(value["api_bases"]),
        }
        return cls(**{**value, **typed})


def teacher_settings(flags: TeacherFlags, api_base: str, api_key: str) -> TeacherSettings:
    """How a teacher is asked whose model is not settled yet."""
    return TeacherSettings(
        api_base=api_base,
        api_key=api_key,
        temperature=flags.temperature,
        max_tokens=flags.max_tokens,
        patience=Patience(
            timeout_seconds=flags.request_timeout_seconds,
            turn_timeout_seconds=flags.turn_timeout_seconds,
            max_outage_seconds=flags.max_outage_seconds,
        ),
    )


def as_traces_say(teacher: TeacherSettings, settings: TraceSettings) -> TeacherSettings:
    """How the teacher of traces with these settings is asked."""
    return replace(
        teacher,
        model=settings.model,
        token_field=settings.token_field,
        sends_temperature=settings.temperature is not None,
        sends_seed=settings.sends_seed,
    )


def code_limits(flags: CodeFlags) -> CodeLimits:
    """What model-written code is held to."""
    return CodeLimits(flags.code_timeout, flags.code_memory_mb * 2**20, flags.unsafe_exec)


def urls_text(api_bases: Sequence[str]) -> str:
    """The servers' addresses as they may be shown."""
    return ",".join(map(shown_url, api_bases))
