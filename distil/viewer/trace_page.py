"""The page of one trace, its pictures, the requests that were sent, and the file itself."""

from __future__ import annotations

import shlex
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from distil.errors import DistilError, TraceError, UsageError, error_text
from distil.messages.compose import Message, opening_messages, turn_messages
from distil.records import Json, SampleId, SentPicture
from distil.replay.replay import turns_of
from distil.rollout import turn_seed
from distil.store.folder import TIMINGS
from distil.store.json_lines import parse_line
from distil.store.trace_file import StoredTrace, load_json, read_trace, trace_name
from distil.viewer.pages import answer, environment, json_bytes, read_query, render
from distil.viewer.pictures import Pictures, View, media_type
from distil.viewer.trace_view import Fields, view_of
from distil.viewer.viewer import Viewer, part_of, trace_link, viewer_of
from distil.viewer.visible import finite, json_text, plain, value_at

_PREFIX, _SUFFIX = "trace_", ".json"
_MAX_PART_CHARS = 150
_RAW_SHOWN_CHARS = 100_000  # of a file that is no trace
_MESSAGE_CHARS = 20_000  # of each text in the messages that were sent; the whole is asked for
_MADE = threading.Lock()
_NO_PICTURE = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 160 120">'
    b'<rect width="160" height="120" fill="#8884"/>'
    b'<path d="M64 44l32 32M96 44l-32 32" stroke="#888" stroke-width="4" stroke-linecap="round"/></svg>'
)


# --- which file


def trace_file(viewer: Viewer, run: int, part: str) -> Path:
    """The trace file of a page's address; raises HTTPException where the folder has none of that name.

    A name leads nowhere but into the folder itself: no path, and no link out of it.
    """
    if not 0 <= run < len(viewer.folders):
        raise HTTPException(404, f"There is no run {run}.")
    folder = viewer.folders[run]
    if not part or len(part) > _MAX_PART_CHARS or any(letter in part for letter in "/\\\0"):
        raise HTTPException(404, "That is no name of a trace.")
    path = folder / f"{_PREFIX}{part}{_SUFFIX}"
    try:
        is_inside = path.resolve(strict=True).parent == folder.resolve(strict=True)
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):
        raise HTTPException(404, f"{folder} holds no {path.name}.") from None
    if not is_inside or not is_file:
        raise HTTPException(404, f"{path.name} is no file of the folder {folder} itself.")
    return path


def asked_file(request: Request) -> Path:
    """The trace file of a page's address; raises HTTPException where there is none."""
    return trace_file(viewer_of(request), request.path_params["run"], request.path_params["part"])


def pictures_of(request: Request) -> Pictures:
    """The app's pictures, made when they are first asked for."""
    state = request.app.state
    with _MADE:
        if not hasattr(state, "pictures"):
            state.pictures = Pictures(viewer_of(request).dataset_override)
    found: Pictures = state.pictures
    return found


# --- the page


def trace_page(request: Request) -> Response:
    """The conversation of a trace; with `?beside=RUN/PART` another one next to it."""
    run, part = request.path_params["run"], request.path_params["part"]
    viewer_of(request).keeper.now()
    shown = [column_of(viewer_of(request), run, part)]
    beside = request.query_params.get("beside")
    if beside:
        other_run, _, other_part = beside.partition("/")
        if not other_run.isdecimal() or len(other_run) > 4:
            raise HTTPException(404, "beside= takes RUN/TRACE, such as 1/00012.")
        shown.append(column_of(viewer_of(request), int(other_run), other_part))
    return render(
        request,
        "trace.html",
        columns=shown,
        others=_others(request, part),
        **_neighbours(request, trace_file(viewer_of(request), run, part).name),
    )


def _neighbours(request: Request, file: str) -> Fields:
    """What comes before and after the trace in the list that the URL asks for, and what links keep of it."""
    viewer = viewer_of(request)
    pairs = [(name, value) for name, value in request.query_params.multi_items() if name != "beside"]
    found: Fields = {"list_query": urlencode(pairs), "before": None, "after": None, "position": None}
    try:
        query = read_query(request.query_params)
        before, after, position = viewer.index.neighbours(query, (request.path_params["run"], file))
        total = viewer.index.count(query)
    except UsageError as error:
        return found | {"total": 0, "list_problem": plain(str(error))}
    return found | {
        "before": before and trace_link(*before, found["list_query"]),
        "after": after and trace_link(*after, found["list_query"]),
        "position": position,
        "total": total,
        "list_problem": None,
    }


