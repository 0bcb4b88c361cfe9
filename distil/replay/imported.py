"""The pictures of an imported trace: those that its calls give again, and those that it keeps."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from distil.errors import ToolError, TraceError, error_text
from distil.pictures import ResizeRule, encode_sent, picture_facts
from distil.records import Frame, Json, PictureFacts, Sample, SentPicture, ToolCall
from distil.store.trace_file import StoredTrace
from distil.tools.base import BoxFrame, Scene
from distil.tools.toolbox import Toolbox, all_tools, stored_box_problem

AS_IT_IS = ResizeRule(min_side_px=0)  # pictures keep the sizes in which they came
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png"}


@dataclass(frozen=True)
class ImportedPicture:
    """What came of a call: the picture as the conversation had it, and the scene that it is in.

    `before` is the scene that the call worked on.
    """

    number: int  # of the call, from 1
    sent: SentPicture = field(repr=False)
    before: Scene = field(repr=False)
    scene: Scene = field(repr=False)
    is_verified: bool


def tools_of_ours(frame: Frame) -> Toolbox:
    """The tools whose effect can be told from a picture: all but those that run code."""
    tools = tuple(tool for tool in all_tools() if not tool.runs_code)
    return Toolbox(tools, BoxFrame(frame), AS_IT_IS)


def photo_of(trace: StoredTrace, sample: Sample) -> SentPicture:
    """The photo as it is exported; raises TraceError where the row holds another one now."""
    if sample.picture.file_sha256 != trace.file_sha256:
        raise TraceError("its row holds another picture file now")
    sent = encode_sent(sample.picture.image, AS_IT_IS, sample.picture)
    if sent.sha256 != trace.sent_sha256 or sample.picture.facts != trace.facts:
        raise TraceError("the photo has other pixels, or encodes to other bytes, than when it was imported")
    return sent


def imported_pictures(trace: StoredTrace, sample: Sample) -> Iterator[ImportedPicture]:
    """The picture of each call that gave one; raises TraceError where one is not what the trace says."""
    toolbox = tools_of_ours(trace.settings.coordinates)
    scene = Scene.start(sample.picture.picture)
    for number, call in enumerate(trace.calls, start=1):
        stored = call.observation
        if stored.facts is None or stored.sent is None:
            continue
        entry = trace.json["tool_calls_log"][number - 1]
        before, made = scene, None
        if entry["verified"]:
            _check_box(call, scene, number)
            try:
                observation, scene = toolbox.observe(call.raw.name, call.arguments, scene)
            except ToolError as error:
                raise TraceError(f"call {number} cannot be replayed: {error}") from None
            _check(observation.facts, stored.facts, number)
            made = observation.sent
        sent = kept_picture(entry["picture"]) if "picture" in entry else made
        if sent is None or sent.sha256 != stored.sent.sha256:
            raise TraceError(f"the picture of call {number} is not the one that was imported")
        if not entry["verified"]:
            image = decoded(sent)
            _check(picture_facts(image), stored.facts, number)
            scene = scene.replaced(image)
        yield ImportedPicture(number, sent, before, scene, bool(entry["verified"]))


def _check_box(call: ToolCall, scene: Scene, number: int) -> None:
    problem = stored_box_problem(call.raw.name, call.arguments, scene)
    if problem is not None:
        raise TraceError(f"the stored box of call {number} {problem}")


def _check(found: PictureFacts | None, stored: PictureFacts, number: int) -> None:
    if found != stored:
        raise TraceError(f"the picture of call {number} has other pixels than when it was imported")


def kept_picture(url: Json) -> SentPicture:
    """A picture that stands in a trace as a data URL; raises TraceError."""
    try:
        return sent_of(base64.b64decode(str(url).partition(",")[2], validate=True))
    except (binascii.Error, ValueError) as error:
        raise TraceError(f"a picture cannot be read: {error}") from None


def sent_of(data: bytes) -> SentPicture:
    """A picture's file as what is shown of it; raises TraceError where it is neither JPEG nor PNG."""
    try:
        with Image.open(io.BytesIO(data), formats=list(_MEDIA_TYPES)) as image:
            image.load()
            kind, size = str(image.format), image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TraceError(f"it is no JPEG or PNG that can be read: {error_text(error)}") from None
    return SentPicture(_MEDIA_TYPES[kind], size, data, len(data), hashlib.sha256(data).hexdigest())


def decoded(sent: SentPicture) -> Image.Image:
    """The picture of a file."""
    image = Image.open(io.BytesIO(sent.data))
    image.load()
    return image
