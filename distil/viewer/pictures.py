"""The pictures of a trace, made again when somebody looks at them: from its dataset row and its actions.

Only a dataset that the user named is opened: by `--dataset_path`, or by a run that the folder's
`run_record.json` tells of. A trace alone names nothing: it may come from anywhere, and say anything. No
dataset of the hub and no picture at a URL is fetched, and code runs in the sandbox or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

import PIL
from PIL import Image

from distil.bare_file import without_metadata
from distil.errors import DistilError, SandboxUnavailable, SourceError, ToolError, TraceError, error_text
from distil.lazy_picture import PIXEL_WORK
from distil.pictures import (
    ResizeRule,
    can_send_as_stored,
    encode_sent,
    find_grey_range,
    is_deep_grey,
    picture_facts,
    to_rgb_or_grey,
)
from distil.records import (
    GreyRange,
    Json,
    PictureFacts,
    Sample,
    SampleId,
    SentPicture,
    Size,
    StoredPicture,
)
from distil.replay.imported import imported_pictures, photo_of
from distil.replay.recipe import FAILURES
from distil.replay.replay import Sources
from distil.sandbox.bounds import MEMORY_BYTES
from distil.sandbox.exchange import ExecResult
from distil.sandbox.sandbox import REMEDY, Sandbox
from distil.source.rows import Source, open_source
from distil.source.saved import HUB
from distil.store.claim import RUN_RECORD, read_runs
from distil.store.summary import call_name, call_succeeded, mapping_of, trace_calls, trace_turns
from distil.store.trace_file import StoredTrace, load_json, read_trace
from distil.tools.base import MAX_RESULT_PIXELS, Scene
from distil.tools.python_code import Executor
from distil.tools.toolbox import find_tool

MAX_CALLS = 2000  # of a trace: no teacher makes as many
THUMB_PX = 160  # the longest side
_CACHE_BYTES = 192 * 2**20
_REPLAYS_AT_ONCE = 2
_REMEMBERED_TRACES = 500  # whose marks are kept, some hundred bytes a picture
_REPLAY_SECONDS = 120.0  # for one trace: one that somebody else made may ask for hours
_CODE_SECONDS = 60.0
_LOSSLESS_PIXELS = 16_000_000  # above, a PNG takes seconds to make and to load
_SIDE_LIMIT_PX = 1024  # of what a view rule may make of a small picture: hundreds of times what any does
_UNSTATED_RULE = ResizeRule(max_side_px=1600)  # for traces that do not say at what size pictures were sent
_KEPT_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,", re.IGNORECASE)
_FAILURES = (DistilError, MemoryError, *FAILURES)


ResultT = TypeVar("ResultT")


class View(StrEnum):
    """In which form a picture is asked for."""

    SENT = "sent"  # the bytes that the teacher got
    FULL = "full"  # all pixels, in a format that browsers show
    THUMB = "thumb"


class Match(StrEnum):
    """Whether a picture is the one that the trace was made with, by the hashes that it keeps."""

    MATCHED = "matched"
    DIFFERS = "differs"
    UNSTATED = "unstated"  # the trace keeps no hash of it
    MISSING = "missing"  # it cannot be made


@dataclass(frozen=True)
class ShownPicture:
    """A picture of a trace: 0 is the photo, k what call k gave (from 1); `detail` says why, for a person."""

    number: int
    match: Match
    detail: str
    size: Size | None = None  # in full resolution
    mode: str | None = None
    sent_size: Size | None = None
    num_bytes: int | None = None  # as sent
    is_kept: bool = False  # it stands in the trace itself

    def as_json(self) -> dict[str, Json]:
        return {
            "number": self.number,
            "match": self.match.value,
            "detail": self.detail,
            "size": self.size,
            "mode": self.mode,
            "sent_size": self.sent_size,
            "num_bytes": self.num_bytes,
            "is_kept": self.is_kept,
        }


@dataclass(frozen=True)
class Encoded:
    """A picture file for a browser."""

    data: bytes
    media_type: str


class NoPicture(DistilError):
    """A picture that a trace has not, or that cannot be made; the text says why."""


@dataclass(frozen=True)
class _Made:
    """A picture as a replay made it; `image` has its pixels."""

    number: int
    image: Callable[[], Image.Image]
    facts: PictureFacts
    sent: SentPicture
    grey_range: GreyRange | None
    stored: StoredPicture | None = None  # of the photo
    kept: Encoded | None = None  # where it was not made, but stands in the trace


class Pictures:
    """The pictures of traces, made on demand and kept while there is room; safe to ask from many threads."""

    def __init__(
        self,
        dataset_override: str | None = None,
        *,
        max_bytes: int = _CACHE_BYTES,
        make_sandbox: Callable[[], Sandbox] | None = None,
    ) -> None:
        """`dataset_override` stands in for every dataset; `make_sandbox` makes what code is run in."""
        self._override = dataset_override
        self._sources = Sources(dataset_override)
        self._views: dict[str, Source] = {}
        self._sandbox = _Contained(make_sandbox or partial(Sandbox, _CODE_SECONDS, MEMORY_BYTES, workers=1))
        self._files = _Cache(max_bytes)
        self._marks: OrderedDict[_Key, dict[int, ShownPicture]] = OrderedDict()
        self._running: dict[tuple[_Key, str], _Task] = {}
        self._lock = threading.RLock()
        self._at_once = threading.BoundedSemaphore(_REPLAYS_AT_ONCE)
        self.num_replays = 0

    @property
    def num_bytes(self) -> int:
        """What the files that are kept take."""
        return self._files.num_bytes

    def close(self) -> None:
        """End what runs code."""
        self._sandbox.close()

    def marks(self, path: Path) -> Iterator[ShownPicture]:
        """What can be said of each of a trace's pictures, one by one as they are made."""
        key = _key_of(path)
        with self._lock:
            known = self._marks.get(key)
        if known is not None:
            yield from known.values()
            return
        task = self._replay_task(key, path)
        seen = 0
        while (shown := task.shown_at(seen)) is not None:
            seen += 1
            yield shown

    def replayed(self, path: Path, work: Callable[[StoredTrace, Source, Executor], ResultT]) -> ResultT:
        """What `work` makes of a trace whose pictures can all be made within the bounds that hold here.

        Raises DistilError, of whatever cannot be read or made.
        """
        try:
            with self._at_once:
                value, trace = load_json(path), read_trace(path)
                for _ in self._replayed(path, value):
                    pass
                return work(trace, self._source(path, trace), self._sandbox)
        except _FAILURES as error:
            raise error if isinstance(error, DistilError) else NoPicture(_reason(error)) from None

    def file(self, path: Path, number: int, view: View) -> Encoded:
        """A picture of a trace; raises NoPicture, TraceError where there is no such file."""
        key = _key_of(path)
        found = self._files.get((key, number, view))
        if found is not None:
            return found
        if view is View.SENT:
            return self._sent(key, path, number)
        name = f"{view}{number}"
        task = self._task(key, name, lambda _: self._made_file(key, path, number, view))
        return task.result()

    def _sent(self, key: _Key, path: Path, number: int) -> Encoded:
        with self._lock:
            known = self._marks.get(key)
        if known is not None and number in known and known[number].match is Match.MISSING:
            raise NoPicture(known[number].detail)
        if known is not None and number not in known:
            raise NoPicture(_no_such(number))
        return self._replay_task(key, path).file(number)

    def _made_file(self, key: _Key, path: Path, number: int, view: View) -> Encoded:
        """A view other than the sent one, made in one of the workers."""
        if view is View.THUMB:
            sent = self._files.get((key, number, View.SENT))
            encoded = _thumbnail(sent.data if sent else self._one(path, number).sent.data)
        else:
            encoded = _full(self._one(path, number))
        self._files.put((key, number, view), encoded)
        return encoded

    def _one(self, path: Path, number: int) -> _Made:
        """One picture, with no more made than it needs; one that the trace keeps where none can be made."""
        value = load_json(path)
        try:
            made = next((made for made in self._replayed(path, value) if made.number == number), None)
        except _FAILURES as error:
            kept = kept_picture(value, number)
            if kept is None:
                raise NoPicture(_reason(error)) from None
            image = Image.open(io.BytesIO(kept.data))
            sent = _as_sent(kept, image.size)
            return _Made(number, lambda: image, picture_facts(image), sent, None, kept=kept)
        if made is None:
            raise NoPicture(_no_such(number))
        return made

    def _replay_task(self, key: _Key, path: Path) -> _Task:
        return self._task(key, "replay", lambda task: self._replay(key, path, task))

    def _task(self, key: _Key, name: str, work: Callable[[_Task], Encoded | None]) -> _Task:
        """What does a work that several may ask for at once: it is done once."""
        with self._lock:
            task = self._running.get((key, name))
            if task is None:
                task = self._running[key, name] = _Task()
                run = partial(self._run_task, key, name, task, work)
                threading.Thread(target=run, name="replay", daemon=True).start()
            return task

    def _run_task(self, key: _Key, name: str, task: _Task, work: Callable[[_Task], Encoded | None]) -> None:
        result: Encoded | None = None
        error: DistilError | None = None
        try:
            with self._at_once:
                result = work(task)
        except _FAILURES as caught:
            error = caught if isinstance(caught, DistilError) else NoPicture(_reason(caught))
        finally:
            with self._lock:
                self._running.pop((key, name), None)
            task.end(result, error)

    def _replay(self, key: _Key, path: Path, task: _Task) -> None:
        """Make all of a trace's pictures, telling of each as soon as it is there."""
        self.num_replays += 1
        value = load_json(path)
        wanted = [
            0,
            *(
                number
                for number, call in enumerate(trace_calls(value)[:MAX_CALLS], 1)
                if call_succeeded(call)
            ),
        ]
        marks: dict[int, ShownPicture] = {}

        def tell(shown: ShownPicture, file: Encoded | None) -> None:
            marks[shown.number] = shown
            if file is not None:
                self._files.put((key, shown.number, View.SENT), file)
            task.add(shown, file)

        reason = ""
        try:
            for made in self._replayed(path, value):
                tell(*_compared(made, value))
        except _FAILURES as error:
            reason = _reason(error)
        for number in wanted:
            if number not in marks:
                tell(*_left_out(number, reason or "the replay ended before it", value))
        with self._lock:
            self._marks[key] = marks
            while len(self._marks) > _REMEMBERED_TRACES:
                self._marks.popitem(last=False)

    def _replayed(self, path: Path, value: Mapping[str, Json]) -> Iterator[_Made]:
        """The pictures of a trace, each made of the one before."""
        until = time.monotonic() + _REPLAY_SECONDS
        try:
            trace = read_trace(path)
            trace.settings  # noqa: B018 - read now: where it cannot be, the trace is another program's
        except (TraceError, LookupError, TypeError, ValueError):
            if value.get("format") is not None:
                raise
            yield from self._by_recipe(path, value)
            return
        source = self._source(path, trace)
        _refuse_far(source, trace.sample_id)
        sample = source.load(trace.sample_id)
        if trace.is_imported:
            yield _photo(sample, photo_of(trace, sample))
            for picture in imported_pictures(trace, sample):
                _check_time(until)
                _check_area(picture.scene.picture.size, picture.scene.photo.size)
                facts = picture_facts(picture.scene.current)
                yield _Made(picture.number, partial(_current, picture.scene), facts, picture.sent, None)
            return
        toolbox = trace.settings.toolbox(self._sandbox)
        _check_rule(toolbox.rule)
        scene = Scene.start(sample.picture.picture)
        yield _photo(sample, encode_sent(sample.picture.image, toolbox.rule, sample.picture))
        for number, call in enumerate(trace.calls[:MAX_CALLS], start=1):
            if not call.observation.success:
                continue
            try:
                _check_time(until)
                _check_action(call.raw.name, call.arguments, scene)
                observation, scene = toolbox.observe(call.raw.name, call.arguments, scene)
                _check_area(scene.picture.size, scene.photo.size)
            except _FAILURES as error:
                raise NoPicture(_call_problem(number, call.raw.name, error, trace)) from None
            assert observation.facts is not None and observation.sent is not None
            yield _Made(
                number, partial(_current, scene), observation.facts, observation.sent, scene.grey_range
            )

    def _by_recipe(self, path: Path, value: Mapping[str, Json]) -> Iterator[_Made]:
        """The pictures of a trace that another program wrote, by the restore recipe."""
        until = time.monotonic() + _REPLAY_SECONDS
        if self._override is None:
            self._check_is_recorded(path, {"path": value.get("dataset_path")})
        source = self._opened(self._override or _local(value.get("dataset_path")))
        sample_id = SampleId.from_json({"sample_index": value.get("sample_index")})
        _refuse_far(source, sample_id)
        sample = source.load(sample_id)
        image = sample.picture.image
        yield _photo(sample, encode_sent(image, _UNSTATED_RULE, sample.picture))
        for number, call in enumerate(trace_calls(value)[:MAX_CALLS], start=1):
            if not call_succeeded(call):
                continue
            name, arguments = call_name(call), call_arguments(call)
            try:
                _check_time(until)
                tool = find_tool(name, self._sandbox)
                if tool is None:
                    raise ToolError(f"there is no tool called {name[:80]!r} here")
                _check_action(name, arguments, Scene.start(image))
                image = tool.recipe(arguments, image)
                _check_area(image.size, sample.picture.image.size)
                sent = encode_sent(image, _UNSTATED_RULE)
            except _FAILURES as error:
                raise NoPicture(_call_problem(number, name, error)) from None
            yield _Made(number, partial(_same, image), picture_facts(image), sent, find_grey_range(image))

    def _source(self, path: Path, trace: StoredTrace) -> Source:
        """The dataset that a trace came from, where it may be opened; raises SourceError."""
        if self._override is not None:
            return self._sources.of(trace)
        block = trace.json["dataset"]
        stated = {name: block.get(name) for name in ("source", "kind", "split")}
        self._check_is_recorded(path, stated | {"path": trace.json["dataset_path"]})
        if trace.dataset.kind == "hub":  # its view is on this disk: nothing is asked
            return self._opened(_local(trace.json["dataset_path"]))
        return self._sources.of(trace)

    def _opened(self, dataset_path: str) -> Source:
        with self._lock:
            if dataset_path not in self._views:
                self._views[dataset_path] = open_source(dataset_path)
            return self._views[dataset_path]

    def _check_is_recorded(self, path: Path, stated: Mapping[str, Json]) -> None:
        """Raise SourceError where no run into the trace's folder was one on this dataset."""
        runs = read_runs(path.parent) if (path.parent / RUN_RECORD).is_file() else []  # a pipe never ends
        recorded = [mapping_of(run.get("dataset")) for run in runs]
        if not any(all(block.get(name) == stated[name] for name in stated) for block in recorded):
            shown = stated.get("source") or stated.get("path")
            raise SourceError(
                f"the trace names the dataset {str(shown)[:200]!r}, which no run into this folder has used "
                "(run_record.json): say where it is with --dataset_path PATH"
                if shown
                else "the trace does not say what dataset it is of: say where it is with --dataset_path PATH"
            )


