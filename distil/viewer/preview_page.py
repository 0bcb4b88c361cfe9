"""The page of a trace as training data: the exported conversation, with what of it is trained marked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, get_args

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from distil.commands.flags import ExportFlags, FormFlags
from distil.errors import DistilError, TraceError
from distil.exports.conversation import conversation_of
from distil.exports.export import NOTHING_TO_TRAIN
from distil.exports.pictures import shown_calls
from distil.exports.preview import END, START, Preview, previews_of
from distil.exports.selection import reason_to_leave_out
from distil.exports.tokens import picture_tokens
from distil.pictures import data_url
from distil.records import (
    ExportFormat,
    FailedCalls,
    Frame,
    SentPicture,
    Student,
    Thoughts,
)
from distil.source.rows import Source
from distil.store.trace_file import StoredTrace
from distil.tools.python_code import Executor
from distil.viewer.pages import display_size, render
from distil.viewer.trace_page import asked_file, pictures_of
from distil.viewer.trace_view import Fields
from distil.viewer.viewer import viewer_of
from distil.viewer.visible import plain

_FORMAT_NAMES = {
    ExportFormat.TRL: "TRL",
    ExportFormat.VERL: "verl",
    ExportFormat.LLAMAFACTORY: "LLaMA-Factory",
    ExportFormat.MS_SWIFT: "ms-swift",
    ExportFormat.OPENAI: "chat API",
    ExportFormat.HF: "the hub",
}
_CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {  # by their flags: what they are called, their values
    "format": ("for", tuple(ExportFormat)),
    "reasoning": ("thoughts", get_args(Thoughts)),
    "errors": ("failed calls", get_args(FailedCalls)),
    "coordinates": ("boxes", (Frame.REL1000, Frame.PIXEL)),
    "student": ("student", get_args(Student)),
}
_USUAL: dict[str, str] = {"format": ExportFormat.TRL, **vars(FormFlags())}
_MAX_PICTURE_PX = (480, 360)


def preview_page(request: Request) -> Response:
    """The rows that an export makes of a trace."""
    flags = _flags(request.query_params)
    path = asked_file(request)
    viewer = viewer_of(request)
    rows: list[Preview] = []
    problem = note = None

    def work(trace: StoredTrace, source: Source, executor: Executor) -> list[Preview]:
        nonlocal note
        note = _note(trace)
        return _rows(trace, source, executor, flags)

    try:
        rows = pictures_of(request).replayed(path, work)
    except DistilError as error:
        problem = str(error)
    run, part = request.path_params["run"], request.path_params["part"]
    return render(
        request,
        "preview.html",
        run=run,
        part=part,
        name=plain(path.name),
        folder=plain(viewer.names[run]),
        choices=_choices(flags),
        format_name=_FORMAT_NAMES[flags.format],
        rows=[_row(row) for row in rows],
        problem=problem,
        note=note,
        start=START,
        end=END,
    )


def _flags(asked: QueryParams) -> ExportFlags:
    """The flags of a page's address; raises HTTPException where one is none."""
    stated: dict[str, Any] = {}
    for name, (_, values) in _CHOICES.items():
        text = asked.get(name, _USUAL[name])
        if text not in list(values):
            raise HTTPException(404, f"{name}= is one of {', '.join(values)}.")
        stated[name] = next(value for value in values if value == text)
    return ExportFlags(format=stated.pop("format"), form=FormFlags(**stated))


def _choices(flags: ExportFlags) -> list[Fields]:
    """What can be chosen, for a form."""
    chosen = {"format": flags.format, **vars(flags.form)}
    return [
        {
            "name": name,
            "label": label,
            "values": [
                {
                    "value": str(value),
                    "text": _FORMAT_NAMES[value] if isinstance(value, ExportFormat) else value,
                    "is_chosen": value == chosen[name],
                }
                for value in values
            ],
        }
        for name, (label, values) in _CHOICES.items()
    ]


def _rows(trace: StoredTrace, source: Source, executor: Executor, flags: ExportFlags) -> list[Preview]:
    if not trace.is_unedited:
        raise TraceError("its content does not fit its integrity_sha256: it was edited, and is not exported")
    photo, calls = shown_calls(trace, source, executor, flags.form)
    conversation = conversation_of(trace, photo, calls, flags.form)
    if conversation is None:
        raise TraceError(f"it is left out of an export: {NOTHING_TO_TRAIN}")
    return previews_of(conversation, flags)


def _note(trace: StoredTrace) -> str | None:
    """Why an export leaves the trace out unless it is told to take all; None where it takes it."""
    ended = trace.json["metadata"]
    reason = reason_to_leave_out(ended["stop_reason"], ended["parse_success"])
    return reason and f"{reason[0].upper()}{reason[1:]}: an export has it with --all only."


def _row(row: Preview) -> Fields:
    numbers = count(1)
    messages = [
        {
            "role": message.role,
            "is_trained": bool(message.is_trained),
            "parts": [_part(part, numbers, row) for part in message.parts],
        }
        for message in row.messages
    ]
    return {
        "id": plain(row.id),
        "num_tokens": row.num_tokens,
        "num_trained": row.num_trained,
        "num_said": sum(message.role == "assistant" for message in row.messages),
        "num_pictures": row.num_pictures,
        "messages": messages,
    }


def _part(part: str | SentPicture, numbers: Iterator[int], row: Preview) -> Fields:
    """A text, or a picture with its number in the row."""
    if isinstance(part, str):
        return {"text": part}
    return {
        "text": None,
        "url": data_url(part),
        "size": part.size,
        "shown": display_size(part.size, *_MAX_PICTURE_PX),
        "number": next(numbers),
        "num_bytes": part.num_bytes,
        "num_tokens": picture_tokens(part.size, row.form),
    }


PREVIEW_ROUTES = (Route("/preview/{run:int}/{part}", preview_page, name="preview"),)