def column_of(viewer: Viewer, run: int, part: str) -> Fields:
    """What the page shows of one trace; of a file that cannot be read why, and its text."""
    path = trace_file(viewer, run, part)
    row = viewer.index.find((run, path.name)) or {}
    column: Fields = {
        "mark": row.get("mark"),
        "note": row.get("note"),
        "can_be_marked": bool(row),
        "run": run,
        "part": part,
        "path": plain(str(path)),
        "name": plain(path.name),
        "folder": plain(viewer.names[run]),
        "num_bytes": path.stat().st_size,
        "view": None,
        "recipe": _recipe(path),
        "verify": plain(f"distil verify {shlex.quote(str(path))}{_override_text(viewer)}"),
    }
    try:
        trace = load_json(path)
    except TraceError as error:
        return column | {"error": plain(str(error)), "raw": _beginning(path)}
    return column | {"sample": _sample_of(trace, part), "view": view_of(trace, _timings(path, trace))}


def _override_text(viewer: Viewer) -> str:
    override = viewer.dataset_override
    return "" if override is None else f" --dataset_path {shlex.quote(override)}"


def _beginning(path: Path) -> Fields:
    """The text of a file that is no trace, cut."""
    with path.open("rb") as file:
        data = file.read(4 * _RAW_SHOWN_CHARS)
    text = data.decode("utf-8", "replace")[:_RAW_SHOWN_CHARS]
    return {"text": text, "is_cut": len(text.encode("utf-8", "replace")) < path.stat().st_size}


def _sample_of(trace: Mapping[str, Json], part: str) -> Fields:
    """Which sample a trace says it is, else which its name says."""
    named = SampleId.from_file_part(part)
    try:
        stated = SampleId.from_json(trace)
    except (KeyError, TypeError):
        stated = None
    found = stated or named
    return {
        "text": str(found) if found is not None else part,
        "index": found.index if found is not None else None,
        "rollout": found.rollout if found is not None else None,
        "is_named_so": stated is None or named is None or stated == named,
    }


def _timings(path: Path, trace: Mapping[str, Json]) -> Mapping[str, Json]:
    """The line of `timings.jsonl` that says how long the sample took: the last one counts."""
    index, rollout = trace.get("sample_index"), trace.get("rollout", 0)
    file = path.parent / TIMINGS
    if type(index) is not int or not file.is_file():
        return {}
    needle = b'"sample_index": %d' % index
    found: Mapping[str, Json] = {}
    try:
        with file.open("rb") as lines:
            for line in lines:
                if needle in line:
                    value = parse_line(line)
                    if value and value.get("sample_index") == index and value.get("rollout", 0) == rollout:
                        found = value
    except OSError:
        return {}
    return found


def _recipe(path: Path) -> str:
    """The restore recipe with this trace's path."""
    text: str = environment().get_template("recipe.txt").render(path=Markup(repr(str(path))))  # noqa: S704
    return plain(text)


def _others(request: Request, part: str) -> list[Fields]:
    """The other rollouts of the row, and the same row in the other runs."""
    viewer, run = viewer_of(request), request.path_params["run"]
    sample_id = SampleId.from_file_part(part)
    if sample_id is None:
        return []
    photo = _photo_of(viewer, run, sample_id)
    found = []
    for number, folder in enumerate(viewer.folders):
        paths = folder.glob(f"{_PREFIX}{sample_id.index:05d}*{_SUFFIX}")
        parts = (SampleId.from_file_part(part_of(path.name)) for path in paths)
        ids = sorted(each for each in parts if each is not None)
        found += [
            {"run": number, "name": viewer.names[number], "part": each.file_part, "rollout": each.rollout}
            for each in ids
            if each.index == sample_id.index
            and (number, each) != (run, sample_id)
            and _photo_of(viewer, number, each) in (photo, None)
        ]
    return found


def _photo_of(viewer: Viewer, run: int, sample_id: SampleId) -> Json:
    """What tells a sample's photo from others: a row of the same number of another dataset is another row."""
    row = viewer.index.find((run, trace_name(sample_id)))
    return row and row.get("image_sha256")


def pair(request: Request) -> Response:
    """Answer and truth of one trace for the map, as `map.pairs` gives those of many."""
    try:
        found = view_of(load_json(asked_file(request)), {})["result"]
    except TraceError as error:
        raise HTTPException(404, plain(str(error))) from None
    ends = found["map"] or {}
    if "answer" not in ends:
        return answer({"pairs": [], "total": 0})
    words = " · ".join(f"{label} {text}" for label, text in found["metrics"]) or "this trace"
    return answer({"pairs": [[None, words, *ends["answer"], *ends["truth"], found["score"]]], "total": 1})


# --- pictures


def picture(request: Request) -> Response:
    """A picture of a trace: `view=sent` (the default), `full` or `thumb`."""
    try:
        view = View(request.query_params.get("view", View.SENT))
    except ValueError:
        raise HTTPException(404, f"view= is one of {', '.join(View)}.") from None
    path, number = asked_file(request), request.path_params["number"]
    headers = {"cache-control": "private, no-cache", "etag": _etag(viewer_of(request), path, number, view)}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    try:
        file = pictures_of(request).file(path, number, view)
    except DistilError as error:
        if view is View.THUMB:  # in a list of many: a sign in its place, and no error for each
            return Response(_NO_PICTURE, media_type="image/svg+xml")
        return PlainTextResponse(plain(str(error)), 404)
    return Response(file, media_type=media_type(file), headers=headers)


