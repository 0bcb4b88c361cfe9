"""The tool registry: every tool that can be offered, one line each, by the name `--tools` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distil.errors import SampleError, ToolError, UsageError
from distil.pictures import ResizeRule, encode_sent, picture_facts
from distil.records import SUCCESS_MESSAGE, CropFrom, Json, Observation, RawCall, SentPicture, Size, ToolCall
from distil.tools.base import BoxFrame, Scene, SeenSizes, Tool
from distil.tools.python_code import Executor, PythonCodeTool
from distil.tools.rotate import RotateTool
from distil.tools.zoom import ZoomTool

TOOLS: dict[str, Callable[[Executor | None], Tool]] = {  # those of the user's own files by their full names
    "zoom": lambda _: ZoomTool(),
    "rotate": lambda _: RotateTool(),
    "python_code": PythonCodeTool,
}
_MAX_QUOTED_CHARS = 200


def all_tools(executor: Executor | None = None) -> tuple[Tool, ...]:
    """Every tool there is; the code tool runs code in `executor`."""
    return tuple(make(executor) for make in TOOLS.values())


def find_tool(name: str, executor: Executor | None = None) -> Tool | None:
    """The tool that calls of this name are of, or None."""
    return next((tool for tool in all_tools(executor) if tool.name == name), None)


def stored_box_problem(name: str, arguments: Mapping[str, Json], scene: Scene) -> str | None:
    """Why a stored box is none that a run stores, or None: it would crop what is not there, however large."""
    tool = find_tool(name)
    box = tool.box_of(arguments) if tool is not None else None
    if tool is None or box is None:
        return None
    width, height = (scene.photo if tool.works_on_photo(arguments) else scene.picture).size
    if 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height:
        return None
    return f"lies outside its picture of {width}×{height} pixels"


def load_tools(names: str, executor: Executor | None = None) -> tuple[Tool, ...]:
    """The tools named in a comma-separated list ("zoom,rotate"), or none for "none"; raises UsageError.

    The code tool runs code in `executor`; without one it can be offered but not applied.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["none"]:
        return ()
    unknown = [name for name in wanted if name not in TOOLS]
    if unknown or not wanted:
        raise UsageError(f"--tools {names!r}: known tools are {', '.join(TOOLS)} (or none)")
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"--tools {names!r} names a tool twice")
    return tuple(TOOLS[name](executor) for name in wanted)


def success_message(size: Size | None) -> str:
    """What a call that worked tells the teacher; it states the picture's size as sent where there is one."""
    if size is None:
        return SUCCESS_MESSAGE
    return f"{SUCCESS_MESSAGE}. The image is now {size[0]}×{size[1]} pixels (width × height)."


@dataclass(frozen=True)
class Toolbox:
    """The tools that one run offers, with how its teacher sees pictures and states boxes."""

    tools: tuple[Tool, ...]
    boxes: BoxFrame
    rule: ResizeRule
    states_size: bool = False

    def schemas(self) -> tuple[Mapping[str, Json], ...]:
        """The function schemas to offer, in the order of the tools."""
        return tuple(tool.schema(self.boxes) for tool in self.tools)

    def run(
        self, call: RawCall, scene: Scene, original: SentPicture, current: SentPicture
    ) -> tuple[ToolCall, Scene]:
        """Run one call of the teacher; a call that fails leaves the scene as it was.

        `original` and `current` are the scene's pictures as the teacher saw them.
        """
        seen = SeenSizes(scene, original.size, current.size)
        arguments: Mapping[str, Json] = {}
        try:
            if call.problem is not None:
                raise ToolError(call.problem)
            tool = self._find(call.name)
            resolved = tool.resolve(call.arguments, seen, self.boxes)
            arguments = resolved.arguments
            observation, scene = self.observe(tool.name, arguments, scene)
        except ToolError as error:
            failed = Observation(False, f"Error: {error}", stdout=error.stdout)
            return ToolCall(call, arguments, False, failed), scene
        return ToolCall(call, arguments, resolved.clamped, observation), scene

    def observe(self, name: str, arguments: Mapping[str, Json], scene: Scene) -> tuple[Observation, Scene]:
        """Apply resolved arguments: the one function that sampling and replay share; raises ToolError.

        The scenes rest afterwards: a picture of theirs that is not kept is made again when it is asked for.
        """
        tool, keeps_original = self._find(name), self.boxes.crop_from is CropFrom.ORIGINAL
        with tool.work:
            following = scene
            try:
                observation, following = self._observed(tool, arguments, scene)
            finally:
                following.rest(keeps_original)
                scene.let_go()
        return observation, following

    def _observed(self, tool: Tool, arguments: Mapping[str, Json], scene: Scene) -> tuple[Observation, Scene]:
        applied = tool.apply(arguments, scene)
        picture = applied.scene.current
        try:
            sent = encode_sent(picture, self.rule, grey_range=applied.scene.grey_range)
        except (SampleError, ValueError) as error:  # too long for JPEG, or a mode that has no way to RGB
            message = f"the result cannot be shown: {error}"
            raise ToolError(message, applied.stdout) from None
        message = success_message(sent.size if self.states_size else None)
        return Observation(True, message, picture_facts(picture), sent, applied.stdout), applied.scene

    def _find(self, name: str) -> Tool:
        for tool in self.tools:
            if tool.name == name:
                return tool
        offered = ", ".join(tool.name for tool in self.tools) or "none"
        raise ToolError(f"there is no tool called {name[:_MAX_QUOTED_CHARS]!r}; tools: {offered}")
