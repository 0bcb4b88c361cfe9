"""A trace replayed for an export: every picture made again, checked, and sized for the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from distil.commands.flags import FormFlags
from distil.errors import ToolError, TraceError
from distil.pictures import ResizeRule, encode_at, encode_sent, sent_size
from distil.records import Frame, Json, PictureFacts, SentPicture, Size, Student, ToolCall
from distil.replay.imported import imported_pictures, photo_of
from distil.source.rows import Source
from distil.store.trace_file import StoredTrace
from distil.tools.base import BoxFrame, Scene, SeenSizes
from distil.tools.python_code import Executor
from distil.tools.toolbox import find_tool

MAX_STUDENT_RATIO = 200  # of a picture's sides: the processors refuse more
# How the students' own processors size pictures (`preprocessor_config.json` of the checkpoints): what has
# such a size already stays as it is.
_STUDENT_RULES: Mapping[Student, ResizeRule] = {
    "qwen3-vl": ResizeRule(max_area_px=16_777_216, min_area_px=65_536, min_side_px=0, factor_px=32),
    "qwen2.5-vl": ResizeRule(max_area_px=12_845_056, min_area_px=3_136, min_side_px=0, factor_px=28),
}


@dataclass(frozen=True, slots=True)
class ShownCall:
    """A call of a trace as the student is shown it.

    `arguments` are None for a call that failed before it had any, the picture where none came of it.
    """

    stored: ToolCall
    arguments: Mapping[str, Json] | None
    picture: SentPicture | None = field(default=None, repr=False)
    sent_size: Size | None = None  # what the teacher saw of the picture


def student_rule(form: FormFlags) -> ResizeRule:
    """How the student's processor sizes a picture."""
    return _STUDENT_RULES[form.student]


def max_student_pixels(form: FormFlags) -> int:
    """What a picture may have for the student at most: more than that a trainer must not shrink."""
    limit = student_rule(form).max_area_px
    assert limit is not None
    return min(limit, form.image_max_pixels or limit)


def box_frame(trace: StoredTrace, form: FormFlags) -> BoxFrame:
    """How the student states boxes: of the same picture as the teacher did."""
    return BoxFrame(form.coordinates, trace.settings.crop_from)


def shown_calls(
    trace: StoredTrace, source: Source, executor: Executor | None, form: FormFlags
) -> tuple[SentPicture, list[ShownCall]]:
    """A trace replayed: its photo and its calls as the student is shown them.

    Raises TraceError where a picture is not the one that the teacher saw, SourceError where the row cannot be
    read, SandboxUnavailable where there is code but nothing to run it in.
    """
    if trace.is_imported:
        return _shown_as_imported(trace, source, form)
    sample, toolbox = source.load(trace.sample_id), trace.settings.toolbox(executor)
    if sample.picture.file_sha256 != trace.file_sha256:
        raise TraceError("its row holds another picture file now")
    _check_facts(sample.picture.facts, trace.facts, "the photo")
    scene = Scene.start(sample.picture.picture)
    sent = encode_sent(sample.picture.image, toolbox.rule, sample.picture)
    if trace.sent_sha256 not in (sent.sha256, trace.file_sha256):  # once the file went with all its metadata
        raise TraceError("the photo encodes to other bytes than the teacher got")
    photo = current = _sized(scene, sent, form)
    calls = []
    for number, call in enumerate(trace.calls, start=1):
        boxes, seen = box_frame(trace, form), SeenSizes(scene, photo.size, current.size)
        stored = call.observation
        if not stored.success:
            calls.append(ShownCall(call, _restated(call, seen, boxes) if call.arguments else None))
            continue
        try:
            observation, scene = toolbox.observe(call.raw.name, call.arguments, scene)
            arguments = _restated(call, seen, boxes)
        except ToolError as error:
            raise TraceError(f"call {number} cannot be replayed: {error}") from None
        _check_facts(observation.facts, stored.facts, f"the picture of call {number}")
        if observation.sent is None or stored.sent is None or observation.sent.sha256 != stored.sent.sha256:
            raise TraceError(f"the picture of call {number} encodes to other bytes than the teacher got")
        current = _sized(scene, observation.sent, form)
        scene.let_go()
        calls.append(ShownCall(call, arguments, current, observation.sent.size))
    return photo, calls