_Key = tuple[str, int, int, int]  # path, inode, size and time of change: a file that is replaced is another


def _key_of(path: Path) -> _Key:
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read: {error_text(error)}") from None
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns


class _Task:
    """One work that several wait for: pictures as they are made, or in the end one file."""

    def __init__(self) -> None:
        self._told: list[tuple[ShownPicture, Encoded | None]] = []
        self._ended: Future[Encoded | None] = Future()
        self._changed = threading.Condition()

    def add(self, shown: ShownPicture, file: Encoded | None) -> None:
        with self._changed:
            self._told.append((shown, file))
            self._changed.notify_all()

    def end(self, result: Encoded | None, error: DistilError | None) -> None:
        with self._changed:
            if error is not None:
                self._ended.set_exception(error)
            else:
                self._ended.set_result(result)
            self._changed.notify_all()

    def result(self) -> Encoded:
        found = self._ended.result()
        if found is None:
            raise NoPicture("the picture could not be made")
        return found

    def shown_at(self, position: int) -> ShownPicture | None:
        """What was told as number `position`, waited for; None where the work ended before."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._told) > position or self._ended.done())
            if len(self._told) > position:
                return self._told[position][0]
        self._ended.result()
        return None

    def file(self, number: int) -> Encoded:
        """The file of a picture as soon as it is there; raises NoPicture."""
        position = 0
        while True:
            shown = self.shown_at(position)
            if shown is None:
                raise NoPicture(_no_such(number))
            if shown.number == number:
                file = self._told[position][1]
                if file is None:
                    raise NoPicture(shown.detail)
                return file
            position += 1


class _Cache:
    """Files by what they are of, the longest unused dropped first; bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._files: OrderedDict[tuple[_Key, int, View], Encoded] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def get(self, key: tuple[_Key, int, View]) -> Encoded | None:
        with self._lock:
            found = self._files.get(key)
            if found is not None:
                self._files.move_to_end(key)
            return found

    def put(self, key: tuple[_Key, int, View], file: Encoded) -> None:
        with self._lock:
            before = self._files.pop(key, None)
            self._num_bytes += len(file.data) - (len(before.data) if before else 0)
            self._files[key] = file
            while self._num_bytes > self._max_bytes and self._files:
                _, dropped = self._files.popitem(last=False)
                self._num_bytes -= len(dropped.data)


