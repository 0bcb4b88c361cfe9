"""What shaped a trace, and nothing that depends on the machine or the clock: written, read back, compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from distil.errors import TraceError
from distil.pictures import ResizeRule
from distil.records import CropFrom, Frame, Json, Prompt, ToolMode
from distil.tools.base import BoxFrame
from distil.tools.python_code import Executor
from distil.tools.toolbox import Toolbox, all_tools, find_tool

_UNSAID: Mapping[str, Json] = {
    "token_field": "max_tokens",
    "code": None,
    "teacher_note": None,
    "columns": None,
    "own_code": None,
}
# Earlier versions did not write these, for what they stand for here.
_OFTEN_LACKING = {**_UNSAID, "profile": "", "temperature": None, "max_tokens": 0, "sends_seed": True}
MAX_SHOWN_CHARS = 60
# One for all: `json.dumps` makes an encoder for each value.
_encode_canonically = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
_TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
_OPTION_KINDS: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "temperature": (float, int, type(None)),
    "max_tokens": (int,),
    "max_turns": (int,),
    "seed": (int,),
    "sends_seed": (bool,),
    "system_prompt": (str,),
    "user_prompt": (str,),
    "keep_pictures": (bool,),
    "token_field": (str,),
    "teacher_note": (str, type(None)),
    "columns": (dict, type(None)),
    "own_code": (dict, type(None)),
}


@dataclass(frozen=True)
class CodeLimits:
    """What a run's code is held to."""

    timeout_seconds: float
    memory_bytes: int
    unsafe_exec: bool


@dataclass(frozen=True)
class TraceSettings:
    """The settings of a trace, in the order in which it has them; field by field in docs/trace-format.md.

    Traces of other versions may lack fields or have more: so what is stored is compared and hashed as it
    stands in the file, and only what a replay needs has to be there.
    """

    task: str
    model: str
    profile: str
    tool_mode: ToolMode
    coordinates: Frame
    crop_from: CropFrom
    temperature: float | None  # None where it is not sent
    max_tokens: int
    max_turns: int
    seed: int
    sends_seed: bool
    view_rule: ResizeRule
    states_size: bool
    system_prompt: str
    user_prompt: str
    tool_schemas: tuple[Mapping[str, Json], ...]
    keep_pictures: bool
    token_field: str = "max_tokens"
    code: CodeLimits | None = None  # None where no tool runs code
    teacher_note: str | None = None
    columns: Mapping[str, str] | None = None  # which are taken for what, where the names are not the usual
    own_code: Mapping[str, Json] | None = None  # the user's own files: by what they are for, file and hash

    def as_json(self) -> dict[str, Json]:
        """As a trace stores them."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "tool_mode": self.tool_mode.value,
            "coordinates": self.coordinates.value,
            "crop_from": self.crop_from.value,
            "view_rule": asdict(self.view_rule),
            "tool_schemas": list(self.tool_schemas),
            "code": self.code and asdict(self.code),
        }
        return {name: item for name, item in value.items() if name not in _UNSAID or item != _UNSAID[name]}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> TraceSettings:
        """As a trace of any version has them; raises KeyError, ValueError or TypeError."""
        schemas = tuple(value["tool_schemas"])
        offered = [find_tool(schema["function"]["name"]) for schema in schemas]
        runs_code = any(tool is not None and tool.runs_code for tool in offered)
        _check_options(value, runs_code)
        names = [name for name in cls.__dataclass_fields__ if name in value or name not in _OFTEN_LACKING]
        return cls(
            **_OFTEN_LACKING
            | {name: value[name] for name in names}
            | {
                "tool_mode": ToolMode(value["tool_mode"]),
                "coordinates": Frame(value["coordinates"]),
                "crop_from": CropFrom(value["crop_from"]),
                "view_rule": ResizeRule(**value["view_rule"]),
                "states_size": bool(value["states_size"]),
                "tool_schemas": schemas,
                "code": _code_limits(value["code"]) if runs_code else None,
            }
        )

    def sha256(self, fingerprint: str) -> str:
        """The hash of everything that shapes a trace of the dataset with this fingerprint."""
        return settings_sha256(self.as_json(), fingerprint)

    def changes_from(self, stored: Mapping[str, Json], ignored: Collection[str] = ()) -> list[str]:
        """What differs from settings as a trace or a run record has them, a text for each."""
        ours = json.loads(json.dumps(self.as_json()))
        names = [name for name in ours if stored.get(name) != ours[name]]
        names += [name for name in stored if name not in ours]
        return [
            f"{name}: {short_json(stored.get(name))} then, {short_json(ours.get(name))} now"
            for name in names
            if name not in ignored
        ]

    def prompt(self) -> Prompt:
        """What opens every conversation, but for a row's own texts (`Prompt.filled`)."""
        return Prompt(
            self.system_prompt, self.user_prompt, self.tool_schemas, self.tool_mode, self.states_size
        )

    def toolbox(self, executor: Executor | None = None) -> Toolbox:
        """The tools that the teacher is offered, seeing pictures as it sees them; code runs in `executor`.

        Raises TraceError where there is no such tool.
        """
        tools = {tool.name: tool for tool in all_tools(executor)}
        names = [schema["function"]["name"] for schema in self.tool_schemas]
        unknown = [name for name in names if name not in tools]
        if unknown:
            raise TraceError(f"there is no tool {unknown[0]!r} to replay it with{self._tool_files_text()}")
        offered = tuple(tools[name] for name in names)
        boxes = BoxFrame(self.coordinates, self.crop_from)
        return Toolbox(offered, boxes, self.view_rule, self.states_size)

    def _tool_files_text(self) -> str:
        """Which files had the tools, and the flag for them; a trace alone never has one imported."""
        stated = (self.own_code or {}).get("tools")
        files = [file for file in stated if isinstance(file, dict)] if isinstance(stated, list) else []
        names = ", ".join(str(file.get("file")) for file in files)
        return f"; its own were in {names}: give that by --tool_module FILE" if names else ""


def _check_options(stored: Mapping[str, Json], runs_code: bool) -> None:
    """Raise ValueError where an option, which stands nowhere else, is none that a run can have."""
    for name, kinds in _OPTION_KINDS.items():
        if name in stored and type(stored[name]) not in kinds:  # a bool is no int here
            raise ValueError(f"settings.{name} cannot be {short_json(stored[name])}")
    if stored.get("token_field", _TOKEN_FIELDS[0]) not in _TOKEN_FIELDS:
        raise ValueError(f"settings.token_field is none of {', '.join(_TOKEN_FIELDS)}")
    if stored.get("code") is not None and not runs_code:
        raise ValueError("settings.code is of a tool that runs code, and none is offered")


def _code_limits(value: Mapping[str, Json]) -> CodeLimits:
    return CodeLimits(float(value["timeout_seconds"]), int(value["memory_bytes"]), bool(value["unsafe_exec"]))


def teacher_lines(stored: Mapping[str, Json]) -> list[str]:
    """What settings of any program's trace say of the teacher, for a person."""
    lines = [f"{stored.get('model')} ({stored.get('tool_mode')} calls)"] if stored else []
    return [*lines, str(stored["teacher_note"])] if stored.get("teacher_note") else lines


def settings_sha256(settings: Mapping[str, Json], fingerprint: str) -> str:
    """The hash of settings as they are stored with a dataset's fingerprint: equal ones are comparable."""
    return json_sha256({"settings": settings, "fingerprint": fingerprint})


def json_sha256(value: Json) -> str:
    """SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    text = _encode_canonically(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def short_json(value: Json) -> str:
    """A value for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