def _shown_as_imported(
    trace: StoredTrace, source: Source, form: FormFlags
) -> tuple[SentPicture, list[ShownCall]]:
    """An imported trace: calls as they came, but for boxes that are to stand in another frame."""
    sample = source.load(trace.sample_id)
    sent = photo_of(trace, sample)
    photo = current = _sized(Scene.start(sample.picture.picture), sent, form)
    made = {picture.number: picture for picture in imported_pictures(trace, sample)}
    calls, size_before = [], sent.size
    for number, call in enumerate(trace.calls, start=1):
        picture, arguments = made.get(number), None
        if has_box(call) and not _box_stays(trace, size_before, current.size, form):
            if picture is None or not picture.is_verified:
                raise TraceError(
                    f"the box of call {number} stays in its frame: it is imported, and no picture proves it"
                )
            seen = SeenSizes(picture.before, photo.size, current.size)
            arguments = _restated(call, seen, box_frame(trace, form))
        if picture is None:
            calls.append(ShownCall(call, arguments))
            continue
        current, size_before = _sized(picture.scene, picture.sent, form), picture.sent.size
        calls.append(ShownCall(call, arguments, current, picture.sent.size))
    return photo, calls


def has_box(call: ToolCall) -> bool:
    """Whether a call's arguments hold a box."""
    tool = find_tool(call.raw.name)
    return tool is not None and tool.box_of(call.raw.arguments) is not None


def _box_stays(trace: StoredTrace, sent: Size, exported: Size, form: FormFlags) -> bool:
    """Whether a box of a picture means the same in an export as it did where it was written."""
    is_same_frame = trace.settings.coordinates is form.coordinates
    return is_same_frame and (form.coordinates is not Frame.PIXEL or sent == exported)


def _check_facts(found: PictureFacts | None, stored: PictureFacts | None, what: str) -> None:
    if found != stored:
        raise TraceError(f"{what} has other pixels than the teacher saw")


def _restated(call: ToolCall, seen: SeenSizes, boxes: BoxFrame) -> Mapping[str, Json]:
    tool = find_tool(call.raw.name)
    return call.arguments if tool is None else tool.restate(call.arguments, seen, boxes)


def _sized(scene: Scene, sent: SentPicture, form: FormFlags) -> SentPicture:
    """The scene's current picture for the student: as sent, where it may stay so."""
    size = student_size(sent.size, form)
    if max(size) >= MAX_STUDENT_RATIO * min(size):
        raise TraceError(
            f"a picture of {size[0]}×{size[1]} pixels: the students' processors refuse sides of "
            f"{MAX_STUDENT_RATIO}:1 and more"
        )
    return sent if size == sent.size else encode_at(scene.current, size, scene.grey_range)


def student_size(sent: Size, form: FormFlags) -> Size:
    """The size of an exported picture, given that of the sent one.

    Boxes in pixels need the very size that the student's processor would make of it; for boxes in thousandths
    only what is too large is made smaller.
    """
    limit = form.image_max_pixels
    if form.coordinates is not Frame.PIXEL and (limit is None or sent[0] * sent[1] <= limit):
        return sent
    size = sent_size(sent, with_limit(student_rule(form), limit))
    if form.coordinates is Frame.PIXEL:
        _check_stays(size, form)
    return size


def _check_stays(size: Size, form: FormFlags) -> None:
    """Raise TraceError for a size that the student would not see as it is, so that pixels mean others."""
    fits = size[0] * size[1] <= max_student_pixels(form)
    if not fits or sent_size(size, student_rule(form)) != size:
        raise TraceError(
            f"the student's processor resizes a picture of {size[0]}×{size[1]} pixels, so boxes "
            f"would be wrong: --image_max_pixels {form.image_max_pixels} is too small for it"
        )


def with_limit(rule: ResizeRule, limit: int | None) -> ResizeRule:
    """The rule with no more pixels than `limit`."""
    if limit is None or rule.max_area_px is None:
        return rule
    return replace(rule, max_area_px=min(rule.max_area_px, limit), min_area_px=min(rule.min_area_px, limit))