class _Contained:
    """The sandbox, started when the first code has to run; what stops it from starting is found out once."""

    workers = 1

    def __init__(self, make: Callable[[], Sandbox]) -> None:
        self._make = make
        self._sandbox: Sandbox | None = None
        self._problem: SandboxUnavailable | None = None
        self._lock = threading.Lock()

    def run(self, code: str, picture: Image.Image) -> ExecResult:
        with self._lock:
            if self._problem is not None:
                raise SandboxUnavailable(str(self._problem))
            if self._sandbox is None:
                sandbox = self._make()
                try:
                    sandbox.start()
                except SandboxUnavailable as error:
                    self._problem = error
                    raise
                if sandbox.unsafe:
                    raise SandboxUnavailable("the viewer runs no code outside the sandbox")
                self._sandbox = sandbox
            sandbox = self._sandbox
        return sandbox.run(code, picture)

    def close(self) -> None:
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.close()


def call_arguments(call: Mapping[str, Json]) -> Mapping[str, Json]:
    """A call's stored arguments in a trace of either format."""
    if isinstance(call.get("code"), str):
        return {"code": call["code"]}
    return mapping_of(call.get("tool_arguments", call.get("arguments")))


def kept_picture(trace: Mapping[str, Json], number: int) -> Encoded | None:
    """A picture that stands in the trace itself; None where there is none that browsers show."""
    if number == 0:
        return _decoded(_photo_texts(trace))
    calls = trace_calls(trace)
    return _decoded(_texts(calls[number - 1], 3)) if number <= len(calls) else None


