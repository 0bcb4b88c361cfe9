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
from functools import cached_property
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
    is_deep_grey,
    picture_facts,
    to_rgb_or_grey,
)
from distil.records import (
    Json,
    PictureFacts,
    Sample,
    SampleId,
    SentPicture,
    Size,
    StoredPicture,
    mapping_of,
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
from distil.store.summary import call_name, call_succeeded, trace_calls, trace_turns
from distil.store.trace_file import StoredTrace, load_json, read_trace
from distil.tools.base import MAX_RESULT_PIXELS, Scene
from distil.tools.python_code import Executor
from distil.tools.toolbox import find_tool, stored_box_problem

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
_SHOWN_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # by browsers
_MEDIA_TYPES = {
    b"\xff\xd8": "image/jpeg",
    b"\x89P": "image/png",
    b"RI": "image/webp",
    b"GI": "image/gif",
}  # by how files of these formats begin
_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,", re.IGNORECASE)
_FAILURES = (DistilError, MemoryError, *FAILURES)

ResultT = TypeVar("ResultT")


class View(StrEnum):
    """In which form a picture is asked for."""

    SENT = "sent"  # the bytes that the teacher got
    FULL = "full"  # all pixels, in a format that browsers show
    THUMB = "thumb"


class PictureMatch(StrEnum):
    """Whether a picture is the one that the trace was made with, by the hashes that it keeps."""

    MATCHED = "matched"
    DIFFERS = "differs"
    UNSTATED = "unstated"  # the trace keeps no hash of it
    MISSING = "missing"  # it cannot be made


@dataclass(frozen=True)
class ShownPicture:
    """A picture of a trace: 0 is the photo, k what call k gave (from 1); `detail` says why, for a person."""

    number: int
    match: PictureMatch
    detail: str
    size: Size | None = None  # in full resolution
    mode: str | None = None
    sent_size: Size | None = None
    num_bytes: int | None = None  # as sent
    is_kept: bool = False  # it stands in the trace itself


@dataclass(frozen=True)
class _Made:
    """A picture as a replay made it: the current one of `scene`; `stored` is the photo's file."""

    number: int
    scene: Scene
    facts: PictureFacts
    sent: SentPicture
    stored: StoredPicture | None = None


class Pictures:
    """The pictures of traces, made on demand and kept while there is room; safe to ask from many threads.

    It is what their code runs in, too: in the sandbox alone.
    """

    workers = 1

    def __init__(
        self,
        dataset_override: str | None = None,
        *,
        max_bytes: int = _CACHE_BYTES,
        sandbox: Sandbox | None = None,
    ) -> None:
        """`dataset_override` stands in for every dataset; `sandbox` is what code is run in.

        Raises SandboxUnavailable for one that contains nothing.
        """
        self._sandbox = sandbox or Sandbox(_CODE_SECONDS, MEMORY_BYTES, workers=self.workers)
        if self._sandbox.unsafe:
            raise SandboxUnavailable("the viewer runs no code outside the sandbox")
        self._override = dataset_override
        self._sources = Sources(dataset_override)
        self._views: dict[str, Source] = {}
        self._files = _Files(max_bytes)
        self._told: OrderedDict[_Trace, dict[int, Future[ShownPicture]]] = OrderedDict()
        self._making: dict[_File, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._at_once = threading.BoundedSemaphore(_REPLAYS_AT_ONCE)
        self.num_replays = 0

    @property
    def num_bytes(self) -> int:
        """What the files that are kept take."""
        return self._files.num_bytes

    def close(self) -> None:
        """End what runs code."""
        self._sandbox.close()

    def run(self, code: str, picture: Image.Image) -> ExecResult:
        """Run code in the sandbox; raises SandboxUnavailable."""
        if self._no_sandbox:
            raise SandboxUnavailable(self._no_sandbox)
        return self._sandbox.run(code, picture)

    @cached_property
    def _no_sandbox(self) -> str:
        """What keeps the sandbox from starting, empty for nothing; found out once, for it takes its time."""
        try:
            self._sandbox.start()
        except SandboxUnavailable as error:
            return str(error)
        return ""

    def marks(self, path: Path) -> Iterator[ShownPicture]:
        """What can be said of each of a trace's pictures, one by one as they are made."""
        for shown in self._shown(path).values():
            yield shown.result()

    def replayed(self, path: Path, work: Callable[[StoredTrace, Source, Executor], ResultT]) -> ResultT:
        """What `work` makes of a trace whose pictures can all be made within the bounds that hold here.

        Raises DistilError, of whatever cannot be read or made.
        """
        try:
            with self._at_once:
                value, trace = load_json(path), read_trace(path)
                for _ in self._replayed(path, value):
                    pass
                return work(trace, self._source(path, trace), self)
        except _FAILURES as error:
            raise _as_ours(error) from None

    def file(self, path: Path, number: int, view: View) -> bytes:
        """A picture of a trace as a file for a browser; raises DistilError where there is none."""
        key = (_trace_of(path), number, view)
        found = self._files.get(key)
        if found is None and view is View.SENT:
            shown = self._shown(path).get(number)
            if shown is None:
                raise TraceError(_no_such(number))
            if shown.result().match is PictureMatch.MISSING:
                raise TraceError(shown.result().detail)
            found = self._files.get(key)  # there is not room for all
        return self._made(key, path).result() if found is None else found

    def _made(self, key: _File, path: Path) -> Future[bytes]:
        """A file in the making, once for all who ask for it."""
        with self._lock:
            if key not in self._making:
                self._making[key] = Future()
                _start(self._make, key, path, self._making[key])
            return self._making[key]

    def _make(self, key: _File, path: Path, made: Future[bytes]) -> None:
        try:
            with self._at_once:
                file = self._file(key, path)
            self._files.put(key, file)
            made.set_result(file)
        except _FAILURES as error:
            made.set_exception(_as_ours(error))
        finally:
            with self._lock:
                del self._making[key]
            if not made.done():
                made.set_exception(TraceError("the picture could not be made"))

    def _file(self, key: _File, path: Path) -> bytes:
        """A view of a picture, with no more made than it needs; or the picture that the trace keeps."""
        trace, number, view = key
        sent = self._files.get((trace, number, View.SENT))
        if view is View.THUMB and sent is not None:
            return _thumbnail(sent)
        value = load_json(path)
        try:
            made = next((made for made in self._replayed(path, value) if made.number == number), None)
        except _FAILURES:
            kept = kept_picture(value, number)
            if kept is None:
                raise
            return _thumbnail(kept) if view is View.THUMB else kept
        if made is None:
            raise TraceError(_no_such(number))
        if view is View.FULL:
            return _full(made)
        return _thumbnail(made.sent.data) if view is View.THUMB else _compared(made, value)[1]

    def _shown(self, path: Path) -> dict[int, Future[ShownPicture]]:
        """What is said of a trace's pictures by their numbers, each as soon as a replay has made it."""
        trace = _trace_of(path)
        calls = enumerate(trace_calls(load_json(path))[:MAX_CALLS], start=1)
        numbers = [0, *(number for number, call in calls if call_succeeded(call))]
        with self._lock:
            if trace not in self._told:
                self._told[trace] = {number: Future() for number in numbers}
                _start(self._replay, trace, path, self._told[trace])
                if len(self._told) > _REMEMBERED_TRACES:
                    self._told.popitem(last=False)
            return self._told[trace]

    def _replay(self, trace: _Trace, path: Path, told: dict[int, Future[ShownPicture]]) -> None:
        """Make all of a trace's pictures, telling of each as soon as it is there."""
        self.num_replays += 1
        value: Mapping[str, Json] = {}

        def tell(shown: ShownPicture, file: bytes | None) -> None:
            if file is not None:
                self._files.put((trace, shown.number, View.SENT), file)
            told[shown.number].set_result(shown)

        reason = "the replay ended before it"
        try:
            with self._at_once:
                value = load_json(path)
                for made in self._replayed(path, value):
                    if made.number in told:
                        tell(*_compared(made, value))
        except _FAILURES as error:
            reason = _reason(error)
        finally:
            for number, shown in told.items():
                if not shown.done():
                    tell(*_left_out(number, reason, value))

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
                yield _Made(picture.number, picture.scene, facts, picture.sent)
            return
        toolbox = trace.settings.toolbox(self)
        _check_rule(toolbox.rule)
        photo = _photo(sample, encode_sent(sample.picture.image, toolbox.rule, sample.picture))
        yield photo
        scene = photo.scene
        for number, call in enumerate(trace.calls[:MAX_CALLS], start=1):
            if not call.observation.success:
                continue
            try:
                _check_time(until)
                _check_action(call.raw.name, call.arguments, scene)
                observation, scene = toolbox.observe(call.raw.name, call.arguments, scene)
                _check_area(scene.picture.size, scene.photo.size)
            except _FAILURES as error:
                raise TraceError(_call_problem(number, call.raw.name, error, trace)) from None
            assert observation.facts is not None and observation.sent is not None
            yield _Made(number, scene, observation.facts, observation.sent)

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
                tool = find_tool(name, self)
                if tool is None:
                    raise ToolError(f"there is no tool called {name[:80]!r} here")
                _check_action(name, arguments, Scene.start(image))
                image = tool.recipe(arguments, image)
                _check_area(image.size, sample.picture.image.size)
                sent = encode_sent(image, _UNSTATED_RULE)
            except _FAILURES as error:
                raise TraceError(_call_problem(number, name, error)) from None
            yield _Made(number, Scene.start(image), picture_facts(image), sent)

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


_Trace = tuple[str, int, int, int]  # path, inode, size and time of change: a file that is replaced is another
_File = tuple[_Trace, int, View]


def _trace_of(path: Path) -> _Trace:
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read: {error_text(error)}") from None
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns


def _start(work: Callable[..., None], *given: object) -> None:
    """Work beside the one who asks; it does not keep the process from ending, as a pool's would."""
    threading.Thread(target=work, args=given, name="replay", daemon=True).start()


class _Files:
    """Files by what they are of, the longest unused dropped first; bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.num_bytes = max_bytes, 0
        self._files: OrderedDict[_File, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _File) -> bytes | None:
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
            return self._files.get(key)

    def put(self, key: _File, file: bytes) -> None:
        with self._lock:
            self.num_bytes += len(file) - len(self._files.pop(key, b""))
            self._files[key] = file
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= len(self._files.popitem(last=False)[1])


def call_arguments(call: Mapping[str, Json]) -> Mapping[str, Json]:
    """A call's stored arguments in a trace of either format."""
    if isinstance(call.get("code"), str):
        return {"code": call["code"]}
    return mapping_of(call.get("tool_arguments", call.get("arguments")))


def media_type(file: bytes) -> str:
    """What a picture's file is, for a browser."""
    return _MEDIA_TYPES[file[:2]]


def kept_picture(trace: Mapping[str, Json], number: int) -> bytes | None:
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


def _decoded(urls: Iterator[str]) -> bytes | None:
    for url in urls:
        try:
            data = base64.b64decode(url.partition(",")[2], validate=True)
            with Image.open(io.BytesIO(data), formats=_SHOWN_FORMATS):
                return data
        except _FAILURES:
            continue
    return None


def _compared(made: _Made, trace: Mapping[str, Json]) -> tuple[ShownPicture, bytes]:
    """What can be said of a picture, and the file that is shown: the one that the trace keeps, if it does."""
    kept = kept_picture(trace, made.number)
    stored = _stored_facts(trace, made.number)
    file = made.sent.data if kept is None else kept
    sha256 = made.sent.sha256 if kept is None else hashlib.sha256(kept).hexdigest()
    pixels, stated_sent = stored.get("pixel_sha256"), mapping_of(stored.get("sent")).get("sha256")
    where, note = "replayed" if kept is None else "as kept in the trace", _versions_note(trace)
    if not isinstance(pixels, str) and not isinstance(stated_sent, str):
        match, detail = PictureMatch.UNSTATED, f"{where}; the trace keeps no hash to compare with"
    elif isinstance(pixels, str) and pixels != made.facts.pixel_sha256:
        match = PictureMatch.DIFFERS
        detail = f"{where}, but its pixels are others than the trace says{note}"
    elif isinstance(stated_sent, str) and stated_sent != sha256:
        match, detail = PictureMatch.DIFFERS, f"the same pixels, but the teacher was sent another file{note}"
    else:
        match, detail = PictureMatch.MATCHED, f"{where}: pixels and sent file are those of the trace"
    size, sent_size = (made.facts.width_px, made.facts.height_px), made.sent.size
    shown = ShownPicture(
        made.number, match, detail, size, made.facts.mode, sent_size, len(file), kept is not None
    )
    return shown, file


def _versions_note(trace: Mapping[str, Json]) -> str:
    """Which Pillow made the trace, where another one reads it: that may be all."""
    made_with = mapping_of(mapping_of(trace.get("metadata")).get("versions")).get("pillow")
    return (
        "" if made_with == PIL.__version__ else f"; made with Pillow {made_with}, this is {PIL.__version__}"
    )


def _left_out(number: int, reason: str, trace: Mapping[str, Json]) -> tuple[ShownPicture, bytes | None]:
    """What can be said of a picture that no replay makes: perhaps the trace keeps it."""
    kept = kept_picture(trace, number)
    if kept is None:
        return ShownPicture(number, PictureMatch.MISSING, reason), None
    with Image.open(io.BytesIO(kept)) as image:
        size = image.size
    stated = mapping_of(_stored_facts(trace, number).get("sent")).get("sha256")
    is_same = stated == hashlib.sha256(kept).hexdigest()
    match = PictureMatch.MATCHED if is_same else PictureMatch.DIFFERS
    match = match if isinstance(stated, str) else PictureMatch.UNSTATED
    detail = f"as kept in the trace; not replayed: {reason}"
    return ShownPicture(number, match, detail, None, None, size, len(kept), True), kept


def _stored_facts(trace: Mapping[str, Json], number: int) -> Mapping[str, Json]:
    if number == 0:
        return mapping_of(trace.get("image"))
    return mapping_of(trace_calls(trace)[number - 1].get("result"))


def _photo(sample: Sample, sent: SentPicture) -> _Made:
    stored = sample.picture
    return _Made(0, Scene.start(stored.picture), stored.facts, sent, stored)


def _full(made: _Made) -> bytes:
    """A picture in full resolution: a photo's own file where that can be, else a new one of its pixels."""
    if made.stored is not None and can_send_as_stored(made.stored):
        bare = without_metadata(made.stored.file_format, made.stored.data)
        if bare is not None:
            return bare
    with PIXEL_WORK:
        image = made.scene.current
        flat = to_rgb_or_grey(image, made.scene.grey_range if is_deep_grey(image) else None)
        if image.width * image.height <= _LOSSLESS_PIXELS:
            return _encoded(flat, "PNG", compress_level=1)
        return _encoded(flat, "JPEG", quality=95, subsampling=0)


def _thumbnail(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=_SHOWN_FORMATS) as image:
        image.draft("RGB", (2 * THUMB_PX, 2 * THUMB_PX))  # a JPEG is decoded no larger than is needed
        image.thumbnail((THUMB_PX, THUMB_PX))
        return _encoded(to_rgb_or_grey(image, None), "JPEG", quality=85)


def _encoded(image: Image.Image, file_format: str, **options: Json) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _local(dataset_path: Json) -> str:
    if not isinstance(dataset_path, str) or dataset_path.startswith(HUB):
        raise SourceError("the viewer asks no hub: say where the dataset is with --dataset_path PATH")
    return dataset_path


def _refuse_far(source: Source, sample_id: SampleId) -> None:
    if source.is_far(sample_id):
        raise SourceError("the picture lies at a URL, and the viewer asks no other machine for anything")


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise TraceError(f"replaying this trace takes longer than {_REPLAY_SECONDS:.0f} seconds")


def _check_rule(rule: ResizeRule) -> None:
    """Raise TraceError where a trace says that small pictures are sent enormous: no run does."""
    too_large = max(rule.min_side_px, rule.factor_px) > _SIDE_LIMIT_PX or rule.min_area_px > MAX_RESULT_PIXELS
    if too_large:
        raise TraceError("settings.view_rule makes pictures larger than any run does")


def _check_action(name: str, arguments: Mapping[str, Json], scene: Scene) -> None:
    problem = stored_box_problem(name, arguments, scene)
    if problem is not None:
        raise ToolError(f"the stored box {problem}")


def _check_area(size: Size, photo: Size) -> None:
    if size[0] * size[1] > max(MAX_RESULT_PIXELS, photo[0] * photo[1]):
        raise ToolError(f"it gives a picture of {size[0]}×{size[1]} pixels, more than any run allows")


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


def _as_ours(error: BaseException) -> DistilError:
    return error if isinstance(error, DistilError) else TraceError(_reason(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, DistilError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error_text(error)}".split())[:300]