def _etag(viewer: Viewer, path: Path, number: int, view: View) -> str:
    """What a browser may show again as long as the trace's file and the dataset that is said are the same."""
    facts = path.stat()
    dataset = zlib.crc32(repr(viewer.dataset_override).encode())
    return f'"{dataset:x}-{facts.st_ino:x}-{facts.st_size:x}-{facts.st_mtime_ns:x}-{number}-{view}"'


def marks(request: Request) -> Response:
    """A line of JSON for each picture of a trace, as it is made: whether it is what the trace says."""
    found = pictures_of(request).marks(asked_file(request))

    def lines() -> Iterator[bytes]:
        try:
            for shown in found:
                yield json_bytes(asdict(shown)) + b"\n"
        except DistilError as error:
            yield json_bytes({"error": str(error)}) + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


# --- what was sent, and the file


def messages(request: Request) -> Response:
    """The messages of a trace's last request and its answer, pictures as what is known of them."""
    path = asked_file(request)
    whole = request.query_params.get("whole") == "1"
    try:
        trace = read_trace(path)
        found = _sent_messages(trace)
    except (DistilError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        text = error_text(error) if isinstance(error, DistilError) else f"a field cannot be read: {error!r}"
        return answer({"problem": plain(f"What was sent cannot be told: {text}")})
    limit = sys.maxsize if whole else _MESSAGE_CHARS
    return answer(_cut(found, limit))


def _sent_messages(trace: StoredTrace) -> Fields:
    settings = trace.settings
    photo = _stated_picture(trace.json["image"])
    pictures = [
        _stated_picture(entry["result"]) if entry.get("result") else None
        for entry in trace.json["tool_calls_log"]
    ]
    sent = opening_messages(trace.prompt, photo)
    requests = []
    turns = turns_of(trace, pictures)
    for turn in turns:
        seed = turn_seed(settings.seed, trace.sample_id, turn.number)
        requests.append({"turn": turn.number, "num_messages": len(sent), "seed": seed})
        sent += turn_messages(turn)
    placeholders = iter(
        _placeholder(number, found) for number, found in enumerate([photo, *pictures]) if found is not None
    )
    body = {
        "model": settings.model,
        settings.token_field: settings.max_tokens,
        "temperature": settings.temperature,
        "tools": list(trace.prompt.native_tools),
    }
    return {
        "body": {name: value for name, value in body.items() if value not in (None, [])},
        "sends_seed": settings.sends_seed,
        "requests": requests,
        "messages": [_with_placeholders(message, placeholders) for message in sent],
    }


def _stated_picture(block: Mapping[str, Json]) -> SentPicture:
    sent = block["sent"]
    size = (int(sent["width_px"]), int(sent["height_px"]))
    return SentPicture(str(sent["media_type"]), size, b"", int(sent["num_bytes"]), str(sent["sha256"]))


def _placeholder(number: int, picture: SentPicture) -> Fields:
    return {
        "type": "picture",
        "number": number,
        "media_type": picture.media_type,
        "size": picture.size,
        "num_bytes": picture.num_bytes,
        "sha256": picture.sha256,
    }


def _with_placeholders(message: Message, placeholders: Iterator[Fields]) -> Message:
    """The message with what is known of each picture in place of its data."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    parts = [next(placeholders) if part["type"] == "image_url" else part for part in content]
    return message | {"content": parts}


def _cut(value: Json, limit: int) -> Json:
    """The value with its long texts cut, each saying how much is left out; with what JSON lacks as text."""
    if isinstance(value, str) and len(value) > limit:
        return f"{value[:limit]}… ({len(value) - limit:,} more characters)"
    if isinstance(value, float) and finite(value) is None:
        return str(value)
    if isinstance(value, list):
        return [_cut(item, limit) for item in value]
    return {name: _cut(item, limit) for name, item in value.items()} if isinstance(value, dict) else value


def whole_text(request: Request) -> Response:
    """One text of a trace, all of it: `at=` says where it stands in the JSON (RFC 6901)."""
    try:
        value = value_at(load_json(asked_file(request)), request.query_params.get("at", ""))
    except (LookupError, TraceError):
        raise HTTPException(404, "The trace has no such field.") from None
    return PlainTextResponse(plain(value if isinstance(value, str) else json_text(value)))


def raw(request: Request) -> Response:
    """The file, to be saved."""
    path = asked_file(request)
    return FileResponse(path, media_type="application/json", filename=path.name)


TRACE_ROUTES = (
    Route("/trace/{run:int}/{part}", trace_page, name="trace"),
    Route("/picture/{run:int}/{part}/{number:int}", picture),
    Route("/api/pair/{run:int}/{part}", pair),
    Route("/api/pictures/{run:int}/{part}", marks),
    Route("/api/messages/{run:int}/{part}", messages),
    Route("/api/text/{run:int}/{part}", whole_text),
    Route("/raw/{run:int}/{part}", raw),
)