def _photo_texts(trace: Mapping[str, Json]) -> Iterator[str]:
    own = {name: value for name, value in trace.items() if name in ("image", "picture", "original_image")}
    yield from _texts(own, 2)
    turns = trace_turns(trace)
    if turns and turns[0].get("role") in ("user", "system"):
        yield from _texts(turns[0], 5)


def _texts(value: Json, depth: int) -> Iterator[str]:
    """The data URLs in a JSON value, as deep as a picture is kept."""
    if isinstance(value, str):
        if _DATA_URL.match(value):
            yield value
    elif isinstance(value, dict | list) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, depth - 1)


def _decoded(urls: Iterator[str]) -> Encoded | None:
    for url in urls:
        try:
            data = base64.b64decode(url.partition(",")[2], validate=True)
            with Image.open(io.BytesIO(data), formats=list(_KEPT_FORMATS)) as image:
                return Encoded(data, _KEPT_FORMATS[str(image.format)])
        except _FAILURES:
            continue
    return None


def _compared(made: _Made, trace: Mapping[str, Json]) -> tuple[ShownPicture, Encoded]:
    """What can be said of a picture, and the file that is shown: the one that the trace keeps, if it does."""
    kept = kept_picture(trace, made.number)
    stored = _stored_facts(trace, made.number)
    sent = _as_sent(kept, made.sent.size) if kept else made.sent
    pixels, stated_sent = stored.get("pixel_sha256"), mapping_of(stored.get("sent")).get("sha256")
    where, note = "as kept in the trace" if kept else "replayed", _versions_note(trace)
    if not isinstance(pixels, str) and not isinstance(stated_sent, str):
        match, detail = Match.UNSTATED, f"{where}; the trace keeps no hash to compare with"
    elif isinstance(pixels, str) and pixels != made.facts.pixel_sha256:
        match, detail = (
            Match.DIFFERS,
            f"{where}, but its pixels are others than the trace says{note}",
        )
    elif isinstance(stated_sent, str) and stated_sent != sent.sha256:
        match, detail = (
            Match.DIFFERS,
            f"the same pixels, but the teacher was sent another file{note}",
        )
    else:
        match, detail = Match.MATCHED, f"{where}: pixels and sent file are those of the trace"
    shown = ShownPicture(
        made.number,
        match,
        detail,
        (made.facts.width_px, made.facts.height_px),
        made.facts.mode,
        sent.size,
        sent.num_bytes,
        kept is not None,
    )
    return shown, Encoded(sent.data, sent.media_type)


def _versions_note(trace: Mapping[str, Json]) -> str:
    """Which Pillow made the trace, where another one reads it: that may be all."""
    made_with = mapping_of(mapping_of(trace.get("metadata")).get("versions")).get("pillow")
    return (
        "" if made_with == PIL.__version__ else f"; made with Pillow {made_with}, this is {PIL.__version__}"
    )


def _left_out(number: int, reason: str, trace: Mapping[str, Json]) -> tuple[ShownPicture, Encoded | None]:
    """What can be said of a picture that no replay makes: perhaps the trace keeps it."""
    kept = kept_picture(trace, number)
    if kept is None:
        return ShownPicture(number, Match.MISSING, reason), None
    with Image.open(io.BytesIO(kept.data)) as image:
        size = image.size
    stated = mapping_of(_stored_facts(trace, number).get("sent")).get("sha256")
    sha256 = hashlib.sha256(kept.data).hexdigest()
    match = Match.UNSTATED if not isinstance(stated, str) else Match.MATCHED
    if match is Match.MATCHED and stated != sha256:
        match = Match.DIFFERS
    detail = f"as kept in the trace; not replayed: {reason}"
    return ShownPicture(number, match, detail, None, None, size, len(kept.data), True), kept


def _stored_facts(trace: Mapping[str, Json], number: int) -> Mapping[str, Json]:
    if number == 0:
        return mapping_of(trace.get("image"))
    return mapping_of(trace_calls(trace)[number - 1].get("result"))


def _as_sent(kept: Encoded, size: Size) -> SentPicture:
    return SentPicture(
        kept.media_type, size, kept.data, len(kept.data), hashlib.sha256(kept.data).hexdigest()
    )


def _photo(sample: Sample, sent: SentPicture) -> _Made:
    stored = sample.picture
    return _Made(0, lambda: stored.image, stored.facts, sent, find_grey_range(stored.image), stored)


def _full(made: _Made) -> Encoded:
    """A picture in full resolution: a photo's own file where that can be, else a new one of its pixels."""
    if made.kept is not None:
        return made.kept
    if made.stored is not None and can_send_as_stored(made.stored):
        bare = without_metadata(made.stored.file_format, made.stored.data)
        if bare is not None:
            return Encoded(bare, _KEPT_FORMATS[made.stored.file_format])
    with PIXEL_WORK:
        image = made.image()
        flat = to_rgb_or_grey(image, made.grey_range if is_deep_grey(image) else None)
        if image.width * image.height <= _LOSSLESS_PIXELS:
            return _encoded(flat, "PNG", compress_level=1)
        return _encoded(flat, "JPEG", quality=95, subsampling=0)


def _thumbnail(data: bytes) -> Encoded:
    with Image.open(io.BytesIO(data), formats=list(_KEPT_FORMATS)) as image:
        image.draft("RGB", (2 * THUMB_PX, 2 * THUMB_PX))  # a JPEG is decoded no larger than is needed
        image.thumbnail((THUMB_PX, THUMB_PX))
        return _encoded(to_rgb_or_grey(image, None), "JPEG", quality=85)


def _encoded(image: Image.Image, file_format: str, **options: Json) -> Encoded:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return Encoded(buffer.getvalue(), _KEPT_FORMATS[file_format])


def _local(dataset_path: Json) -> str:
    if not isinstance(dataset_path, str) or dataset_path.startswith(HUB):
        raise SourceError("the viewer asks no hub: say where the dataset is with --dataset_path PATH")
    return dataset_path


def _refuse_far(source: Source, sample_id: SampleId) -> None:
    if source.is_far(sample_id):
        raise SourceError("the picture lies at a URL, and the viewer asks no other machine for anything")


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise NoPicture(f"replaying this trace takes longer than {_REPLAY_SECONDS:.0f} seconds")


def _check_rule(rule: ResizeRule) -> None:
    """Raise NoPicture where a trace says that small pictures are sent enormous: no run does."""
    too_large = max(rule.min_side_px, rule.factor_px) > _SIDE_LIMIT_PX or rule.min_area_px > MAX_RESULT_PIXELS
    if too_large:
        raise NoPicture("settings.view_rule makes pictures larger than any run does")


def _check_action(name: str, arguments: Mapping[str, Json], scene: Scene) -> None:
    """Raise ToolError where a stored box is none that a run stores: it would crop what is not there."""
    tool = find_tool(name)
    box = tool.box_of(arguments) if tool is not None else None
    if tool is None or box is None:
        return
    width, height = (scene.photo if tool.works_on_photo(arguments) else scene.picture).size
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ToolError(f"the stored box lies outside its picture of {width}×{height} pixels")


def _check_area(size: Size, photo: Size) -> None:
    if size[0] * size[1] > max(MAX_RESULT_PIXELS, photo[0] * photo[1]):
        raise ToolError(f"it gives a picture of {size[0]}×{size[1]} pixels, more than any run allows")


def _current(scene: Scene) -> Image.Image:
    return scene.current


def _same(image: Image.Image) -> Image.Image:
    return image


def _no_such(number: int) -> str:
    return f"this trace has no picture {number}"


def _call_problem(number: int, name: str, error: BaseException, trace: StoredTrace | None = None) -> str:
    what = f"call {number} ({name[:80]}) cannot be made again"
    if isinstance(error, SandboxUnavailable):
        why = str(error).removesuffix(REMEDY).strip()
        return f"{what}: its code is run in a sandbox alone, and there is none here. {why}"
    code = trace.settings.code if trace is not None else None
    note = " (it ran without a sandbox, and is run in one now)" if code and code.unsafe_exec else ""
    return f"{what}: {_reason(error)}{note}"


def _reason(error: BaseException) -> str:
    if isinstance(error, DistilError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error_text(error)}".split())[:300]
